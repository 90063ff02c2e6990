"""Takes validation and test images out of train while a data set is made: a share of each class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.data import minival, provenance
from qrdali.data.duplicates import contents
from qrdali.data.index import FILES_SCHEMA, SCHEMA, Dataset, Samples, divide_rows
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.reduction.counter_rng import shuffled

Parts = npt.NDArray[np.uint8]  # of each sample: 0 for train, i + 1 for the share i
_UNASSIGNED = 255
EXAMPLE = 0.15


@dataclass(frozen=True)
class Shares:
    """Says which share of each class of train moves to val and to test, in (0, 1); None for nothing.

    seed: of the choice. Raises InputError for a share out of range, and for shares that leave nothing.
    """

    val: float | None = None
    test: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for split, share in self.of_splits.items():
            if not 0 < share < 1:
                raise InputError(
                    f"--{split}-share is {share}: give a share between 0 and 1, such as {EXAMPLE}"
                )
        if math.fsum(self.of_splits.values()) >= 1:
            raise InputError(
                f"--val-share {self.val} and --test-share {self.test} leave nothing for train: give smaller "
                f"shares, such as {EXAMPLE} each"
            )

    @property
    def of_splits(self) -> dict[str, float]:
        """Returns the shares by the name of their split, without those that are None."""
        return {
            split: share for split, share in (("val", self.val), ("test", self.test)) if share is not None
        }


def hold_out(folder: Path, shares: Shares) -> dict[str, int]:
    """Moves the shares of each class of train into new splits of a data set that nobody uses yet.

    Images that are equal byte for byte stay in one split if their hashes were kept. Returns the number of
    images of train and of the new splits. Raises RunError for a class with too few images.
    """
    dataset = Dataset.open(folder)
    index = dataset.index("train")
    labels = index.labels(np.arange(len(index)))
    splits = list(shares.of_splits)
    parts = assign(labels, dataset.classes, shares, contents(folder, "train"))
    for kind, schema in (("arrow", SCHEMA), ("files.arrow", FILES_SCHEMA)):
        remaining = folder / f"train.{kind}.partial"
        divide_rows(
            folder / f"train.{kind}", schema, parts, [remaining, *(folder / f"{s}.{kind}" for s in splits)]
        )
        if "val" in splits and kind == "arrow":
            moved = np.flatnonzero(parts == 1 + splits.index("val"))
            names = [dataset.classes[label] for label in labels[moved].tolist()]
            minival.write_list(folder / minival.LIST, index.paths(moved), names)
        replace_atomically(remaining, folder / f"train.{kind}")
    counts = np.bincount(parts, minlength=len(splits) + 1).tolist()
    origin: dict[str, Any] = provenance.read(folder)
    for split, count in zip(splits, counts[1:], strict=True):
        key = "minival" if split == "val" else split
        origin[key] = {"share": shares.of_splits[split], "seed": shares.seed, "images": count}
    provenance.write(folder, origin)
    return dict(zip(("train", *splits), counts, strict=True))


def assign(
    labels: Samples, classes: tuple[str, ...], shares: Shares, content: Samples | None = None
) -> Parts:
    """Returns which part each sample belongs to.

    A share takes the nearest number to it of each class, at least one image. The choice depends on (seed,
    class name, place within the class) alone; without equal images it is the same for val with a share of
    test and without.

    content: int64 [N], equal for equal images, which then share a part: the numbers are as near to the
    shares as they allow. Raises RunError naming the first class that lacks images for a part.
    """
    counts = np.bincount(labels, minlength=len(classes))
    rows_by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    fractions = list(shares.of_splits.values())
    parts = np.zeros(len(labels), np.uint8)
    repeated = np.zeros(0, np.bool_) if content is None else np.bincount(content) > 1
    part_of_content = np.full(len(repeated), _UNASSIGNED, np.uint8)
    too_few = []
    for name, rows in zip(classes, rows_by_class, strict=True):
        wanted = [max(1, round(len(rows) * fraction)) for fraction in fractions]
        order = rows[shuffled(shares.seed, name, len(rows))]
        if content is None or not repeated[content[order]].any():
            place = np.searchsorted(np.cumsum(wanted), np.arange(len(order)), side="right")
            parts[order] = (place + 1) % (len(wanted) + 1)  # those after the last share stay in train
        else:
            _assign_contents(content[order], wanted, part_of_content)
            parts[order] = part_of_content[content[order]]
        if len(np.unique(parts[order])) <= len(wanted):
            different = len(order) if content is None else len(np.unique(content[order]))
            too_few.append((name, len(order), different))
    if too_few:
        name, count, different = too_few[0]
        given = " and ".join(f"--{split}-share {share:g}" for split, share in shares.of_splits.items())
        copies = f", {different} of them different" if different < count else ""
        raise RunError(
            f"class {printable(name)!r} has {count} images{copies}: too few for train and {given} "
            f"({len(too_few)} such class{'es' * (len(too_few) > 1)}); add images, take the class away or "
            "give other shares"
        )
    return parts


def _assign_contents(order: Samples, wanted: list[int], part_of_content: Parts) -> None:
    """Fills in the part of each content of a class that has none yet from an earlier class.

    order: int64 [images], the contents of the class's images as they were shuffled.
    """
    found, first, sizes = np.unique(order, return_index=True, return_counts=True)
    size_of = dict(zip(found.tolist(), sizes.tolist(), strict=True))
    free = [number for number in found[np.argsort(first)].tolist() if part_of_content[number] == _UNASSIGNED]
    for part, count in enumerate(wanted, 1):
        held = int((part_of_content[order] == part).sum())
        for number in list(free):
            if held + size_of[number] <= count:
                held += size_of[number]
                part_of_content[number] = part
                free.remove(number)
        if not held and free:  # every group of equal images is larger than the share
            smallest = min(free, key=size_of.__getitem__)
            part_of_content[smallest] = part
            free.remove(smallest)
    part_of_content[free] = 0
