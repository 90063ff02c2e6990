"""The epoch scheduler for anyone's training loop: what is reduced when, and when to go back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, printable
from qrdali.reduction.levels import qualities_of, quality_names
from qrdali.reduction.names import ReductionName
from qrdali.reduction.quality import scale_of
from qrdali.runs.settings import validate_settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_schedule import Phase, ScheduleEvent, ScheduleState
from qrdali.schedule.methods import (
    check_settings,
    reduced_levels,
    require_live_levels,
    schedule_rule_of,
    stage_levels,
)
from qrdali.workflows.public import public
from qrdali.workflows.python_words import python_words

METHODS = ("shared", "baseline", "fixed", "linear")


@dataclass(frozen=True)
class Epoch:
    """Describes one epoch that is due.

    number: from 1. phase: qrdali.Phase.REDUCED ("R") or FULL ("C"). stage: from 1, a span in which the
    reduction does not change. quality: of "color", "crop" and "resolution", and of the schedule's distortion
    if it has one, in (0, 1], as `Loader.epoch` takes it; all are 1 in a full epoch.
    """

    number: int
    phase: Phase
    stage: int
    quality: dict[str, float]


class Schedule:
    """Yields the epochs of a training method; after each it waits for the accuracy that you report.

    Training and validation are yours. An epoch is an R epoch, on reduced images, or a C epoch, at full
    quality; a stage is a span in which the reduction stays the same. Patience ends a stage, or a round of one
    kind of epochs within it, when the accuracy has stopped improving; `report` then says so.

    method: "shared" (a set number of C epochs), "baseline" (C epochs until patience ends them), "fixed"
        (R epochs at one quality among C epochs) or "linear" (the same, and each stage one step lower). In
        "adaptive" and "random" each image has its own level: these are `qrdali.train`'s.
    sequence: of "fixed" and "linear": "paired-epochs" (R C R C …, the default), "paired-rounds" (a round of R
        epochs, then one of C epochs, in each stage) or a pattern that is repeated, such as "CCCCCCCR".
    reduction: of R epochs: "color", "crop", "resolution", "combination" (all three, the default); a
        distortion, "gray", "contrast", "blur", "noise" or "jpeg"; or "none", the sham control.
    step: qualities are its multiples: 0.75, 0.5 and 0.25 of 0.25. It is 1/n; give `Loader.epoch` the same.
    tail: levels of "linear" below that grid, each of half the quality: "none", "full" or their number.
    quality: of R epochs of "fixed", in (0, 1], a multiple of `step`.
    patience: how many units in a row may bring no better accuracy until a stage or round ends, 1 or more; a
        unit is one repetition of the pattern, or one epoch of a round.
    max_epochs: the most epochs of the whole run.
    epochs: the number of epochs of "shared".
    direction: of "linear": "down" from the highest reduced quality, or "up" from the lowest.
    start_accuracy: of the weights before the first epoch. They are epoch 0, the best of the run until an
        epoch is better.
    sizes: upright height and width of each training image in pixels, integers [images, 2], such as
        `data["train"].sizes(np.arange(len(data["train"])))`. A level that changes no image then has no stage,
        as in `qrdali.train`; without sizes that is known of a reduction of colour alone.

    Raises InputError for an option out of range, and for a next epoch while one has no report.

    Example:
        >>> schedule = qrdali.Schedule("fixed", reduction="crop", quality=.5, max_epochs=2)
        >>> for epoch in schedule:
        ...     print(epoch.number, epoch.phase, epoch.stage, epoch.quality["crop"])
        ...     event = schedule.report(0.1 * epoch.number)
        1 R 1 0.5
        2 C 1 1.0
        >>> event.is_best_of_run, event.is_best_of_stage, event.stage_end_reason
        (True, True, '')
    """

    @public
    def __init__(
        self,
        method: Literal["shared", "baseline", "fixed", "linear"],
        *,
        sequence: str | None = None,
        reduction: ReductionName | None = None,
        step: float = 0.25,
        tail: str = "none",
        quality: float = 0.5,
        patience: int = 3,
        max_epochs: int = 300,
        epochs: int = 10,
        direction: Literal["down", "up"] = "down",
        start_accuracy: float = -math.inf,
        sizes: npt.ArrayLike | None = None,
    ) -> None:
        if method not in METHODS:
            raise InputError(
                f"method {method!r} has no schedule of its own: choose one of {', '.join(METHODS)}; "
                "adaptive and random give each image its own levels: use qrdali.train"
            )
        options = {
            "method": method,
            "sequence": sequence,
            "reduction": reduction,
            "step": step,
            "tail": None if tail == "none" else tail,  # states of earlier schedules do not name it
            "quality": quality,
            "patience": patience,
            "max_epochs": max_epochs,
            "epochs": epochs,
            "direction": direction,
        }
        self._options = {name: value for name, value in options.items() if value is not None}
        self._settings = validate_settings({**self._options, "data": ""})
        check_settings(self._settings)
        known = None if sizes is None else _require_sizes(sizes)
        self._sizes = "none" if known is None else _describe_sizes(known)
        chunks = None if known is None else lambda: [known]
        require_live_levels(self._settings, chunks)
        self._stage_levels, self._scale = stage_levels(self._settings, chunks), scale_of(step, tail)
        self._rule = schedule_rule_of(self._settings, self._stage_levels)
        self._state = epoch_schedule.start(_require_accuracy(start_accuracy, "start_accuracy"))
        self._due: Epoch | None = None

    @property
    def ended(self) -> str:
        """Returns why the run has ended, or "" while epochs are due."""
        return python_words(self._state.ended)

    @property
    def best_accuracy(self) -> float:
        """Returns the best reported accuracy of the run, `start_accuracy` included."""
        return self._state.run_best

    @property
    def best_epoch(self) -> int:
        """Returns the epoch of `best_accuracy`; 0 is the start."""
        return self._state.run_best_epoch

    def __iter__(self) -> Iterator[Epoch]:
        """Returns the schedule itself: a loop over it goes on where it stands."""
        return self

    def __next__(self) -> Epoch:
        """Returns the epoch that is due. Raises InputError while the one before has no report."""
        if self._due is not None:
            raise InputError(f"epoch {self._due.number} has no report: call report(val_accuracy) first")
        if self._state.ended:
            raise StopIteration
        if not self._state.begun:
            self._state = epoch_schedule.begin_stage(self._rule, self._state)
        phase = epoch_schedule.next_phase(self._rule, self._state)
        assert phase is not None
        number, stage = self._state.epoch + 1, self._state.stage
        self._due = Epoch(number, phase, stage, self._quality(phase, stage, number))
        return self._due

    def report(self, val_accuracy: float) -> ScheduleEvent:
        """Takes the validation accuracy after the epoch that is due; returns what follows from it.

        val_accuracy: higher is better; improving means strictly greater.

        The event says what to do, by three fields:

        is_best_of_run: keep these weights as the result.
        is_best_of_stage: keep weights and optimizer as the state to go back to.
        stage_end_reason: if it is not empty, patience has ended a round or stage: go back to the state that
            was kept last.

        Raises InputError for what is not a number, and where no epoch is due.

        Example:
            >>> schedule = qrdali.Schedule("baseline", patience=1, start_accuracy=.5)
            >>> for epoch in schedule:
            ...     event = schedule.report(.4)
            >>> event.is_best_of_run, event.stage_end_reason
            (False, 'patience: 1 epoch did not exceed 0.4000 of epoch 1')
        """
        if self._due is None:
            raise InputError("no epoch is due: take the next epoch of the schedule before its report")
        accuracy = _require_accuracy(val_accuracy, "val_accuracy")
        self._state, event = epoch_schedule.update(self._rule, self._state, accuracy)
        self._due = None
        return event

    def state_dict(self) -> dict[str, Any]:
        """Returns options and state as plain data for JSON. An epoch without a report comes again.

        Example:
            >>> schedule = qrdali.Schedule("baseline")
            >>> next(schedule).number, schedule.report(.5).is_best_of_run
            (1, True)
            >>> again = qrdali.Schedule("baseline")
            >>> again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
            >>> next(again).number
            2
        """
        return {"options": {**self._options, "sizes": self._sizes}, "state": self._state.as_dict()}

    @public
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where a schedule with the same options stood.

        Raises InputError if the options differ, `sizes` included, naming them, or if `state` is not such a
        state. `start_accuracy` is part of the state: what was given to this schedule is replaced.
        """
        try:
            options, restored = dict(state["options"]), ScheduleState.from_dict(state["state"])
            epoch_schedule.next_phase(
                self._rule, restored
            )  # raises unless there is such a place in the sequence
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is not a state of Schedule.state_dict(): {error}") from None
        sizes = options.pop("sizes", self._sizes)  # states of earlier schedules say nothing of them
        different = [
            f"{name} {options.get(name)!r} → {self._options.get(name)!r}"
            for name in sorted({*options, *self._options})
            if options.get(name) != self._options.get(name)
        ]
        if sizes != self._sizes:
            different.append(f"sizes {printable(sizes)[:80]} → {self._sizes}")
        if different:
            raise InputError(f"the state is of a schedule with other options: {'; '.join(different)}")
        self._state, self._due = restored, None

    def _quality(self, phase: Phase, stage: int, number: int) -> dict[str, float]:
        full = dict.fromkeys(quality_names(self._settings.reduction), 1.0)
        if phase is Phase.FULL:
            return full
        reduced = reduced_levels(self._settings, stage, number, self._stage_levels)
        return full | qualities_of(reduced, self._scale)


