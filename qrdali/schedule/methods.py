"""The training methods: what each asks of the scheduler, and the levels of its R epochs."""

from __future__ import annotations

import difflib

from qrdali.data.set_names import check_set_name
from qrdali.errors import InputError, printable
from qrdali.reduction.levels import (
    ConstantLevels,
    Levels,
    RandomLevels,
    constant_levels,
    reduced_split_levels,
)
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import REDUCTIONS, level_of, num_levels_of
from qrdali.runs.settings import Settings
from qrdali.schedule.epoch_schedule import NAMED_PATTERNS, Phase, ScheduleRule


def check_settings(settings: Settings) -> None:
    """Raises InputError for settings that are right one by one and wrong together."""
    rule = schedule_rule_of(settings)
    num_levels = num_levels_of(settings.step)
    if settings.init and settings.pretrained:
        raise InputError("--init and --pretrained both say where the weights come from: give one of them")
    require_known_optimizer(settings.optimizer)
    if settings.method == "fixed":
        level_of(settings.quality, num_levels)
    if settings.method == "random":
        if settings.low > settings.high:
            raise InputError(f"--low {settings.low:g} is above --high {settings.high:g}")
        level_of(settings.low, num_levels)
        level_of(settings.high, num_levels)
    if (
        settings.method in ("fixed", "linear", "adaptive", "random")
        and settings.reduction != "none"
        and not rule.has_rounds
        and Phase.REDUCED not in rule.sequence
    ):
        raise InputError(
            f"sequence {settings.sequence!r} has no R epoch: nothing would be reduced; add an R, or use "
            "--reduction none for the sham control"
        )
    if settings.same_order and rule.has_rounds:
        raise InputError("--same-order is for patterns such as RC: rounds have no pairs of epochs")
    if settings.match_steps and settings.method != "baseline":
        raise InputError(f"--match is for baseline, not {settings.method}")
    for name in settings.track_sets:
        check_set_name(name, "--track-set")
    if settings.track_reduced:
        try:
            reduced_split_levels("val", settings.track_reduced, num_levels)
        except InputError as error:
            raise InputError(f"--track-reduced: {error}") from None


def require_known_optimizer(name: str) -> None:
    """Raises InputError for a name that is none of timm's, naming those that are near."""
    from timm.optim import get_optimizer_class, list_optimizers

    try:
        get_optimizer_class(name)
    except ValueError:
        near = difflib.get_close_matches(name, list_optimizers(), 3, 0.5)
        raise InputError(
            f"no optimizer is called {printable(name)[:80]!r}; {'near it' if near else 'timm has'}: "
            + ", ".join(near or list_optimizers()[:8])
        ) from None


def schedule_rule_of(settings: Settings) -> ScheduleRule:
    """`shared` trains a set number of C epochs, a matched baseline a set number of steps, the others until patience ends them."""
    if settings.method == "shared":
        return ScheduleRule(Phase.FULL.value, None, settings.epochs)
    if settings.match_steps:
        return ScheduleRule(Phase.FULL.value, None, settings.max_epochs)
    sequence = (
        Phase.FULL.value
        if settings.method == "baseline"
        else NAMED_PATTERNS.get(settings.sequence, settings.sequence)
    )
    stages = {"linear": num_levels_of(settings.step) - 1, "adaptive": None}.get(settings.method, 1)
    return ScheduleRule(sequence, settings.patience, settings.max_epochs, stages)


def stage_level(settings: Settings, stage: int) -> int:
    """The level of `linear` in a stage: down from 1, or up from the lowest."""
    return stage if settings.direction == "down" else num_levels_of(settings.step) - stage


def reduced_levels(settings: Settings, stage: int, epoch: int) -> Levels:
    """The levels of an R epoch of any method but adaptive, whose levels are its images' own."""
    dimensions, num_levels = REDUCTIONS[settings.reduction], num_levels_of(settings.step)
    if settings.method == "linear":
        return constant_levels(dimensions, stage_level(settings, stage))
    if settings.method == "random":
        return RandomLevels(
            dimensions,
            level_of(settings.high, num_levels),
            level_of(settings.low, num_levels),
            settings.seed,
            epoch,
        )
    if settings.method == "fixed":
        return constant_levels(dimensions, level_of(settings.quality, num_levels))
    return ConstantLevels()


def descent_rule_of(settings: Settings) -> DescentRule:
    return DescentRule(
        REDUCTIONS[settings.reduction], num_levels_of(settings.step), settings.windows, settings.prefer
    )
