"""The loaders: one DALI pipeline per split, one plan per epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali.plugin.pytorch import feed_ndarray

from qrdali.data import storage
from qrdali.data.index import Index
from qrdali.data.inspect import MAX_PIXELS, inspect_file, quiet_pillow
from qrdali.errors import RunError, Unreadable, printable
from qrdali.interfaces import Batch, BatchSource, CandidateBatch, CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import graphs
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import (
    PlanSource,
    PreparedBatch,
    candidate_arrays,
    graph_arrays,
    window_arrays,
)
from qrdali.pipelines.file_reader import read_ahead
from qrdali.reduction.quality import CROP
from qrdali.reduction.view import view
from qrdali.schedule.epoch_plan import EpochPlan

Samples = npt.NDArray[np.int64]


def open_loader(index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> BatchSource:
    """A loader of one split. `batch_size` is the largest batch a plan may ask for."""
    return (HostLoader if engine.host_ops else GraphLoader)(index, preprocessing, batch_size, engine)


class _Loader(ABC):
    """Implements `qrdali.interfaces.Loader`: the protocol of epochs, and what a failure means."""

    def __init__(self, index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> None:
        self._index, self._preprocessing, self._batch_size, self._engine = (
            index,
            preprocessing,
            batch_size,
            engine,
        )
        self._source = PlanSource(index, preprocessing.fit, preprocessing.crop_share, self._to_graph_inputs)
        self._reader = self._source.reader
        self._pipe: Any = None
        self._clean = True  # whether the last epoch was read to its end
        self._plan: EpochPlan | None = None
        self._on_unreadable: Callable[[dict[int, str]], None] | None = None

    @staticmethod
    @abstractmethod
    def _to_graph_inputs(paths: list[npt.NDArray[np.uint8]], batch: PreparedBatch) -> tuple[Any, ...]: ...

    @abstractmethod
    def _graph(self) -> Any: ...

    @abstractmethod
    def _batches(self) -> Iterator[Batch]: ...

    def epoch(
        self, plan: EpochPlan, on_unreadable: Callable[[dict[int, str]], None] | None = None
    ) -> Iterator[Batch]:
        """See `Loader.epoch`. A second call abandons an epoch that was not read to its end."""
        if plan.samples != len(self._index):
            raise ValueError(
                f"the plan has {plan.samples} samples, {self._index.file} has {len(self._index)}"
            )
        self._settle()
        if self._pipe is None:
            self._pipe = self._graph()
        elif not self._clean:
            self._drain()
        # The plan first, then the reset: the pipeline reads ahead from the moment it is reset.
        self._source.start(plan)
        self._plan, self._on_unreadable = plan, on_unreadable
        self._pipe.reset()
        self._clean = False
        return self._batches()

    def _run_batches(self) -> Iterator[tuple[PreparedBatch, tuple[Any, ...]]]:
        """Each batch's numbers and the graph's outputs, which last until the next is asked for."""
        while True:
            try:
                outputs = self._pipe.run()
            except StopIteration:
                self._clean = True
                return
            except RuntimeError as error:
                self._pipe, self._clean = None, True  # DALI's pipelines do not survive an error
                found = self._diagnose(error, (batch.samples for batch in self._source.in_flight))
                if self._on_unreadable is None or self._plan is None:
                    raise Unreadable(found) from None
                self._on_unreadable(found)
                self._source.replay_without(self._plan, found)
                self._pipe, self._clean = self._graph(), False
                continue
            yield self._source.in_flight.popleft(), outputs

    def _run_candidates(
        self, pipe: Any, flying: deque[CandidateRequest]
    ) -> Iterator[tuple[CandidateRequest, tuple[Any, ...]]]:
        """The same for a pass over states, whose pipeline is its own: such passes are long and rare."""
        while True:
            try:
                outputs = pipe.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise Unreadable(self._diagnose(error, (ask.samples for ask in flying))) from None
            yield flying.popleft(), outputs

    def _settle(self) -> None:  # noqa: B027  most loaders leave nothing behind
        """Waits for whatever still reads the graph's outputs."""

    def _drain(self) -> None:
        """Runs out what is in flight: DALI resets only a pipeline that has reached its end."""
        self._source.stop()
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._clean = True
        except RuntimeError:
            self._pipe, self._clean = self._graph(), True

    def _diagnose(self, error: RuntimeError, flying: Iterable[Samples]) -> dict[int, str]:
        """DALI's message seldom names the file: look at those in flight. Raises RunError if it is none of them."""
        if isinstance(error, RunError):  # the source's: no file's fault
            raise error from None
        every = (sample for samples in flying for sample in samples.tolist())
        found = {sample: reason for sample in every if (reason := why_unreadable(self._index, sample))}
        if not found:
            raise RunError(one_line_error(error)) from None
        return found


