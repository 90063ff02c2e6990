"""One row per evaluated image, in a Parquet file: written whole, read with suspicion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from qrdali.data.index import Index
from qrdali.data.set_names import _RESERVED
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.files.json_objects import MOST_BYTES

_ROW: list[tuple[str, str]] = [
    ("sample", "i8"),
    ("path", "O"),
    ("label", "i8"),
    ("prediction", "i8"),
    ("correct", "?"),
    ("confidence", "f4"),
]


@dataclass(frozen=True)
class PredictionRows:
    """One row per image in sample order: samples, labels, predictions int64 [N]; confidence float32 [N], the
    probability of the prediction. A prediction may be -1, none of the classes (see class_map.py)."""

    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """Share of images whose prediction is the label."""
        return float((self.labels == self.predictions).mean())

    @property
    def constant_class(self) -> int | None:
        """The one class predicted for every image although several are there, or None."""
        same = len(set(self.predictions.tolist())) == 1 and len(set(self.labels.tolist())) > 1
        return int(self.predictions[0]) if same else None


def write_rows(
    file: Path, rows: PredictionRows, index: Index, metadata: dict[str, Any] | None = None
) -> None:
    """Writes Parquet columns sample, path, label, prediction, correct, confidence; whole or not at all. `told` goes as JSON into the
    schema's metadata, under "qrdali": the epoch of the weights, and what a class map did."""
    table = pa.table(
        {
            "sample": rows.samples,
            "path": index.indexed_paths(rows.samples),
            "label": rows.labels.astype(np.int32),
            "prediction": rows.predictions.astype(np.int32),
            "correct": rows.labels == rows.predictions,
            "confidence": rows.confidence,
        }
    )
    if metadata:
        table = table.replace_schema_metadata({"qrdali": json.dumps(metadata)})
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    pq.write_table(table, partial)
    replace_atomically(partial, file)


def evaluate_command_for(name: str, data: str = "DATASET") -> str:
    """The options of `qrdali evaluate` that make the rows of `name`."""
    if not _RESERVED.fullmatch(name):
        return f"--set {printable(name)}=FOLDER"
    name, mapped, rule = name.partition("-mapped-")
    split, *reduced = name.split("-", 2)
    return (
        f"--data {data} --split {split}"
        + (f" --reduced {reduced[1]}{_step(float(reduced[1]))}" if reduced else "")
        + (f" --class-map TSV --map-rule {rule}" if mapped else "")
    )


def _step(quality: float) -> str:
    """The option --step that has a quality on its grid; nothing if the default has."""
    n = next((n for n in (4, 10, 20, 100, *range(2, 256)) if abs(quality * n - round(quality * n)) < 1e-6), 4)
    return "" if n == 4 else f" --step {1 / n:.12g}"


def read_metadata(run: Path, name: str) -> dict[str, Any]:
    """What `write_rows` was told of a set: "epoch" of the weights, and for mapped classes "classes" and "map_rule". Empty if nothing."""
    try:
        file = run / "predictions" / f"{name}.parquet"
        metadata = (pq.read_schema(file).metadata or {}) if file.is_file() else {}
        text = metadata.get(b"qrdali", b"{}")
        told = json.loads(text) if len(text) <= MOST_BYTES else {}
        return told if isinstance(told, dict) else {}
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return {}


def read_table(file: Path, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file whose rows differ from one another. Raises ValueError for more rows than bytes: each takes some, and
    memory is not spent on what a file only says of itself."""
    if not file.is_file():
        raise ValueError("it is no file")
    with pq.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows > file.stat().st_size:
            raise ValueError(f"it says it has {parquet.metadata.num_rows} rows")
        return parquet.read(columns=columns)


def read_rows(run: Path, name: str, epoch: int | None = None) -> npt.NDArray[np.void]:
    """The rows of a set, in sample order: a structured array of sample, path (text), label, prediction (-1: none of the classes),
    correct, confidence.

    epoch: that of the weights they must be of, where the file says. Raises InputError if there are none or of another epoch, RunError if
    the file is damaged or its rows contradict themselves.
    """
    file = run / "predictions" / f"{name}.parquet"
    again = f"make them with `qrdali evaluate --run {printable(run)} {evaluate_command_for(name)}`"
    if not file.is_file():
        raise InputError(f"{printable(run)} has no rows of {printable(name)!r}: {again}")
    if epoch is not None and (made_at := read_metadata(run, name).get("epoch", epoch)) != epoch:
        raise InputError(
            f"the rows of {printable(name)!r} of {printable(run)} are of epoch {printable(made_at)}, best/ is of epoch "
            f"{epoch}: {again}"
        )
    try:
        table = read_table(file, [key for key, _ in _ROW])
        rows = np.zeros(len(table), [(key, dtype) for key, dtype in _ROW])
        for key, _ in _ROW:
            rows[key] = table[key].to_numpy()
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None
    if (
        not np.array_equal(rows["correct"], rows["label"] == rows["prediction"])
        or (np.diff(rows["sample"]) <= 0).any()
        or not len(rows)
        or rows["label"].min() < 0
        or rows["prediction"].min() < -1
    ):
        raise RunError(f"{printable(file)} contradicts itself: evaluate the run again")
    return rows
