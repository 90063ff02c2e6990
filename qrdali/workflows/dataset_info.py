"""Describes a data set: its classes, and the images and sizes of its splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qrdali.data import provenance
from qrdali.data.index import Dataset, Index


class Range(NamedTuple):
    """Least, median and greatest of some lengths, in pixels."""

    least: int
    median: int
    greatest: int


@dataclass(frozen=True)
class SplitInfo:
    """Describes a split. per_class_min, per_class_max: images of the smallest and of the largest class."""

    images: int
    per_class_min: int
    per_class_max: int
    width: Range
    height: Range

    def as_json(self) -> dict[str, Any]:
        """Returns what `data info --json` shows of a split."""
        return {
            "images": self.images,
            "per_class_min": self.per_class_min,
            "per_class_max": self.per_class_max,
            "width": list(self.width),
            "height": list(self.height),
        }


@dataclass(frozen=True)
class DatasetInfo:
    """Describes a data set. rejected: files that were found and not indexed.

    source: what it was made of, as source.json has it.
    """

    classes: tuple[str, ...]
    splits: dict[str, SplitInfo]
    rejected: int
    source: dict[str, Any]


def describe_dataset(folder: Path) -> DatasetInfo:
    """Returns what is in a data set. Raises InputError if `folder` is not one."""
    dataset = Dataset.open(folder)
    splits = {
        split: _describe(Index(folder / f"{split}.arrow", len(dataset.classes)), len(dataset.classes))
        for split in dataset.splits
    }
    rejected_file, rejected = folder / "rejected.tsv", 0
    if rejected_file.exists():
        with open(rejected_file, encoding="utf-8") as lines:
            rejected = sum(1 for _ in lines) - 1  # its first line names the columns
    return DatasetInfo(tuple(dataset.classes), splits, rejected, provenance.read(folder))


def _describe(index: Index, classes: int) -> SplitInfo:
    if not len(index):  # a split folder without a class folder
        return SplitInfo(0, 0, 0, Range(0, 0, 0), Range(0, 0, 0))
    samples = np.arange(len(index))
    per_class = np.bincount(index.labels(samples), minlength=classes)
    height, width = index.sizes(samples).T
    return SplitInfo(len(index), int(per_class.min()), int(per_class.max()), _range(width), _range(height))


def _range(lengths: np.ndarray[Any, Any]) -> Range:
    return Range(int(lengths.min()), int(np.median(lengths)), int(lengths.max()))
