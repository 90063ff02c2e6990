"""Per-image predictions in a Parquet file: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from qrdali.data.index import Index
from qrdali.data.set_names import RESERVED
from qrdali.data.suite_names import suite_of_rows
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.calibration import calibration
from qrdali.files.atomic import write_whole
from qrdali.files.json_objects import MOST_BYTES
from qrdali.reduction.quality import MAX_GRID

DEFINITIONS = 2  # the number of the definitions that new rows and curves are made under

_ROW: list[tuple[str, str]] = [
    ("sample", "i8"),
    ("path", "O"),
    ("label", "i8"),
    ("prediction", "i8"),
    ("correct", "?"),
    ("confidence", "f4"),
]
_OF_TRUE_CLASS: list[tuple[str, str]] = [("rank", "i8"), ("true_probability", "f8")]  # not in older rows
TOP = 5  # answers among which top-5 accuracy wants the label
_LEAST_PROBABILITY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class PredictionRows:
    """Holds one row per image, in sample order.

    samples, labels, predictions: int64 [N]. confidence: float32 [N] in [0, 1]. ranks: int64 [N].
    true_probability: float64 [N] in [0, 1].

    confidence: the probability of the prediction. A prediction may be -1, none of the classes (see
    class_map.py). ranks, true_probability: of the true class among all possible answers, as `true_class`
    counts them.
    """

    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    ranks: npt.NDArray[np.int64]
    true_probability: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        """Returns the share of images whose prediction is the label, in [0, 1]."""
        return float((self.labels == self.predictions).mean())

    @property
    def top5_accuracy(self) -> float:
        """Returns the share of images whose label is among the five most probable answers, in [0, 1]."""
        return top5_accuracy(self.ranks)

    @property
    def negative_log_likelihood(self) -> float | None:
        """Returns the mean of -log of the true class's probability (natural log), None for NaN."""
        return negative_log_likelihood(self.true_probability)

    @property
    def expected_calibration_error(self) -> float | None:
        """Returns the expected calibration error of 15 equal bins, in [0, 1]; None for NaN."""
        bins = calibration(self.confidence, self.labels == self.predictions)
        return bins.error if bins else None

    @property
    def constant_class(self) -> int | None:
        """Returns the one class predicted for every image although the labels are of several, or None."""
        same = len(set(self.predictions.tolist())) == 1 and len(set(self.labels.tolist())) > 1
        return int(self.predictions[0]) if same else None


def top5_accuracy(ranks: npt.NDArray[np.integer]) -> float:
    """Returns the share of ranks, counted from 1, that are at most `TOP`, in [0, 1]."""
    return float((ranks <= TOP).mean())


def negative_log_likelihood(probability: npt.NDArray[np.float64]) -> float | None:
    """Returns the mean of -log of the true classes' probabilities (natural log); None if any is NaN.

    A probability that float64 can no longer tell from 0 counts as 2.2e-308, the least that has full
    precision: otherwise one image would make every other one's figure infinite.
    """
    mean = float(-np.log(np.maximum(probability, _LEAST_PROBABILITY)).mean())
    return mean if math.isfinite(mean) else None


def write_rows(
    file: Path, rows: PredictionRows, index: Index, metadata: dict[str, Any] | None = None
) -> None:
    """Writes the Parquet columns of a set, whole or not at all.

    They are sample, path, label, prediction, correct, confidence, rank and true_probability.

    metadata: goes as JSON into the schema's metadata, under "qrdali", with the fingerprint of the images and
    the number of the definitions: the epoch of the weights, and what a class map did.
    """
    table = pa.table(
        {
            "sample": rows.samples,
            "path": index.indexed_paths(rows.samples),
            "label": rows.labels.astype(np.int32),
            "prediction": rows.predictions.astype(np.int32),
            "correct": rows.labels == rows.predictions,
            "confidence": rows.confidence,
            "rank": rows.ranks.astype(np.int32),
            "true_probability": rows.true_probability,
        }
    )
    whole = {"images": index.fingerprint, "definitions": DEFINITIONS, **(metadata or {})}
    table = table.replace_schema_metadata({"qrdali": json.dumps(whole)})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda partial: pq.write_table(table, partial))


def evaluate_command_for(name: str, data: str = "DATASET") -> str:
    """Returns the options of `qrdali evaluate` that make the rows of `name`, for a message."""
    if suite := suite_of_rows(name):
        return f"--suite {suite}=ROOT"
    if not RESERVED.fullmatch(name):
        return f"--set {printable(name)}=FOLDER"
    name, mapped, rule = name.partition("-mapped-")
    split, *reduced = name.split("-", 2)
    return (
        f"--data {data} --split {split}"
        + (f" --reduced {reduced[1]}{_step_option(float(reduced[1]))}" if reduced else "")
        + (f" --class-map TSV --map-rule {rule}" if mapped else "")
    )


