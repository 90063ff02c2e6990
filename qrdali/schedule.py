"""The epoch scheduler: a pure state machine over plain data. It imports neither torch nor DALI nor a clock.

A C epoch trains on full quality, an R epoch on reduced images. `start` gives a state, `phase` the letter of the epoch
to come, `update` the state after it and what happened. The trainer asks; the scheduler never asks back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from qrdali.errors import InputError

NEVER = float("-inf")
NAMED_PATTERNS = {"paired-epochs": "RC"}


@dataclass(frozen=True)
class Rule:
    """pattern: letters R and C, repeated; one repetition is the unit of patience. patience: units without improvement
    that end the run, None for a set number of epochs. max_epochs: bound of the whole run."""

    pattern: str
    patience: int | None
    max_epochs: int

    def __post_init__(self) -> None:
        if not self.pattern or set(self.pattern) - {"R", "C"}:
            raise InputError(f"sequence {self.pattern!r} is neither paired-epochs nor a pattern of R and C such as CCCCCCCR")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience} ends before the first epoch: use 1 or more")
        if self.max_epochs < 1:
            raise InputError(f"{self.max_epochs} epochs train nothing: use 1 or more")

    @property
    def judged(self) -> int:
        """Position within the pattern whose accuracy judges it: the last C, or the last of a pattern without C."""
        return self.pattern.rindex("C") if "C" in self.pattern else len(self.pattern) - 1


@dataclass(frozen=True)
class State:
    """epoch: epochs finished. unit_accuracy: the judged accuracy of the unit in hand. best, best_epoch, wait: of the
    patience, which starts at minus infinity. run_best, run_best_epoch: of the whole run, its start (epoch 0) included."""

    run_best: float
    epoch: int = 0
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
    def from_dict(cls, data: dict[str, Any]) -> State:
        """The inverse of `as_dict`. Raises TypeError for other keys."""
        values: dict[str, Any] = {key: NEVER if value is None else value for key, value in data.items()}
        return cls(**values)


@dataclass(frozen=True)
class Event:
    """What an epoch brought: a new best of the run, a new best of the patience, the end and its reason."""

    run_improved: bool
    unit_improved: bool
    ended: str


def start(accuracy: float) -> State:
    """The state before the first epoch; `accuracy` is that of the starting weights."""
    return State(run_best=accuracy)


def phase(rule: Rule, state: State) -> str | None:
    """The letter of the epoch to come, or None when the run has ended."""
    return None if state.ended else rule.pattern[state.epoch % len(rule.pattern)]


def update(rule: Rule, state: State, accuracy: float) -> tuple[State, Event]:
    """The state after an epoch with the monitored `accuracy`; improving means strictly greater."""
    position = state.epoch % len(rule.pattern)
    epoch = state.epoch + 1
    run_improved = accuracy > state.run_best
    if run_improved:
        state = replace(state, run_best=accuracy, run_best_epoch=epoch)
    if position == rule.judged:
        state = replace(state, unit_accuracy=accuracy)
    unit_improved = False
    if position == len(rule.pattern) - 1:
        unit_improved = state.unit_accuracy > state.best
        if unit_improved:
            state = replace(state, best=state.unit_accuracy, best_epoch=epoch, wait=0)
        else:
            state = replace(state, wait=state.wait + 1)
        state = replace(state, unit_accuracy=NEVER)
    ended = ""
    if rule.patience is not None and state.wait >= rule.patience:
        unit = "epoch" if len(rule.pattern) == 1 else f"{rule.pattern} repetition"
        ended = f"patience: {state.wait} {unit}s did not exceed {state.best:.4f} of epoch {state.best_epoch}"
    elif epoch >= rule.max_epochs:
        ended = f"the set number of {epoch} epochs" if rule.patience is None else f"--max-epochs {epoch}"
    return replace(state, epoch=epoch, ended=ended), Event(run_improved, unit_improved, ended)
