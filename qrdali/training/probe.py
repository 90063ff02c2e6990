"""Adaptive levels: one descent step for every training image, asked of the network or read from its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.data.index import Index
from qrdali.distributed import ALONE, Ranks
from qrdali.errors import Elsewhere, Unreadable
from qrdali.interfaces import Ask, Loader, Shown
from qrdali.reduction import neighbors as descent
from qrdali.reduction.counter_rng import ONLINE, uniform
from qrdali.reduction.levels import CHUNK, PerImage
from qrdali.reduction.png_entropy import entropy


@dataclass(frozen=True)
class Descent:
    """What may move and how a neighbour is chosen. n: of the step 1/n. windows: 5 or 9. prefer: "confidence" or "entropy"."""

    moving: tuple[bool, bool, bool]
    n: int
    windows: int = 5
    prefer: str = "confidence"


@dataclass(frozen=True)
class Moved:
    """images: those whose state changed. candidates: images the network was shown."""

    images: int
    candidates: int


def candidates_at_once(device: torch.device, batch_size: int) -> int:
    """Candidates per forward pass: many on a GPU; on a CPU few, whose activations stay in its caches (SqueezeNet at 224 px
    took a third less time at 16 than at 64)."""
    return 2 * batch_size if device.type == "cuda" else 16


def step(model: nn.Module, loader: Loader, index: Index, states: PerImage, rule: Descent, batch_size: int,
         autocast: Callable[[], AbstractContextManager[object]], progress: Callable[[int, int], None],
         stop: Callable[[], None] = lambda: None, without: tuple[int, ...] = (), ranks: Ranks = ALONE) -> tuple[PerImage, Moved]:
    """One step of every image of `index`, in evaluation mode; the model is left in the mode it was in.

    batch_size: candidates the network sees at once. `progress` hears (images, candidates) done; `stop` may raise.
    without: images that are not asked about and stay where they are. `ranks` take every world-th batch as it is, and all get the
    result of one process alone; Unreadable comes to all of them, with what each has found.
    """
    result = states.writable()
    dimensions = descent.column_dimensions(rule.moving, rule.windows)
    if not dimensions:
        return result, Moved(0, 0)
    most = max(1, batch_size // len(dimensions))
    images, candidates, moves = 0, 0, [_none()]

    def keep(part: _Moves) -> None:
        nonlocal images
        if ranks.alone:
            result.put(*part)
            images += len(part[0])
        else:
            moves.append(part)

    unreadable: dict[int, str] = {}
    failed = False
    try:
        candidates = ranks.watched(lambda check: _own_part(model, loader, index, states, rule, dimensions, most, autocast, progress,
                                                           (stop, check), without, ranks, keep))
    except Unreadable as error:
        unreadable = error.reasons
    except Elsewhere:
        failed = True  # on another rank: what it could not read comes with the others' word
    found = {int(sample): reason for part in ranks.tell(unreadable) for sample, reason in part.items()}
    if found:
        raise Unreadable(found)
    if failed:
        raise Elsewhere("another process failed")
    if ranks.alone:
        return result, Moved(images, candidates)
    samples, levels, window = (np.concatenate(column) for column in zip(*moves, strict=True))
    for part in zip(ranks.gather(samples), ranks.gather(levels), ranks.gather(window), strict=True):
        result.put(*part)
        images += len(part[0])
    return result, Moved(images, sum(ranks.tell(candidates)))


_Moves = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], npt.NDArray[np.int32]]  # samples, their new levels and windows


def _none() -> _Moves:
    return np.empty(0, np.int64), np.empty((0, 3), np.uint8), np.empty((0, 4), np.int32)


def _own_part(model: nn.Module, loader: Loader, index: Index, states: PerImage, rule: Descent, dimensions: tuple[int, ...], most: int,
              autocast: Callable[[], AbstractContextManager[object]], progress: Callable[[int, int], None],
              checks: tuple[Callable[[], None], ...], without: tuple[int, ...], ranks: Ranks, keep: Callable[[_Moves], None]) -> int:
    """`keep` gets what moves in each of this rank's batches. Returns how many candidates the network was shown."""
    candidates = 0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), ThreadPoolExecutor() as pool:
            pending: tuple[Shown, torch.Tensor, torch.Tensor] | None = None
            asked = _asked(index, states, rule, most, progress, without, ranks)
            stream = loader.candidates(asked, most, dimensions, rule.prefer == "entropy")
            for shown in _with_end(stream):
                # The network works on one batch while the choice among the one before is made.
                now = None if shown is None else (shown, *_classified(model, shown, index, autocast))
                if pending is not None:
                    keep(_settle(*pending, states, pool))
                    seen = int(pending[0].ask.candidates.exists.sum())
                    candidates += seen
                    progress(len(pending[0].ask.samples), seen)
                    for check in checks:
                        check()
                pending = now
    finally:
        model.train(training)
    return candidates


