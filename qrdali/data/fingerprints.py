"""Fingerprints of an index: what tells the images of a split from others, wherever they are mounted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qrdali.data import storage
from qrdali.errors import RunError, printable

_ROWS = 1 << 14  # encoded at once: at most 1 GB of paths of the greatest length
_LONGEST_PATH = 1 << 30
_PARTS, _PART_BYTES = 64, 1 << 17  # of a file that are hashed


def content_fingerprint(file: Path, split: str, root: str) -> str:
    """Returns the SHA-256, hexadecimal, of the split's name and of every row of an index file, in row order.

    The bytes are the split and a NUL, then of each row the path below `root`, the label, the width and the
    height, the numbers in decimal, each of the four followed by a NUL. All text is UTF-8. root: the folder or
    URL below which the data set was indexed, "" for none. The path below it is what follows "ROOT/", and for
    a shard's member what follows the root's "tar+" URL: the shard's place below the root, offset, length and
    member. A path outside the root counts as it is. So the same images below another mount, or copied into a
    store, have the same fingerprint.

    The file is read in one pass, a record batch at a time. Raises RunError if it cannot be read.
    """
    digest = hashlib.sha256(split.encode() + b"\0")
    below_root = bool(root)
    root = root.encode(errors="replace").decode().rstrip("/")  # JSON can hold what UTF-8 cannot
    roots = [f"{prefix}/".encode() for prefix in (root, storage.shard_prefix(root))]
    for rows in _slices(file):
        path, *numbers = rows.columns
        columns: list[Any] = [_below(path.cast(pa.binary()), roots if below_root else [])]
        columns += [column.cast(pa.string()).cast(pa.binary()) for column in numbers]
        nul = pa.scalar(b"\0", pa.binary())
        encoded: Any = pc.binary_join_element_wise(*columns, pa.scalar(b"", pa.binary()), nul)
        digest.update(encoded.buffers()[2])
    return digest.hexdigest()


def _slices(file: Path) -> Iterator[pa.RecordBatch]:
    """Yields the rows of an index file, some thousands at a time."""
    try:
        with pa.OSFile(str(file), "r") as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                batch.validate()
                for first in range(0, batch.num_rows, _ROWS):
                    yield batch.slice(first, _ROWS)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def _below(paths: Any, roots: list[Any]) -> Any:
    """Returns the paths, a pyarrow BinaryArray, without the root that they begin with, if with one."""
    for root in roots:
        inside: Any = pc.starts_with(paths, root)
        if pc.all(inside).as_py():
            return pc.binary_slice(paths, len(root), _LONGEST_PATH)
        # Ten times slower, and needed only where some images lie elsewhere.
        if pc.any(inside).as_py():
            paths = pc.if_else(inside, pc.binary_slice(paths, len(root), _LONGEST_PATH), paths)
    return paths


def file_fingerprint(file: Path) -> str:
    """Returns the SHA-256, hexadecimal, of a file's size and of up to 64 evenly spread parts of it.

    Version 0.1 told an index from others by it; it changes with the folder that the images lie in.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(file, "rb") as content:
        for i in range(min(_PARTS, -(-size // _PART_BYTES))):
            inside = size <= _PARTS * _PART_BYTES
            content.seek(min(i * _PART_BYTES, size) if inside else (size - _PART_BYTES) * i // (_PARTS - 1))
            digest.update(content.read(_PART_BYTES))
    return digest.hexdigest()
