"""The table of loggers, and what can be said before a run begins: is it installed, can it write."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from qrdali.errors import InputError, printable
from qrdali.loggers.interface import RunLogger
from qrdali.runs.logger_names import split_logger_names


class LoggerKind(NamedTuple):
    """Says where a logger's class lies, and which package it needs; the extra has the logger's name."""

    module: str
    class_name: str
    package: str


KINDS = {
    "tensorboard": LoggerKind("qrdali.loggers.tensorboard_events", "TensorBoardLogger", "tensorboard"),
    "wandb": LoggerKind("qrdali.loggers.wandb_run", "WandbLogger", "wandb"),
    "mlflow": LoggerKind("qrdali.loggers.mlflow_run", "MlflowLogger", "mlflow"),
    "trackio": LoggerKind("qrdali.loggers.trackio_run", "TrackioLogger", "trackio"),
}


def create_logger(name: str, run: Path) -> RunLogger:
    """Returns the logger `name` of a run folder. Raises InputError if it is not installed."""
    require_installed([name])
    kind = KINDS[name]
    logger: RunLogger = getattr(importlib.import_module(kind.module), kind.class_name)(run)
    return logger


def require_loggers(log: str, run: Path) -> None:
    """Raises InputError unless the loggers of a run that begins in the folder `run` are installed and can
    write. log: their names, as the setting has them."""
    names = split_logger_names(log)
    require_installed(names)
    require_writable(names, run)


def require_installed(names: Sequence[str]) -> None:
    """Raises InputError, saying which extra to install, for a logger whose package is missing."""
    for name in names:
        if not _is_installed(KINDS[name].package):
            raise InputError(
                f"the logger {name} is not installed: install the extra qrdali[{name}] "
                f"(from a checkout: pip install -c constraints.txt -e '.[{name}]'), or leave it out of --log"
            )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # A folder of that name in the working directory, as wandb makes one, has no origin.
    return spec is not None and spec.origin is not None


def require_writable(names: Sequence[str], run: Path) -> None:
    """Raises InputError for a local folder of a log that cannot be made or written."""
    for name in names:
        for folder in _local_folders(name, run):
            _require_writable(name, folder)


def _local_folders(name: str, run: Path) -> list[Path]:
    """Returns where a logger writes on this machine, as far as that is known without importing it."""
    if name == "tensorboard":
        return [run / "tensorboard"]
    if name == "wandb":
        return [Path(os.environ.get("WANDB_DIR") or run)]
    if name == "trackio":
        folder = os.environ.get("TRACKIO_DIR")
        return [Path(folder)] if folder else []
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "://" in address and not address.startswith("file://"):
        return []
    folder = address.removeprefix("file://")
    return [Path(folder)] if folder else []


def _require_writable(name: str, folder: Path) -> None:
    existing = folder.absolute()
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        problem = f"{printable(existing)} is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"{printable(existing)} may not be written"
    else:
        return
    raise InputError(
        f"the log of {name} cannot be written to {printable(folder)}: {problem}; mend that, or "
        "leave it out of --log"
    )