def _with_end(stream: Iterator[Shown]) -> Iterator[Shown | None]:
    yield from stream
    yield None


def _asked(index: Index, states: PerImage, rule: Descent, most: int, progress: Callable[[int, int], None],
           without: tuple[int, ...], ranks: Ranks) -> Iterator[Ask]:
    """The states that have a neighbour, `most` at a time, every world-th batch of them; the others count as done."""
    number = -1
    for start in range(0, len(index), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(index)))
        sizes = index.sizes(samples)
        levels = states.of(samples)
        window = descent.window_of(levels, states.window_places(samples), sizes, rule.n)
        after = descent.next_levels(levels, window, sizes, rule.n)
        rows = np.flatnonzero((after >= 0)[:, np.array(rule.moving)].any(axis=1) & ~np.isin(samples, without))
        for first in range(0, len(rows), most):
            pick = rows[first:first + most]
            number += 1
            if number % ranks.world != ranks.rank:
                progress(len(pick), 0)
                continue
            yield Ask(samples[pick], window[pick],
                      descent.neighbours(levels[pick], window[pick], sizes[pick], rule.moving, rule.n, rule.windows))
        progress(len(samples) - len(rows), 0)


def _classified(model: nn.Module, shown: Shown, index: Index,
                autocast: Callable[[], AbstractContextManager[object]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(correct bool, probability of the true class), each [K, N] on the images' device; 0 where nothing exists."""
    k, n = shown.images.shape[:2]
    exists = torch.from_numpy(np.ascontiguousarray(shown.ask.candidates.exists.T)).to(shown.images.device)
    labels = torch.from_numpy(index.labels(shown.ask.samples)).to(shown.images.device).expand(k, n)
    whole = bool(shown.ask.candidates.exists.all())
    images = shown.images.flatten(0, 1) if whole else shown.images[exists]
    with autocast():
        logits = model(images.contiguous(memory_format=torch.channels_last))
    truth = labels[exists]
    right = torch.zeros((k, n), dtype=torch.bool, device=images.device)
    confidence = torch.zeros((k, n), device=images.device)
    right[exists] = logits.argmax(1) == truth
    confidence[exists] = logits.float().softmax(1).gather(1, truth[:, None])[:, 0]
    return right, confidence


def _settle(shown: Shown, right: torch.Tensor, confidence: torch.Tensor, states: PerImage, pool: ThreadPoolExecutor) -> _Moves:
    """Accepts one neighbour of each state where one is right; returns those that move."""
    ask = shown.ask
    acceptable = right.T.cpu().numpy() & ask.candidates.exists
    sizes: npt.NDArray[np.int64] | None = None
    if shown.pictures is not None:
        sizes = np.zeros(acceptable.shape, np.int64)
        rows, columns = np.nonzero(acceptable)
        sizes[rows, columns] = list(pool.map(lambda at: entropy(shown.pictures[at[1]][at[0]]),  # type: ignore[index]
                                             zip(rows.tolist(), columns.tolist(), strict=True)))
    choice = descent.choose(acceptable, confidence.T.cpu().numpy(), sizes)
    moved = choice >= 0
    levels, window = descent.accept(states.of(ask.samples), ask.window, ask.candidates, choice)
    return ask.samples[moved], levels[moved], window[moved]


def online_step(index: Index, states: PerImage, correct: npt.NDArray[np.uint8] | None, rule: Descent, seed: int) -> tuple[PerImage, Moved]:
    """Feedback from training's own predictions, without a forward pass; qrdali's own, not the thesis'.

    correct: uint8 [N], 1 where the last R epoch of the stage classified the image correctly: it takes a step in the next
    dimension in turn. Elsewhere the last step is undone. None, before the first stage: every image takes a step.
    """
    result = states.writable()
    assert result.steps is not None
    moved = 0
    for start in range(0, len(index), CHUNK):
        samples = np.arange(start, min(start + CHUNK, len(index)))
        before = result.steps[samples].astype(np.int64)
        right = np.ones(len(samples), np.bool_) if correct is None else correct[samples] == 1
        wanted = np.where(right, before + 1, np.maximum(before - 1, 0))
        levels, window, taken = descent.walked(
            wanted, index.sizes(samples), rule.moving, rule.n,
            lambda t, samples=samples: uniform(seed, 0, samples, ONLINE, t)[:, :2])  # type: ignore[misc]
        result.put(samples, levels, window)
        result.steps[samples] = taken
        moved += int((taken != before).sum())
    return result, Moved(moved, 0)
