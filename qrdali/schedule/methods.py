"""Gives each training method its rule for the scheduler, and the levels of its R epochs.

| method | sequence | ends by | stages | level of an R epoch |
|---|---|---|---|---|
| shared | C | `epochs` | 1 | |
| baseline | C | patience, or `match_steps` | 1 | |
| fixed | as set | patience | 1 | that of `quality` |
| linear | as set | patience | its live levels | live ones of 1, 2, …, or from the last up (direction up) |
| random | as set | patience | 1 | drawn per image and epoch, from `high` to `low` |
| adaptive | as set | patience | until no image moves | each image's own (`training.level_stages`) |
"""

from __future__ import annotations

from collections.abc import Sequence

from qrdali.data.set_names import check_set_name
from qrdali.errors import InputError
from qrdali.reduction.distortions.interface import NOMINAL_SIDE
from qrdali.reduction.levels import (
    ConstantLevels,
    Levels,
    RandomLevels,
    levels_of,
    moves_of,
    reduced_split_levels,
)
from qrdali.reduction.names import DISTORTIONS, SEARCHED, why_not_searched
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import level_of
from qrdali.runs.option import REDUCED
from qrdali.runs.setting_table import describe_refusal, settings_table, takes
from qrdali.runs.settings import Settings
from qrdali.schedule.epoch_schedule import NAMED_PATTERNS, Phase, ScheduleRule
from qrdali.schedule.live_levels import SizeChunks, live_levels
from qrdali.schedule.recipe_checks import check_recipe


def tracked_reductions(settings: Settings) -> tuple[str, ...]:
    """Returns the reductions of `track_reduced`: those of a search, and the run's own."""
    own = (settings.reduction,) if settings.reduction in DISTORTIONS else ()
    return (*SEARCHED, *own)


