"""What runs and MEPI sets left on disk, checked, without their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.prediction_rows import read_metadata, read_rows, read_table
from qrdali.files.json_objects import read_object
from qrdali.mepi.folder import MANIFEST, OPTIONS, SCHEMA, SEARCHED, SUMMARY
from qrdali.runs import folder as run_folder
from qrdali.runs import settings as run_settings
from qrdali.runs.settings import Settings

Warn = Callable[[str], None]
_LONGEST = 1 << 20  # bytes of a line


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]


class Network(BaseModel):
    """Of metrics.jsonl's first line; parameters and gmacs are None where they could not be counted."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    parameters: Count | None = None
    gmacs: Amount | None = None


class Epoch(BaseModel):
    """A line of metrics.jsonl; what older runs did not record is None."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    epoch: Count
    phase: str
    stage: Count = 1
    val_accuracy: Share
    seconds: Amount = 0.0
    images_per_second: Amount | None = None
    optimizer_steps: Count | None = None
    forward_images: Count | None = None
    total_seconds: Amount | None = None
    probe_seconds: Amount | None = None
    peak_memory_mb: Amount | None = None
    memory_of: str | None = None
    energy_joules: Amount | None = None
    probe_energy_joules: Amount | None = None
    tracked: dict[str, Share | None] = {}
    environment: dict[str, str | int | float | None] | None = None
    network: Network | None = None
    images: dict[str, Count] | None = None


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
    """A run folder. name: what tells it from the report's other runs. sets: by name, val first, of the weights in best/. curves: by
    set name, what `evaluate --curve` summed up, and the accuracy of chance. images: a digest of the validation images, which tells data
    sets apart."""

    folder: Path
    name: str
    settings: Settings
    trained: run_folder.BestModel
    epochs: tuple[Epoch, ...]
    sets: dict[str, SetRows]
    curves: dict[str, tuple[dict[str, Any], float | None]]
    images: str

    @property
    def start(self) -> Epoch:
        return self.epochs[0]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def accuracy(self) -> dict[str, float]:
        """By set; val as training measured it where there are no rows, unless it did so on reduced images (--monitor phase)."""
        best = next((e.phase for e in self.epochs if e.epoch == self.trained.epoch), "full")
        watched = (
            {}
            if self.settings.monitor == "phase" and best == "reduced"
            else {"val": self.trained.val_accuracy}
        )
        return watched | {name: rows.accuracy for name, rows in self.sets.items()}


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
        if file.exists() and not file.is_file():
            raise OSError("it is no file")
        with open(file, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
                try:
                    found.append(Epoch.model_validate_json(line))
                except ValidationError:
                    warn(
                        f"{printable(file)} line {number} is cut or damaged: the {len(found)} lines before it are used"
                    )
                    break
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None
    if not found:
        raise RunError(
            f"{printable(file)} holds no whole line: continue the run with `qrdali train … --resume`"
        )
    return tuple(found)


def read_run(folder: Path, name: str, warn: Warn) -> Run:
    """Raises InputError if `folder` holds no run, RunError if it has no weights or epochs yet or what it holds is damaged. Rows and
    curves that are damaged or of other weights than best/ are left out with a warning."""
    trained = run_folder.describe_best(folder)
    values = run_settings.read_toml(folder / "config.toml")
    try:
        settings = run_settings.validate_settings(
            {key: value for key, value in values.items() if key in Settings.model_fields}
        )
    except InputError as error:
        raise RunError(f"{printable(folder / 'config.toml')}: {error}") from None
    epochs = read_epochs(folder / "metrics.jsonl", warn)
    files = sorted((folder / "predictions").glob("*.parquet"), key=lambda f: (_place(f.stem), f.stem))
    sets, images = {}, settings.data
    for file in files:
        told = read_metadata(folder, file.stem)
        try:
            rows = read_rows(folder, file.stem)
        except (InputError, RunError) as error:
            warn(f"{error}: left out")
            continue
        digest = hashlib.sha256(rows["sample"].tobytes() + rows["label"].tobytes())
        for path in rows["path"]:
            digest.update(str(path).encode("utf-8", "surrogatepass") + b"\0")
        mapped = told.get("map_rule")
        if file.stem == "val" and not mapped:
            images = digest.hexdigest()
        if told.get("epoch", trained.epoch) != trained.epoch:
            warn(
                f"{printable(file)} is of epoch {printable(told['epoch'])} and best/ of epoch {trained.epoch}: left out"
            )
            continue
        if mapped:
            digest.update(json.dumps([told.get("classes"), mapped]).encode())
        sets[printable(file.stem)] = SetRows(rows["correct"].copy(), digest.hexdigest())
    return Run(
        folder, name, settings, trained, epochs, sets, _curves(folder / "curves", trained.epoch, warn), images
    )


def _place(name: str) -> int:
    return {"val": 0, "test": 1, "train": 3}.get(name, 2)


def _curves(folder: Path, epoch: int, warn: Warn) -> dict[str, tuple[dict[str, Any], float | None]]:
    found: dict[str, tuple[dict[str, Any], float | None]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            told = read_object(file)
            if told.get("epoch", epoch) != epoch:
                warn(
                    f"{printable(file)} is of epoch {printable(told['epoch'])} and best/ of epoch {epoch}: left out"
                )
                continue
            curves = {}
            for reduction, c in told["curves"].items():
                quality, accuracy, area = (
                    list(map(float, c["quality"])),
                    list(map(float, c["accuracy"])),
                    float(c["area"]),
                )
                if (
                    reduction not in SEARCHED
                    or len(quality) != len(accuracy)
                    or not all(0 <= x <= 1 for x in (*quality, *accuracy, area))
                ):
                    raise ValueError("no curve")
                curves[reduction] = {"quality": quality, "accuracy": accuracy, "area": area}
            found[file.stem] = curves, None if told.get("chance") is None else float(told["chance"])
        except (RunError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            warn(f"{printable(file)} is damaged and left out: `qrdali evaluate --curve` makes it again")
    return found


def read_mepis(folder: Path, name: str, known: list[Run], digests: dict[str, str]) -> Mepis:
    """digests: `runs.weights_digest` of each run, by its name.

    Raises InputError if `folder` is no MEPI set or has no finished reduction, RunError if it is damaged.
    """
    if not (folder / OPTIONS).exists():
        raise InputError(
            f"{printable(folder)} is no MEPI set (no {OPTIONS}): `qrdali build-mepi --out` makes one"
        )
    options, summary = read_object(folder / OPTIONS), {}
    if (folder / SUMMARY).exists():
        summary = read_object(folder / SUMMARY)
    if not summary:
        raise InputError(
            f"{printable(folder)} has no finished reduction: continue it with `qrdali build-mepi … --resume`"
        )
    try:
        table = read_table(folder / MANIFEST, SCHEMA.names)
        if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
            raise ValueError(f"{MANIFEST} has other columns, or holes in them")
        columns = {key: table[key].to_numpy(zero_copy_only=False) for key in SCHEMA.names}
        rows = {}
        for reduction in (r for r in SEARCHED if r in summary):
            own = columns["reduction"] == reduction
            rows[reduction] = {key: column[own] for key, column in columns.items()}
            _check(summary[reduction], rows[reduction])
        if len(rows) < len(summary):
            raise ValueError(f"{SUMMARY} has other reductions")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        pa.ArrowException,
    ) as error:
        raise RunError(f"{printable(folder)} is damaged: {printable(error)[:160]}") from None
    # Weights of several runs may be the same, as where training never improved them: then the folder decides.
    same = [run for run in known if digests.get(run.name) and digests[run.name] == options.get("weights")]
    run = next(
        (run for run in same if str(run.folder.absolute()) == options.get("run")), same[0] if same else None
    )
    return Mepis(folder, name, run, options, {r: summary[r] for r in rows}, rows)


def _check(row: dict[str, Any], columns: dict[str, npt.NDArray[Any]]) -> None:
    """Raises ValueError, KeyError or TypeError unless summary and manifest of a reduction can be of one search."""
    counts = [row[key] for key in ("images", "without_mepi", "unreadable")]
    if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts):
        raise ValueError("counts that are none")
    if counts[0] - counts[1] - counts[2] != len(columns["sample"]) or len(np.unique(columns["sample"])) < len(
        columns["sample"]
    ):
        raise ValueError("manifest and summary count other images")
    if not 0 <= float(row["seconds"]) < 1e15:
        raise ValueError("seconds")
    if any(
        (columns[key] < low).any()
        for key, low in (
            ("sample", 0),
            ("label", 0),
            ("top", 0),
            ("left", 0),
            ("height", 1),
            ("width", 1),
            ("entropy_full", 1),
            ("entropy_mepi", 1),
        )
    ):
        raise ValueError("a number below its range")
    if not np.allclose(columns["quotient"], columns["entropy_mepi"] / columns["entropy_full"], rtol=1e-9):
        raise ValueError("a quotient that is not that of its entropies")


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
