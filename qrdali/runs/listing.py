"""Finds the run folders below a folder and says of each what it is, whatever its files hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from qrdali.errors import InputError, RunError, printable
from qrdali.files.lock import is_held
from qrdali.runs import folder as run_folder
from qrdali.runs import settings

DEPTH = 6  # folders below the one that is given
MAX_FOLDERS = 20_000  # looked into
_MAX_ENTRIES = 100_000  # of a folder: more are images, not runs
_MAX_ROWS = 100_000  # of metrics.jsonl
_CONTENT = ("best", "best.old", "last", "last.old", "metrics.jsonl")  # of a run, beside its config.toml
_ADOPTED = "adopted"
_LONGEST = 400  # characters of a value of config.toml

State = Literal["finished", "stopped", "running", "adopted"]


@dataclass(frozen=True)
class ListedRun:
    """Holds what a run folder says of itself; what is not known is None.

    name: its path below the folder that was given. method, reduction, sequence, network, data, seed: of
    config.toml. state: "finished"; "running" while a process trains in it; "adopted" where its weights were
    trained elsewhere; or "stopped". best: the validation accuracy of best/, in [0, 1]; best_epoch: its epoch.
    epochs: trained. seconds: of training and probes. init: the run that it began with. origin: that run's
    path, "pretrained", "scratch", or where adopted weights come from. error: why the rest could not be read,
    or "".
    """

    folder: Path
    name: str
    method: str | None = None
    reduction: str | None = None
    sequence: str | None = None
    network: str | None = None
    data: str | None = None
    seed: int | None = None
    state: State | None = None
    best: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    init: str | None = None
    origin: str | None = None
    error: str = ""


@dataclass(frozen=True)
class RunList:
    """Holds runs in the order of their paths. notes: lines on what was not looked into."""

    runs: list[ListedRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_runs(folders: Sequence[Path]) -> RunList:
    """Returns the runs in `folders` and below them, down to `DEPTH`.

    A run whose files are damaged is listed with its error. Hidden folders are left out, as are those within
    a run; links to folders are followed, each folder once. Raises InputError for one that is none.
    """
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{printable(folder)} is not a folder: give folders that hold runs")
    found = RunList()
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        for run in _run_folders(folder, seen, found.notes):
            below = os.path.relpath(run, folder)
            of_several = len(folders) > 1 or below == "."
            name = str(run) if of_several and str(run) != "." else run.resolve().name if of_several else below
            found.runs.append(describe_run(run, name))
    return found


def _run_folders(folder: Path, seen: set[tuple[int, int]], notes: list[str]) -> Iterator[Path]:
    pending = [(folder, 0)]  # the next one last
    while pending:
        place, depth = pending.pop()
        try:
            facts = os.stat(place)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            if len(seen) >= MAX_FOLDERS:
                notes.append(f"only {MAX_FOLDERS:,} folders were looked into: give a narrower one")
                return
            seen.add((facts.st_dev, facts.st_ino))
            if _is_run(place):
                yield place
                continue
            with os.scandir(place) as scan:
                entries = list(islice(scan, _MAX_ENTRIES + 1))
            below = [] if depth == DEPTH else sorted(entry.path for entry in entries if _is_visible(entry))
        except OSError as error:
            notes.append(f"not looked into: {printable(place)}: {printable(error.strerror or error)}")
            continue
        if len(entries) > _MAX_ENTRIES:
            notes.append(f"not looked into: {printable(place)}: it has more than {_MAX_ENTRIES:,} entries")
            continue
        pending += [(Path(path), depth + 1) for path in reversed(below)]


def _is_visible(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _is_run(folder: Path) -> bool:
    """Returns whether a folder is a run's, damaged or not: another program's config.toml makes none."""
    if not run_folder.holds_run(folder):
        return False
    if any((folder / name).exists() for name in _CONTENT):
        return True
    try:
        return "method" in settings.read_toml(folder / "config.toml")
    except InputError:
        return True


def describe_run(folder: Path, name: str) -> ListedRun:
    """Returns what is known of a run, with the error that the first file that cannot be read raised."""
    known: dict[str, Any] = {}
    try:
        values = settings.read_toml(folder / "config.toml")
        known |= _of_settings(values, folder)
        is_adopted = known["method"] == _ADOPTED
        known["state"] = _ADOPTED if is_adopted else _state_without_reading(folder)
        known |= _of_metrics(folder)
        if (folder / "best").exists() or (folder / "best.old").exists():
            best = run_folder.describe_best(folder)
            known |= {
                "network": best.model,
                "best_epoch": best.epoch,
                "best": _share(best.val_accuracy),
            }
        if known["state"] == "stopped" and run_folder.has_checkpoint(folder) and run_folder.has_ended(folder):
            known["state"] = "finished"
    except (InputError, RunError, OSError, ValueError) as error:
        what = printable(error).replace(f"{printable(folder)}/", "")
        return ListedRun(folder, name, **known, error=what[:_LONGEST])
    return ListedRun(folder, name, **known)


def _of_settings(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns what config.toml says. Raises ValueError for a value of another type."""

    def text(key: str) -> str:
        value = values.get(key, "")
        if not isinstance(value, str):
            raise ValueError(
                f"{printable(folder / 'config.toml')}: {key} = {printable(value)[:80]!r} is no text"
            )
        return value[:_LONGEST]

    method, seed = text("method"), values.get("seed")
    if not method:
        raise ValueError(f"{printable(folder / 'config.toml')} names no method: it is not a run's")
    reduced = method not in ("shared", "baseline", _ADOPTED)
    return {
        "method": method,
        "reduction": text("reduction") if reduced else None,
        "sequence": text("sequence") if reduced else None,
        "network": text("model") or None,
        "data": text("data") or None,
        "seed": seed if type(seed) is int else None,
        "init": text("init") or None,
        "origin": _origin(values, text("init")),
    }


