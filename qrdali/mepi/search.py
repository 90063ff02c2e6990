"""Minimal-entropy positive images: how far an image can be reduced and still be classified correctly.

Images advance together, so that every forward pass is a full batch of candidates from many of them.
`Search.finished` takes search paths as they arrive, keeps no more originals than its memory allows, and
yields them in the order in which they end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.errors import InputError
from qrdali.interfaces import ImageReducer, Judge, Judgement, RunContext
from qrdali.mepi.search_path import FULL_STATE, CandidateAnswers, FailedStep, SearchPath, state_of
from qrdali.reduction import neighbors
from qrdali.reduction.neighbors import Candidates, DescentRule
from qrdali.reduction.png_entropy import entropy_within
from qrdali.reduction.quality import ReductionParams
from qrdali.system.device_copies import HostCopies, to_device

_NEVER_BEST = 1 << 62  # bytes of a candidate whose encoding was given up
_PIXELS_AT_ONCE = 16_000_000  # of the reduced images of one path that wait for their encoding


@dataclass(frozen=True)
class SearchRule:
    """Says what is searched.

    Raises InputError where an exhaustive search has too many states.

    descent: the dimensions, the step, the candidate windows and the preference. exhaustive: try every level
    of the one dimension (color or resolution) instead of descending.
    """

    descent: DescentRule
    exhaustive: bool = False

    def __post_init__(self) -> None:
        if self.exhaustive and (sum(self.descent.dimensions) != 1 or self.descent.dimensions.crop):
            raise InputError(
                "--search exhaustive is for color and resolution: other reductions have too many states"
            )


@dataclass(frozen=True)
class SearchLimits:
    """Bounds what a search uses at once.

    batch_size: candidates of a forward pass. memory_bytes: of decoded originals that are kept, though always
    at least one original is. threads: that encode candidates and results.
    """

    batch_size: int
    memory_bytes: int
    threads: int


class _Candidate(NamedTuple):
    """Names one candidate of an image: column `column` of its path's candidates."""

    path: SearchPath
    column: int


class _InFlight(NamedTuple):
    """Holds a batch under way. answers: the three arrays of a `Judgement`; they may not be computed yet."""

    batch: list[_Candidate]
    answers: HostCopies


def judge_own_classes(logits: torch.Tensor, labels: torch.Tensor) -> Judgement:
    """Judges images by the network's own classes: it answers the one of the highest probability.

    logits: [N, classes]. labels: int64 [N].
    """
    probability = logits.float().softmax(1)
    confidence, answer = probability.max(1)
    return Judgement(answer, confidence, probability.gather(1, labels[:, None])[:, 0])