def why_unreadable(index: Index, sample: int) -> str | None:
    """Why an indexed image cannot be read any more, naming it, or None if it can."""
    number = np.array([sample])
    path = index.paths(number)[0]
    if not storage.exists(path):
        return (
            f"sample {sample}, {printable(path)}, is gone since it was indexed: restore it, say by --root OLD=NEW where it is now, "
            "or index again"
        )
    height, width = index.sizes(number)[0].tolist()
    quiet_pillow()
    found = inspect_file(path, verify=True, max_pixels=max(MAX_PIXELS, height * width))
    if found.reason:
        return f"sample {sample}, {printable(path)}, cannot be decoded: {found.reason}"
    size = found.width, found.height
    if size != (width, height):
        return f"sample {sample}, {printable(path)}, is {size[0]}x{size[1]} pixels, was indexed as {width}x{height}: index again"
    return None


def one_line_error(error: RuntimeError) -> str:
    """A pipeline's error on one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"the image pipeline failed: {printable(' '.join(lines)[:400])}"


def _pixels(windows: Any, i: int) -> npt.NDArray[np.uint8]:
    """Image `i` of a graph's output as a view, which lasts as long as the output: `at` would copy, a tenth of the time of a whole image."""
    return np.asarray(windows[i])


class GraphLoader(_Loader):
    """Everything in one DALI graph: on a GPU, or on a CPU where it is to be compared."""

    _to_graph_inputs = staticmethod(graph_arrays)

    def _graph(self) -> Any:
        return graphs.network_input(
            self._source, self._engine, self._batch_size, self._preprocessing, self._reader.needs_bytes
        )

    def _batches(self) -> Iterator[Batch]:
        for batch, (images, labels, samples) in self._run_batches():
            # HWC in memory seen as CHW is torch's channels_last: no transposition anywhere.
            yield Batch(
                self._tensor(images).permute(0, 3, 1, 2),
                self._tensor(labels),
                self._tensor(samples),
                batch.number,
            )

    def candidates(
        self,
        requests: Iterator[CandidateRequest],
        max_batch: int,
        columns: tuple[int, ...],
        with_images: bool,
    ) -> Iterator[CandidateBatch]:
        """See `Loader.candidates`."""
        flying: deque[CandidateRequest] = deque()
        pre, count = self._preprocessing, len(columns)
        stream = read_ahead(self._reader, requests, lambda ask: ask.samples, deque())

        def emit() -> tuple[Any, ...]:
            ask, files = next(stream)
            flying.append(ask)
            return candidate_arrays(files, ask, columns, pre.fit, pre.crop_share)

        pipe = graphs.candidates(
            emit, self._engine, max_batch, pre, columns, with_images, self._reader.needs_bytes
        )
        for ask, outputs in self._run_candidates(pipe, flying):
            images = torch.empty(
                (count, len(ask.samples), pre.input_size, pre.input_size, 3), device=self._device
            )
            for k in range(count):
                self._copy(outputs[k].as_tensor(), images[k])
            reduced = None
            if with_images:
                reduced = [
                    [np.array(out[i]) for i in range(len(ask.samples))]
                    for out in (o.as_cpu() for o in outputs[count:])
                ]
            yield CandidateBatch(ask, images.permute(0, 1, 4, 2, 3), reduced)

    @property
    def _device(self) -> str:
        return "cpu" if self._engine.device_id is None else f"cuda:{self._engine.device_id}"

    def _copy(self, source: Any, target: torch.Tensor) -> None:
        if self._engine.device_id is None:
            feed_ndarray(source, target)
        else:
            feed_ndarray(source, target, cuda_stream=torch.cuda.current_stream(self._engine.device_id))

    def _tensor(self, output: Any) -> torch.Tensor:
        tensor = output.as_tensor()
        dtype = torch.float32 if tensor.dtype.name == "FLOAT" else torch.int64
        on_gpu = type(tensor).__name__.endswith("GPU")
        result = torch.empty(tensor.shape(), dtype=dtype, device=self._device if on_gpu else "cpu")
        if on_gpu:
            self._copy(tensor, result)
            return result
        feed_ndarray(tensor, result)
        # Labels and samples are made on the host; pinned memory would not pay for a few hundred bytes.
        return result.to(self._device)


