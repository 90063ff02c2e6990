"""Schedules epochs: which are reduced, and when a stage, a round and the run end.

It is a pure state machine over plain data, without torch, DALI or a clock. A C epoch trains on full quality,
an R epoch on reduced images; a stage is a span in which the reduction does not change; `patience` judges the
units that a stage or round consists of. The loop that it is made for:

    state = start(accuracy of the starting weights)
    while (phase := next_phase(rule, state)) is not None:
        if not state.begun:                          # before the first epoch of a stage
            state = begin_stage(rule, state)         # once its levels are set
        train an epoch on full or reduced images, as `phase` says, and validate
        state, event = update(rule, state, accuracy)
        if event.stage_end_reason:
            restore the best unit's weights

Accuracies that grow for a while and then do not, with patience 2:

    sequence        accuracies              phases          what ends it
    C               .3 .4 .4 .3             C C C C         2 epochs did not exceed .4 of epoch 2
    RC              .5 .6 .5 .6 .5 .6       R C R C R C     2 repetitions did not exceed .6 of epoch 2
    paired-rounds   .5 .6 .6 .5 .3 .2 .1    R R R R C C C   each round has a patience of its own

A rule with `decay_epochs` has C epochs after that end in which the learning rate falls (--lr-schedule wsd).
They are not judged by patience, and nothing is restored after them:

    C, 3 of decay   .3 .4 .4 .3 .5 .4 .5    C C C C C C C   back to epoch 2 after epoch 4, then the decay
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any, NamedTuple

from qrdali.errors import InputError
from qrdali.schedule.patience import (
    NEVER,
    PatienceRecord,
    after_unit,
    has_run_out,
    reason_of_end,
    scoring_position,
)


class Phase(str, Enum):
    """Says what an epoch trains on. The values are the thesis' letters: reducida, completa."""

    REDUCED = "R"
    FULL = "C"

    def __str__(self) -> str:
        return self.value


ROUNDS = "paired-rounds"
NAMED_PATTERNS = {"paired-epochs": "RC"}


@dataclass(frozen=True)
class ScheduleRule:
    """Says what a run does.

    sequence: "paired-rounds" (an R round, then a C round, in each stage) or a pattern of the letters R and C,
    repeated within each stage. patience: at least 1, the units without improvement that end a stage (pattern)
    or a round; None for a set number of epochs. A unit is one repetition of a pattern, or one epoch of a
    round; its last C epoch judges it, and a stage ends only after a whole unit. max_epochs: at least 1,
    bounds the whole run. stages: their number, or None for as many as there
    are until `begin_stage` reports that nothing moved. decay_epochs: C epochs after patience has ended the
    last stage, as many as `max_epochs` has room for; 0 for 20% of the epochs so far, None for none. Raises
    InputError for anything else.
    """

    sequence: str
    patience: int | None
    max_epochs: int
    stages: int | None = 1
    decay_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.sequence != ROUNDS and (
            not self.sequence or set(self.sequence) - {phase.value for phase in Phase}
        ):
            raise InputError(
                f"sequence {self.sequence!r} is neither paired-epochs nor paired-rounds nor a pattern of "
                "R and C such as CCCCCCCR"
            )
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience} ends before the first epoch: use 1 or more")
        if self.max_epochs < 1:
            raise InputError(f"{self.max_epochs} epochs train nothing: use 1 or more")
        if self.decay_epochs is not None and (self.decay_epochs < 0 or self.patience is None):
            raise InputError(
                f"{self.decay_epochs} epochs of decay need patience that ends the run before them"
            )

    @property
    def has_rounds(self) -> bool:
        """Returns whether stages consist of rounds instead of a pattern."""
        return self.sequence == ROUNDS

    def pair_start(self, position: int) -> int:
        """Returns where the pair of epochs begins in which an epoch of a pattern stands.

        A pair is an R epoch and the C epoch beside it within one repetition, in either order, paired from the
        left, each at most once: 0 for both positions of RC, 1 for the last two of RRC. An epoch without a
        partner is its own: `position`.
        """
        start = 0
        while start < position:
            start += 2 if self.sequence[start] != self.sequence[start + 1] else 1
        return start if start <= position else position - 1

    def decay_after(self, epochs: int) -> int:
        """Returns the epochs of decay that follow when patience ends the run after so many `epochs`."""
        return max(0, min(self.whole_decay(epochs), self.max_epochs - epochs))

    def last_end_before_decay(self) -> int:
        """Returns the latest epoch at which patience may end the run so that the whole decay follows."""
        bound = self.max_epochs
        return next((n for n in range(bound, 0, -1) if n + self.whole_decay(n) <= bound), 0)

    def whole_decay(self, epochs: int) -> int:
        """Returns the epochs that a decay after so many `epochs` is meant to have, room for them or not."""
        if self.decay_epochs is None:
            return 0
        return self.decay_epochs or max(1, round(epochs / 5))

    def pattern(self, round_: str) -> str:
        """Returns the letters of a unit of patience.

        round_: "R" or "C", the round in hand of paired-rounds.
        """
        return round_ if self.has_rounds else self.sequence


