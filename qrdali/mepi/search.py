"""Minimal-entropy positive images: how far an image can be reduced and still be classified correctly.

Images advance together, so that every forward pass is a full batch of candidates from many of them. `Search.finished` takes
journeys as they arrive, keeps no more originals than its memory allows, and gives them back in the order in which they end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.errors import InputError
from qrdali.interfaces import ImageReducer
from qrdali.reduction import neighbors
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.png_entropy import entropy_within
from qrdali.reduction.quality import RESOLUTION, ReductionParams, bin_width, scaled_size


class ReductionState(NamedTuple):
    """Where a search stands with one image: a level per dimension, and the top left corner of its window in pixels."""

    color: int
    crop: int
    resolution: int
    top: int
    left: int


FULL_STATE = ReductionState(0, 0, 0, 0, 0)
_NEVER_BEST = 1 << 62  # bytes of a candidate whose encoding was given up


@dataclass(frozen=True)
class SearchRule:
    """What is searched. descent: what may move, the step, candidate windows and preference. exhaustive: try every level of
    the one dimension that moves (color or resolution) instead of descending. Raises InputError where that cannot be."""

    descent: DescentRule
    exhaustive: bool = False

    def __post_init__(self) -> None:
        if self.exhaustive and (sum(self.descent.dimensions) != 1 or self.descent.dimensions.crop):
            raise InputError(
                "--search exhaustive is for color and resolution: other reductions have too many states"
            )


@dataclass(eq=False)
class SearchPath:
    """An image on its way. size: upright height and width. path: the states accepted after full quality, the last is where
    it stands. confidence: the true class's probability there. struck: states it must not enter. known: it is right at full
    quality. evaluations: images the network was shown for it."""

    sample: int
    label: int
    pixels: Any
    size: tuple[int, int]
    path: list[ReductionState] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)  # at full quality, then of each state of the path
    forbidden: set[ReductionState] = field(default_factory=set)
    evaluations: int = 0
    is_correct: bool = True  # at full quality, as far as is known
    # The candidates in hand, and what the network said of them.
    _candidates: neighbors.Candidates | None = None
    _correct: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    _confidence: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    _unanswered: int = 0

    @property
    def state(self) -> ReductionState:
        return self.path[-1] if self.path else FULL_STATE

    def backtrack(self) -> bool:
        """Back to the parent, never to return to this state; False at full quality, which has none."""
        if not self.path:
            return False
        self.forbidden.add(self.path.pop())
        self.confidence.pop()
        return True


def params_of_states(
    states: list[ReductionState] | npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], num_levels: int
) -> ReductionParams:
    """The integers of `states` [N, 5], one for each of `sizes` [N, 2] (upright height, width)."""
    values = np.asarray(states, np.int64).reshape(-1, 5)
    levels = values[:, :3].astype(np.uint8)
    window = neighbors.window_of(levels, values[:, 3:].astype(np.int32), sizes, num_levels)
    return ReductionParams(
        window.astype(np.int32),
        scaled_size(window[:, 2:], levels[:, RESOLUTION], num_levels),
        bin_width(levels[:, 0], num_levels),
    )


class Search:
    """The search of one reduction. `batch_size`: candidates of a forward pass. `memory`: bytes of originals kept, though
    always at least one. `model` is on the maker's device and is put into evaluation mode."""

    def __init__(
        self,
        model: nn.Module,
        maker: ImageReducer,
        rule: SearchRule,
        batch_size: int,
        memory: int,
        threads: int,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model, self.reducer, self.rule = model.eval(), maker, rule
        self.batch_size, self.memory, self.autocast = batch_size, memory, autocast
        self._pool = ThreadPoolExecutor(threads, "entropy")
        self._queue: deque[tuple[SearchPath, int]] = deque()
        self._ended: deque[SearchPath] = deque()
        self._original_bytes = 0  # bytes of the originals under way

    def finished(
        self, arriving: Iterator[SearchPath], check: Callable[[], None] = lambda: None
    ) -> Iterator[SearchPath]:
        """Each journey when it has ended: at its MEPI, or with `right` False if it is wrong at full quality. `check` is called
        at every batch and may raise."""
        flying: tuple[list[tuple[SearchPath, int]], torch.Tensor, torch.Tensor] | None = None
        more = True
        while True:
            while (
                more
                and len(self._queue) < self.batch_size
                and (self._original_bytes < self.memory or not self._original_bytes)
            ):
                journey = next(arriving, None)
                if journey is None:
                    more = False
                    break
                self._original_bytes += _bytes(journey.pixels)
                self._start(journey)
            # The network works on one batch while the choices after the one before are made.
            # What does not fill a batch waits for those in the air, whose next candidates may fill it.
            ready = len(self._queue) >= self.batch_size or flying is None
            batch = (
                [self._queue.popleft() for _ in range(min(self.batch_size, len(self._queue)))]
                if ready
                else []
            )
            before, flying = flying, self._classify(batch) if batch else None
            check()
            if before is not None:
                self._record_answers(*before)
            while self._ended:
                journey = self._ended.popleft()
                self._original_bytes -= _bytes(journey.pixels)
                yield journey
            if flying is None and not self._queue and not more:
                return

    def _queue_neighbors(self, journeys: list[SearchPath]) -> None:
        """Queues what each journey is to be asked next, or ends it."""
        num_levels, dimensions = self.rule.descent.num_levels, self.rule.descent.dimensions
        sizes = np.array([j.size for j in journeys], np.int32)
        states = np.array([j.state for j in journeys], np.int64)
        levels = states[:, :3].astype(np.uint8)
        window = neighbors.window_of(levels, states[:, 3:].astype(np.int32), sizes, num_levels)
        if self.rule.exhaustive:
            found = _every_level(levels, window, sizes, dimensions.index(True), num_levels)
        else:
            found = neighbors.neighbors_of(
                levels, window, sizes, dimensions, num_levels, self.rule.descent.windows
            )
        for i, journey in enumerate(journeys):
            asked = neighbors.Candidates(
                found.exists[i][None].copy(),
                found.levels[i][None],
                found.window[i][None],
                found.size[i][None],
                found.bin_width[i][None],
            )
            for column in np.flatnonzero(asked.exists[0]).tolist() if journey.forbidden else ():
                asked.exists[0, column] = _state(asked, column) not in journey.forbidden
            self._enqueue(journey, asked)

    def _enqueue(self, journey: SearchPath, asked: neighbors.Candidates) -> None:
        columns = np.flatnonzero(asked.exists[0]).tolist()
        if not columns:
            self._ended.append(journey)
            return
        journey._candidates, journey._unanswered = asked, len(columns)
        journey._correct, journey._confidence = (
            np.zeros(asked.exists.shape[1], np.bool_),
            np.zeros(asked.exists.shape[1]),
        )
        # Those under way before those that arrive: images end early, and few are kept at a time.
        (self._queue.extendleft if journey.confidence else self._queue.extend)(
            [(journey, column) for column in reversed(columns)]
        )

    def _start(self, journey: SearchPath) -> None:
        """Asks about full quality first; a journey that is known to be right there goes on from where it stands."""
        if journey.confidence:
            self._queue_neighbors([journey])
            return
        whole = np.array([[0, 0, *journey.size]], np.int32)
        self._enqueue(
            journey,
            neighbors.Candidates(
                np.ones((1, 1), np.bool_),
                np.zeros((1, 1, 3), np.uint8),
                whole[None],
                whole[None, :, 2:],
                np.ones((1, 1), np.int32),
            ),
        )

    def _classify(
        self, batch: list[tuple[SearchPath, int]]
    ) -> tuple[list[tuple[SearchPath, int]], torch.Tensor, torch.Tensor]:
        """The batch, whether the network is right about each, and the true class's probability; not waited for."""
        with torch.inference_mode():
            images = self.reducer.network_inputs([j.pixels for j, _ in batch], _reduction(batch))
            truth = torch.tensor([j.label for j, _ in batch], device=images.device)
            if missing := self.batch_size - len(batch):
                # Always of one size: libraries choose their arithmetic by it, and a search that was stopped must end the same.
                images = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
                if images.ndim == 4:
                    images = images.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                logits = self.model(images)[: len(batch)]
            sure = logits.float().softmax(1).gather(1, truth[:, None])[:, 0]
            return batch, logits.argmax(1) == truth, sure

    def _record_answers(
        self, batch: list[tuple[SearchPath, int]], right: torch.Tensor, sure: torch.Tensor
    ) -> None:
        going, again = [], []
        for (journey, column), good, value in zip(batch, right.tolist(), sure.tolist(), strict=True):
            journey._correct[column], journey._confidence[column] = good, value
            journey.evaluations += 1
            journey._unanswered -= 1
            if journey._unanswered:
                continue
            if journey.confidence:
                going.append(journey)
            elif good:
                journey.confidence.append(value)
                again.append(journey)
            else:
                journey.is_correct = False
                self._ended.append(journey)
        if going:
            again += self._advance(going)
        if again:
            self._queue_neighbors(again)

    def _advance(self, journeys: list[SearchPath]) -> list[SearchPath]:
        """Moves each to one of its candidates and returns those that go on; the others end."""
        good, sure = np.stack([j._correct for j in journeys]), np.stack([j._confidence for j in journeys])
        bytes_ = None
        if self.rule.exhaustive or self.rule.descent.prefer == "entropy":
            bytes_ = np.stack(list(self._pool.map(self._entropies, journeys)))
        going = []
        for journey, column in zip(
            journeys, neighbors.choose_neighbor(good, sure, bytes_).tolist(), strict=True
        ):
            assert journey._candidates is not None
            if column >= 0 and (state := _state(journey._candidates, column)) != FULL_STATE:
                journey.path.append(state)
                journey.confidence.append(float(journey._confidence[column]))
            if column < 0 or self.rule.exhaustive:
                self._ended.append(journey)
            else:
                going.append(journey)
        return going

    def _entropies(self, journey: SearchPath) -> npt.NDArray[np.int64]:
        """PNG bytes of the candidates that are right, int64 [K]; elsewhere, and where a smaller one is known, anything more.

        Encoding is most of the cost, and two bounds that are exact spare some: where one candidate is right nothing needs
        to be compared, and no encoding goes on beyond the bytes of the smallest so far.
        """
        found = journey._candidates
        assert found is not None
        result = np.full(len(journey._correct), _NEVER_BEST, np.int64)
        columns = np.flatnonzero(journey._correct)
        if len(columns) < 2:
            result[columns] = 0
            return result
        # Those with few pixels and values first: they are likely the smallest.
        weight = found.size[0, columns].prod(axis=1) * (8 - np.log2(found.bin_width[0, columns]))
        best = _NEVER_BEST
        for column in columns[np.argsort(weight, kind="stable")].tolist():
            picture = self.reducer.reduced_images([journey.pixels], _reduction([(journey, column)]))[0]
            size = entropy_within(picture, best)
            if size is not None:
                result[column] = best = size
        return result


def _every_level(
    levels: npt.NDArray[np.uint8],
    window: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    dimension: int,
    num_levels: int,
) -> neighbors.Candidates:
    """Every level of one dimension (not crop) from full quality, columns 0 to n - 1; dead ones do not exist."""
    count = len(levels)
    exists = np.zeros((count, num_levels), np.bool_)
    exists[:, 0] = True
    at = np.zeros_like(levels)
    while len(
        rows := np.flatnonzero(
            (after := neighbors.next_levels(at, window, sizes, num_levels)[:, dimension]) >= 0
        )
    ):
        exists[rows, after[rows]] = True
        at[rows, dimension] = after[rows]
        at[after < 0, dimension] = num_levels - 1
    every = np.zeros((count, num_levels, 3), np.uint8)
    every[:, :, dimension] = np.arange(num_levels)
    windows = np.repeat(window[:, None], num_levels, axis=1)
    size = scaled_size(
        windows.reshape(-1, 4)[:, 2:], every.reshape(-1, 3)[:, RESOLUTION], num_levels
    ).reshape(count, num_levels, 2)
    return neighbors.Candidates(
        exists,
        every,
        windows,
        size,
        bin_width(every[..., 0].reshape(-1), num_levels).reshape(count, num_levels),
    )


def _state(found: neighbors.Candidates, column: int) -> ReductionState:
    levels, window = found.levels[0, column], found.window[0, column]
    return ReductionState(*levels.tolist(), *window[:2].tolist())


def _reduction(batch: list[tuple[SearchPath, int]]) -> ReductionParams:
    asked = [(j._candidates, column) for j, column in batch]
    return ReductionParams(
        np.stack([a.window[0, c] for a, c in asked if a]),
        np.stack([a.size[0, c] for a, c in asked if a]),
        np.array([a.bin_width[0, c] for a, c in asked if a], np.int32),
    )


def _bytes(pixels: Any) -> int:
    return int(pixels.nbytes)
