"""Rows of arrays that lie in files too large to map: read where they are asked for, so that no memory grows with the file."""

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

MAPPED = 1 << 28  # bytes of a file that may be mapped, and may so come to stay in memory whole
_NEAR = 256  # bytes between two rows that are read together


class ReadFile:
    """An open file whose parts are read by position: threads and forked processes may share it. Closed with its last reference."""

    def __init__(self, file: Path) -> None:
        """Raises OSError."""
        self.file = file
        self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor).atexit = False
        self.size = os.fstat(self._descriptor).st_size

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position` on. Raises RunError where the file has become shorter or its disk fails."""
        try:
            found = os.pread(self._descriptor, length, position)
            while len(found) < length:  # the kernel stops at 2 GiB
                more = os.pread(self._descriptor, length - len(found), position + len(found))
                if not more:
                    raise OSError(f"it ends after {position + len(found)} bytes")
                found += more
        except OSError as error:
            raise RunError(f"{printable(self.file)} cannot be read any more: {printable(error)}") from None
        return found

    def rows(self, positions: Numbers, length: int) -> npt.NDArray[np.uint8]:
        """The `length` bytes at each of `positions` [N], uint8 [N, length]; what lies close together is read at once."""
        if not len(positions):
            return np.empty((0, length), np.uint8)
        order = np.argsort(positions)
        at = positions[order]
        apart = np.flatnonzero(np.diff(at) > _NEAR + length) + 1
        if len(apart) == len(at) - 1:  # a shuffled batch
            content = b"".join([self.read(position, length) for position in at.tolist()])
            found = np.frombuffer(content, np.uint8).reshape(len(at), length)
        else:
            first, last = at[np.append(0, apart)], at[np.append(apart - 1, -1)] + length
            content = b"".join(
                [self.read(a, b - a) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
            )
            # Where each part begins in `content`, less where it begins in the file.
            shift = np.append(0, np.cumsum(last - first)[:-1]) - first
            parts = np.repeat(np.arange(len(first)), np.diff(np.concatenate([[0], apart, [len(at)]])))
            found = np.frombuffer(content, np.uint8)[(at + shift[parts])[:, None] + np.arange(length)]
        result = np.empty((len(at), length), np.uint8)
        result[order] = found
        return result


class FileRows:
    """An array in a file, indexed by row numbers only. dtype and shape are the array's. check: sees whatever is read, and may raise."""

    def __init__(self, file: ReadFile, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
        self._file, self._offset, self.dtype, self.shape = file, offset, np.dtype(dtype), shape
        self.check: Callable[[npt.NDArray[Any]], None] = lambda part: None
        self._width = self.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return len(self) * self._width

    def __getitem__(self, rows: Numbers) -> npt.NDArray[Any]:
        """Rows [N] as [N, …], a copy. Raises IndexError outside 0..len - 1."""
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} are outside 0..{len(self) - 1}")
        content = self._file.rows(self._offset + rows * self._width, self._width)
        found = content.view(self.dtype).reshape(len(rows), *self.shape[1:])
        self.check(found)
        return found

    def part(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows start..stop - 1, read at once; read-only."""
        content = self._file.read(self._offset + start * self._width, (stop - start) * self._width)
        found = np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])
        self.check(found)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.part(0, len(self)), dtype)


def open_npy(file: Path, most_header: int = 10_000) -> FileRows:
    """The array of a .npy file. Raises OSError or ValueError with the reason if it is none, and whatever numpy raises for a header
    that is no Python literal."""
    opened = ReadFile(file)
    with open(file, "rb") as head:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
            version
        )
        if read is None:
            raise ValueError(f"it is of format version {version}")
        shape, by_columns, dtype = read(head, most_header)
        offset = head.tell()
    if dtype.hasobject:
        raise ValueError("it holds objects")
    if by_columns and len(shape) > 1:
        raise ValueError("it is stored by columns")
    wanted = dtype.itemsize
    for length in shape:  # Python's integers: a header may claim any number
        wanted *= length
    if offset + wanted > opened.size or min(shape, default=0) < 0:
        raise ValueError(f"it has {opened.size} bytes, not {offset + wanted}")
    return FileRows(opened, offset, dtype, shape)
