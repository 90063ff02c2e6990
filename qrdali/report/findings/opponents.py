"""What a run trained on reduced images is compared with: its baseline, and its own controls.

| control | what it is | from what it tells a method |
|---|---|---|
| matched | a baseline of as many optimizer steps, otherwise augmented alike | from training as long |
| sham | the same sequence and patience without a reduction | from the scheme of training |
| random | the same reduction and sequence, qualities drawn per image and epoch | from plain augmentation |
| randaugment | a baseline with automatic augmentation, also a matched one | from the usual augmentation |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.report.groups import Configuration, Group, augmentations, is_unmatched_baseline
from qrdali.report.read import Run
from qrdali.runs.configuration import distinguishing, label_of, names_of, on_gpu
from qrdali.runs.settings import Settings
from qrdali.runs.train_command import train_command, with_method

_RANDAUGMENT = "rand-m9"  # as the control of an experiment has it
_REDUCED = ("fixed", "linear", "adaptive")
# Settings in which a run and what it is compared with differ by what they are.
_MEANT = frozenset(
    {
        "method",
        "reduction",
        "sequence",
        "same_order",
        "monitor",
        "quality",
        "step",
        "tail",
        "direction",
        "low",
        "high",
        "feedback",
        "prefer",
        "windows",
        "match_steps",
        "max_epochs",
        "patience",
        "restore_best",
        "probe_batch_size",
    }
)


def is_reduced(settings: Settings) -> bool:
    """Returns whether settings are of a method that P1 asks about: fixed, linear or adaptive, and no sham."""
    return settings.method in _REDUCED and settings.reduction != "none"


def is_sham(settings: Settings) -> bool:
    return settings.method in (*_REDUCED, "random") and settings.reduction == "none"


def methods(group: Group) -> list[Configuration]:
    """Returns a group's configurations that were trained on reduced images and are no control."""
    return [c for c in group.configurations if is_reduced(c.runs[0].settings)]


@dataclass(frozen=True)
class Control:
    """Says which runs are a control of a run, and what one would be trained by.

    is_of: whether a run of the same seed is the control. likeness: how well it fits, of several. settings: of
    the control of a run, whose folder is given. applies: whether a run of these settings has such a control.
    """

    name: str
    is_of: Callable[[Run, Run], bool]
    likeness: Callable[[Run, Run], int]
    settings: Callable[[Settings, Path], Settings]
    applies: Callable[[Settings], bool] = lambda settings: True


def _takes_steps_of(control: Run, run: Run) -> bool:
    """Returns whether `control` was matched to the steps of `run`, wherever that lies now."""
    taken, steps = control.settings.match_steps, run.last.optimizer_steps
    if not taken:
        return False
    if control.settings.match and Path(control.settings.match).absolute() == run.folder.absolute():
        return True
    ancestor = control.chain.match
    return ancestor is not None and taken == steps and ancestor.label == label_of(names_of(run.settings))


def _is_matched(control: Run, run: Run) -> bool:
    """Returns whether `control` is the baseline matched to `run`; one that is augmented more is another."""
    return augmentations(control.settings) <= augmentations(run.settings) and _takes_steps_of(control, run)


def _is_randaugment(control: Run, run: Run) -> bool:
    """Returns whether `control` is an augmented baseline: ended by patience, or matched to this very run."""
    if control.settings.method != "baseline" or not control.settings.auto_augment:
        return False
    return is_unmatched_baseline(control.settings) or _takes_steps_of(control, run)


CONTROLS: tuple[Control, ...] = (
    Control(
        "matched",
        _is_matched,
        lambda control, run: 0,
        lambda settings, run: with_method(settings, method="baseline", match=str(run), match_steps=1),
    ),
    Control(
        "sham",
        lambda control, run: is_sham(control.settings) and control.settings.sequence == run.settings.sequence,
        lambda control, run: 1000 * (control.settings.method == run.settings.method),
        lambda settings, run: with_method(settings, reduction="none"),
    ),
    Control(
        "random",
        lambda control, run: (
            control.settings.method == "random"
            and (control.settings.reduction, control.settings.sequence)
            == (run.settings.reduction, run.settings.sequence)
        ),
        lambda control, run: 0,
        lambda settings, run: with_method(settings, method="random"),
    ),
    Control(
        "randaugment",
        _is_randaugment,
        # Of both kinds the one of an experiment, which is compared with the plain baseline as well.
        lambda control, run: 1000 * is_unmatched_baseline(control.settings),
        lambda settings, run: with_method(settings, method="baseline", auto_augment=_RANDAUGMENT),
        lambda settings: not settings.auto_augment,  # the baseline of an augmented run has the same
    ),
)


def baseline_settings(settings: Settings, start: Path | None = None) -> Settings:
    """Returns those of a baseline that is otherwise trained alike. start: the run it begins with, if that is
    not the settings' own.
    """
    begun = {"init": str(start), "pretrained": False} if start else {}
    return with_method(settings, method="baseline", **begun)


def _distinguishing(run: Run) -> dict[str, Any]:
    return distinguishing(run.settings, on_gpu=on_gpu(run.start.environment))


def control_of(group: Group, run: Run, control: Control) -> Run | None:
    """Returns a run's control: of its seed, and of several the one that is most alike."""
    if not control.applies(run.settings):
        return None
    settings = _distinguishing(run)
    candidates = [
        other
        for other in group.runs
        if other is not run and other.settings.seed == run.settings.seed and control.is_of(other, run)
    ]

    def likeness(other: Run) -> tuple[bool, bool, int]:
        values = _distinguishing(other)
        alike = sum(values.get(name) == value for name, value in settings.items())
        return (
            other.definitions == run.definitions,
            other.chain.init == run.chain.init,
            control.likeness(other, run) + alike,
        )

    return max(candidates, key=likeness, default=None)


def opponent(group: Group, run: Run, name: str) -> Run | None:
    """Returns what a run is compared with under a name: "baseline", or that of a control."""
    if name == "baseline":
        return None if group.is_baseline(run) else group.baseline(run)
    return control_of(group, run, next(control for control in CONTROLS if control.name == name))


OPPONENTS = ("baseline", *(control.name for control in CONTROLS))


def also_different(run: Run, other: Run, name: str) -> list[str]:
    """Returns in what else two runs differ that are compared, for a reader: each is a part of the difference.

    name: that of the opponent.
    """
    one, two = _distinguishing(run), _distinguishing(other)
    shared = sorted((one.keys() & two.keys()) - _MEANT)
    meant = {"auto_augment"} if name == "randaugment" else set()
    told = [key for key in shared if one[key] != two[key] and key not in meant]
    patient = ("patience", "restore_best", "max_epochs")
    told += [key for key in patient if key in one and key in two and one[key] != two[key]]
    if name == "sham" and run.settings.method != other.settings.method:
        told.append("the number of stages")
    if run.chain.init != other.chain.init:
        told.append("the run they began with")
    if run.definitions != other.definitions:
        told.append("their definitions")
    return told


def command_of(run: Run, name: str) -> str:
    """Returns the command that trains what a run lacks: its baseline, or one of its controls."""
    if name == "baseline":
        settings = baseline_settings(run.settings)
    else:
        control = next(control for control in CONTROLS if control.name == name)
        settings = control.settings(run.settings, run.place)
    return train_command(settings, run.place.with_name(f"{run.place.name}-{name}"))