class HostLoader(_Loader):
    """DALI reads and decodes windows; `host.py` reduces and prepares them in as many threads."""

    def __init__(self, index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> None:
        super().__init__(index, preprocessing, batch_size, engine)
        self._pool = ThreadPoolExecutor(engine.threads, "prepare")
        self._working: list[Future[None]] = []

    @staticmethod
    def _to_graph_inputs(paths: list[npt.NDArray[np.uint8]], batch: PreparedBatch) -> tuple[Any, ...]:
        return window_arrays(paths, batch.reduction.window)

    def _graph(self) -> Any:
        return graphs.decode_windows(self._source, self._engine, self._batch_size, self._reader.needs_bytes)

    def _batches(self) -> Iterator[Batch]:
        ahead: tuple[PreparedBatch, torch.Tensor] | None = None
        # One batch is prepared while whoever asked works on the one before.
        for batch, (windows,) in self._run_batches():
            before, ahead = ahead, (batch, self._prepare(batch, windows))
            if before is not None:
                yield self._batch(*before)
            self._settle()
        if ahead is not None:
            yield self._batch(*ahead)

    def _settle(self) -> None:
        working, self._working = self._working, []
        wait(working)
        for future in working:
            future.result()

    def _prepare(self, batch: PreparedBatch, windows: Any) -> torch.Tensor:
        count, pre, seen = len(batch.samples), self._preprocessing, batch.seen
        images = torch.empty((count, pre.input_size, pre.input_size, 3))
        target = images.numpy()

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                image = host.reduce(
                    _pixels(windows, i), batch.reduction.size[i], int(batch.reduction.bin_width[i])
                )
                host.prepare(image, seen.region[i], bool(seen.flip[i]), pre, target[i])

        self._spread(work, count)
        return images

    def _spread(self, work: Callable[[int, int], None], count: int) -> None:
        """Begins `work(first, last)` over 0..count-1, a part for each thread; `_settle` waits for it."""
        threads = self._engine.threads
        edges = [count * i // threads for i in range(threads + 1)]
        self._working = [self._pool.submit(work, a, b) for a, b in pairwise(edges) if a < b]

    @staticmethod
    def _batch(batch: PreparedBatch, images: torch.Tensor) -> Batch:
        return Batch(
            images.permute(0, 3, 1, 2),
            torch.from_numpy(batch.labels),
            torch.from_numpy(batch.samples),
            batch.number,
        )

    def candidates(
        self,
        requests: Iterator[CandidateRequest],
        max_batch: int,
        columns: tuple[int, ...],
        with_images: bool,
    ) -> Iterator[CandidateBatch]:
        """See `Loader.candidates`."""
        flying: deque[CandidateRequest] = deque()
        stream = read_ahead(self._reader, requests, lambda ask: ask.samples, deque())

        def emit() -> tuple[Any, ...]:
            ask, files = next(stream)
            flying.append(ask)
            return window_arrays(files, ask.window)

        self._settle()
        for ask, (windows,) in self._run_candidates(
            graphs.decode_windows(emit, self._engine, max_batch, self._reader.needs_bytes), flying
        ):
            yield self._candidate_batch(ask, windows, columns, with_images)

    def _candidate_batch(
        self, ask: CandidateRequest, windows: Any, columns: tuple[int, ...], pictures: bool
    ) -> CandidateBatch:
        pre, found = self._preprocessing, ask.candidates
        count, side = len(ask.samples), pre.input_size
        images = torch.zeros((len(columns), count, side, side, 3))
        target = images.numpy()
        none = np.zeros((1, 1, 3), np.uint8)
        reduced = [[none] * count for _ in columns] if pictures else None

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                decoded = _pixels(windows, i)
                for k, dimension in enumerate(columns):
                    if not found.exists[i, k]:
                        continue
                    own = found.window[i, k]
                    image = (
                        host.cut(decoded, own[:2] - ask.window[i, :2], own[2:])
                        if dimension == CROP
                        else decoded
                    )
                    image = host.reduce(image, found.size[i, k], int(found.bin_width[i, k]))
                    region = view(found.size[i, k][None], pre.fit, pre.crop_share).region[0]
                    host.prepare(image, region, False, pre, target[k, i])
                    if reduced is not None:
                        reduced[k][i] = image.copy() if np.may_share_memory(image, decoded) else image

        self._spread(work, count)
        self._settle()
        return CandidateBatch(ask, images.permute(0, 1, 4, 2, 3), reduced)
