"""The command that trains a run: that of other settings than a run's own, such as those of its control."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from qrdali.runs.configuration import applicable
from qrdali.runs.settings import Settings, validate_settings

# Settings that are no options, that only watch, or that each machine chooses for itself.
_LEFT_OUT = frozenset(
    {
        "method",
        "data",
        "match_steps",
        "definitions",
        "epochs_before",
        "automatic",
        "device",
        "threads",
        "probe_batch_size",
        "save_every",
        "max_bad",
        "track_sets",
        "track_reduced",
        "log",
    }
)
# Settings of what a control leaves out; its own defaults are meant.
_OF_REDUCTION = ("sequence", "same_order", "monitor", "tail", "match", "match_steps")


def train_command(settings: Settings, run: Path) -> str:
    """Returns the command that trains a run with these settings in the folder `run`, quoted for a shell.

    Options with their default values, and those without an effect, are left out.
    """
    # Those of the method: the methods with reduced epochs have a reduction and a sequence by default.
    defaults = validate_settings({"method": settings.method, "data": settings.data}).model_dump()
    words = ["qrdali", "train", settings.method, "--data", settings.data or "DATASET", "--run", str(run)]
    for name, value in applicable(settings).items():
        chosen_by_machine = name in settings.automatic
        if name in _LEFT_OUT or chosen_by_machine or value == defaults.get(name):
            continue
        words += _option(name, value)
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    """Returns the words that give an option of `qrdali train` a value other than its default."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    if isinstance(value, dict):
        return [
            word for key, one in value.items() for word in (option.removesuffix("s"), f"{key}={_text(one)}")
        ]
    return [option, _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def with_method(settings: Settings, **changes: Any) -> Settings:
    """Returns the settings of a run of another method that is otherwise trained alike.

    Of a method without reduced epochs what belongs to those is left out.
    """
    method = changes.get("method", settings.method)
    left_out: dict[str, Any] = {}
    if method in ("shared", "baseline"):
        left_out = {name: Settings.model_fields[name].default for name in (*_OF_REDUCTION, "reduction")}
    elif method not in ("linear", "adaptive"):
        left_out = {"tail": "none"}
    return settings.model_copy(update={**left_out, **changes})
