"""The epoch scheduler: a pure state machine over plain data. It imports neither torch nor DALI nor a clock.

A C epoch trains on full quality, an R epoch on reduced images; a stage is a span in which the reduction does not change.
`start` gives a state, `phase` the letter of the epoch to come, `begin_stage` says that a stage's levels are set, `update`
gives the state after an epoch and what happened. The trainer asks; the scheduler never asks back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from qrdali.errors import InputError


class Phase(str, Enum):
    """What an epoch trains on; the values are the thesis' letters (reducida, completa), as patterns spell them."""

    REDUCED = "R"
    FULL = "C"

    def __str__(self) -> str:
        return self.value


NEVER = float("-inf")
ROUNDS = "paired-rounds"
NAMED_PATTERNS = {"paired-epochs": "RC"}


@dataclass(frozen=True)
class ScheduleRule:
    """What a run does.

    sequence: "paired-rounds" (an R round, then a C round, in each stage) or a pattern of the letters R and C, repeated
    within each stage. patience: units without improvement that end a stage (pattern) or a round, None for a set number
    of epochs. max_epochs: bound of the whole run. stages: their number; None goes on until `begin_stage` reports that
    nothing moved. Raises InputError for anything else.
    """

    sequence: str
    patience: int | None
    max_epochs: int
    stages: int | None = 1

    def __post_init__(self) -> None:
        if self.sequence != ROUNDS and (
            not self.sequence or set(self.sequence) - {phase.value for phase in Phase}
        ):
            raise InputError(
                f"sequence {self.sequence!r} is neither paired-epochs nor paired-rounds nor a pattern of R and C "
                "such as CCCCCCCR"
            )
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience} ends before the first epoch: use 1 or more")
        if self.max_epochs < 1:
            raise InputError(f"{self.max_epochs} epochs train nothing: use 1 or more")

    @property
    def has_rounds(self) -> bool:
        return self.sequence == ROUNDS

    def pattern(self, round_: str) -> str:
        """The letters of a unit of patience, in the round "R" or "C" of paired-rounds."""
        return round_ if self.has_rounds else self.sequence


def scoring_position(pattern: str) -> int:
    """Position within `pattern` whose accuracy judges it: the last C, or the last of a pattern without C."""
    return pattern.rindex(Phase.FULL) if Phase.FULL in pattern else len(pattern) - 1


