"""Turns rows of metrics.jsonl into what loggers take: numbers by tag, and curves per stage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qrdali.errors import printable
from qrdali.loggers.interface import LoggedEpoch

# What the first row holds besides figures, and what is no figure of an epoch.
FACTS = ("environment", "network", "classes", "images", "fingerprints", "chain", "source", "definitions")
_ASIDE = frozenset({"epoch", *FACTS})
_STAGE_CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
STAGED_METHODS = ("linear", "adaptive")
# A row may come from anywhere.
_MOST_TAGS, _MOST_DEPTH, _LONGEST_TAG, _LATEST = 2000, 4, 200, 2**53
_SHEET = re.compile(r"stage-(\d{1,9})-epoch-(\d{1,9})\.png")


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a metrics row by tag: keys, those of objects within joined by "/".

    Texts, null and the facts of the first row are left out. Tags beyond 2,000, and those of more than 200
    characters, are too."""
    found: dict[str, float] = {}
    for tag, value in _leaves({key: value for key, value in row.items() if key not in _ASIDE}):
        if len(found) >= _MOST_TAGS:
            break
        if len(tag) <= _LONGEST_TAG:
            found[tag] = value
    return found


def _leaves(value: object, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        if depth < _MOST_DEPTH:
            for key, inner in value.items():
                yield from _leaves(
                    inner, f"{prefix}/{printable(key)}" if prefix else printable(key), depth + 1
                )
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            yield prefix, float(value)
        except OverflowError:  # an integer of hundreds of digits
            return


class EpochReader:
    """Makes `LoggedEpoch`s of rows, one after the other.

    by_stage: whether the run's method has stages, whose curves are logged too. sheets: PNGs by epoch.
    default_time: of rows that name none, in Unix seconds."""

    def __init__(self, by_stage: bool) -> None:
        self._by_stage = by_stage
        self._epochs_of_stage: Counter[int] = Counter()

    def read(self, row: Mapping[str, Any], sheet: Path | None, default_time: float) -> LoggedEpoch:
        """Returns what is logged of a row. Raises ValueError for an epoch that no run reaches."""
        number, values = row["epoch"], scalars(row)
        if not 0 <= number < _LATEST:
            raise ValueError(f"epoch {number:.6g} in metrics.jsonl cannot be")
        epoch = LoggedEpoch(number, _seconds(row.get("time"), default_time), values, sheet=sheet)
        stage = row.get("stage")
        if not self._by_stage or number == 0 or type(stage) is not int or not 0 <= stage < _LATEST:
            return epoch
        self._epochs_of_stage[stage] += 1
        curves = {f"stages/{stage}/{name}": values[name] for name in _STAGE_CURVES if name in values}
        return replace(epoch, stage_epoch=self._epochs_of_stage[stage], stage_values=curves)


def in_order(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns rows by epoch, of each epoch the last."""
    by_epoch = {row["epoch"]: row for row in rows}
    return [by_epoch[number] for number in sorted(by_epoch)]


def sheets_by_epoch(folder: Path) -> dict[int, Path]:
    """Returns the sheets in RUN/previews by the epoch that they show."""
    matches = [(file, _SHEET.fullmatch(file.name)) for file in sorted(folder.glob("*.png"))]
    return {int(match[2]): file for file, match in matches if match}


def has_sheet(folder: Path, stage: int) -> bool:
    """Returns whether RUN/previews holds a sheet of a stage."""
    return any(
        (match := _SHEET.fullmatch(file.name)) and int(match[1]) == stage for file in folder.glob("*.png")
    )


def sheet_name(stage: int, epoch: int) -> str:
    """Returns the name of the sheet of a stage whose first R epoch is `epoch`."""
    return f"stage-{stage}-epoch-{epoch}.png"


def _seconds(time: object, default: float) -> float:
    """Returns a time in ISO 8601 as Unix seconds; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(str(time))
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()
    except (ValueError, OverflowError, OSError):
        return default
