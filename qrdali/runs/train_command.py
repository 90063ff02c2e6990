"""The command that trains a run: that of other settings than a run's own, such as those of its control."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from qrdali.runs.configuration import applicable
from qrdali.runs.setting_table import Kind, Setting, settings_table, takes
from qrdali.runs.settings import Settings

# Options that stand at fixed places, that only watch, or that each machine chooses for itself.
_LEFT_OUT = frozenset(
    {
        "data",
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


def train_command(settings: Settings, run: Path) -> str:
    """Returns the command that trains a run with these settings in the folder `run`, quoted for a shell.

    Options with the method's default values, and those without an effect, are left out.
    """
    words = ["qrdali", "train", settings.method, "--data", settings.data or "DATASET", "--run", str(run)]
    table = settings_table(Settings)
    for name, value in applicable(settings).items():
        setting = table[name]
        if setting.option is None or name in _LEFT_OUT or name in settings.automatic:
            continue
        if value != setting.default_of(settings.method):
            words += _option(setting, value)
    return shlex.join(words)


def _option(setting: Setting, value: Any) -> list[str]:
    """Returns the words that give an option of `qrdali train` a value other than its default."""
    if setting.kind is Kind.FLAG:
        return [setting.flag]
    if isinstance(value, dict):
        return [word for key, one in value.items() for word in (setting.flag, f"{key}={_text(one)}")]
    return [setting.flag, _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def with_method(settings: Settings, **changes: Any) -> Settings:
    """Returns the settings of a run of another method that is otherwise trained alike.

    What the method does not have is left at its default.
    """
    method = changes.get("method", settings.method)
    table = settings_table(Settings)
    left_out = {name: setting.default for name, setting in table.items() if not takes(setting, method)}
    without_match = {"match": "", "match_steps": 0}
    return settings.model_copy(update={**left_out, **without_match, **changes})
