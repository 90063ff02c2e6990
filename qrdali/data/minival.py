"""A validation set cut out of train: as many images of each class, chosen by a seed, and in neither place twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data import provenance as source
from qrdali.data.index import FILES_SCHEMA, SCHEMA, Dataset, Samples, read_batches
from qrdali.data.inspect import tsv_field
from qrdali.errors import InputError, RunError, printable
from qrdali.files.lock import acquire
from qrdali.reduction.counter_rng import shuffled

LIST = "minival.tsv"  # path and class of the images moved; written when all new files are whole
# The new files in the order in which they take the places of the old. val.arrow is the last: until it is there the data set has no
# validation split, so that at no moment an image is in train and in val.
_RENAMED = ("train.arrow", "train.files.arrow", "val.files.arrow", source.FILE, "val.arrow")

_LOCK = ".lock"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """Images in train and val after it; `resumed` if an earlier call's cut was finished instead of a new one made."""

    train: int
    val: int
    resumed: bool


def cut(folder: Path, per_class: int | None, seed: int, share: float = 0) -> Cut:
    """Moves `per_class` images of each class from train.arrow to val.arrow, and lists them in minival.tsv. With None it is the `share` of
    each class that comes nearest, at least one image.

    Killed at any moment it leaves the data set as it was, or one without validation that the next call finishes.
    Raises InputError for a data set that has a validation split, RunError for a class with too few images.
    """
    _without_val(folder)  # before a lock is left in a folder that is no data set
    with acquire(folder / _LOCK, lambda who: f"{printable(folder)} is being cut by {who}: wait for it"):
        try:
            dataset = _without_val(folder)
            resumed = (folder / LIST).exists()
            if not resumed:
                _prepare(dataset, per_class, seed, share)
                os.replace(_partial(folder, LIST), folder / LIST)
            _finish(folder)
        finally:
            (folder / _LOCK).unlink(missing_ok=True)
    done = Dataset.open(folder)
    return Cut(len(done.index("train")), len(done.index("val")), resumed)


def choose(
    labels: Samples, classes: Sequence[str], per_class: int | None, seed: int, share: float = 0
) -> Mask:
    """bool [N]: `per_class` samples of each class, or with None the `share`, by (seed, class name, place within the class).

    Raises RunError naming the first class that would keep no image.
    """
    counts = np.bincount(labels, minlength=len(classes))
    wanted = (
        np.full(len(counts), per_class)
        if per_class is not None
        else np.maximum(1, np.rint(counts * share)).astype(np.int64)
    )
    few = np.flatnonzero(counts <= wanted)
    if len(few):
        name, need = printable(classes[few[0]]), wanted[few[0]]
        raise RunError(
            f"class {name!r} has {counts[few[0]]} training images: {need} for validation leave none "
            f"({len(few)} such class{'es' if len(few) > 1 else ''})"
        )
    chosen = np.zeros(len(labels), np.bool_)
    rows, starts = np.argsort(labels, kind="stable"), np.cumsum([0, *counts])
    for label, name in enumerate(classes):
        chosen[rows[starts[label] + shuffled(seed, name, int(counts[label]))[: wanted[label]]]] = True
    return chosen


def _without_val(folder: Path) -> Dataset:
    dataset = Dataset.open(folder)
    if "val" in dataset.splits:
        raise InputError(
            f"{printable(folder)} has a validation split already: index the images again without val/ to cut another"
        )
    return dataset


def _prepare(dataset: Dataset, per_class: int | None, seed: int, share: float) -> None:
    """Writes every new file beside its place; none is left if that fails."""
    _remove(dataset.folder)  # of a call that was killed
    try:
        _write(dataset, per_class, seed, share)
    except BaseException:
        _remove(dataset.folder)
        raise


def _write(dataset: Dataset, per_class: int | None, seed: int, share: float) -> None:
    folder = dataset.folder
    index = dataset.index("train")
    labels = index.labels(np.arange(len(index)))
    chosen = choose(labels, dataset.classes, per_class, seed, share)
    _divide(folder, "arrow", chosen, SCHEMA)
    if (folder / "train.files.arrow").exists():
        _divide(folder, "files.arrow", chosen, FILES_SCHEMA)
    made = {
        **({"per_class": per_class} if per_class is not None else {"share": share}),
        "seed": seed,
        "images": int(chosen.sum()),
    }
    source.write(_partial(folder, source.FILE), {**source.read(folder), "minival": made})
    moved = np.flatnonzero(chosen)
    with open(_partial(folder, LIST), "w", encoding="utf-8") as file:
        file.write("path\tclass\n")
        for path, label in zip(index.paths(moved), labels[moved].tolist(), strict=True):
            file.write(f"{tsv_field(path)}\t{tsv_field(dataset.classes[label])}\n")
    for name in (LIST, *_RENAMED):
        if _partial(folder, name).exists():
            _to_disk(_partial(folder, name))


def _finish(folder: Path) -> None:
    for name in _RENAMED:
        if _partial(folder, name).exists():
            os.replace(_partial(folder, name), folder / name)
    if not (folder / "val.arrow").exists():
        raise RunError(
            f"{printable(folder / LIST)} lists a validation set, but val.arrow is gone: index the images again"
        )


def _divide(folder: Path, kind: str, chosen: Mask, schema: pa.Schema) -> None:
    """Rows of train.KIND into train.KIND.partial and, where chosen, val.KIND.partial; one record batch in memory at a time."""
    file = folder / f"train.{kind}"
    batches = read_batches(file, schema)
    if sum(batch.num_rows for batch in batches) != len(chosen):
        raise RunError(f"{printable(file)} does not belong to train.arrow: index the images again")
    start = 0
    with (
        pa.ipc.new_file(str(_partial(folder, f"train.{kind}")), schema) as train,
        pa.ipc.new_file(str(_partial(folder, f"val.{kind}")), schema) as val,
    ):
        for batch in batches:
            mask = chosen[start : start + batch.num_rows]
            for writer, part in ((train, batch.filter(pa.array(~mask))), (val, batch.filter(pa.array(mask)))):
                if part.num_rows:
                    writer.write_batch(part)
            start += batch.num_rows


def _remove(folder: Path) -> None:
    for name in (LIST, *_RENAMED):
        _partial(folder, name).unlink(missing_ok=True)


def _partial(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"


def _to_disk(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle)
