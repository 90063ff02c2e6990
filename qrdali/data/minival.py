"""Cuts a validation set out of train: equally many images of each class, chosen by a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qrdali.data import provenance
from qrdali.data.duplicates import shared_images
from qrdali.data.index import FILES_SCHEMA, SCHEMA, Dataset, Samples, divide_rows
from qrdali.data.inspect import tsv_field
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically, sync
from qrdali.files.lock import acquire, silent
from qrdali.reduction.counter_rng import shuffled

LIST = "minival.tsv"  # path and class of the images moved; has its name once all new files are on the disk
# The new files in the order in which they replace the old ones. val.arrow is the last: until it has its name
# the data set has no validation split, so that at no moment an image is in train and in val.
_RENAMED = ("train.arrow", "train.files.arrow", "val.files.arrow", provenance.FILE, "val.arrow")

_LOCK = ".lock"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """Images in train and val after a cut.

    `resumed` if an earlier call's cut was finished instead of a new one made.
    """

    train: int
    val: int
    resumed: bool


def cut(
    folder: Path,
    per_class: int,
    seed: int,
    warn: Callable[[str], None] | None = None,
) -> Cut:
    """Moves `per_class` images of each class from train.arrow to val.arrow, and lists them in minival.tsv.

    Killed at any moment, or after a loss of power, the data set is as it was, or one without validation that
    the next call finishes, or cut: the same call again then changes nothing.

    warn: is called where the file system has no locks, and for images that will be in two splits, byte for
    byte, before val.arrow has its name: whoever finds the data set whole has been warned. None looks for no
    such images. Raises InputError for a data set that has another validation split, RunError for a class with
    too few images.
    """
    asked = {"per_class": per_class, "seed": seed}
    if not _is_cut(folder, asked):
        _open_without_val(folder)  # before a lock is left in a folder that is not a data set

    def refusal(who: str) -> str:
        return f"{printable(folder)} is being cut by {who}: wait for it"

    with acquire(folder / _LOCK, refusal, warn or silent):
        try:
            if _is_cut(folder, asked):
                return _counted(folder, resumed=True)
            dataset = _open_without_val(folder)
            resumed = (folder / LIST).exists()
            if not resumed:
                _prepare(dataset, asked)
                replace_atomically(_partial(folder, LIST), folder / LIST)  # from here on the cut is decided
            if warn is not None:
                _warn_of_shared_images(folder, warn)
            _finish(folder)
        finally:
            (folder / _LOCK).unlink(missing_ok=True)
    return _counted(folder, resumed)


def _is_cut(folder: Path, asked: dict[str, int]) -> bool:
    """Returns whether a call with the same options has cut the data set, and may have been killed then."""
    if "val" not in Dataset.open(folder).splits or not (folder / LIST).exists():
        return False
    origin = provenance.read(folder).get("minival")
    return isinstance(origin, dict) and {key: origin[key] for key in origin if key != "images"} == asked


def _counted(folder: Path, resumed: bool) -> Cut:
    dataset = Dataset.open(folder)
    return Cut(len(dataset.index("train")), len(dataset.index("val")), resumed)


def choose(labels: Samples, classes: Sequence[str], per_class: int, seed: int) -> Mask:
    """Returns which samples are moved, bool [N]: `per_class` of each class.

    The choice depends on (seed, class name, place within the class) alone. Raises RunError naming the first
    class that would keep no image.
    """
    counts = np.bincount(labels, minlength=len(classes))
    too_small = np.flatnonzero(counts <= per_class)
    if len(too_small):
        first = too_small[0]
        raise RunError(
            f"class {printable(classes[first])!r} has {counts[first]} training images: {per_class} for "
            f"validation leave none ({len(too_small)} such class{'es' if len(too_small) > 1 else ''})"
        )
    chosen = np.zeros(len(labels), np.bool_)
    rows_by_class = np.argsort(labels, kind="stable")
    starts = np.cumsum([0, *counts])
    for label, name in enumerate(classes):
        places = shuffled(seed, name, int(counts[label]))[:per_class]
        chosen[rows_by_class[starts[label] + places]] = True
    return chosen


def _open_without_val(folder: Path) -> Dataset:
    dataset = Dataset.open(folder)
    if "val" in dataset.splits:
        raise InputError(
            f"{printable(folder)} has a validation split already: index the images again without val/ to cut "
            "another"
        )
    return dataset


def _prepare(dataset: Dataset, asked: dict[str, int]) -> None:
    """Writes every new file to the disk, beside the one that it will replace; none is left if that fails."""
    _remove_partials(dataset.folder)  # those of a call that was killed
    try:
        _write_partials(dataset, asked)
    except BaseException:
        _remove_partials(dataset.folder)
        raise


def _write_partials(dataset: Dataset, asked: dict[str, int]) -> None:
    folder = dataset.folder
    index = dataset.index("train")
    labels = index.labels(np.arange(len(index)))
    chosen = choose(labels, dataset.classes, asked["per_class"], asked["seed"])
    for name, schema in (("arrow", SCHEMA), ("files.arrow", FILES_SCHEMA)):
        if (folder / f"train.{name}").exists():
            outs = [_partial(folder, f"{split}.{name}") for split in ("train", "val")]
            divide_rows(folder / f"train.{name}", schema, chosen, outs)
    origin = {**asked, "images": int(chosen.sum())}
    source = provenance.encode({**provenance.read(folder), "minival": origin})
    _partial(folder, provenance.FILE).write_bytes(source)
    moved = np.flatnonzero(chosen)
    names = [dataset.classes[label] for label in labels[moved].tolist()]
    write_list(_partial(folder, LIST), index.paths(moved), names)
    for name in (LIST, *_RENAMED):
        if _partial(folder, name).exists():
            sync(_partial(folder, name))


def write_list(file: Path, paths: Sequence[str], classes: Sequence[str]) -> None:
    """Writes a list of images that were moved: the path and the class of each."""
    with open(file, "w", encoding="utf-8") as rows:
        rows.write("path\tclass\n")
        rows.writelines(f"{tsv_field(p)}\t{tsv_field(c)}\n" for p, c in zip(paths, classes, strict=True))


def _warn_of_shared_images(folder: Path, warn: Callable[[str], None]) -> None:
    """Warns of images in two splits of what the data set will be once the cut is finished."""

    def place_of(name: str) -> Path:
        return _partial(folder, name) if _partial(folder, name).exists() else folder / name

    try:
        warnings = shared_images(folder, place_of)
    except RunError as error:  # damaged hashes, of test for instance, do not keep a cut from being finished
        warnings = [f"images in two splits were not looked for: {error}"]
    for text in warnings:
        warn(text)


def _finish(folder: Path) -> None:
    """Gives each new file its name, in order; one that has it already is passed over."""
    for name in _RENAMED:
        if _partial(folder, name).exists():
            replace_atomically(_partial(folder, name), folder / name)
    if not (folder / "val.arrow").exists():
        raise RunError(
            f"{printable(folder / LIST)} lists a validation set, but val.arrow is gone: index the images "
            "again"
        )


def _remove_partials(folder: Path) -> None:
    for name in (LIST, *_RENAMED):
        _partial(folder, name).unlink(missing_ok=True)


def _partial(folder: Path, name: str) -> Path:
    return folder / f"{name}.partial"
