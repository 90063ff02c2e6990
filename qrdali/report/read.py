"""Reads and checks what runs and MEPI sets left on disk, without their images."""

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
    """Holds a network's figures, of metrics.jsonl's first line; None where they could not be counted."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    parameters: Count | None = None
    gmacs: Amount | None = None


class Epoch(BaseModel):
    """Holds a line of metrics.jsonl; what older runs did not record is None."""

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
    """Holds predictions on one set.

    digest: of sample numbers, paths and labels; rows with the same digest are of the same images.
    """

    correct: npt.NDArray[np.bool_]
    digest: str

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@dataclass(frozen=True)
class Curve:
    """Holds what `evaluate --curve` measured on a set.

    reductions: quality, accuracy and area by reduction. chance: the accuracy of guessing, None where it is
    not recorded.
    """

    reductions: dict[str, dict[str, Any]]
    chance: float | None


@dataclass(frozen=True)
class Run:
    """Holds a run folder.

    name: what tells it from the report's other runs. sets: by name, val first, of the weights in best/.
    curves: by the set's name. images: a digest of the validation images, which tells data sets apart.
    """

    folder: Path
    name: str
    settings: Settings
    trained: run_folder.BestModel
    epochs: tuple[Epoch, ...]
    sets: dict[str, SetRows]
    curves: dict[str, Curve]
    images: str

    @property
    def start(self) -> Epoch:
        return self.epochs[0]

    @property
    def last(self) -> Epoch:
        return self.epochs[-1]

    @property
    def accuracy(self) -> dict[str, float]:
        """Returns accuracy by set; val as training measured it where there are no rows.

        Unless training measured it on reduced images (--monitor phase): that is another quantity.
        """
        best = next((e.phase for e in self.epochs if e.epoch == self.trained.epoch), "full")
        watched = (
            {}
            if self.settings.monitor == "phase" and best == "reduced"
            else {"val": self.trained.val_accuracy}
        )
        return watched | {name: rows.accuracy for name, rows in self.sets.items()}


@dataclass(frozen=True)
class Mepis:
    """Holds a MEPI set folder.

    run: the run of this report whose weights it was made with, if any. rows: the manifest's columns per
    reduction.
    """

    folder: Path
    name: str
    run: Run | None
    options: dict[str, Any]
    summary: dict[str, dict[str, Any]]
    rows: dict[str, dict[str, npt.NDArray[Any]]]

    def tried(self, reduction: str) -> int:
        """Returns the images searched for a reduction, unreadable ones left out."""
        row = self.summary[reduction]
        return int(row["images"]) - int(row["unreadable"])


def read_epochs(file: Path, warn: Warn) -> tuple[Epoch, ...]:
    """Returns the whole lines of a metrics file; what follows a damaged or cut line is left out with one
    warning.

    Raises RunError if none is whole.
    """
    epochs: list[Epoch] = []
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is not a file")
        with open(file, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), 1):
                try:
                    epochs.append(Epoch.model_validate_json(line))
                except ValidationError:
                    warn(
                        f"{printable(file)} line {number} is cut or damaged: "
                        f"the {len(epochs)} lines before it are used"
                    )
                    break
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)}") from None
    if not epochs:
        raise RunError(
            f"{printable(file)} holds no whole line: continue the run with `qrdali train … --resume`"
        )
    return tuple(epochs)


def read_run(folder: Path, name: str, warn: Warn) -> Run:
    """Reads a run; rows and curves that are damaged or of other weights than best/ are left out with a
    warning.

    Raises InputError if `folder` is not a run folder, RunError if it has no weights or epochs yet or what it
    holds is damaged.
    """
    trained = run_folder.describe_best(folder)
    values = run_settings.read_toml(folder / "config.toml")
    try:
        settings = run_settings.validate_settings(
            {key: value for key, value in values.items() if key in Settings.model_fields}
        )
    except InputError as error:
        raise RunError(f"{printable(folder / 'config.toml')}: {error}") from None
    epochs = read_epochs(folder / "metrics.jsonl", warn)
    files = sorted((folder / "predictions").glob("*.parquet"), key=lambda f: (_rank(f.stem), f.stem))
    sets, images = {}, settings.data
    for file in files:
        metadata = read_metadata(folder, file.stem)
        try:
            rows = read_rows(folder, file.stem)
        except (InputError, RunError) as error:
            warn(f"{error}: left out")
            continue
        digest = hashlib.sha256(rows["sample"].tobytes() + rows["label"].tobytes())
        for path in rows["path"]:
            digest.update(str(path).encode("utf-8", "surrogatepass") + b"\0")
        mapped = metadata.get("map_rule")
        if file.stem == "val" and not mapped:
            images = digest.hexdigest()
        if metadata.get("epoch", trained.epoch) != trained.epoch:
            warn(
                f"{printable(file)} is of epoch {printable(metadata['epoch'])} "
                f"and best/ of epoch {trained.epoch}: left out"
            )
            continue
        if mapped:
            digest.update(json.dumps([metadata.get("classes"), mapped]).encode())
        sets[printable(file.stem)] = SetRows(rows["correct"].copy(), digest.hexdigest())
    return Run(
        folder,
        name,
        settings,
        trained,
        epochs,
        sets,
        _read_curves(folder / "curves", trained.epoch, warn),
        images,
    )


def _rank(name: str) -> int:
    return {"val": 0, "test": 1, "train": 3}.get(name, 2)


def _read_curves(folder: Path, epoch: int, warn: Warn) -> dict[str, Curve]:
    """Returns the curves of the weights of `epoch` by set; others and damaged ones are left out with a
    warning.
    """
    curves: dict[str, Curve] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            contents = read_object(file)
            if contents.get("epoch", epoch) != epoch:
                warn(
                    f"{printable(file)} is of epoch {printable(contents['epoch'])} "
                    f"and best/ of epoch {epoch}: left out"
                )
                continue
            reductions = {name: _checked_curve(name, row) for name, row in contents["curves"].items()}
            chance = None if contents.get("chance") is None else float(contents["chance"])
            curves[file.stem] = Curve(reductions, chance)
        except (RunError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            warn(f"{printable(file)} is damaged and left out: `qrdali evaluate --curve` makes it again")
    return curves


def _checked_curve(reduction: str, row: dict[str, Any]) -> dict[str, Any]:
    """Returns quality, accuracy and area as numbers. Raises ValueError for what cannot be a curve."""
    quality, accuracy = list(map(float, row["quality"])), list(map(float, row["accuracy"]))
    area = float(row["area"])
    in_range = all(0 <= value <= 1 for value in (*quality, *accuracy, area))
    if reduction not in SEARCHED or len(quality) != len(accuracy) or not in_range:
        raise ValueError("no curve")
    return {"quality": quality, "accuracy": accuracy, "area": area}


def read_mepis(folder: Path, name: str, known: list[Run], digests: dict[str, str]) -> Mepis:
    """Reads a MEPI set. known: the report's runs. digests: `weights_digest` of each of them, by its name.

    Raises InputError if `folder` is not a MEPI set or has no finished reduction, RunError if it is damaged.
    """
    if not (folder / OPTIONS).exists():
        raise InputError(
            f"{printable(folder)} is not a MEPI set (no {OPTIONS}): `qrdali build-mepi --out` makes one"
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
            chosen = columns["reduction"] == reduction
            rows[reduction] = {key: column[chosen] for key, column in columns.items()}
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
    """Raises ValueError, KeyError or TypeError unless summary and manifest of a reduction can be of one
    search.
    """
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
    """Returns the shortest endings of the paths that tell them apart, control characters replaced.

    Raises InputError if one is given twice.
    """
    parts_of_all = [folder.resolve().parts for folder in folders]
    if len(set(parts_of_all)) < len(parts_of_all):
        twice = next(
            folder
            for folder, parts in zip(folders, parts_of_all, strict=True)
            if parts_of_all.count(parts) > 1
        )
        raise InputError(f"{printable(twice)} is given twice")
    for length in range(1, max(map(len, parts_of_all), default=1) + 1):
        names = [printable("/".join(parts[-length:])) for parts in parts_of_all]
        if len(set(names)) == len(names):
            return names
    return [f"{i}: {printable(folder)}" for i, folder in enumerate(folders, 1)]
