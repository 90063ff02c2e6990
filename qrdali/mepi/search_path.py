"""One image's way through a MEPI search: its states, and the candidates that follow the last of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.reduction import neighbors
from qrdali.reduction.neighbors import Candidates
from qrdali.reduction.quality import COLOR, RESOLUTION, LevelScale, ReductionParams, bin_width, scaled_size


class ReductionState(NamedTuple):
    """Holds a level per dimension, and the top left corner of the window in pixels of the original."""

    color: int
    crop: int
    resolution: int
    top: int
    left: int


FULL_STATE = ReductionState(0, 0, 0, 0, 0)


class FailedStep(NamedTuple):
    """Holds what the network answers one step further than it is right.

    state: the step's. answer: the class that it takes the image for. confidence: that class's probability.
    probability: that of the image's own class.
    """

    state: ReductionState
    answer: int
    confidence: float
    probability: float


def params_of_states(
    states: list[ReductionState] | npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], scale: LevelScale
) -> ReductionParams:
    """Returns the integers of `states` [N, 5] of images of `sizes` [N, 2] (upright height, width)."""
    values = np.asarray(states, np.int64).reshape(-1, 5)
    levels = values[:, :3].astype(np.uint8)
    window = neighbors.window_of(levels, values[:, 3:].astype(np.int32), sizes, scale)
    return ReductionParams(
        window.astype(np.int32),
        scaled_size(window[:, 2:], levels[:, RESOLUTION], scale),
        bin_width(levels[:, COLOR], scale),
    )


@dataclass
class CandidateAnswers:
    """Holds the candidates of one state and the network's answers so far.

    candidates: of one state, K columns. correct: bool [K]. confidence: float64 [K], the true class's
    probability. answer: int64 [K], the class it is taken for. answer_confidence: float64 [K], that class's
    probability. unanswered: how many columns the network has yet to classify.
    """

    candidates: Candidates
    correct: npt.NDArray[np.bool_]
    confidence: npt.NDArray[np.float64]
    answer: npt.NDArray[np.int64]
    answer_confidence: npt.NDArray[np.float64]
    unanswered: int

    @classmethod
    def pending(cls, candidates: Candidates) -> CandidateAnswers:
        """Returns candidates of one state that the network has yet to classify."""
        count = candidates.exists.shape[1]
        return cls(
            candidates,
            np.zeros(count, np.bool_),
            np.zeros(count),
            np.zeros(count, np.int64),
            np.zeros(count),
            int(candidates.exists.sum()),
        )

    def state(self, column: int) -> ReductionState:
        """Returns the state of one candidate."""
        return state_of(self.candidates, column)

    def failed_step(self, level: int | None = None) -> FailedStep | None:
        """Returns the wrong candidate whose true class has the highest probability; None if none is wrong.

        level: given where the columns are levels; then it is the first wrong one below that.
        """
        wrong = self.candidates.exists[0] & ~self.correct
        if level is not None:
            wrong[: level + 1] = False
        if not wrong.any():
            return None
        # A network whose arithmetic overflows answers with values that are no numbers: they count as 0.
        probability, confidence = np.nan_to_num(self.confidence), np.nan_to_num(self.answer_confidence)
        column = int((np.where(wrong, probability, -1.0) if level is None else wrong).argmax())
        return FailedStep(
            self.state(column),
            int(self.answer[column]),
            float(confidence[column]),
            float(probability[column]),
        )


def state_of(candidates: Candidates, column: int) -> ReductionState:
    """Returns the state of one candidate, where the candidates are those of one image."""
    levels, window = candidates.levels[0, column], candidates.window[0, column]
    return ReductionState(*levels.tolist(), *window[:2].tolist())


@dataclass(eq=False)
class SearchPath:
    """Holds one image on its way down.

    label: its class; None for whatever the network answers at full quality, which it then becomes. pixels:
    the original, as the reducer decoded it. size: its upright height and width. states: those accepted after
    full quality, of which the last is the current one. confidence: the true class's probability at full
    quality, then at each of `states`. forbidden: states it must not enter. evaluations: candidates of it that
    the network has classified. is_correct: whether it is right at full quality, as far as is known. answers:
    those for the candidates that the network is classifying. failed_step: what the network answers one step
    further than where the path ended, or at full quality if it is wrong there; None where no further level
    changes the image.
    """

    sample: int
    label: int | None
    pixels: Any
    size: tuple[int, int]
    states: list[ReductionState] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    forbidden: set[ReductionState] = field(default_factory=set)
    evaluations: int = 0
    is_correct: bool = True
    answers: CandidateAnswers | None = None
    failed_step: FailedStep | None = None

    @property
    def state(self) -> ReductionState:
        """Returns the current state."""
        return self.states[-1] if self.states else FULL_STATE

    def backtrack(self) -> bool:
        """Returns to the parent and forbids the state it leaves; False at full quality, the root."""
        if not self.states:
            return False
        self.forbidden.add(self.states.pop())
        self.confidence.pop()
        self.failed_step = None
        return True