@dataclass(frozen=True)
class ScheduleState:
    """Plain data.

    epoch: epochs finished. stage: the one in hand, from 1; begun: its levels are set; final: it is the last. round:
    "R" or "C", of paired-rounds. position: epochs of the unit in hand that are done. unit_accuracy: the judged accuracy
    of that unit. best, best_epoch, wait: of the stage's or round's patience, which starts at minus infinity. run_best,
    run_best_epoch: of the whole run, its start (epoch 0) included. ended: why the run ended, or empty.
    """

    run_best: float
    epoch: int = 0
    stage: int = 1
    begun: bool = False
    final: bool = False
    round: str = Phase.REDUCED.value
    position: int = 0
    unit_accuracy: float = NEVER
    best: float = NEVER
    best_epoch: int = 0
    wait: int = 0
    run_best_epoch: int = 0
    ended: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; minus infinity as null."""
        return {key: None if value == NEVER else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScheduleState:
        """The inverse of `as_dict`. Raises TypeError for other keys and values of other types, ValueError for counts below 0."""
        values: dict[str, Any] = {key: NEVER if value is None else value for key, value in data.items()}
        state = cls(**values)
        for field in fields(cls):
            kind = type(getattr(state, field.name)).__name__
            if kind != field.type and (kind, field.type) != ("int", "float"):
                raise TypeError(f"{field.name} is a {kind}")
        if (
            min(
                state.epoch,
                state.stage - 1,
                state.position,
                state.best_epoch,
                state.wait,
                state.run_best_epoch,
            )
            < 0
        ):
            raise ValueError("a count below 0")
        return state


@dataclass(frozen=True)
class ScheduleEvent:
    """What an epoch brought. run_improved: a new best of the run. unit_improved: a new best of the patience, whose
    training state must be kept. closed: why a round or stage ended by patience, or empty: the best unit's training state
    is to be restored."""

    is_best_of_run: bool
    is_best_of_stage: bool
    stage_end_reason: str


def start(accuracy: float) -> ScheduleState:
    """The state before the first epoch; `accuracy` is that of the starting weights."""
    return ScheduleState(run_best=accuracy)


def begin_stage(rule: ScheduleRule, state: ScheduleState, moved: int | None = None) -> ScheduleState:
    """The stage in hand has its levels. moved: images that a descent step changed; None where levels are not per image.

    A run ends after a stage before which no image moved.
    """
    final = moved == 0 if rule.stages is None else state.stage >= rule.stages
    return replace(state, begun=True, final=final)


def next_phase(rule: ScheduleRule, state: ScheduleState) -> Phase | None:
    """Returns the phase of the epoch to come, or None when the run has ended."""
    return None if state.ended else Phase(rule.pattern(state.round)[state.position])


def update(rule: ScheduleRule, state: ScheduleState, accuracy: float) -> tuple[ScheduleState, ScheduleEvent]:
    """The state after an epoch with the monitored `accuracy`; improving means strictly greater.

    Raises ValueError if the stage has not begun or the run has ended.
    """
    if not state.begun or state.ended:
        raise ValueError("no epoch is due: " + (state.ended or f"stage {state.stage} has not begun"))
    pattern = rule.pattern(state.round)
    epoch = state.epoch + 1
    run_improved = accuracy > state.run_best
    if run_improved:
        state = replace(state, run_best=accuracy, run_best_epoch=epoch)
    if state.position == scoring_position(pattern):
        state = replace(state, unit_accuracy=accuracy)
    unit_improved = False
    position = state.position + 1
    if position == len(pattern):
        position = 0
        unit_improved = state.unit_accuracy > state.best
        if unit_improved:
            state = replace(state, best=state.unit_accuracy, best_epoch=epoch, wait=0)
        else:
            state = replace(state, wait=state.wait + 1)
        state = replace(state, unit_accuracy=NEVER)
    state = replace(state, epoch=epoch, position=position)
    closed = ""
    if rule.patience is not None and state.wait >= rule.patience:
        unit = "epoch" if len(pattern) == 1 else f"{pattern} repetition"
        closed = (
            f"patience: {state.wait} {unit}{'s' if state.wait > 1 else ''} did not exceed {state.best:.4f} "
            f"of epoch {state.best_epoch}"
        )
        state = _after_stage_end(rule, state, closed)
    if not state.ended and epoch >= rule.max_epochs:
        state = replace(
            state,
            ended=f"the set number of {epoch} epochs" if rule.patience is None else f"--max-epochs {epoch}",
        )
    return state, ScheduleEvent(run_improved, unit_improved, closed)


def _after_stage_end(rule: ScheduleRule, state: ScheduleState, reason: str) -> ScheduleState:
    """After a round's or stage's last epoch: the next round, the next stage or the end."""
    if rule.has_rounds and state.round == Phase.REDUCED:
        return replace(state, round=Phase.FULL.value, best=NEVER, best_epoch=0, wait=0)
    if state.final:
        return replace(state, ended=reason)
    return replace(
        state, stage=state.stage + 1, begun=False, round=Phase.REDUCED.value, best=NEVER, best_epoch=0, wait=0
    )


def longest_run(rule: ScheduleRule) -> Iterator[tuple[int, int, Phase]]:
    """Yields (epoch, stage, phase) of the run in which every unit improves until only as many epochs are left as the later
    rounds and stages need at the least: the longest that still visits them all. Adaptive runs have at most as many
    stages as `rule.stages` says; None counts as one."""
    epoch = 0
    parts = [
        (stage, rule.pattern(phase))
        for stage in range(1, (rule.stages or 1) + 1)
        for phase in (tuple(Phase) if rule.has_rounds else (Phase.REDUCED,))
    ]
    # The first unit always improves on minus infinity, then patience runs out.
    least = [len(pattern) * ((rule.patience or 0) + 1) for _, pattern in parts]
    for number, (stage, pattern) in enumerate(parts):
        room = max(least[number], rule.max_epochs - epoch - sum(least[number + 1 :]))
        for i in range(room // len(pattern) * len(pattern) if number + 1 < len(parts) else room):
            if epoch >= rule.max_epochs:
                return
            epoch += 1
            yield epoch, stage, Phase(pattern[i % len(pattern)])