def check_settings(settings: Settings) -> None:
    """Raises InputError for settings that are right one by one and wrong together."""
    if settings.method == "adopted":
        raise InputError("method 'adopted' trains nothing: start a training from an adopted run with --init")
    rule, scale = schedule_rule_of(settings), settings.scale
    if settings.init and settings.pretrained:
        raise InputError("--init and --pretrained both say where the weights come from: give one of them")
    check_recipe(settings)
    for name, is_given in (("tail", bool(scale.tail)), ("match", bool(settings.match_steps))):
        setting = settings_table(Settings)[name]
        if is_given and not takes(setting, settings.method):
            raise InputError(describe_refusal(setting, settings.method))
    if settings.method == "adaptive" and settings.reduction in DISTORTIONS:
        raise InputError(
            f"--reduction {settings.reduction} {why_not_searched(settings.reduction)}, and so does adaptive; "
            f"{settings.reduction} is for fixed, linear and random"
        )
    if settings.method == "fixed":
        level_of(settings.quality, scale)
    if settings.method == "random":
        if settings.low > settings.high:
            raise InputError(f"--low {settings.low:g} is above --high {settings.high:g}")
        level_of(settings.low, scale)
        level_of(settings.high, scale)
    if (
        settings.method in REDUCED
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
    if (
        (settings.mixup or settings.cutmix)
        and settings.method == "adaptive"
        and settings.feedback == "online"
    ):
        raise InputError(
            f"--{'mixup' if settings.mixup else 'cutmix'} shows the network mixtures of images, from which "
            "--feedback online cannot tell which one it got right: leave it out, or use --feedback probe"
        )
    for name in settings.track_sets:
        check_set_name(name, "--track-set")
    if settings.track_reduced:
        try:
            reduced_split_levels("val", settings.track_reduced, scale)
        except InputError as error:
            raise InputError(f"--track-reduced: {error}") from None


def schedule_rule_of(settings: Settings, levels: tuple[int, ...] | None = None) -> ScheduleRule:
    """Returns the rule of a run's epochs.

    `shared` trains a set number of C epochs and a matched baseline a set number of optimizer steps, which the
    trainer counts; the others train until patience ends them. levels: those of `stage_levels`, where the
    training images are known.
    """
    if settings.method == "shared":
        return ScheduleRule(Phase.FULL.value, None, settings.epochs)
    if settings.match_steps:
        return ScheduleRule(Phase.FULL.value, None, settings.max_epochs)
    sequence = (
        Phase.FULL.value
        if settings.method == "baseline"
        else NAMED_PATTERNS.get(settings.sequence, settings.sequence)
    )
    stages: int | None = 1
    if settings.method == "linear":
        stages = len(stage_levels(settings) if levels is None else levels)
    elif settings.method == "adaptive":
        stages = None
    decay = settings.decay_epochs if settings.lr_schedule == "wsd" else None
    return ScheduleRule(sequence, settings.patience, settings.max_epochs, stages, decay)


def stage_levels(settings: Settings, size_chunks: SizeChunks | None = None) -> tuple[int, ...]:
    """Returns the level of each stage of `linear`, and () for the other methods.

    Of step 0.25: 1, 2, 3 with direction "down", 3, 2, 1 with "up". A level that changes no training image
    against the stage before is left out, except by a run whose definitions are 1 and by the sham.
    size_chunks: the training images' sizes, as in `live_levels`.
    """
    if settings.method != "linear":
        return ()
    every = range(1, settings.scale.count)
    order = every if settings.direction == "down" else every[::-1]
    if settings.reduction == "none" or settings.definitions == 1:
        return tuple(order)
    return _live_levels(settings, order, size_chunks)


def _live_levels(settings: Settings, order: Sequence[int], size_chunks: SizeChunks | None) -> tuple[int, ...]:
    moves, side = moves_of(settings.reduction), settings.input_size or NOMINAL_SIDE
    return live_levels(order, moves.dimensions, settings.scale, size_chunks, moves.distortion, side)


def require_live_levels(settings: Settings, size_chunks: SizeChunks | None = None) -> None:
    """Raises InputError for a method whose R epochs would change no training image.

    That is a quality of `fixed` which leaves every image as it is, or a range of qualities without one that
    changes an image. size_chunks: as in `live_levels`. The sham, and runs of definitions 1, are excepted.
    """
    if settings.reduction == "none" or settings.definitions == 1 or settings.method in ("shared", "baseline"):
        return
    scale = settings.scale
    first, last, what = 1, scale.count - 1, f"no level of step {settings.step:g} changes any training image"
    if settings.method == "fixed":
        first = last = level_of(settings.quality, scale)
        what = f"quality {settings.quality:g} of {settings.reduction} changes no training image"
    elif settings.method == "random":
        first, last = level_of(settings.high, scale), level_of(settings.low, scale)
        what = f"no quality from {settings.low:g} to {settings.high:g} changes any training image"
    if _live_levels(settings, range(first, last + 1), size_chunks):
        return
    lower = _live_levels(settings, range(1, scale.count), size_chunks)
    remedy = f"use {scale.describe(lower[0])} or less, or " if lower else ""
    raise InputError(f"{what}: {remedy}--reduction none for the sham control")


def reduced_levels(settings: Settings, stage: int, epoch: int, levels: tuple[int, ...] = ()) -> Levels:
    """Returns the levels of an R epoch of any method but adaptive, whose levels are its images' own.

    epoch: as random streams count it. levels: of linear's stages, as `stage_levels` gives them.
    """
    scale = settings.scale
    if settings.method == "linear":
        return levels_of(settings.reduction, (levels or stage_levels(settings))[stage - 1])
    if settings.method == "random":
        moves = moves_of(settings.reduction)
        return RandomLevels(
            moves.dimensions,
            level_of(settings.high, scale),
            level_of(settings.low, scale),
            settings.seed,
            epoch,
            moves.distortion,
        )
    if settings.method == "fixed":
        return levels_of(settings.reduction, level_of(settings.quality, scale))
    return ConstantLevels()


def descent_rule_of(settings: Settings) -> DescentRule:
    """Returns what may move in a run's descent steps, and how a neighbour is chosen."""
    dimensions = moves_of(settings.reduction).dimensions
    return DescentRule(dimensions, settings.scale, settings.windows, settings.prefer)