def _origin(values: Mapping[str, Any], init: str) -> str:
    adopted = values.get(_ADOPTED)
    if values.get("method") == _ADOPTED:
        weights = adopted.get("weights") if isinstance(adopted, dict) else None
        return weights[:_LONGEST] if isinstance(weights, str) and weights else "elsewhere"
    return init or ("pretrained" if values.get("pretrained") is True else "scratch")


def _state_without_reading(folder: Path) -> State:
    """Returns the state by which files are there: of a stopped run, a checkpoint may say that it ended."""
    if is_held(folder / run_folder.LOCK):
        return "running"
    has_best = (folder / "best").exists()
    never_trained = not run_folder.has_checkpoint(folder) and not (folder / "metrics.jsonl").exists()
    return "adopted" if has_best and never_trained else "stopped"


def _of_metrics(folder: Path) -> dict[str, Any]:
    """Returns epochs and seconds by metrics.jsonl, nothing where there is none."""
    if not (folder / "metrics.jsonl").exists():
        return {}
    epochs, total, summed = 0, None, 0.0
    for row in islice(run_folder.metrics_rows(folder), _MAX_ROWS):
        epochs = max(epochs, min(row["epoch"], 1 << 53))
        summed += _amount(row.get("seconds")) or 0.0
        total = _amount(row.get("total_seconds")) or total
    return {"epochs": epochs, "seconds": summed if total is None else total}


def _amount(value: object) -> float | None:
    """Returns a finite number from 0, None for anything else."""
    is_number = isinstance(value, int | float) and 0 <= value < 1e15
    return float(value) if is_number and math.isfinite(float(value)) else None  # type: ignore[arg-type]


def _share(value: float | None) -> float | None:
    """Returns an accuracy, which an adopted run has none of. Raises ValueError for what cannot be one."""
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"best/ has the validation accuracy {value!r}, which is outside 0 … 1")
    return value
