"""What a logger is: the Protocol that each implements, and what it is fed with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class LoggedEpoch:
    """Holds what is logged of one epoch.

    number: from 0, the start weights. time: at its end, in Unix seconds. values: numbers by tag, such as
    "val_accuracy" and "quality/crop". stage_epoch: the number of the epoch within its stage, from 1.
    stage_values: numbers by tag, such as "stages/2/val_accuracy", whose curve runs over `stage_epoch`. sheet:
    a PNG of training images as the epoch's reductions show them, in the first R epoch of a stage."""

    number: int
    time: float
    values: Mapping[str, float]
    stage_epoch: int = 0
    stage_values: Mapping[str, float] = field(default_factory=dict)
    sheet: Path | None = None


@dataclass(frozen=True)
class LoggedRun:
    """Holds what a log begins with.

    folder: of the run. key: 16 hexadecimal digits that name the run wherever it is logged. config: its
    settings and facts, JSON values by name. epochs: all that metrics.jsonl holds, in order."""

    folder: Path
    key: str
    config: Mapping[str, Any]
    epochs: tuple[LoggedEpoch, ...]

    @property
    def name(self) -> str:
        """Returns the name under which people see the run: that of its folder."""
        return self.folder.absolute().name or "run"


class RunLogger(Protocol):
    """Writes one run to one place. Any method may raise anything: `RunLog` ends the logger then, not the run.

    A logger is constructed with the run's folder, without touching anything."""

    def begin(self, run: LoggedRun) -> None:
        """Opens the log and makes it hold exactly `run.epochs`: missing ones are added, others removed."""
        ...

    def epoch(self, epoch: LoggedEpoch) -> None:
        """Adds an epoch, which follows those that the log holds."""
        ...

    def end(self, finished: bool) -> None:
        """Closes the log. finished: whether the run has ended, or will be continued."""
        ...

    def place(self) -> str:
        """Returns where to look at the log: a folder, an address, or a project and a name."""
        ...
