"""Per-image predictions: every image once, every figure computed from the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from qrdali.data.index import SPLITS, Index
from qrdali.distributed import SINGLE_PROCESS, ProcessGroup
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.files.json_objects import MOST_BYTES
from qrdali.interfaces import BatchSource
from qrdali.reduction.quality import REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan

_ROW: list[tuple[str, str]] = [
    ("sample", "i8"),
    ("path", "O"),
    ("label", "i8"),
    ("prediction", "i8"),
    ("correct", "?"),
    ("confidence", "f4"),
]


_MAPPED = "-mapped-(argmax|sum)"
# Splits, whole, reduced, mapped.
_RESERVED = re.compile(rf"({'|'.join(SPLITS)})(-({'|'.join(REDUCTIONS)})-0\.[0-9]{{1,12}})?({_MAPPED})?")


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


def top1(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(predictions int64 [N], their probabilities float32 [N]) of logits [N, classes]."""
    confidence, prediction = logits.float().softmax(1).max(1)
    return prediction, confidence


def inference_batch_size(batch_size: int, world: int) -> int:
    """Images of a forward pass without gradients, where `world` ranks share training batches of `batch_size`: no fewer than in training,
    and up to 256 those of a whole batch, so that every figure is what one process alone gets."""
    return max(-(-batch_size // world), min(batch_size, 256))


def predict(
    model: nn.Module,
    loader: BatchSource,
    plan: EpochPlan,
    autocast: Callable[[], AbstractContextManager[object]],
    progress: Callable[[int], None] = lambda images: None,
    decide: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = top1,
    group: ProcessGroup = SINGLE_PROCESS,
) -> PredictionRows:
    """Classifies every image of `plan` in evaluation mode; the model is left in the mode it was in. `decide` as `top1`.

    `ranks` take every world-th batch as it is and all get all rows, the same as one process alone. `progress` is told images of all.
    """
    own = replace(plan, rank=group.rank, world_size=group.world_size, whole_batches=True)

    def classified(check: Callable[[], None]) -> list[npt.NDArray[Any]]:
        columns: list[tuple[torch.Tensor, ...]] = []
        for batch in loader.epoch(own) if own.rank < own.batches else ():
            with autocast():
                logits = model(batch.images)
            columns.append((batch.samples, batch.labels, *decide(logits)))
            check()
            done = batch.number * plan.batch_size
            progress(min(plan.samples, done + group.world_size * plan.batch_size) - done)
        if not columns:
            return [np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, np.float32)]
        return [torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)]

    training = model.training
    model.eval()
    with torch.inference_mode():
        mine = group.run_interruptible(classified)
    model.train(training)
    samples, labels, predictions, confidences = (np.concatenate(group.all_gather(column)) for column in mine)
    order = np.argsort(samples, kind="stable")
    return PredictionRows(samples[order], labels[order], predictions[order], confidences[order])


def check_set_name(name: str, option: str) -> None:
    """Raises InputError if the name cannot be a file's, or is a split's."""
    if (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
        or _RESERVED.fullmatch(name)
        or re.search(f"{_MAPPED}$", name)
    ):
        raise InputError(
            f"{option} has the name {printable(name)!r}: give NAME=FOLDER, NAME of letters, digits, '.', '_' and '-', and not "
            f"{', '.join(SPLITS)} nor one of them reduced, such as test-crop-0.5"
        )


def parse_named_sets(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """The folders, paths or URLs, of NAME=FOLDER texts by name. Raises InputError for a name that is given twice or cannot be."""
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise InputError(f"{option} is {printable(text)!r}: give NAME=FOLDER")
        check_set_name(name, option)
        folders[name] = folder
    if len(folders) < len(texts):
        raise InputError(f"{option} gives one NAME twice: every set needs a name of its own")
    return folders


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
