"""What runs and MEPI sets left on disk, checked, without their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali import checkpoint, runs
from qrdali import settings as settings_file
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluate import read_rows
from qrdali.mepi_set import MANIFEST, OPTIONS, SCHEMA, SEARCHED, SUMMARY
from qrdali.settings import Settings

Warn = Callable[[str], None]
_LONGEST = 1 << 20  # bytes of a line or a small file


class Epoch(BaseModel):
    """A line of metrics.jsonl; what older runs did not record is None."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    epoch: int = Field(ge=0, lt=1 << 40)
    phase: str
    stage: int = 1
    quality: dict[str, float] = {}
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_accuracy: float
    seconds: float = 0.0
    images_per_second: float | None = None
    optimizer_steps: int = 0
    forward_images: int = 0
    total_seconds: float = 0.0
    probe_seconds: float | None = None
    peak_memory_mb: float | None = None
    memory_of: str | None = None
    energy_joules: float | None = None
    probe_energy_joules: float | None = None
    tracked: dict[str, float | None] = {}
    environment: dict[str, Any] | None = None
    network: dict[str, Any] | None = None
    images: dict[str, int] | None = None


@dataclass(frozen=True)
class SetRows:
    """Predictions on one set. digest: of sample numbers, paths and labels; rows with the same digest are of the same images."""

    correct: npt.NDArray[np.bool_]
    digest: str

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Run:
    """A run folder. name: what tells it from the report's other runs. weights: SHA-256 of best/'s file. sets: by name, val first.
    curves: by set name, what `evaluate --curve` summed up, and the accuracy of chance."""

    folder: Path
    name: str
    settings: Settings
    trained: runs.Trained
    epochs: tuple[Epoch, ...]
    sets: dict[str, SetRows]
    curves: dict[str, tuple[dict[str, Any], float | None]]
    weights: str

    @property
    def start(self) -> Epoch:
        return self.epochs[0]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def accuracy(self) -> dict[str, float]:
        """By set; val as training measured it where there are no rows."""
        return {"val": self.trained.val_accuracy} | {name: rows.accuracy for name, rows in self.sets.items()}


@dataclass(frozen=True)
class Mepis:
    """A MEPI set folder. rows: the manifest's columns per reduction. tried: images searched per reduction, unreadable ones left out.
    run: the run of this report whose weights it was made with, if any."""

    folder: Path
    name: str
    run: Run | None
    options: dict[str, Any]
    summary: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, npt.NDArray[Any]]]

    def tried(self, reduction: str) -> int:
        row = self.summary[reduction]
        return int(row["images"]) - int(row["unreadable"])


def read_epochs(file: Path, warn: Warn) -> tuple[Epoch, ...]:
    """The whole lines of a metrics file; what follows a damaged or cut line is left out with one warning. Raises RunError if none is
    whole."""
    found: list[Epoch] = []
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
                try:
                    found.append(Epoch.model_validate_json(line))
                except ValidationError:
                    warn(f"{printable(file)} line {number} is cut or damaged: the {len(found)} lines before it are used")
                    break
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None
    if not found:
        raise RunError(f"{printable(file)} holds no whole line: continue the run with `qrdali train … --resume`")
    return tuple(found)


def read_run(folder: Path, name: str, warn: Warn) -> Run:
    """Raises InputError if `folder` holds no run, RunError if what it holds is damaged."""
    trained = runs.describe_best(folder)
    values = settings_file.read(folder / "config.toml")
    settings = settings_file.validated({key: value for key, value in values.items() if key in Settings.model_fields})
    epochs = read_epochs(folder / "metrics.jsonl", warn)
    files = sorted((folder / "predictions").glob("*.parquet"), key=lambda f: (_place(f.stem), f.stem))
    sets = {}
    for file in files:
        rows = read_rows(folder, file.stem)
        digest = hashlib.sha256(rows["sample"].tobytes() + rows["label"].tobytes())
        for path in rows["path"]:
            digest.update(str(path).encode("utf-8", "surrogatepass") + b"\0")
        sets[file.stem] = SetRows(rows["correct"].copy(), digest.hexdigest())
    weights = checkpoint.current(folder / "best") / "model.safetensors"
    return Run(folder, name, settings, trained, epochs, sets, _curves(folder / "curves", warn), _sha256(weights))


