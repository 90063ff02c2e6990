"""Adaptive levels: one descent step for every training image, asked of the network or read from its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.data.index import Index
from qrdali.distributed import SINGLE_PROCESS, ProcessGroup
from qrdali.errors import OtherRankFailed, Unreadable
from qrdali.interfaces import BatchSource, CandidateBatch, CandidateRequest
from qrdali.reduction import neighbors
from qrdali.reduction.counter_rng import Purpose, uniform
from qrdali.reduction.levels import CHUNK, PerImageLevels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.png_entropy import entropy


@dataclass(frozen=True)
class DescentCounts:
    """images: those whose state changed. candidates: images the network was shown."""

    images: int
    candidates: int


def descend_by_probe(
    model: nn.Module,
    loader: BatchSource,
    index: Index,
    states: PerImageLevels,
    rule: DescentRule,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]],
    progress: Callable[[int, int], None],
    stop: Callable[[], None] = lambda: None,
    without: tuple[int, ...] = (),
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[PerImageLevels, DescentCounts]:
    """One step of every image of `index`, in evaluation mode; the model is left in the mode it was in.

    batch_size: candidates the network sees at once. `progress` hears (images, candidates) done; `stop` may raise.
    without: images that are not asked about and stay where they are. `ranks` take every world-th batch as it is, and all get the
    result of one process alone; Unreadable comes to all of them, with what each has found.
    """
    result = states.copy()
    columns = neighbors.column_dimensions(rule.dimensions, rule.windows)
    if not columns:
        return result, DescentCounts(0, 0)
    most = max(1, batch_size // len(columns))
    images, candidates, moves = 0, 0, [_no_moves()]

    def keep(part: _Moves) -> None:
        nonlocal images
        if group.is_single:
            result.assign(*part)
            images += len(part[0])
        else:
            moves.append(part)

    unreadable: dict[int, str] = {}
    failed = False
    try:
        candidates = group.run_interruptible(
            lambda check: _descend_on_this_rank(
                model,
                loader,
                index,
                states,
                rule,
                columns,
                most,
                autocast,
                progress,
                (stop, check),
                without,
                group,
                keep,
            )
        )
    except Unreadable as error:
        unreadable = error.reasons
    except OtherRankFailed:
        failed = True  # on another rank: what it could not read comes with the others' word
    found = {
        int(sample): reason for part in group.all_gather_object(unreadable) for sample, reason in part.items()
    }
    if found:
        raise Unreadable(found)
    if failed:
        raise OtherRankFailed("another process failed")
    if group.is_single:
        return result, DescentCounts(images, candidates)
    samples, levels, window = (np.concatenate(column) for column in zip(*moves, strict=True))
    for part in zip(
        group.all_gather(samples), group.all_gather(levels), group.all_gather(window), strict=True
    ):
        result.assign(*part)
        images += len(part[0])
    return result, DescentCounts(images, sum(group.all_gather_object(candidates)))


_Moves = tuple[
    npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int32]
]  # samples, their new levels and windows


def _no_moves() -> _Moves:
    return np.empty(0, np.int64), np.empty((0, 3), np.uint8), np.empty((0, 4), np.int32)


def _descend_on_this_rank(
    model: nn.Module,
    loader: BatchSource,
    index: Index,
    states: PerImageLevels,
    rule: DescentRule,
    dimensions: tuple[int, ...],
    most: int,
    autocast: Callable[[], AbstractContextManager[object]],
    progress: Callable[[int, int], None],
    checks: tuple[Callable[[], None], ...],
    without: tuple[int, ...],
    group: ProcessGroup,
    keep: Callable[[_Moves], None],
) -> int:
    """`keep` gets what moves in each of this rank's batches. Returns how many candidates the network was shown."""
    candidates = 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), ThreadPoolExecutor() as pool:
            pending: tuple[CandidateBatch, torch.Tensor, torch.Tensor] | None = None
            asked = _requests(index, states, rule, most, progress, without, group)
            stream = loader.candidates(asked, most, dimensions, rule.prefer == "entropy")
            for shown in _with_end(stream):
                # The network works on one batch while the choice among the one before is made.
                now = None if shown is None else (shown, *_classify(model, shown, index, autocast))
                if pending is not None:
                    keep(_accept(*pending, states, pool))
                    seen = int(pending[0].request.candidates.exists.sum())
                    candidates += seen
                    progress(len(pending[0].request.samples), seen)
                    for check in checks:
                        check()
                pending = now
    finally:
        model.train(training)
    return candidates


def _with_end(stream: Iterator[CandidateBatch]) -> Iterator[CandidateBatch | None]:
    yield from stream
    yield None


