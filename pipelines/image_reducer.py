"""Originals decoded once and kept, and the reduced images that a search asks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import reduction_arrays, window_arrays
from qrdali.pipelines.file_reader import FileReader, PendingRead, read_ahead
from qrdali.pipelines.loader import one_line_error, why_unreadable
from qrdali.reduction.quality import ReductionParams
from qrdali.reduction.view import view

_TOGETHER, _PIXELS = (
    8,
    16_000_000,
)  # files and pixels that a decoding pipeline reads at once, though at least one file


def open_image_reducer(index: Index, preprocessing: Preprocessing, engine: Engine) -> ImageReducer:
    """A maker of one split's images."""
    return (HostImageReducer if engine.host_ops else GraphImageReducer)(index, preprocessing, engine)


class _ImageReducer(ABC):
    def __init__(self, index: Index, preprocessing: Preprocessing, engine: Engine) -> None:
        self._index, self._preprocessing, self._engine = index, preprocessing, engine
        self._reader = FileReader(index)

    def decode(
        self,
        samples: Iterator[int],
        on_unreadable: Callable[[int, str], None],
        max_batch: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """See `Maker.originals`."""
        again: deque[list[int]] = deque()  # what was in flight when a file failed, less that file
        while True:
            flying: deque[list[int]] = deque()
            begun: deque[PendingRead[list[int]]] = deque()
            pipe = self._decoding(samples, again, flying, begun, max_batch or (lambda: _TOGETHER))
            try:
                while True:
                    (windows,) = pipe.run()
                    yield from [
                        (sample, self._take_image(windows, i)) for i, sample in enumerate(flying.popleft())
                    ]
            except StopIteration:
                return
            except RunError:  # the source's: no file's fault
                raise
            except RuntimeError as error:
                bad = {
                    sample: reason
                    for chunk in flying
                    for sample in chunk
                    if (reason := why_unreadable(self._index, sample))
                }
                if not bad:
                    raise RunError(one_line_error(error)) from None
                for sample, reason in bad.items():
                    on_unreadable(sample, reason)
                again = deque(
                    [
                        *(left for chunk in flying if (left := [s for s in chunk if s not in bad])),
                        *(chunk for chunk, _, _ in begun),
                        *again,
                    ]
                )

    def _decoding(
        self,
        samples: Iterator[int],
        again: deque[list[int]],
        flying: deque[list[int]],
        begun: deque[PendingRead[list[int]]],
        most: Callable[[], int],
    ) -> Any:
        """A pipeline that decodes `again`, then `samples`, and notes in `flying` what it has been given, in `begun` what is being read."""
        chunks: Iterator[list[int]] = iter(
            lambda: again.popleft() if again else self._chunk(samples, min(_TOGETHER, most())), []
        )
        stream = read_ahead(
            self._reader,
            chunks,
            lambda chunk: np.array(chunk, np.int64),
            begun,
            lambda: 2 * min(_TOGETHER, most()),
        )

        def emit() -> tuple[Any, ...]:
            chunk, files = next(stream)
            flying.append(chunk)
            sizes = self._index.sizes(np.array(chunk))
            return window_arrays(files, np.concatenate([np.zeros_like(sizes), sizes], axis=1))

        return graphs.decode_windows(
            emit, replace(self._engine, depth=2), _TOGETHER, self._reader.needs_bytes
        )

    def _chunk(self, samples: Iterator[int], most: int) -> list[int]:
        chunk, pixels = [], 0
        for sample in islice(samples, most):
            chunk.append(sample)
            pixels += int(self._index.sizes(np.array([sample])).prod())
            if pixels >= _PIXELS:
                break
        return chunk

    @abstractmethod
    def _take_image(self, windows: Any, i: int) -> Any:
        """Image `i` of a pipeline's output, in memory of its own."""


class HostImageReducer(_ImageReducer):
    """DALI decodes; `host.py` makes the reduced images in threads."""

    def __init__(self, index: Index, preprocessing: Preprocessing, engine: Engine) -> None:
        super().__init__(index, preprocessing, engine)
        self._pool = ThreadPoolExecutor(engine.threads, "make")

    def _take_image(self, windows: Any, i: int) -> npt.NDArray[np.uint8]:
        return np.array(windows[i])

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """See `Maker.inputs`."""
        pre = self._preprocessing
        images = torch.empty((len(pixels), pre.input_size, pre.input_size, 3))
        target, region = images.numpy(), view(reduction.size, pre.fit, pre.crop_share).region

        def one(i: int) -> None:
            host.prepare(_reduced(pixels[i], reduction, i), region[i], False, pre, target[i])

        list(self._pool.map(one, range(len(pixels))))
        return images.permute(0, 3, 1, 2)

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """See `Maker.pictures`."""
        return [np.ascontiguousarray(_reduced(p, reduction, i)) for i, p in enumerate(pixels)]


def _reduced(pixels: npt.NDArray[np.uint8], reduction: ReductionParams, i: int) -> npt.NDArray[np.uint8]:
    window = host.cut(pixels, reduction.window[i, :2], reduction.window[i, 2:])
    return host.reduce(window, reduction.size[i], int(reduction.bin_width[i]))


class GraphImageReducer(_ImageReducer):
    """Everything in DALI: on a GPU, or on a CPU where it is to be compared. Threads take turns."""

    def __init__(self, index: Index, preprocessing: Preprocessing, engine: Engine) -> None:
        super().__init__(index, preprocessing, engine)
        self._pipes: dict[
            bool, tuple[Any, int]
        ] = {}  # by whether they show the network's inputs; and their largest batch
        self._asked: tuple[Any, ...] = ()
        self._turn = Lock()  # a pipeline's outputs go when it is run again

    @property
    def _device(self) -> str:
        return "cpu" if self._engine.device_id is None else f"cuda:{self._engine.device_id}"

    def _copy(self, source: Any, target: torch.Tensor) -> torch.Tensor:
        stream = None if self._engine.device_id is None else torch.cuda.current_stream(self._engine.device_id)
        feed_ndarray(source, target, cuda_stream=stream)
        return target

    def _take_image(self, windows: Any, i: int) -> Any:
        if self._engine.device_id is None:
            return np.array(windows[i])
        image = windows[i]
        return self._copy(image, torch.empty(image.shape(), dtype=torch.uint8, device=self._device))

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """See `Maker.inputs`."""
        side = self._preprocessing.input_size
        target = torch.empty((len(pixels), side, side, 3), device=self._device)
        with self._turn:
            (images,) = self._run(True, pixels, reduction)
            return self._copy(images.as_tensor(), target).permute(0, 3, 1, 2)

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """See `Maker.pictures`."""
        with self._turn:
            (images,) = self._run(False, pixels, reduction)
            images = images.as_cpu()
            return [np.array(images[i]) for i in range(len(pixels))]

    def _run(self, seen: bool, pixels: list[Any], reduction: ReductionParams) -> Any:
        pipe, most = self._pipes.get(seen, (None, 0))
        if len(pixels) > most:
            most = len(pixels)
            pipe = graphs.reduce_decoded(
                lambda: self._asked, self._engine, most, self._preprocessing if seen else None
            )
            self._pipes[seen] = pipe, most
        pre = self._preprocessing
        self._asked = (
            pixels,
            *reduction_arrays(
                reduction.window[:, :2], reduction.window[:, 2:], reduction.size, reduction.bin_width
            ),
            view(reduction.size, pre.fit, pre.crop_share).region,
        )
        try:
            return pipe.run()
        except RuntimeError as error:
            raise RunError(one_line_error(error)) from None