@dataclass(frozen=True)
class ScheduleState:
    """Holds where a run stands, as plain data.

    epoch: epochs finished. stage: the one in hand, from 1. begun: whether its levels are set. final: whether
    it is the last. round: "R" or "C", of paired-rounds. position: epochs of the unit in hand that are done.
    unit_accuracy: minus infinity, except in states that version 0.1 saved within a unit: the accuracy that
    its end is still to be judged by. best, best_epoch, wait: accuracy of the best unit of the stage or round,
    the epoch that judged it, and the units since; best starts at minus infinity. run_best, run_best_epoch: of
    the whole run, its start (epoch 0) included. ended: why the run has ended, or empty. decay_epochs,
    decay_done: epochs of the decay after patience has ended the last stage, 0 before, and those of them that
    are finished.
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
    decay_epochs: int = 0
    decay_done: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with minus infinity as null."""
        return {key: None if value == NEVER else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScheduleState:
        """Returns the state that `as_dict` gave.

        Raises TypeError for other keys and types, ValueError for counts below 0.
        """
        values: dict[str, Any] = {key: NEVER if value is None else value for key, value in data.items()}
        state = cls(**values)
        for field in fields(cls):
            kind = type(getattr(state, field.name)).__name__
            if kind != field.type and (kind, field.type) != ("int", "float"):
                raise TypeError(f"{field.name} is a {kind}")
        counts = (
            state.epoch,
            state.stage - 1,
            state.position,
            state.best_epoch,
            state.wait,
            state.run_best_epoch,
            state.decay_done,
            state.decay_epochs - state.decay_done,
        )
        if min(counts) < 0:
            raise ValueError("a count below 0")
        return state


@dataclass(frozen=True)
class ScheduleEvent:
    """Says what an epoch brought.

    is_best_of_run: the epoch is a new best of the run. is_best_of_stage: the epoch has judged its unit to be
    a new best of the stage or round, and the training state after it must be kept. stage_end_reason: why a
    round or stage ended by patience, with which the state that was kept last is to be restored; else empty.
    """

    is_best_of_run: bool
    is_best_of_stage: bool
    stage_end_reason: str


def start(accuracy: float) -> ScheduleState:
    """Returns the state before the first epoch; `accuracy` is that of the starting weights."""
    return ScheduleState(run_best=accuracy)


def begin_stage(rule: ScheduleRule, state: ScheduleState, moved: int | None = None) -> ScheduleState:
    """Returns the state once the stage in hand has its levels.

    moved: how many images a descent step has changed, None where levels are not per image. Where the number
    of stages is not fixed, the stage before which 0 moved is the last: 1 still goes on.
    """
    final = moved == 0 if rule.stages is None else state.stage >= rule.stages
    return replace(state, begun=True, final=final)


def next_phase(rule: ScheduleRule, state: ScheduleState) -> Phase | None:
    """Returns the phase of the epoch to come, or None when the run has ended."""
    if state.ended:
        return None
    return Phase.FULL if state.decay_epochs else Phase(rule.pattern(state.round)[state.position])


def judges_unit(rule: ScheduleRule, state: ScheduleState) -> bool:
    """Returns whether the accuracy after the epoch to come judges its unit of patience."""
    return not state.decay_epochs and state.position == scoring_position(rule.pattern(state.round))


def update(rule: ScheduleRule, state: ScheduleState, accuracy: float) -> tuple[ScheduleState, ScheduleEvent]:
    """Returns the state after an epoch with the monitored `accuracy`, and what the epoch brought.

    Improving is strictly greater: after 0.6 another 0.6 counts towards patience. With patience P, unit P
    without improvement ends the round or stage, unit P - 1 does not. The run's bound is looked at last, so
    that both may happen at once. Raises ValueError if the stage has not begun or the run has ended.
    """
    if not state.begun or state.ended:
        raise ValueError("no epoch is due: " + (state.ended or f"stage {state.stage} has not begun"))
    pattern = rule.pattern(state.round)
    epoch = state.epoch + 1
    is_best_of_run = accuracy > state.run_best
    if is_best_of_run:
        state = replace(state, run_best=accuracy, run_best_epoch=epoch)
    if state.decay_epochs:
        return _after_decay_epoch(rule, state, epoch), ScheduleEvent(is_best_of_run, False, "")
    record, is_best_of_stage = PatienceRecord(state.best, state.best_epoch, state.wait), False
    position = (state.position + 1) % len(pattern)
    # Version 0.1 judged at a unit's end: a unit that it saved behind the last C is still judged there.
    judged_late = state.unit_accuracy if position == 0 else NEVER
    if judges_unit(rule, state) or judged_late != NEVER:
        record = after_unit(record, accuracy if judged_late == NEVER else judged_late, epoch)
        is_best_of_stage = record.wait == 0
        state = replace(state, unit_accuracy=NEVER, **record._asdict())
    state = replace(state, epoch=epoch, position=position)
    reason = ""
    if position == 0 and has_run_out(record, rule.patience):
        reason = reason_of_end(record, pattern)
        state = _after_stage_end(rule, state, reason)
    if not state.ended and epoch >= rule.max_epochs:
        bound = f"the set number of {epoch} epochs" if rule.patience is None else f"--max-epochs {epoch}"
        state = replace(state, ended=bound)
    return state, ScheduleEvent(is_best_of_run, is_best_of_stage, reason)


def _after_stage_end(rule: ScheduleRule, state: ScheduleState, reason: str) -> ScheduleState:
    """Returns the state after a round's or stage's last epoch: the next round, the next stage, or ended."""
    if rule.has_rounds and state.round == Phase.REDUCED:
        return replace(state, round=Phase.FULL.value, best=NEVER, best_epoch=0, wait=0)
    if state.final and (decay := rule.decay_after(state.epoch)):
        return replace(state, decay_epochs=decay)
    if state.final:
        return replace(state, ended=reason)
    return replace(
        state, stage=state.stage + 1, begun=False, round=Phase.REDUCED.value, best=NEVER, best_epoch=0, wait=0
    )


def _after_decay_epoch(rule: ScheduleRule, state: ScheduleState, epoch: int) -> ScheduleState:
    """Returns the state after one more epoch of the decay, the last of which ends the run.

    `max_epochs` has room for the decay, unless the state is not one that `update` has made.
    """
    done = state.decay_done + 1
    ended = f"the decay of the learning rate over {done} epoch{'s' if done > 1 else ''}"
    if done < state.decay_epochs:
        ended = f"--max-epochs {epoch}" if epoch >= rule.max_epochs else ""
    return replace(state, epoch=epoch, decay_done=done, ended=ended)


class _Span(NamedTuple):
    """Holds the epochs of a stage or round: its stage, the letters of its units, and their number."""

    stage: int
    pattern: str
    epochs: int


def longest_run(rule: ScheduleRule) -> Iterator[tuple[int, int, Phase]]:
    """Yields (epoch, stage, phase) of the longest run that still visits every round and stage.

    In it every unit improves until only as many epochs are left as the later rounds and stages need at the
    least: with paired-rounds, patience 2, at most 30 epochs and 3 stages 15 R and 3 C, then twice 3 R and 3
    C. A number of stages that is not fixed counts as one. The last epochs are those of `longest_decay`.
    """
    epoch, spans = 0, _longest_spans(rule)
    for span in spans:
        for i in range(span.epochs):
            epoch += 1
            yield epoch, span.stage, Phase(span.pattern[i % len(span.pattern)])
    for number in range(epoch + 1, epoch + 1 + longest_decay(rule)):
        yield number, spans[-1].stage, Phase.FULL


def longest_decay(rule: ScheduleRule) -> int:
    """Returns the epochs of decay with which `longest_run` ends: 0 where there is no room for any."""
    return rule.decay_after(sum(span.epochs for span in _longest_spans(rule)))


def _longest_spans(rule: ScheduleRule) -> list[_Span]:
    """Returns the stages and rounds of the longest run, without its decay."""
    parts = [
        (stage, rule.pattern(phase))
        for stage in range(1, (rule.stages or 1) + 1)
        for phase in (tuple(Phase) if rule.has_rounds else (Phase.REDUCED,))
    ]
    # The first unit always improves on minus infinity, then patience runs out.
    least = [len(pattern) * ((rule.patience or 0) + 1) for _, pattern in parts]
    decays, bound = rule.decay_epochs is not None, rule.last_end_before_decay()
    spans: list[_Span] = []
    epoch = 0
    for number, (stage, pattern) in enumerate(parts):
        room = max(least[number], bound - epoch - sum(least[number + 1 :]))
        # Only the bound of the run ends a stage within a unit.
        whole = room // len(pattern) * len(pattern) if decays or number + 1 < len(parts) else room
        epochs = max(0, min(whole, rule.max_epochs - epoch))
        spans.append(_Span(stage, pattern, epochs))
        epoch += epochs
    return spans
