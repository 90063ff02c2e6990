"""What `qrdali train --dry-run` prints: the epochs of the longest run that its options allow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qrdali.runs.settings import Settings
    from qrdali.schedule.epoch_schedule import Phase


def show_sequence(settings: Settings) -> None:
    """Prints on stdout what would run at most, epoch by epoch."""
    from qrdali.schedule.epoch_schedule import longest_decay, longest_run
    from qrdali.schedule.methods import check_settings, require_live_levels, schedule_rule_of
    from qrdali.schedule.rate_spans import last_decay_epochs

    check_settings(settings)
    require_live_levels(settings)
    rule = schedule_rule_of(settings)
    epochs = list(longest_run(rule))
    decay = longest_decay(rule)
    if settings.lr_schedule == "wsd" and rule.patience is None:
        decay = last_decay_epochs(settings)
    for epoch, stage, phase in epochs:
        shown = _describe_epoch(settings, epoch, stage, phase)
        if epoch > len(epochs) - decay:
            shown += ", the learning rate decays"
        click.echo(f"epoch {epoch:3d}  stage {stage}  {phase}  {shown}")
    if rule.decay_epochs is not None and not decay:
        click.echo(f"# no epoch is left for the decay: --max-epochs {rule.max_epochs} comes first")
    if rule.patience is None:
        return
    unit = "round" if rule.has_rounds else "stage"
    repeated = "epochs" if rule.has_rounds or len(rule.sequence) == 1 else f"repetitions of {rule.sequence}"
    more = "; stages follow one another until no image moves" if rule.stages is None else ""
    click.echo(
        f"# the longest: each {unit} may end earlier, after {rule.patience} {repeated} without "
        f"improvement{more}"
    )


def _describe_epoch(settings: Settings, epoch: int, stage: int, phase: Phase) -> str:
    """Returns what the images of an epoch look like, in words."""
    from qrdali.reduction.levels import qualities_of
    from qrdali.schedule.epoch_schedule import Phase
    from qrdali.schedule.methods import reduced_levels

    if phase is Phase.FULL:
        return "full quality"
    if settings.method == "adaptive":
        return f"{settings.reduction}, each image at its own level"
    if settings.method == "random":
        return f"{settings.reduction}, quality {settings.low:g} to {settings.high:g}, drawn per image"
    qualities = qualities_of(reduced_levels(settings, stage, epoch), settings.scale)
    reduced = ", ".join(f"{name} {value:.4g}" for name, value in qualities.items() if value < 1)
    return reduced or "full quality (sham)"