def _require_sizes(sizes: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Returns sizes as an array, int32 [images, 2]. Raises InputError for what they cannot be."""
    try:
        array = np.asarray(sizes)
    except ValueError:  # rows of several lengths
        array = np.empty(0)
    if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2 or not len(array):
        kind = f"{array.dtype}{list(array.shape)}" if array.ndim else f"a {type(sizes).__name__}"
        raise InputError(
            f"sizes is {kind}: give the height and width of each training image, integers [images, 2], such "
            "as data['train'].sizes(samples)"
        )
    if array.min() < 1 or array.max() > np.iinfo(np.int32).max:
        raise InputError(f"sizes holds {array.min()} to {array.max()}: give pixels, 1 or more")
    return array.astype(np.int32)


def _describe_sizes(sizes: npt.NDArray[np.int32]) -> str:
    """Returns what tells sizes from others, short enough for a state: their number and a digest."""
    digest = hashlib.sha256(np.ascontiguousarray(sizes, "<i4").tobytes()).hexdigest()
    plural = "s" if len(sizes) > 1 else ""
    return f"of {len(sizes):,} image{plural} (SHA-256 {digest[:16]})"


def _require_accuracy(value: float, name: str) -> float:
    try:
        accuracy = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}: give a number") from None
    if math.isnan(accuracy) or accuracy == math.inf:
        raise InputError(f"{name} is {accuracy}: give a number")
    return accuracy
