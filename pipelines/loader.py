"""Loads the images of a split: one DALI pipeline per split, one plan per epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali.plugin.pytorch import feed_ndarray

from qrdali.data.index import Index
from qrdali.errors import InputError
from qrdali.interfaces import Batch, BatchSource, CandidateBatch, CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import definitions_1, graphs, host_augment
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.batch_memory import BatchMemory
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import (
    PreparedBatch,
    candidate_inputs,
    decode_inputs,
    network_inputs,
    prepared_batches,
)
from qrdali.pipelines.file_reader import FileReader, Files
from qrdali.pipelines.replay import ReplaySource, RestartablePipeline, run_with_replay
from qrdali.pipelines.undecodable import decode_once
from qrdali.reduction.auto_augment import AUGMIX_ON_GPU
from qrdali.reduction.distortions import distort
from qrdali.reduction.names import DISTORTIONS
from qrdali.reduction.network_view import view
from qrdali.reduction.quality import CROP
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device_copies import to_device

Outputs = tuple[Any, ...]  # DALI tensor lists of one batch, one for each output of the graph


def open_loader(index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> BatchSource:
    """Returns a loader of one split. batch_size: the largest batch that a plan may ask for."""
    return (HostLoader if engine.host_ops else GraphLoader)(index, preprocessing, batch_size, engine)


class _Loader(ABC):
    """Implements the epochs of `BatchSource`; its subclasses make images of the graph's outputs."""

    def __init__(self, index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> None:
        self._index, self._preprocessing, self._engine = index, preprocessing, engine.for_images(index)
        self._reader = FileReader(index)
        self._decode = partial(decode_once, self._engine, self._reader.needs_bytes)
        to_inputs = partial(self._to_inputs, preprocessing=preprocessing)
        self._source = ReplaySource(self._reader, to_inputs, self._decode, PreparedBatch.select)
        self._batch_size, self._kind = batch_size, graphs.PLAIN
        # Neither holds this loader, so that the pipeline and its memory go as soon as the loader does.
        self._pipeline = RestartablePipeline(self._graph(self._source))

    @staticmethod
    @abstractmethod
    def _to_inputs(files: Files, batch: PreparedBatch, preprocessing: Preprocessing) -> Any:
        """Returns the graph's inputs."""

    @abstractmethod
    def _graph(self, source: ReplaySource[PreparedBatch]) -> Callable[[], Any]:
        """Returns a function that builds the pipeline of epochs."""

    @abstractmethod
    def _batches(self, outputs: Iterator[tuple[PreparedBatch, Outputs]]) -> Iterator[Batch]:
        """Yields the batches of an epoch."""

    def epoch(
        self, plan: EpochPlan, on_unreadable: Callable[[dict[int, str]], None] | None = None
    ) -> Iterator[Batch]:
        """See `BatchSource.epoch`. A second call abandons an epoch that was not read to its end."""
        if plan.samples != len(self._index):
            raise ValueError(
                f"the plan has {plan.samples} samples, {self._index.file} has {len(self._index)}"
            )
        self._settle()
        self._source.stop()
        self._pipeline.drain()
        distortions = tuple(name for name in DISTORTIONS if name in plan.levels.distortions)
        kind = graphs.GraphKind(plan.definitions, distortions, plan.policy, plan.erases)
        self._require_policy(kind)
        # A graph with more distortions serves: epochs at full quality between distorted ones need no other.
        fits = set(kind.distortions) <= set(self._kind.distortions)
        if kind._replace(distortions=()) != self._kind._replace(distortions=()) or not fits:
            self._kind = kind
            self._pipeline = RestartablePipeline(self._graph(self._source))
        batches = prepared_batches(plan, self._index, self._preprocessing, self._kind.distortions)
        self._source.start(batches)
        self._pipeline.start()
        return self._batches(run_with_replay(self._pipeline, self._source, on_unreadable))

    def _require_policy(self, kind: graphs.GraphKind) -> None:  # noqa: B027  most loaders can do all
        """Raises InputError for a policy whose pixels this loader cannot make."""

    def _settle(self) -> None:  # noqa: B027  most loaders leave nothing behind
        """Waits for whatever still reads the graph's outputs."""

    def _run_candidates(
        self,
        requests: Iterator[CandidateRequest],
        to_inputs: Callable[[Files, CandidateRequest], Any],
        graph: Callable[[ReplaySource[CandidateRequest]], Any],
    ) -> Iterator[tuple[CandidateRequest, Outputs]]:
        """Yields each request with the outputs of `graph`.

        Such passes are long and rare, so each builds a pipeline.
        """
        source = ReplaySource(self._reader, to_inputs, self._decode)
        pipeline = RestartablePipeline(lambda: graph(source))
        source.start(requests)
        pipeline.start()
        return run_with_replay(pipeline, source)


def _pixels(windows: Any, i: int) -> npt.NDArray[np.uint8]:
    """Returns image `i` of a graph's output as a view, which lasts as long as the output.

    DALI's `at` would copy, which takes a tenth of the time that a whole image does.
    """
    return np.asarray(windows[i])


class GraphLoader(_Loader):
    """Makes everything in one DALI graph: on a GPU, or on a CPU where it is to be compared."""

    _to_inputs = staticmethod(network_inputs)

    def _graph(self, source: ReplaySource[PreparedBatch]) -> Callable[[], Any]:
        return partial(
            graphs.network_input,
            source,
            self._engine,
            self._batch_size,
            self._preprocessing,
            self._reader.needs_bytes,
            self._kind,
        )

    def _require_policy(self, kind: graphs.GraphKind) -> None:
        if kind.policy is not None and kind.policy.kind == "augmix":
            raise InputError(f"auto_augment {AUGMIX_ON_GPU}")

    def _batches(self, outputs: Iterator[tuple[PreparedBatch, Outputs]]) -> Iterator[Batch]:
        for batch, (images, labels, samples) in outputs:
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
        """See `BatchSource.candidates`."""
        preprocessing, side, count = self._preprocessing, self._preprocessing.input_size, len(columns)

        def graph(source: ReplaySource[CandidateRequest]) -> Any:
            wanted = graphs.CandidateOutputs(columns, with_images)
            return graphs.candidates(
                source, self._engine, max_batch, preprocessing, wanted, self._reader.needs_bytes
            )

        def to_inputs(files: Files, request: CandidateRequest) -> Any:
            return candidate_inputs(files, request, columns, preprocessing)

        for request, outputs in self._run_candidates(requests, to_inputs, graph):
            images = torch.empty((count, len(request.samples), side, side, 3), device=self._device)
            for k in range(count):
                self._copy(outputs[k].as_tensor(), images[k])
            reduced_images = None
            if with_images:
                reduced_images = [
                    [np.array(column[i]) for i in range(len(request.samples))]
                    for column in (output.as_cpu() for output in outputs[count:])
                ]
            yield CandidateBatch(request, images.permute(0, 1, 4, 2, 3), reduced_images)

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
        # Labels and samples are made on the host. A blocking copy would wait for the step before.
        return to_device(result, self._device)


class HostLoader(_Loader):
    """Has DALI read and decode windows; `host_ops` reduces and prepares them in as many threads."""

    def __init__(self, index: Index, preprocessing: Preprocessing, batch_size: int, engine: Engine) -> None:
        super().__init__(index, preprocessing, batch_size, engine)
        self._pool = ThreadPoolExecutor(engine.threads, "prepare")
        self._working: list[Future[None]] = []

    @staticmethod
    def _to_inputs(files: Files, batch: PreparedBatch, preprocessing: Preprocessing) -> Any:
        return decode_inputs(files, batch.reduction.window)

    def _graph(self, source: ReplaySource[PreparedBatch]) -> Callable[[], Any]:
        return partial(
            graphs.decode_windows, source, self._engine, self._batch_size, self._reader.needs_bytes
        )

    def _batches(self, outputs: Iterator[tuple[PreparedBatch, Outputs]]) -> Iterator[Batch]:
        ahead: tuple[PreparedBatch, torch.Tensor] | None = None
        memory = BatchMemory()  # of this epoch: what waits for later goes with it
        # One batch is prepared while whoever iterates works on the one before.
        for batch, (windows,) in outputs:
            before, ahead = ahead, (batch, self._prepare(batch, windows, memory))
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

    def _prepare(self, batch: PreparedBatch, windows: Any, memory: BatchMemory) -> torch.Tensor:
        """Begins to write the network's inputs and returns where, float32 [N, S, S, 3].

        They are complete after `_settle`.
        """
        count, side = len(batch.samples), self._preprocessing.input_size
        preprocessing, reduction = self._preprocessing, batch.reduction
        seen, regions, augmentation = batch.seen, batch.regions_1, batch.augmentation
        images = memory.lend(count, side, side, 3)
        target = images.numpy()

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                image = host.reduce(_pixels(windows, i), reduction.size[i], int(reduction.bin_width[i]))
                if regions is None:
                    square = host.square(image, seen, i, preprocessing)
                else:
                    square = definitions_1.square(image, regions[i], preprocessing)
                square = distort(square, batch.distortions, i)
                flip = bool(seen.flip[i])
                if augmentation is None:
                    host.normalize(square, flip, preprocessing, target[i])
                    continue
                # Augmentation comes after the flip, as in torchvision's recipes.
                square = host_augment.augment(host.mirrored(square) if flip else square, augmentation, i)
                host.normalize(square, False, preprocessing, target[i])
                host_augment.erase(target[i], augmentation, i)

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
        """See `BatchSource.candidates`."""

        def graph(source: ReplaySource[CandidateRequest]) -> Any:
            return graphs.decode_windows(source, self._engine, max_batch, self._reader.needs_bytes)

        def to_inputs(files: Files, request: CandidateRequest) -> Any:
            return decode_inputs(files, request.window)

        self._settle()
        memory = BatchMemory()
        for request, (windows,) in self._run_candidates(requests, to_inputs, graph):
            yield self._candidate_batch(request, windows, columns, with_images, memory)

    def _candidate_batch(
        self,
        request: CandidateRequest,
        windows: Any,
        columns: tuple[int, ...],
        with_images: bool,
        memory: BatchMemory,
    ) -> CandidateBatch:
        preprocessing, candidates = self._preprocessing, request.candidates
        count, side = len(request.samples), preprocessing.input_size
        images = memory.lend(len(columns), count, side, side, 3)
        target = images.numpy()
        no_image = np.zeros((1, 1, 3), np.uint8)
        reduced_images = [[no_image] * count for _ in columns] if with_images else None
        # Candidates that do not exist have no size.
        seen = [view(np.maximum(1, candidates.size[:, k]), preprocessing) for k in range(len(columns))]

        def work(first: int, last: int) -> None:
            for i in range(first, last):
                decoded = _pixels(windows, i)
                for k, dimension in enumerate(columns):
                    if not candidates.exists[i, k]:
                        target[k, i] = 0
                        continue
                    image, size = decoded, candidates.size[i, k]
                    if dimension == CROP:
                        window = candidates.window[i, k]
                        image = host.cut(decoded, window[:2] - request.window[i, :2], window[2:])
                    image = host.reduce(image, size, int(candidates.bin_width[i, k]))
                    host.prepare(image, seen[k], i, preprocessing, target[k, i])
                    if reduced_images is not None:
                        reduced_images[k][i] = image.copy() if np.may_share_memory(image, decoded) else image

        self._spread(work, count)
        self._settle()
        return CandidateBatch(request, images.permute(0, 1, 4, 2, 3), reduced_images)
