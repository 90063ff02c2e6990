"""Decodes originals once, and makes the reduced images of them that a search needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali.plugin.pytorch import feed_ndarray

from qrdali.data.index import Index
from qrdali.errors import RunError
from qrdali.interfaces import ImageReducer
from qrdali.models import Preprocessing
from qrdali.pipelines import graphs
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.axis_passes import square_inputs
from qrdali.pipelines.diagnose import one_line_error
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import decode_inputs
from qrdali.pipelines.file_reader import FileReader, Files
from qrdali.pipelines.graph_inputs import DecodedInputs, ImageInputs, pixel_reduction, window_bounds
from qrdali.pipelines.replay import ReplaySource, RestartablePipeline, run_with_replay
from qrdali.pipelines.undecodable import decode_once, raise_if_no_files_fault
from qrdali.reduction.network_view import view
from qrdali.reduction.quality import ReductionParams

# A chunk that a decoding pipeline takes at once: so many files, and no file more once it has so many pixels.
_CHUNK_FILES = 8
_CHUNK_PIXELS = 16_000_000
_MIN_BATCH = 256  # of a pipeline that reduces, which is built anew for more: what a search on a GPU asks for


def open_image_reducer(index: Index | None, preprocessing: Preprocessing, engine: Engine) -> ImageReducer:
    """Returns an image reducer of one split, or of no files, only for images in memory."""
    return (HostImageReducer if engine.host_ops else GraphImageReducer)(index, preprocessing, engine)


@dataclass(frozen=True)
class _Chunk:
    """Files that are decoded at once. samples: int64 [N]."""

    samples: npt.NDArray[np.int64]

    def select(self, mask: npt.NDArray[np.bool_]) -> _Chunk:
        return _Chunk(self.samples[mask])


class _ImageReducer(ABC):
    def __init__(self, index: Index | None, preprocessing: Preprocessing, engine: Engine) -> None:
        self._preprocessing = preprocessing
        self._engine = engine if index is None else engine.for_images(index)
        self._open_files = None if index is None else FileReader(index)

    @property
    def _reader(self) -> FileReader:
        assert self._open_files is not None, "a reducer without an index decodes nothing"
        return self._open_files

    def decode(
        self,
        samples: Iterator[int],
        on_unreadable: Callable[[int, str], None],
        max_batch: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """See `ImageReducer.decode`."""

        def chunk_files() -> int:
            return _CHUNK_FILES if max_batch is None else min(_CHUNK_FILES, max_batch())

        def report(unreadable: dict[int, str]) -> None:
            for sample, reason in unreadable.items():
                on_unreadable(sample, reason)

        decode_again = partial(decode_once, self._engine, self._reader.needs_bytes)
        source = ReplaySource(
            self._reader, self._to_inputs, decode_again, _Chunk.select, lambda: 2 * chunk_files()
        )
        pipeline = RestartablePipeline(
            lambda: graphs.decode_windows(
                source, replace(self._engine, depth=2), _CHUNK_FILES, self._reader.needs_bytes
            )
        )
        source.start(self._chunks(samples, chunk_files))
        pipeline.start()
        for chunk, (windows,) in run_with_replay(pipeline, source, report):
            yield from self._take_images(chunk, windows)

    def _chunks(self, samples: Iterator[int], chunk_files: Callable[[], int]) -> Iterator[_Chunk]:
        while numbers := self._next_chunk(samples, chunk_files()):
            yield _Chunk(np.array(numbers, np.int64))

    def _next_chunk(self, samples: Iterator[int], files: int) -> list[int]:
        chunk, pixels = [], 0
        for sample in islice(samples, files):
            chunk.append(sample)
            pixels += int(self._reader.index.sizes(np.array([sample])).prod())
            if pixels >= _CHUNK_PIXELS:
                break
        return chunk

    def _to_inputs(self, files: Files, chunk: _Chunk) -> Any:
        sizes = self._reader.index.sizes(chunk.samples)
        return decode_inputs(files, np.concatenate([np.zeros_like(sizes), sizes], axis=1))

    def _take_images(self, chunk: _Chunk, windows: Any) -> list[tuple[int, Any]]:
        try:
            return [(sample, self._take_image(windows, i)) for i, sample in enumerate(chunk.samples.tolist())]
        except (RuntimeError, MemoryError) as error:
            raise_if_no_files_fault(error)
            raise RunError(one_line_error(error)) from None

    @abstractmethod
    def _take_image(self, windows: Any, i: int) -> Any:
        """Returns image `i` of a pipeline's output, in memory of its own."""


