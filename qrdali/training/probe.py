"""Adaptive levels: one descent step for every training image, decided by forward passes over candidates
("probe") or from training predictions ("online")."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.data.index import Index
from qrdali.distributed import ProcessGroup
from qrdali.errors import Interrupted, OtherRankFailed, Unreadable
from qrdali.interfaces import CandidateBatch, CandidateRequest, RunContext
from qrdali.reduction import neighbors
from qrdali.reduction.counter_rng import Purpose, uniform
from qrdali.reduction.levels import CHUNK, PerImageLevels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.png_entropy import entropy
from qrdali.system.device_copies import HostCopies, to_device
from qrdali.training.run_spec import Split

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class DescentCounts:
    """images: those whose state changed. candidates: images that the network was shown."""

    images: int
    candidates: int


@dataclass(frozen=True)
class ProbeOptions:
    """Says how a probe descends.

    batch_size: candidates that the network sees at once. excluded: images that are not probed and stay where
    they are."""

    rule: DescentRule
    batch_size: int
    excluded: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[int, ...]:
        """Returns the dimension that each of a state's K candidates moves."""
        return neighbors.column_dimensions(self.rule.dimensions, self.rule.windows)

    @property
    def max_batch(self) -> int:
        """Returns how many states are looked at together, each with K candidates."""
        return max(1, self.batch_size // len(self.columns))


class Moves(NamedTuple):
    """Holds states that move: samples int64 [N], their new levels uint8 [N, 3] and windows int32 [N, 4]."""

    samples: npt.NDArray[np.int64]
    levels: npt.NDArray[np.uint8]
    window: npt.NDArray[np.int32]

    @classmethod
    def none(cls) -> Moves:
        return cls(np.empty(0, np.int64), np.empty((0, 3), np.uint8), np.empty((0, 4), np.int32))


def descend_by_probe(
    model: nn.Module,
    split: Split,
    states: PerImageLevels,
    options: ProbeOptions,
    context: RunContext,
    report: Report,
) -> tuple[PerImageLevels, DescentCounts]:
    """Takes one step of every image of `split`, in evaluation mode; the model is left in the mode it was in.
    Collective.

    report: is called with (images, candidates) done. Each rank takes every world-th batch as it is, and all
    get the result of one process alone. Raises on all ranks Unreadable, with what each of them could not
    read, and Interrupted."""
    result = states.copy()
    if not options.columns:
        return result, DescentCounts(0, 0)
    group, images, candidates = context.group, 0, 0
    moves_of_this_rank = [Moves.none()]

    def keep(moves: Moves) -> None:
        nonlocal images
        if group.is_single:
            result.assign(*moves)  # at once: millions of images need no second copy
            images += len(moves.samples)
        else:
            moves_of_this_rank.append(moves)

    probe = _RankProbe(model, split, states, options, context, report)
    unreadable: dict[int, str] = {}
    other_failed = False
    try:
        candidates = group.run_interruptible(lambda check: probe.run(keep, check))
    except Unreadable as error:
        unreadable = error.reasons
    except OtherRankFailed:
        other_failed = True  # what that rank could not read comes with the exchange below
    reasons_by_rank = group.all_gather_object(unreadable)
    reasons = {int(sample): reason for part in reasons_by_rank for sample, reason in part.items()}
    if reasons:
        raise Unreadable(reasons)
    if other_failed:
        raise OtherRankFailed("another process failed")
    if group.is_single:
        return result, DescentCounts(images, candidates)
    columns = [np.concatenate(column) for column in zip(*moves_of_this_rank, strict=True)]
    columns_by_rank = [group.all_gather(column) for column in columns]
    for samples, levels, window in zip(*columns_by_rank, strict=True):
        result.assign(samples, levels, window)
        images += len(samples)
    candidates_by_rank = group.all_gather_object(candidates)
    return result, DescentCounts(images, sum(candidates_by_rank))


def candidate_requests(
    split: Split, states: PerImageLevels, options: ProbeOptions, report: Report, group: ProcessGroup
) -> Iterator[CandidateRequest]:
    """Yields the states that have a neighbour, `options.max_batch` at a time, every world-th batch of them.

    All others are reported as done.
    """
    index, rule, max_batch = split.index, options.rule, options.max_batch
    number = -1
    for start in range(0, len(index), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(index)))
        sizes = index.sizes(samples)
        levels = states.for_samples(samples)
        window = neighbors.window_of(levels, states.window_origins_or_zero(samples), sizes, rule.scale)
        after = neighbors.next_levels(levels, window, sizes, rule.scale)
        can_move = (after >= 0)[:, np.array(rule.dimensions)].any(axis=1)
        rows = np.flatnonzero(can_move & ~np.isin(samples, options.excluded))
        for first in range(0, len(rows), max_batch):
            pick = rows[first : first + max_batch]
            number += 1
            if number % group.world_size != group.rank:
                report(len(pick), 0)
                continue
            candidates = neighbors.neighbors_of(
                levels[pick], window[pick], sizes[pick], rule.dimensions, rule.scale, rule.windows
            )
            yield CandidateRequest(samples[pick], window[pick], candidates)
        report(len(samples) - len(rows), 0)


