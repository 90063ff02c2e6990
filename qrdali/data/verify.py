"""Checks whether a data set's files are still what was indexed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qrdali.data import storage
from qrdali.data.index import FILES_SCHEMA, Dataset, read_batches
from qrdali.data.inspect import FileReport, inspect_file, quiet_pillow
from qrdali.data.scan import Progress, silent
from qrdali.data.tree import LISTINGS
from qrdali.errors import InputError, RunError, printable

KINDS = ("missing", "unreadable", "bytes", "pixels", "hash")
_CHUNK = 1024
_NO_LIMIT = 1 << 62  # pixels: `data index --max-pixels` may have allowed what is beyond the default


@dataclass(frozen=True)
class Change:
    """A file that is not what was indexed: the first of KINDS that differs, and in words what was and is."""

    split: str
    path: str
    kind: str
    detail: str


def changes(
    dataset: Dataset, hashed: bool = False, threads: int | None = None, progress: Progress = silent
) -> Iterator[Change]:
    """Yields every changed file, in the order of the splits and their rows; images are not decoded.

    `hashed` also compares the SHA-256 of every file. Raises InputError if none were kept, RunError for a
    damaged data set.
    """
    quiet_pillow()
    recorded = {split: _recorded(dataset, split, hashed) for split in dataset.splits}
    waits_for_server = any(dataset.rows(split).needs_bytes for split in dataset.splits)
    with ThreadPoolExecutor(threads or (LISTINGS if waits_for_server else os.cpu_count())) as pool:
        for split, facts in recorded.items():
            index = dataset.rows(split)
            if facts is not None and facts.num_rows != len(index):
                raise RunError(
                    f"{printable(_file(dataset.folder, split))} does not belong to {split}.arrow; if `qrdali "
                    "data minival` was interrupted, run it again"
                )
            for start in range(0, len(index), _CHUNK):
                samples = np.arange(start, min(start + _CHUNK, len(index)))
                rows: list[dict[str, Any]] = [{}] * len(samples)
                if facts is not None:
                    rows = facts.slice(start, len(samples)).to_pylist()
                inspect = partial(inspect_file, verify=False, hashed=hashed, max_pixels=_NO_LIMIT)
                reports = pool.map(inspect, index.paths(samples))
                for report, size, was in zip(reports, index.sizes(samples).tolist(), rows, strict=True):
                    difference = _difference(report, size, was, hashed)
                    if difference:
                        yield Change(split, report.path, *difference)
                progress(split, len(samples))


def _difference(
    now: FileReport, size: tuple[int, int], was: dict[str, Any], hashed: bool
) -> tuple[str, str] | None:
    """Returns kind and detail of what has changed, or None.

    size: upright (height, width) as indexed. was: `bytes` and `sha256` as indexed, {} where they were not
    kept.
    """
    if now.reason:
        return ("unreadable" if storage.exists(now.path) else "missing"), now.reason
    height, width = size
    if was and now.file_bytes != was["bytes"]:
        return "bytes", f"{was['bytes']} bytes are now {now.file_bytes}"
    if (now.width, now.height) != (width, height):
        return "pixels", f"{width}x{height} is now {now.width}x{now.height}"
    if hashed and now.sha256 != was["sha256"]:
        return "hash", "other content of the same size"
    return None


def _recorded(dataset: Dataset, split: str, hashed: bool) -> pa.Table | None:
    """Returns bytes and hashes of a split's files, memory-mapped; None in a data set without them."""
    file = _file(dataset.folder, split)
    if not file.exists():
        if hashed:
            raise InputError(f"{printable(dataset.folder)} holds no hashes: make it again with --hash")
        return None
    table = pa.Table.from_batches(read_batches(file, FILES_SCHEMA), FILES_SCHEMA)
    if table["bytes"].null_count:
        raise RunError(f"{printable(file)} has empty cells: make the data set again")
    if hashed and table["sha256"].null_count:
        raise InputError(f"{printable(dataset.folder)} holds no hashes: make it again with --hash")
    return table


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.files.arrow"
