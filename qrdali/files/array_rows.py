"""Rows of arrays in files that are too large to map, read one by one: no memory grows with the file."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.errors import RunError, printable

Numbers = npt.NDArray[np.int64]

MAPPED = 1 << 28  # of a file that is mapped: all of it may come to stay in memory
_MAX_GAP_BYTES = 256  # between two rows that are read together


class ReadFile:
    """An open file whose parts are read by position; threads and forked processes may share it.

    It is closed with the last reference to it.
    """

    def __init__(self, file: Path) -> None:
        """Opens `file`. Raises OSError."""
        self.file = file
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.size = os.fstat(self._descriptor).st_size

    def read(self, position: int, length: int) -> bytes:
        """Returns `length` bytes from `position` on.

        Raises RunError where the file has become shorter or its disk fails.
        """
        try:
            data = os.pread(self._descriptor, length, position)
            while len(data) < length:  # the kernel reads at most 2 GiB at once
                more = os.pread(self._descriptor, length - len(data), position + len(data))
                if not more:
                    raise OSError(f"it ends after {position + len(data)} bytes")
                data += more
        except OSError as error:
            raise RunError(f"{printable(self.file)} cannot be read any more: {printable(error)}") from None
        return data

    def rows(self, positions: Numbers, length: int) -> npt.NDArray[np.uint8]:
        """Returns the `length` bytes at each of `positions` [N], uint8 [N, length].

        What lies close together is read at once.
        """
        if not len(positions):
            return np.empty((0, length), np.uint8)
        order = np.argsort(positions)
        ordered = positions[order]
        gaps = np.flatnonzero(np.diff(ordered) > _MAX_GAP_BYTES + length) + 1
        if len(gaps) == len(ordered) - 1:  # a shuffled batch: no two rows are close together
            content = b"".join([self.read(position, length) for position in ordered.tolist()])
            rows = np.frombuffer(content, np.uint8).reshape(len(ordered), length)
        else:
            first, last = ordered[np.append(0, gaps)], ordered[np.append(gaps - 1, -1)] + length
            content = b"".join(
                [
                    self.read(start, stop - start)
                    for start, stop in zip(first.tolist(), last.tolist(), strict=True)
                ]
            )
            # Where each part begins in `content`, less where it begins in the file.
            shift = np.append(0, np.cumsum(last - first)[:-1]) - first
            parts = np.repeat(np.arange(len(first)), np.diff(np.concatenate([[0], gaps, [len(ordered)]])))
            rows = np.frombuffer(content, np.uint8)[(ordered + shift[parts])[:, None] + np.arange(length)]
        result = np.empty((len(ordered), length), np.uint8)
        result[order] = rows
        return result


class FileRows:
    """An array in a file, indexed by row numbers only; `dtype` and `shape` are the array's.

    check: is called with all that is read, and may raise.
    """

    def __init__(self, file: ReadFile, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        self._file = file
        self._offset = offset
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.check: Callable[[npt.NDArray[Any]], None] = lambda part: None
        self._row_bytes = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the whole array."""
        return len(self) * self._row_bytes

    def __getitem__(self, rows: Numbers) -> npt.NDArray[Any]:
        """Returns rows [N] as [N, …], a copy. Raises IndexError outside 0..len - 1."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are outside 0..{len(self) - 1}")
        content = self._file.rows(self._offset + rows * self._row_bytes, self._row_bytes)
        values = content.view(self.dtype).reshape(len(rows), *self.shape[1:])
        self.check(values)
        return values

    def part(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns rows start..stop - 1, read at once; read-only."""
        content = self._file.read(self._offset + start * self._row_bytes, (stop - start) * self._row_bytes)
        values = np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])
        self.check(values)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.part(0, len(self)), dtype)


def open_npy(file: Path, max_header_bytes: int = 10_000) -> FileRows:
    """Opens the array of a .npy file.

    Raises OSError or ValueError with the reason if it is not one, and whatever numpy raises for a header that
    is not a Python literal.
    """
    opened = ReadFile(file)
    with open(file, "rb") as head:
        version = np.lib.format.read_magic(head)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"it is of format version {version}")
        shape, by_columns, dtype = readers[version](head, max_header_bytes)
        offset = head.tell()
    if dtype.hasobject:
        raise ValueError("it holds objects")
    if by_columns and len(shape) > 1:
        raise ValueError("it is stored by columns")
    claimed_bytes = dtype.itemsize
    for length in shape:  # in Python's integers, which do not overflow: a header may claim any number
        claimed_bytes *= length
    if offset + claimed_bytes > opened.size or min(shape, default=0) < 0:
        raise ValueError(f"it has {opened.size} bytes, not {offset + claimed_bytes}")
    return FileRows(opened, offset, dtype, shape)