def _requests(
    index: Index,
    states: PerImageLevels,
    rule: DescentRule,
    most: int,
    progress: Callable[[int, int], None],
    without: tuple[int, ...],
    group: ProcessGroup,
) -> Iterator[CandidateRequest]:
    """The states that have a neighbour, `most` at a time, every world-th batch of them; the others count as done."""
    number = -1
    for start in range(0, len(index), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(index)))
        sizes = index.sizes(samples)
        levels = states.for_samples(samples)
        window = neighbors.window_of(levels, states.window_origins_or_zero(samples), sizes, rule.num_levels)
        after = neighbors.next_levels(levels, window, sizes, rule.num_levels)
        rows = np.flatnonzero(
            (after >= 0)[:, np.array(rule.dimensions)].any(axis=1) & ~np.isin(samples, without)
        )
        for first in range(0, len(rows), most):
            pick = rows[first : first + most]
            number += 1
            if number % group.world_size != group.rank:
                progress(len(pick), 0)
                continue
            yield CandidateRequest(
                samples[pick],
                window[pick],
                neighbors.neighbors_of(
                    levels[pick], window[pick], sizes[pick], rule.dimensions, rule.num_levels, rule.windows
                ),
            )
        progress(len(samples) - len(rows), 0)


def _classify(
    model: nn.Module,
    shown: CandidateBatch,
    index: Index,
    autocast: Callable[[], AbstractContextManager[object]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(correct bool, probability of the true class), each [K, N] on the images' device; 0 where nothing exists."""
    k, n = shown.images.shape[:2]
    exists = torch.from_numpy(np.ascontiguousarray(shown.request.candidates.exists.T)).to(shown.images.device)
    labels = torch.from_numpy(index.labels(shown.request.samples)).to(shown.images.device).expand(k, n)
    whole = bool(shown.request.candidates.exists.all())
    images = shown.images.flatten(0, 1) if whole else shown.images[exists]
    with autocast():
        logits = model(images.contiguous(memory_format=torch.channels_last))
    truth = labels[exists]
    right = torch.zeros((k, n), dtype=torch.bool, device=images.device)
    confidence = torch.zeros((k, n), device=images.device)
    right[exists] = logits.argmax(1) == truth
    confidence[exists] = logits.float().softmax(1).gather(1, truth[:, None])[:, 0]
    return right, confidence


def _accept(
    shown: CandidateBatch,
    right: torch.Tensor,
    confidence: torch.Tensor,
    states: PerImageLevels,
    pool: ThreadPoolExecutor,
) -> _Moves:
    """Accepts one neighbour of each state where one is right; returns those that move."""
    ask = shown.request
    acceptable = right.T.cpu().numpy() & ask.candidates.exists
    sizes: npt.NDArray[np.int64] | None = None
    if shown.reduced_images is not None:
        sizes = np.zeros(acceptable.shape, np.int64)
        rows, columns = np.nonzero(acceptable)
        sizes[rows, columns] = list(
            pool.map(
                lambda at: entropy(shown.reduced_images[at[1]][at[0]]),  # type: ignore[index]
                zip(rows.tolist(), columns.tolist(), strict=True),
            )
        )
    choice = neighbors.choose_neighbor(acceptable, confidence.T.cpu().numpy(), sizes)
    moved = choice >= 0
    levels, window = neighbors.accept_neighbor(
        states.for_samples(ask.samples), ask.window, ask.candidates, choice
    )
    return ask.samples[moved], levels[moved], window[moved]


def descend_by_feedback(
    index: Index, states: PerImageLevels, correct: npt.NDArray[np.uint8] | None, rule: DescentRule, seed: int
) -> tuple[PerImageLevels, DescentCounts]:
    """Feedback from training's own predictions, without a forward pass; qrdali's own, not the thesis'.

    correct: uint8 [N], 1 where the last R epoch of the stage classified the image correctly: it takes a step in the next
    dimension in turn. Elsewhere the last step is undone. None, before the first stage: every image takes a step.
    """
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
            rule.num_levels,
            partial(_online_anchors, seed, samples),
        )
        result.assign(samples, levels, window)
        result.steps[samples] = taken
        moved += int((taken != before).sum())
    return result, DescentCounts(moved, 0)


def _online_anchors(seed: int, samples: npt.NDArray[np.int64], step_number: int) -> npt.NDArray[np.float64]:
    """Returns where the window of an image's step number `step_number` lies, float64 [N, 2] in [0, 1)."""
    return uniform(seed, 0, samples, Purpose.ONLINE, step_number)[:, :2]