def _step_option(quality: float) -> str:
    """Returns the option --step whose grid has `quality`, or "" if the default's has."""
    candidates = (4, 10, 20, 100, *range(2, MAX_GRID + 1))
    num_levels = next((n for n in candidates if abs(quality * n - round(quality * n)) < 1e-6), 4)
    return "" if num_levels == 4 else f" --step {1 / num_levels:.12g}"


def read_metadata(run: Path, name: str) -> dict[str, Any]:
    """Returns the metadata that `write_rows` was given for a set; {} if there is none or it is unreadable.

    Its keys are "epoch", that of the weights; "images", the fingerprint of the evaluated index;
    "definitions", their number; and for mapped classes "classes" and "map_rule".
    """
    try:
        file = run / "predictions" / f"{name}.parquet"
        of_schema = (pq.read_schema(file).metadata or {}) if file.is_file() else {}
        text = of_schema.get(b"qrdali", b"{}")
        metadata = json.loads(text) if len(text) <= MOST_BYTES else {}
        return metadata if isinstance(metadata, dict) else {}
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return {}


def definitions_of(metadata: dict[str, Any]) -> int:
    """Returns the number of the definitions that rows or a curve were made under, 1 by default."""
    number = metadata.get("definitions")
    return number if type(number) is int and 1 <= number < 1000 else 1


def read_table(file: Path, columns: list[str]) -> pa.Table:
    """Returns columns of a Parquet file whose rows differ from one another.

    Raises ValueError for more rows than bytes: a row takes at least one, and a false row count in the footer
    must not make us allocate memory for it.
    """
    if not file.is_file():
        raise ValueError("it is not a file")
    with pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows > file.stat().st_size:
            raise ValueError(f"its footer claims {parquet.metadata.num_rows} rows")
        return parquet.read(columns=columns)


def read_rows(
    run: Path, name: str, epoch: int | None = None, *, with_paths: bool = True
) -> npt.NDArray[np.void]:
    """Returns the rows of a set in sample order, structured [N].

    Fields: sample, path (text), label, prediction, correct, confidence; and rank (from 1) and
    true_probability, both or neither: rows of version 0.1 have neither.

    epoch: the epoch that the rows' weights must be of, where the file names one. with_paths: False leaves the
    field path out, which takes most of the memory and time. A prediction of -1 is none of the classes. Raises
    InputError if there are no rows or they are of another epoch, RunError if the file is damaged or
    contradicts itself.
    """
    file = run / "predictions" / f"{name}.parquet"
    advice = f"make them with `qrdali evaluate --run {printable(run)} {evaluate_command_for(name)}`"
    if not file.is_file():
        raise InputError(f"{printable(run)} has no rows of {printable(name)!r}: {advice}")
    if epoch is not None and (made_at := read_metadata(run, name).get("epoch", epoch)) != epoch:
        raise InputError(
            f"the rows of {printable(name)!r} of {printable(run)} are of epoch {printable(made_at)}, best/ "
            f"is of epoch {epoch}: {advice}"
        )
    try:
        fields = [field for field in _fields(file) if with_paths or field[0] != "path"]
        table = read_table(file, [key for key, _ in fields])
        rows = np.zeros(len(table), fields)
        for key, _ in fields:
            rows[key] = table[key].to_numpy()
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None
    if (
        not np.array_equal(rows["correct"], rows["label"] == rows["prediction"])
        or (np.diff(rows["sample"]) <= 0).any()
        or not len(rows)
        or rows["label"].min() < 0
        or rows["prediction"].min() < -1
        or (has_true_class(rows) and not _agrees(rows))
    ):
        raise RunError(f"{printable(file)} contradicts itself: evaluate the run again")
    return rows


def has_true_class(rows: npt.NDArray[np.void]) -> bool:
    """Returns whether rows that were read have the fields rank and true_probability."""
    return "rank" in (rows.dtype.names or ())


def _fields(file: Path) -> list[tuple[str, str]]:
    """Returns the fields of a file's rows: those of the true class are left out unless both are there."""
    names = set(pq.read_schema(file).names) if file.is_file() else set()
    return [*_ROW, *(_OF_TRUE_CLASS if all(key in names for key, _ in _OF_TRUE_CLASS) else [])]


def _agrees(rows: npt.NDArray[np.void]) -> bool:
    """Returns whether the true class is first where the prediction is right, and there alone."""
    probability = rows["true_probability"]
    return bool(
        (rows["rank"] >= 1).all()
        and np.array_equal(rows["rank"] == 1, rows["correct"])
        and (np.isnan(probability) | ((probability >= 0) & (probability <= 1))).all()
    )
