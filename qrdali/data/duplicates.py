"""Finds images that are in two splits, byte for byte, by the SHA-256 that --hash keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data.index import FILES_SCHEMA, SPLITS, Dataset, Index, read_batches
from qrdali.data.left_out import short_path

_PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))
_SHOWN = 3


def shared_images(folder: Path, place_of: Callable[[str], Path] | None = None) -> list[str]:
    """Returns a warning for each two splits of a data set that share images; [] where no hashes were kept.

    place_of: returns where a file of the data set lies, by its name; in `folder` by default. The hashes of
    one split at a time are in memory, 32 bytes an image, and of the other those of a record batch.
    """
    classes = len(Dataset.open(folder).classes)
    place = place_of or folder.joinpath
    splits = [split for split in SPLITS if place(f"{split}.arrow").exists()]
    warnings = []
    for first, second in _PAIRS:
        if first in splits and second in splits:
            is_shared = _rows_also_in(_hashes(place, second), _hashes(place, first))
            rows = np.flatnonzero(is_shared)
            if len(rows):
                index = Index(place(f"{second}.arrow"), classes)
                names = [short_path(path) for path in index.indexed_paths(rows[:_SHOWN])]
                more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
                warnings.append(
                    f"{len(rows):,} of {len(is_shared):,} images of {second} are in {first} too, byte for "
                    f"byte: {', '.join(names)}{more}"
                )
    return warnings


def contents(folder: Path, split: str) -> npt.NDArray[np.int64] | None:
    """Returns a number for each image of a split, int64 [N], equal for those that are equal byte for byte.

    None where no hashes were kept.
    """
    hashes = list(_hashes(folder.joinpath, split))
    if not hashes:
        return None
    return np.unique(np.concatenate(hashes), return_inverse=True)[1].reshape(-1).astype(np.int64)


def _rows_also_in(
    batches: Iterator[npt.NDArray[Any]], others: Iterator[npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """Returns for each hash of `batches` whether it is among `others` too, bool [N]."""
    own = list(batches)
    if not own:
        return np.zeros(0, np.bool_)
    distinct, number = np.unique(np.concatenate(own), return_inverse=True)
    is_found = np.zeros(len(distinct), np.bool_)
    for batch in others:
        places = np.minimum(np.searchsorted(distinct, batch), len(distinct) - 1)
        is_found[places[distinct[places] == batch]] = True
    return is_found[number]


def _hashes(place_of: Callable[[str], Path], split: str) -> Iterator[npt.NDArray[Any]]:
    """Yields the hashes of a split's images, "S32" [rows] a record batch; none where they were not kept."""
    file = place_of(f"{split}.files.arrow")
    if not file.exists():
        return
    for batch in read_batches(file, FILES_SCHEMA):
        column = batch.column(1)
        if column.null_count:
            return
        yield _fixed_width(column)


def _fixed_width(column: pa.Array[Any]) -> npt.NDArray[Any]:
    """Returns a column of 32 bytes a row as "S32", which numpy compares byte by byte."""
    content = column.buffers()[1]
    if content is None:
        return np.empty(0, "S32")
    rows: npt.NDArray[Any] = np.frombuffer(memoryview(content), "S32")
    return rows[column.offset : column.offset + len(column)]