class HostImageReducer(_ImageReducer):
    """Has DALI decode; `host_ops` makes the reduced images in threads."""

    def __init__(self, index: Index | None, preprocessing: Preprocessing, engine: Engine) -> None:
        super().__init__(index, preprocessing, engine)
        self._pool = ThreadPoolExecutor(engine.threads, "make")

    def _take_image(self, windows: Any, i: int) -> npt.NDArray[np.uint8]:
        return np.array(windows[i])

    def load(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """See `ImageReducer.load`."""
        return pixels

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """See `ImageReducer.network_inputs`."""
        preprocessing, side = self._preprocessing, self._preprocessing.input_size
        images = torch.empty((len(pixels), side, side, 3))
        target = images.numpy()
        seen = view(reduction.size, preprocessing)

        def make(i: int) -> None:
            host.prepare(_reduced(pixels[i], reduction, i), seen, i, preprocessing, target[i])

        list(self._pool.map(make, range(len(pixels))))
        return images.permute(0, 3, 1, 2)

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """See `ImageReducer.reduced_images`."""
        return [np.ascontiguousarray(_reduced(p, reduction, i)) for i, p in enumerate(pixels)]


def _reduced(pixels: npt.NDArray[np.uint8], reduction: ReductionParams, i: int) -> npt.NDArray[np.uint8]:
    window = host.cut(pixels, reduction.window[i, :2], reduction.window[i, 2:])
    return host.reduce(window, reduction.size[i], int(reduction.bin_width[i]))


class GraphImageReducer(_ImageReducer):
    """Makes everything in DALI: on a GPU, or on a CPU where it is to be compared. Threads take turns.

    On a GPU it has a CUDA stream of its own. Its originals are allocated, written and read on that stream
    alone, so that DALI need not wait for the network, which has the callers' stream. And DALI asks the driver
    for the context of the stream that its inputs come on: the default stream has none in a thread of a pool.
    """

    def __init__(self, index: Index | None, preprocessing: Preprocessing, engine: Engine) -> None:
        super().__init__(index, preprocessing, engine)
        # Pipelines with their largest batch, by whether they give the network's inputs or the reduced images.
        self._pipes: dict[bool, tuple[Any, int]] = {}
        self._inputs: DecodedInputs | None = None
        device_id = self._engine.device_id
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)
        self._turn = Lock()  # a pipeline's outputs go when it is run again

    @property
    def _device(self) -> str:
        return "cpu" if self._engine.device_id is None else f"cuda:{self._engine.device_id}"

    def _on_own_stream(self) -> AbstractContextManager[object]:
        """Makes the own stream the current one, and its GPU the current device: a pool's thread has GPU 0."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _copy(self, source: Any, target: torch.Tensor) -> torch.Tensor:
        stream = None if self._engine.device_id is None else torch.cuda.current_stream(self._engine.device_id)
        feed_ndarray(source, target, cuda_stream=stream)
        return target

    def _take_image(self, windows: Any, i: int) -> Any:
        if self._engine.device_id is None:
            return np.array(windows[i])
        image = windows[i]
        with self._on_own_stream():
            return self._copy(image, torch.empty(image.shape(), dtype=torch.uint8, device=self._device))

    def load(self, pixels: npt.NDArray[np.uint8]) -> Any:
        """See `ImageReducer.load`."""
        if self._engine.device_id is None:
            return pixels
        with self._on_own_stream():
            return torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device)

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """See `ImageReducer.network_inputs`."""
        side = self._preprocessing.input_size
        target = torch.empty((len(pixels), side, side, 3), device=self._device)
        with self._turn:
            with self._on_own_stream():
                (images,) = self._run(True, pixels, reduction)
            # On the caller's stream: the copy waits for DALI, and DALI's next run for the copy.
            return self._copy(images.as_tensor(), target).permute(0, 3, 1, 2)

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """See `ImageReducer.reduced_images`."""
        with self._turn, self._on_own_stream():
            (images,) = self._run(False, pixels, reduction)
            images = images.as_cpu()
            return [np.array(images[i]) for i in range(len(pixels))]

    def _run(self, for_network: bool, pixels: list[Any], reduction: ReductionParams) -> Any:
        preprocessing = self._preprocessing
        pipe, max_batch = self._pipes.get(for_network, (None, 0))
        if len(pixels) > max_batch:
            max_batch = max(_MIN_BATCH, len(pixels))
            pipe = graphs.reduce_decoded(
                lambda: self._inputs,
                self._engine,
                max_batch,
                preprocessing if for_network else None,
                self._stream,
            )
            self._pipes[for_network] = pipe, max_batch
        bounds, square = window_bounds(reduction.window), None
        if for_network:
            square = square_inputs(view(reduction.size, preprocessing), preprocessing)
        image = ImageInputs(
            window=bounds,
            reduction=pixel_reduction(bounds.shape, reduction.size, reduction.bin_width),
            square=square,
            region=None,
        )
        self._inputs = DecodedInputs(pixels, image)
        try:
            return pipe.run()
        except (RuntimeError, MemoryError) as error:
            raise_if_no_files_fault(error)
            raise RunError(one_line_error(error)) from None
