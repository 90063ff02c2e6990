"""Feeds a graph from a plan: path bytes, label, sample number and parameters, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.data.index import Index
from qrdali.interfaces import CandidateRequest
from qrdali.pipelines.file_reader import AHEAD, FileReader, Files
from qrdali.reduction.quality import CROP, ReductionParams
from qrdali.reduction.view import View, view
from qrdali.schedule.epoch_plan import EpochPlan


def reduction_arrays(
    start: npt.NDArray[np.int32],
    shape: npt.NDArray[np.int32],
    size: npt.NDArray[np.int32],
    d: npt.NDArray[np.int32],
) -> tuple[Any, ...]:
    """What the reductions of one batch need, in the order of `graphs.REDUCTION`."""
    power = d & (d - 1) == 0
    return (
        np.ascontiguousarray(start),
        np.ascontiguousarray(shape),
        size.astype(np.float32),
        (size != shape).any(axis=1),
        d.astype(np.float32),
        np.where(power, 256 - d, 0).astype(np.uint8),  # d = 1 is never masked
        (d // 2).astype(np.uint8),
        np.where(d == 1, 0, np.where(power, 1, 2)).astype(np.uint8),
    )


def candidate_arrays(
    paths: list[npt.NDArray[np.uint8]],
    ask: CandidateRequest,
    columns: tuple[int, ...],
    fit: str,
    crop_share: float,
) -> tuple[Any, ...]:
    """One batch of states in the order of `graphs.asked_inputs`: the window to decode, then each column's reduction."""
    window, found = ask.window, ask.candidates
    result: list[Any] = [paths, np.ascontiguousarray(window[:, :2]), np.ascontiguousarray(window[:, 2:])]
    for k, dimension in enumerate(columns):
        there = found.exists[:, k, None]
        # What does not exist costs one pixel.
        start = np.where(there, found.window[:, k, :2] - window[:, :2], 0).astype(np.int32)
        one = np.ones_like(start)
        shape, size = np.where(there, found.window[:, k, 2:], one), np.where(there, found.size[:, k], one)
        d = np.where(there[:, 0], found.bin_width[:, k], 1).astype(np.int32)
        values = reduction_arrays(start, shape, size, d)
        result += [*(values if dimension == CROP else values[2:]), view(size, fit, crop_share).region]
    return tuple(result)


@dataclass(frozen=True)
class PreparedBatch:
    """One batch's numbers: its own in the plan, samples, labels int64 [N], and what becomes of each image."""

    number: int
    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    reduction: ReductionParams
    seen: View


_PendingRead = tuple[
    int, "npt.NDArray[np.int64]", Callable[[], Files]
]  # a batch's number, its samples, and what waits for their files


class PlanSource:
    """A callable that DALI asks for one batch at a time. Set a plan before the pipeline is reset: DALI reads ahead.

    form: makes a graph's arrays of the paths and numbers of a batch. flying: the batches emitted and not yet taken off by
    whoever gets the graph's outputs, oldest first.
    """

    def __init__(
        self,
        index: Index,
        fit: str,
        crop_share: float,
        form: Callable[[list[npt.NDArray[np.uint8]], PreparedBatch], tuple[Any, ...]],
    ) -> None:
        self._index, self._fit, self._crop_share, self._to_graph_inputs = index, fit, crop_share, form
        self.reader = FileReader(index)
        self._pending_reads: deque[_PendingRead] = deque()
        self._batches: Iterator[tuple[Any, ...]] = iter(())
        self._numbers: Iterator[tuple[int, npt.NDArray[np.int64]]] = iter(())
        self.in_flight: deque[PreparedBatch] = deque()

    def start(self, plan: EpochPlan) -> None:
        self.in_flight.clear()
        self._pending_reads.clear()
        self._numbers = ((number, plan.batch(number)) for number in range(plan.first_batch, plan.batches))
        self._batches = self._emit(plan)

    def replay_without(self, plan: EpochPlan, without: Iterable[int]) -> None:
        """What is flying comes once more, less the samples `without`, and then the rest of the plan."""
        left = [
            (batch.number, batch.samples[~np.isin(batch.samples, list(without))]) for batch in self.in_flight
        ]
        left += [(number, samples) for number, samples, _ in self._pending_reads]
        self.in_flight.clear()
        self._pending_reads.clear()
        self._numbers = chain(left, self._numbers)
        self._batches = self._emit(plan)

    def stop(self) -> None:
        self._batches = iter(())

    def __call__(self) -> tuple[Any, ...]:
        return next(self._batches)

    def _emit(self, plan: EpochPlan) -> Iterator[tuple[Any, ...]]:
        for number, samples, files in self._read():
            reduction = plan.parameters(samples, self._index.sizes(samples))
            seen = plan.view(samples, reduction.size, self._fit, self._crop_share)
            prepared = PreparedBatch(number, samples, self._index.labels(samples), reduction, seen)
            self.in_flight.append(prepared)
            yield self._to_graph_inputs(files(), prepared)

    def _read(self) -> Iterator[_PendingRead]:
        """The batches that hold images; the files of the next ones are read meanwhile, where reading is not DALI's."""
        while True:
            while not self._pending_reads or (
                self.reader.needs_bytes and sum(len(samples) for _, samples, _ in self._pending_reads) < AHEAD
            ):
                number, samples = next(self._numbers, (0, None))
                if samples is None:
                    break
                if len(samples):
                    self._pending_reads.append((number, samples, self.reader.start_reading(samples)))
            if not self._pending_reads:
                return
            yield self._pending_reads.popleft()


def graph_arrays(paths: list[npt.NDArray[np.uint8]], batch: PreparedBatch) -> tuple[Any, ...]:
    """One batch in the order of `graphs.INPUTS`."""
    reduction = batch.reduction
    return (
        paths,
        batch.samples,
        *reduction_arrays(
            reduction.window[:, :2], reduction.window[:, 2:], reduction.size, reduction.bin_width
        ),
        batch.labels,
        batch.seen.region,
        batch.seen.flip.astype(np.int32),
    )


def window_arrays(paths: list[npt.NDArray[np.uint8]], window: npt.NDArray[np.int32]) -> tuple[Any, ...]:
    """One batch in the order of `graphs.WINDOW_INPUTS`: only the windows [N, 4] are wanted."""
    return paths, np.ascontiguousarray(window[:, :2]), np.ascontiguousarray(window[:, 2:])
