"""The names of the loggers that a run may have, as `--log` and config.toml give them."""

from __future__ import annotations

import difflib
from typing import Final

LOGGERS: Final = ("tensorboard", "wandb", "mlflow", "trackio")
_NONE = ("", "none")


def normalize_logger_names(value: object) -> str:
    """Returns names of loggers, separated by commas, each once: "tensorboard,mlflow"; "" for none.

    value: such a text or a list of names. Raises ValueError for a name that there is not, with those near it.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"give names separated by commas, of {', '.join(LOGGERS)}; or none")
    names = dict.fromkeys(part.strip().lower() for part in parts)
    for name in names:
        if name in LOGGERS or name in _NONE:
            continue
        near = difflib.get_close_matches(name, LOGGERS, 2, 0.5)
        advice = f"near it: {', '.join(near)}" if near else f"there are {', '.join(LOGGERS)}"
        raise ValueError(f"there is no logger of this name; {advice}")
    return ",".join(name for name in names if name not in _NONE)


def split_logger_names(text: str) -> tuple[str, ...]:
    """Returns the names in a text made by `normalize_logger_names`."""
    return tuple(name for name in text.split(",") if name)
