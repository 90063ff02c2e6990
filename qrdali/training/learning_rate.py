"""Schedules the learning rate of a run: constant, cosine, plateau, stage or wsd, with or without warm-up.

| schedule | span | at a restore |
|---|---|---|
| constant | | nothing |
| cosine | the whole run | goes on by the run's steps |
| plateau | a step per unit of patience; its best begins anew with each stage or round | the unit's rate |
| stage | `--stage-epochs`, of each stage or round; the least rate after it | begins anew |
| wsd | constant, and at the run's end a linear decay | goes on by the run's steps |

The rate of step t of a span, from 0, is what timm's scheduler gives for t. In a warm-up of w steps it is
t ÷ w of the whole rate: the first step has rate 0, and step w the whole one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from qrdali.runs.settings import Settings
from qrdali.schedule.rate_spans import has_set_length, horizon_epochs, last_decay_epochs

_MINUS_INFINITY = "-inf"  # which JSON has no number for


@dataclass(frozen=True)
class RatePlan:
    """Holds the spans of a schedule in optimizer steps.

    schedule: its name. epoch_steps: of one epoch. warmup: at the begin of a span. span: of cosine the run's
    steps, of stage those of a stage or round. decay_start, decay_steps: of wsd, where the run's horizon is
    known beforehand; else None and 0. min_rate: the least rate. factor, patience: of plateau, as torch's
    ReduceLROnPlateau takes them.
    """

    schedule: str
    epoch_steps: int
    warmup: int = 0
    span: int = 0
    decay_start: int | None = None
    decay_steps: int = 0
    min_rate: float = 0.0
    factor: float = 0.1
    patience: int = 0


def plan_rate(settings: Settings, images: int) -> RatePlan:
    """Returns the plan of a run with these settings. images: of the training split."""
    epoch_steps = -(-images // settings.batch_size)
    warmup = round(settings.warmup_epochs * epoch_steps)
    if settings.warmup_epochs:
        warmup = max(1, warmup)
    horizon = settings.match_steps or horizon_epochs(settings) * epoch_steps
    decay_start, decay = None, 0
    if settings.lr_schedule == "wsd" and has_set_length(settings):
        decay_start = max(warmup, horizon - last_decay_epochs(settings) * epoch_steps)
        decay = max(1, horizon - decay_start)
    stage = settings.lr_schedule == "stage"
    return RatePlan(
        schedule=settings.lr_schedule,
        epoch_steps=epoch_steps,
        warmup=warmup,
        span=settings.stage_epochs * epoch_steps if stage else horizon,
        decay_start=decay_start,
        decay_steps=decay,
        min_rate=settings.min_lr,
        factor=settings.plateau_factor,
        patience=max(0, settings.patience - 1)
        if settings.plateau_patience < 0
        else settings.plateau_patience,
    )


def note_on_rate(settings: Settings) -> str:
    """Returns a line about a plateau that can never lower the rate, or ""."""
    plan = plan_rate(settings, settings.batch_size)
    if plan.schedule != "plateau" or has_set_length(settings) or not settings.restore_best:
        return ""
    units, patience = plan.patience + 1, settings.patience
    if units < patience:
        return ""
    remedy = "--patience 2" if patience == 1 else f"--plateau-patience {patience - 2}"
    return (
        f"the rate of plateau never falls here: after {units} unit{'s' if units > 1 else ''} without "
        f"improvement --patience {patience} has ended the stage or round, and the best unit's rate comes "
        f"back; {remedy} changes that"
    )


def rate_schedule(optimizer: torch.optim.Optimizer, plan: RatePlan) -> RateSchedule:
    """Returns the schedule that sets the rates of `optimizer`, whose own are those after warm-up."""
    kinds: dict[str, type[RateSchedule]] = {
        "cosine": Cosine,
        "plateau": Plateau,
        "stage": StageCosine,
        "wsd": WarmupStableDecay,
    }
    return kinds.get(plan.schedule, RateSchedule)(optimizer, plan)


class RateSchedule:
    """Keeps the rate constant after a warm-up; the other schedules extend it.

    steps: the optimizer steps of the span so far. With neither a warm-up nor layers of different rates the
    optimizer is not touched.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, plan: RatePlan) -> None:
        self.optimizer, self.plan, self.steps = optimizer, plan, 0
        # A rate that decays by the factor 1.
        self._constant = (
            StepLRScheduler(optimizer, decay_t=1, decay_rate=1.0, warmup_t=plan.warmup, t_in_epochs=False)
            if self._is_needed()
            else None
        )
        self._set_rate()

    def _is_needed(self) -> bool:
        scaled = any("lr_scale" in group for group in self.optimizer.param_groups)
        return bool(self.plan.warmup) or self.plan.schedule != "constant" or scaled

    @property
    def rate(self) -> float:
        """Returns the rate of the next step; with --layer-decay that of the last layer."""
        group = max(self.optimizer.param_groups, key=lambda group: group.get("lr_scale", 1.0))
        return float(group["lr"])

    def after_step(self) -> None:
        """Sets the rate of the step after one that has been taken."""
        self.steps += 1
        self._set_rate()

    def after_unit(self, accuracy: float) -> None:
        """Takes the accuracy of a unit of patience. Only plateau goes by it."""

    def after_restore(self, saved: dict[str, Any]) -> None:
        """Sets the rate once the optimizer has its state of an earlier epoch back.

        saved: what `state_dict` gave after that epoch."""
        self._set_rate()  # time does not go back

    def begin_span(self, decay_epochs: int) -> None:
        """Begins a stage, a round or, with `decay_epochs`, the decay after the last of them."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data for JSON: {} of a rate that never changes."""
        return {"steps": self.steps} if self._constant else {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, once the optimizer has its own state.

        Raises KeyError, TypeError or ValueError for what it did not give."""
        if self._constant:
            self.steps = count_of(saved["steps"])
            self._set_rate()

    def _set_rate(self) -> None:
        if self._constant:
            self._constant.step_update(self.steps)


class Cosine(RateSchedule):
    """Falls along a cosine to the least rate at the end of the span."""

    _cosine: Scheduler | None = None

    def _set_rate(self) -> None:
        if self._cosine is None:
            self._cosine = CosineLRScheduler(
                self.optimizer,
                t_initial=max(1, self.plan.span - self.plan.warmup),
                lr_min=self.plan.min_rate,
                warmup_t=self.plan.warmup,
                warmup_prefix=True,
                t_in_epochs=False,
            )
        self._cosine.step_update(self.steps)


class StageCosine(Cosine):
    """Begins warm-up and cosine anew with each stage or round."""

    def begin_span(self, decay_epochs: int) -> None:
        self.steps = 0
        self._set_rate()


class Plateau(RateSchedule):
    """Multiplies the rate by a factor when units of patience do not improve on the best of their stage or
    round."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: RatePlan) -> None:
        super().__init__(optimizer, plan)
        self._plateau = self._new_plateau()

    def _new_plateau(self) -> ReduceLROnPlateau:
        least = [self.plan.min_rate * group.get("lr_scale", 1.0) for group in self.optimizer.param_groups]
        return ReduceLROnPlateau(
            self.optimizer,
            mode="max",
            factor=self.plan.factor,
            patience=self.plan.patience,
            threshold=0.0,  # improves means strictly greater
            threshold_mode="abs",
            min_lr=least,
            eps=0.0,
        )

    def after_unit(self, accuracy: float) -> None:
        if self.steps >= self.plan.warmup:
            self._plateau.step(accuracy)

    def after_restore(self, saved: dict[str, Any]) -> None:
        self.load_state_dict(saved)

    def begin_span(self, decay_epochs: int) -> None:
        self._plateau = self._new_plateau()

    def state_dict(self) -> dict[str, Any]:
        values = self._plateau.state_dict().items()
        return {
            "steps": self.steps,
            "plateau": {key: _MINUS_INFINITY if value == -math.inf else value for key, value in values},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        own, values = self._plateau.state_dict(), dict(saved["plateau"])
        taken = {key: -math.inf if value == _MINUS_INFINITY else value for key, value in values.items()}
        if own.keys() != taken.keys():
            raise ValueError("a state of plateau with other keys")
        for key, value in taken.items():
            if not _is_like(value, own[key]):
                raise TypeError(f"{key} of plateau is {value!r:.40}")
        self.steps = count_of(saved["steps"])
        self._plateau.load_state_dict(taken)
        if self.steps < self.plan.warmup:
            super()._set_rate()

    def _set_rate(self) -> None:
        # From the end of the warm-up on the rate is what the plateaus have left of it.
        if self.steps <= self.plan.warmup:
            super()._set_rate()


class WarmupStableDecay(RateSchedule):
    """Keeps the rate constant and lets it fall linearly to the least rate at the run's end."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: RatePlan) -> None:
        self._start, self._decay_steps = plan.decay_start, plan.decay_steps
        self._decay: Scheduler | None = None
        super().__init__(optimizer, plan)

    def begin_span(self, decay_epochs: int) -> None:
        if decay_epochs:
            self._start, self._decay_steps = self.steps, decay_epochs * self.plan.epoch_steps
            self._decay = None
        self._set_rate()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "decay_start": self._start, "decay_steps": self._decay_steps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        start = saved["decay_start"]
        self._start = None if start is None else count_of(start)
        self._decay_steps, self._decay = count_of(saved["decay_steps"]), None
        if self._start is not None and not self._decay_steps:
            raise ValueError("a decay of 0 steps")
        super().load_state_dict(saved)

    def _set_rate(self) -> None:
        if self._start is None or self.steps < self._start:
            super()._set_rate()
            return
        if self._decay is None:
            self._decay = PolyLRScheduler(
                self.optimizer,
                t_initial=self._decay_steps,
                power=1.0,
                lr_min=self.plan.min_rate,
                t_in_epochs=False,
            )
        self._decay.step_update(self.steps - self._start)


def count_of(value: Any) -> int:
    """Returns a number of steps that a checkpoint holds. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.40} is no number of steps")
    return value


def _is_like(value: Any, own: Any) -> bool:
    """Returns whether a value of plateau's state is of the type of `own`, and finite but for minus
    infinity."""
    if isinstance(own, list):
        return isinstance(value, list) and len(value) == len(own) and all(map(_is_like, value, own))
    if isinstance(own, bool) or not isinstance(own, (int, float)):
        return type(value) is type(own)
    return type(value) in (int, float) and (math.isfinite(value) or value == -math.inf)