class Search:
    """Searches the images of one reduction.

    model: on the reducer's device; it is put into evaluation mode. context: gives the precision of the
    forward pass. judge: says of logits which class they answer.
    """

    def __init__(
        self,
        model: nn.Module,
        reducer: ImageReducer,
        rule: SearchRule,
        limits: SearchLimits,
        context: RunContext,
        judge: Judge = judge_own_classes,
    ) -> None:
        self.model, self.reducer, self.rule = model.eval(), reducer, rule
        self.limits, self._autocast, self._judge = limits, context.autocast, judge
        self._pool = ThreadPoolExecutor(limits.threads, "entropy")
        self._queue: deque[_Candidate] = deque()
        self._ended: deque[SearchPath] = deque()
        self._original_bytes = 0  # of the originals under way

    def finished(
        self, arriving: Iterator[SearchPath], check: Callable[[], None] = lambda: None
    ) -> Iterator[SearchPath]:
        """Yields each path when it has ended: at its MEPI, or not `is_correct` if wrong at full quality.

        check: is called at every batch and may raise.
        """
        in_flight: _InFlight | None = None
        more_arrive = True
        while True:
            more_arrive = more_arrive and self._take_in(arriving)
            # The network works on one batch while the choices after the one before are made.
            # Candidates that do not fill a batch wait for those in flight, whose next ones may fill it.
            ready = len(self._queue) >= self.limits.batch_size or in_flight is None
            count = min(self.limits.batch_size, len(self._queue)) if ready else 0
            batch = [self._queue.popleft() for _ in range(count)]
            before, in_flight = in_flight, self._classify(batch) if batch else None
            check()
            if before is not None:
                self._record_answers(before)
            while self._ended:
                path = self._ended.popleft()
                self._original_bytes -= _bytes(path.pixels)
                yield path
            if in_flight is None and not self._queue and not more_arrive:
                return

    def _take_in(self, arriving: Iterator[SearchPath]) -> bool:
        """Starts paths until a batch is full or the memory is; returns False once no more arrive."""
        while len(self._queue) < self.limits.batch_size and (
            self._original_bytes < self.limits.memory_bytes or not self._original_bytes
        ):
            path = next(arriving, None)
            if path is None:
                return False
            self._original_bytes += _bytes(path.pixels)
            self._start(path)
        return True

    def _start(self, path: SearchPath) -> None:
        """Queues full quality first; a path that is known to be right there continues from its state."""
        if path.confidence:
            self._queue_neighbors([path])
            return
        full_window = np.array([[0, 0, *path.size]], np.int32)
        self._enqueue(
            path,
            Candidates(
                np.ones((1, 1), np.bool_),
                np.zeros((1, 1, 3), np.uint8),
                full_window[None],
                full_window[None, :, 2:],
                np.ones((1, 1), np.int32),
            ),
        )

    def _queue_neighbors(self, paths: list[SearchPath]) -> None:
        """Queues the candidates after each path's state, or ends the path if there are none."""
        descent = self.rule.descent
        sizes = np.array([path.size for path in paths], np.int32)
        states = np.array([path.state for path in paths], np.int64)
        levels = states[:, :3].astype(np.uint8)
        window = neighbors.window_of(levels, states[:, 3:].astype(np.int32), sizes, descent.scale)
        if self.rule.exhaustive:
            dimension = descent.dimensions.index(True)
            every = neighbors.every_level(levels, window, sizes, dimension, descent.scale)
        else:
            every = neighbors.neighbors_of(
                levels, window, sizes, descent.dimensions, descent.scale, descent.windows
            )
        for i, path in enumerate(paths):
            candidates = Candidates(
                every.exists[i][None].copy(),
                every.levels[i][None],
                every.window[i][None],
                every.size[i][None],
                every.bin_width[i][None],
            )
            for column in np.flatnonzero(candidates.exists[0]).tolist() if path.forbidden else ():
                candidates.exists[0, column] = state_of(candidates, column) not in path.forbidden
            self._enqueue(path, candidates)

    def _enqueue(self, path: SearchPath, candidates: Candidates) -> None:
        columns = np.flatnonzero(candidates.exists[0]).tolist()
        if not columns:
            self._ended.append(path)
            return
        path.answers = CandidateAnswers.pending(candidates)
        # Those under way before those that arrive: images end early, and few are kept at a time.
        (self._queue.extendleft if path.confidence else self._queue.extend)(
            [_Candidate(path, column) for column in reversed(columns)]
        )

    def judge(self, images: torch.Tensor, labels: list[int] | None = None, batch_size: int = 0) -> Judgement:
        """Returns what the network answers for `images`, network inputs; nothing waits for the device.

        labels: the class of each, whose probability is wanted; None for class 0. batch_size: fills the
        forward pass up to that many images.
        """
        count = len(images)
        with torch.inference_mode():
            classes = to_device(np.array(labels or [0] * count, np.int64), images.device)
            if missing := batch_size - count:
                # Always of one size: libraries choose their arithmetic by it, and a resumed search must end
                # the same.
                images = torch.cat([images, images[:1].expand(max(missing, 0), *images.shape[1:])])
                if images.ndim == 4:
                    images = images.contiguous(memory_format=torch.channels_last)
            with self._autocast():
                logits = self.model(images)[:count]
            return self._judge(logits, classes)

    def _classify(self, batch: list[_Candidate]) -> _InFlight:
        """Starts the forward pass of a batch; its results are not waited for."""
        images = self.reducer.network_inputs([path.pixels for path, _ in batch], _params(batch))
        labels = [path.label or 0 for path, _ in batch]
        return _InFlight(batch, HostCopies(*self.judge(images, labels, self.limits.batch_size)))

    def _record_answers(self, classified: _InFlight) -> None:
        """Records a batch's answers and moves on every path that has all of its own."""
        complete, ready = [], []
        columns = (values.tolist() for values in classified.answers.read())
        for (path, column), *judged in zip(classified.batch, *columns, strict=True):
            answer, confidence, probability = judged
            pending = _answers(path)
            pending.answer[column], pending.answer_confidence[column] = answer, confidence
            pending.correct[column], pending.confidence[column] = answer == path.label, probability
            path.evaluations += 1
            pending.unanswered -= 1
            if pending.unanswered:
                continue
            if path.confidence:
                complete.append(path)
                continue
            if path.label is None:
                path.label, probability = answer, confidence
            if answer == path.label:
                path.confidence.append(probability)
                ready.append(path)
            else:
                path.is_correct = False
                path.failed_step = FailedStep(FULL_STATE, answer, confidence, probability)
                self._ended.append(path)
        if complete:
            ready += self._advance(complete)
        if ready:
            self._queue_neighbors(ready)

    def _advance(self, paths: list[SearchPath]) -> list[SearchPath]:
        """Moves each path to one of its candidates and returns those that continue; the others end."""
        correct = np.stack([_answers(path).correct for path in paths])
        confidence = np.stack([_answers(path).confidence for path in paths])
        png_bytes = None
        if self.rule.exhaustive or self.rule.descent.prefer == "entropy":
            png_bytes = np.stack(list(self._pool.map(self._entropies, paths)))
        continuing = []
        chosen = neighbors.choose_neighbor(correct, confidence, png_bytes).tolist()
        for path, column in zip(paths, chosen, strict=True):
            answers = _answers(path)
            if column >= 0 and (state := answers.state(column)) != FULL_STATE:
                path.states.append(state)
                path.confidence.append(float(answers.confidence[column]))
            if column < 0 or self.rule.exhaustive:
                path.failed_step = answers.failed_step(column if self.rule.exhaustive else None)
                self._ended.append(path)
            else:
                continuing.append(path)
        return continuing

    def _entropies(self, path: SearchPath) -> npt.NDArray[np.int64]:
        """Returns the PNG bytes of the candidates that are right, int64 [K]; anything larger for the others.

        Encoding is most of the cost, and two exact bounds save some of it: where one candidate is right
        nothing needs to be compared, and no encoding continues beyond the bytes of the smallest so far.
        """
        answers = _answers(path)
        candidates = answers.candidates
        result = np.full(len(answers.correct), _NEVER_BEST, np.int64)
        columns = np.flatnonzero(answers.correct)
        if len(columns) < 2:
            result[columns] = 0
            return result
        # Those with few pixels and values first: they are likely the smallest.
        weight = candidates.size[0, columns].prod(axis=1) * (8 - np.log2(candidates.bin_width[0, columns]))
        best = _NEVER_BEST
        ordered = columns[np.argsort(weight, kind="stable")]
        for together in np.split(ordered, _ends_of_runs(candidates.size[0, ordered])):
            batch = [_Candidate(path, column) for column in together.tolist()]
            images = self.reducer.reduced_images([path.pixels] * len(batch), _params(batch))
            for (_, column), image in zip(batch, images, strict=True):
                size = entropy_within(image, best)
                if size is not None:
                    result[column] = best = size
        return result


def _ends_of_runs(sizes: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Returns where to split images of `sizes` [N, 2], so that those made at once have few pixels together.

    A GPU makes all of an image's candidates in one run; of a very large image they need not fit at once.
    """
    ends, pixels = [], 0
    for i, more in enumerate(sizes.astype(np.int64).prod(axis=1).tolist()):
        if pixels and pixels + more > _PIXELS_AT_ONCE:
            ends.append(i)
            pixels = 0
        pixels += more
    return np.array(ends, np.int64)


def _params(batch: list[_Candidate]) -> ReductionParams:
    columns = [(_answers(path).candidates, column) for path, column in batch]
    return ReductionParams(
        np.stack([candidates.window[0, column] for candidates, column in columns]),
        np.stack([candidates.size[0, column] for candidates, column in columns]),
        np.array([candidates.bin_width[0, column] for candidates, column in columns], np.int32),
    )


def _answers(path: SearchPath) -> CandidateAnswers:
    assert path.answers is not None
    return path.answers


def _bytes(pixels: Any) -> int:
    return int(pixels.nbytes)