class _RankProbe:
    """Probes the states that fall to this rank."""

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        states: PerImageLevels,
        options: ProbeOptions,
        context: RunContext,
        report: Report,
    ) -> None:
        self.model, self.split, self.states, self.options = model, split, states, options
        self.context, self.report = context, report

    def run(self, keep: Callable[[Moves], None], check: Callable[[], None]) -> int:
        """Calls `keep` with what moves in each batch. Returns how many candidates the network was shown.

        check: is called after each batch and raises if another rank has failed. Raises Interrupted after a
        signal."""
        candidates, training = 0, self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), ThreadPoolExecutor() as pool:
                pending: _Classified | None = None
                for batch in self._batches():
                    # The network works on one batch while the choice among the one before is made.
                    classified = None if batch is None else self._classify(batch)
                    if pending is not None:
                        keep(self._accept(pending, pool))
                        request = pending.batch.request
                        shown = int(request.candidates.exists.sum())
                        candidates += shown
                        self.report(len(request.samples), shown)
                        if signum := self.context.stop():
                            raise Interrupted("stopped in a probe", signum)
                        check()
                    pending = classified
        finally:
            self.model.train(training)
        return candidates

    def _batches(self) -> Iterator[CandidateBatch | None]:
        """Yields this rank's batches, and None at the end, when the last one is still to be decided."""
        options = self.options
        requests = candidate_requests(self.split, self.states, options, self.report, self.context.group)
        yield from self.split.source.candidates(
            requests,
            options.max_batch,
            options.columns,
            options.rule.prefer == "entropy" and len(options.columns) > 1,
        )
        yield None

    def _classify(self, batch: CandidateBatch) -> _Classified:
        """Shows the candidates that exist to the network."""
        images, exists = batch.images.flatten(0, 1), batch.request.candidates.exists.T
        # Numbers of rows, made on the host: a mask on a GPU would wait to count them.
        rows = np.flatnonzero(exists)
        labels_of_rows = self.split.index.labels(batch.request.samples)[rows % exists.shape[1]]
        numbers = to_device(np.stack([rows, labels_of_rows]).astype(np.int64), images.device)
        # Picking copies the images: not where all exist.
        shown = images if exists.all() else _pick(images, numbers[0])
        with self.context.autocast():
            logits = self.model(shown.contiguous(memory_format=torch.channels_last))
        right = logits.argmax(1) == numbers[1]
        confidence = logits.float().softmax(1).gather(1, numbers[1][:, None])[:, 0]
        return _Classified(batch, HostCopies(right, confidence))

    def _accept(self, classified: _Classified, pool: ThreadPoolExecutor) -> Moves:
        """Accepts one neighbour of each state where one is right; returns those that move."""
        request, reduced_images = classified.batch.request, classified.batch.reduced_images
        exists = request.candidates.exists
        acceptable, confidence = np.zeros(exists.shape, np.bool_), np.zeros(exists.shape, np.float32)
        acceptable.T[exists.T], confidence.T[exists.T] = classified.answers.read()
        sizes: npt.NDArray[np.int64] | None = None
        if reduced_images is not None:
            sizes = np.zeros(acceptable.shape, np.int64)
            # Encoding takes longer than most networks: where one neighbour is right, nothing is compared.
            rows, columns = np.nonzero(acceptable & (acceptable.sum(axis=1, keepdims=True) > 1))
            images = [reduced_images[k][i] for i, k in zip(rows.tolist(), columns.tolist(), strict=True)]
            sizes[rows, columns] = list(pool.map(entropy, images))
        choice = neighbors.choose_neighbor(acceptable, confidence, sizes)
        moved = choice >= 0
        levels, window = neighbors.accept_neighbor(
            self.states.for_samples(request.samples), request.window, request.candidates, choice
        )
        return Moves(request.samples[moved], levels[moved], window[moved])


def _pick(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Returns the images `rows` int64 [M] of `images` [N, 3, S, S], channels last in memory, in one copy."""
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


class _Classified(NamedTuple):
    """Holds a batch under way. answers: right bool [M] and confidence (probability of the true class) float32
    [M] of the candidates that exist, column by column; they may not be computed yet."""

    batch: CandidateBatch
    answers: HostCopies


def descend_by_feedback(
    index: Index, states: PerImageLevels, correct: npt.NDArray[np.uint8] | None, rule: DescentRule, seed: int
) -> tuple[PerImageLevels, DescentCounts]:
    """Takes one step of every image from training's own predictions, without a forward pass; qrdali's own,
    not the thesis'.

    correct: uint8 [N], 1 where the last R epoch of the stage classified the image correctly: it takes a step
    in the next dimension in turn. Elsewhere the last step is undone. None, before the first stage: every
    image takes a step."""
    result = states.copy()
    assert result.steps is not None
    moved = 0
    for start in range(0, len(index), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(index)))
        before = result.steps[samples].astype(np.int64)
        right = np.ones(len(samples), np.bool_) if correct is None else correct[samples] == 1
        wanted = np.where(right, before + 1, np.maximum(before - 1, 0))
        levels, window, taken = neighbors.levels_after(
            wanted,
            index.sizes(samples),
            rule.dimensions,
            rule.scale,
            partial(_online_draws, seed, samples),
        )
        result.assign(samples, levels, window)
        result.steps[samples] = taken
        moved += int((taken != before).sum())
    return result, DescentCounts(moved, 0)


def _online_draws(seed: int, samples: npt.NDArray[np.int64], step_number: int) -> npt.NDArray[np.float64]:
    """Returns what the window of an image's step `step_number` is drawn by, float64 [N, 2] in [0, 1)."""
    return uniform(seed, 0, samples, Purpose.ONLINE, step_number)[:, :2]