def _place(name: str) -> int:
    return {"val": 0, "test": 1, "train": 2}.get(name, 3)


def _sha256(file: Path) -> str:
    """Hexadecimal; "" where the weights have been thrown away, without which a report can do."""
    if not file.exists():
        return ""
    try:
        with open(file, "rb") as data:
            digest = hashlib.sha256()
            while block := data.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None


def _curves(folder: Path, warn: Warn) -> dict[str, tuple[dict[str, Any], float | None]]:
    found: dict[str, tuple[dict[str, Any], float | None]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            told = read_object(file)
            curves = told["curves"]
            if not all(r in SEARCHED and len(c["quality"]) == len(c["accuracy"]) and all(
                    0 <= float(x) <= 1 for x in (*c["quality"], *c["accuracy"], c["area"])) for r, c in curves.items()):
                raise ValueError("no curve")
            found[file.stem] = curves, None if told.get("chance") is None else float(told["chance"])
        except (RunError, ValueError, KeyError, TypeError, AttributeError):
            warn(f"{printable(file)} is damaged and left out: `qrdali evaluate --curve` makes it again")
    return found


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises RunError."""
    try:
        if file.stat().st_size > 16 * _LONGEST:
            raise ValueError("it is larger than 16 MiB")
        told = json.loads(file.read_text("utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it holds no JSON object")
        return told
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def read_mepis(folder: Path, name: str, known: list[Run]) -> Mepis:
    """Raises InputError if `folder` is no MEPI set or has no finished reduction, RunError if it is damaged."""
    if not (folder / OPTIONS).exists():
        raise InputError(f"{printable(folder)} is no MEPI set (no {OPTIONS}): `qrdali build-mepi --out` makes one")
    options, summary = read_object(folder / OPTIONS), {}
    if (folder / SUMMARY).exists():
        summary = read_object(folder / SUMMARY)
    if not summary:
        raise InputError(f"{printable(folder)} has no finished reduction: continue it with `qrdali build-mepi … --resume`")
    try:
        for reduction, row in summary.items():
            counts = [row[key] for key in ("images", "without_mepi", "unreadable")]
            if reduction not in SEARCHED or any(type(count) is not int or count < 0 for count in counts):
                raise ValueError(f"reduction {printable(reduction)[:20]!r}")
            float(row["seconds"])
        table = pq.read_table(folder / MANIFEST, columns=SCHEMA.names)
        columns = {key: table[key].to_numpy(zero_copy_only=False) for key in SCHEMA.names}
        if (columns["entropy_full"] < 1).any() or (columns["entropy_mepi"] < 1).any():
            raise ValueError("an entropy below one byte")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise RunError(f"{printable(folder)} is damaged: {printable(error)[:160]}") from None
    rows = {}
    for reduction in (r for r in SEARCHED if r in summary):
        own = columns["reduction"] == reduction
        rows[reduction] = {key: column[own] for key, column in columns.items()}
    run = next((run for run in known if run.weights and run.weights == options.get("weights")), None)
    return Mepis(folder, name, run, options, {r: summary[r] for r in rows}, rows)


def named(folders: list[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart, control characters replaced. Raises InputError if one is given twice."""
    whole = [folder.resolve().parts for folder in folders]
    if len(set(whole)) < len(whole):
        twice = next(folder for folder, parts in zip(folders, whole, strict=True) if whole.count(parts) > 1)
        raise InputError(f"{printable(twice)} is given twice")
    for length in range(1, max(map(len, whole), default=1) + 1):
        names = [printable("/".join(parts[-length:])) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{i}: {printable(folder)}" for i, folder in enumerate(folders, 1)]
