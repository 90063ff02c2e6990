"""Whether a data set's files are still what was indexed."""

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
_ANY = 1 << 62  # pixels: `data index --max-pixels` may have allowed what is beyond the default


@dataclass(frozen=True)
class Change:
    """A file that is not what was indexed: which of KINDS is the first that differs, and what was and is."""

    split: str
    path: str
    kind: str
    detail: str


def changes(
    dataset: Dataset, hashed: bool = False, threads: int | None = None, progress: Progress = silent
) -> Iterator[Change]:
    """Every changed file, in the order of the splits and their rows; images are not decoded.

    `hashed` also compares the SHA-256 of every file. Raises InputError if none were kept, RunError for a damaged data set.
    """
    quiet_pillow()
    recorded = {split: _recorded(dataset, split, hashed) for split in dataset.splits}
    apart = any(dataset.rows(split).needs_bytes for split in dataset.splits)
    with ThreadPoolExecutor(threads or (LISTINGS if apart else os.cpu_count())) as pool:
        for split, facts in recorded.items():
            index = dataset.rows(split)
            if facts is not None and facts.num_rows != len(index):
                raise RunError(
                    f"{printable(_file(dataset.folder, split))} does not belong to {split}.arrow; if `qrdali data minival` was "
                    "interrupted, run it again"
                )
            for start in range(0, len(index), _CHUNK):
                samples = np.arange(start, min(start + _CHUNK, len(index)))
                rows = (
                    facts.slice(start, len(samples)).to_pylist() if facts is not None else [{}] * len(samples)
                )
                paths = index.paths(samples)
                now = pool.map(partial(inspect_file, verify=False, hashed=hashed, max_pixels=_ANY), paths)
                for found, size, was in zip(now, index.sizes(samples).tolist(), rows, strict=True):
                    difference = _difference(found, size, was, hashed)
                    if difference:
                        yield Change(split, found.path, *difference)
                progress(split, len(samples))


def _difference(
    now: FileReport, size: tuple[int, int], was: dict[str, Any], hashed: bool
) -> tuple[str, str] | None:
    """Kind and detail of what has changed. size: upright (height, width) as indexed."""
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
    """Bytes and hashes of a split's files, memory-mapped; None in a data set without them."""
    file = _file(dataset.folder, split)
    if not file.exists():
        if hashed:
            raise InputError(f"{printable(dataset.folder)} holds no hashes: make it again with --hash")
        return None
    table = pa.Table.from_batches(read_batches(file, FILES_SCHEMA), FILES_SCHEMA)
    if table["bytes"].null_count:
        raise RunError(f"{printable(file)} has holes: make the data set again")
    if hashed and table["sha256"].null_count:
        raise InputError(f"{printable(dataset.folder)} holds no hashes: make it again with --hash")
    return table


def _file(folder: Path, split: str) -> Path:
    return folder / f"{split}.files.arrow"
