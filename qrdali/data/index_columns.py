"""The columns of an index file: views of a mapped file, or of a large file rows read one by one.

On a file system that maps no files a small file is read whole, a large one by record batches.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data.index_batches import batches, has_rows, located_batches, mapped, mapped_or_none, unreadable
from qrdali.errors import RunError, printable
from qrdali.files.array_rows import MAPPED, ReadFile

Samples = npt.NDArray[np.int64]

_RELEASE_EVERY = 64  # record batches of a large file, after which its touched pages are released
_MAX_PATH_BYTES = 1 << 16
_NO_PATH = np.empty(0, np.uint8)


class Columns(Protocol):
    """The rows of a file, by sample numbers [N] below its length."""

    def __len__(self) -> int: ...

    def labels(self, samples: Samples) -> Samples:
        """Returns int64 [N]."""
        ...

    def sizes(self, samples: Samples) -> npt.NDArray[np.int32]:
        """Returns (height, width), int32 [N, 2]."""
        ...

    def path_bytes(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        """Returns the UTF-8 bytes of each path, uint8 [length]."""
        ...

    def parts(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Yields all labels, widths and heights, a record batch at a time."""
        ...


def open_columns(file: Path, schema: pa.Schema) -> Columns:
    """Returns the columns of an index file. Raises RunError for any other file."""
    content = mapped_or_none(file)
    if content is None and file.stat().st_size <= MAPPED:
        return MappedColumns(file, mapped(file), schema)
    if content is not None and len(content) <= MAPPED:
        return MappedColumns(file, content, schema)
    return ReadColumns(file, content, schema)


class MappedColumns:
    """Views of a file that is mapped, or in memory."""

    def __init__(self, file: Path, content: mmap.mmap | bytes, schema: pa.Schema) -> None:
        self._columns = [_Views(batch) for batch in batches(file, content, schema) if has_rows(file, batch)]
        self._starts = np.cumsum([0, *(len(c.label) for c in self._columns)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def labels(self, samples: Samples) -> Samples:
        result = np.empty(len(samples), np.int64)
        for columns, rows, places in self._located(samples):
            result[places] = columns.label[rows]
        return result

    def sizes(self, samples: Samples) -> npt.NDArray[np.int32]:
        result = np.empty((len(samples), 2), np.int32)
        for columns, rows, places in self._located(samples):
            result[places, 0], result[places, 1] = columns.height[rows], columns.width[rows]
        return result

    def path_bytes(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        result: list[npt.NDArray[np.uint8]] = [_NO_PATH] * len(samples)
        for columns, rows, places in self._located(samples):
            if isinstance(rows, slice):
                result[places.start] = columns.path(rows.start)
                continue
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                result[place] = columns.path(row)
        return result

    def parts(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        for columns in self._columns:
            yield columns.label, columns.width, columns.height

    def _located(self, samples: Samples) -> Iterator[tuple[_Views, Any, Any]]:
        """Yields each record batch with some of `samples`: columns, rows, and their places in `samples`.

        Rows and places are arrays, or slices of length 1.
        """
        batch = np.searchsorted(self._starts, samples, side="right") - 1
        rows, numbers = samples - self._starts[batch], np.unique(batch)
        # In a shuffled batch few samples share a record batch: one after another is then faster than grouping
        # them.
        if 8 * len(numbers) > len(samples):
            for place, (number, row) in enumerate(zip(batch.tolist(), rows.tolist(), strict=True)):
                yield self._columns[number], slice(row, row + 1), slice(place, place + 1)
            return
        for number in numbers.tolist():
            places = np.flatnonzero(batch == number)
            yield self._columns[number], rows[places], places


class _Views:
    """The columns of one record batch, as arrays that share its memory."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        buffers: list[Any] = batch.column(0).buffers()
        offsets, text = buffers[1], buffers[2] or b""
        first = batch.column(0).offset
        self._offsets = np.frombuffer(offsets, np.int32)[first : first + batch.num_rows + 1]
        self._text = np.frombuffer(text, np.uint8)
        self.label = batch.column(1).to_numpy()
        self.width, self.height = batch.column(2).to_numpy(), batch.column(3).to_numpy()

    def path(self, row: int) -> npt.NDArray[np.uint8]:
        return self._text[self._offsets[row] : self._offsets[row + 1]]


class ReadColumns:
    """Reads rows of the file by position.

    It is mapped only while it is opened, to find where the columns lie; or read once (`content` None).
    """

    def __init__(self, file: Path, content: mmap.mmap | None, schema: pa.Schema) -> None:
        try:
            self._file = ReadFile(file)
        except OSError as error:
            raise unreadable(file, error) from None
        if content is None:
            located = located_batches(file, schema)
        else:
            located = self._mapped_batches(content, schema)
        positions = [self._positions(batch, base) for batch, base in located if has_rows(file, batch)]
        rows, *columns = np.array(positions, np.int64).reshape(-1, 7).T
        self._offsets, self._text, self._label, self._width, self._height, self._text_bytes = columns
        self._starts = np.append(0, np.cumsum(rows))

    def _mapped_batches(self, content: mmap.mmap, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yields what `located_batches` does, from the mapped file."""
        if self._file.size != len(content):
            raise unreadable(self._file.file, OSError("it changes while it is opened"))
        base = pa.py_buffer(content).address
        # Without read-ahead 10^8 rows open from a cold disk in 0.5 s, with it in 3.5 s.
        content.madvise(mmap.MADV_RANDOM)
        for number, batch in enumerate(batches(self._file.file, content, schema)):
            yield batch, base
            if number % _RELEASE_EVERY == 0:
                content.madvise(mmap.MADV_DONTNEED)

    def _positions(self, batch: pa.RecordBatch, base: int) -> tuple[int, ...]:
        """Returns a record batch's number of rows and where its columns lie in the file.

        After the rows come the positions of the paths' offsets, of the paths, labels, widths and heights,
        then the paths' length in bytes.
        """
        rows, extents = batch.num_rows, []
        for column, name in zip(batch.columns, batch.schema.names, strict=True):
            buffers: list[Any] = column.buffers()
            text = buffers[2] if len(buffers) > 2 else None
            first = buffers[1].address - base + 4 * column.offset
            extents.append((first, 4 * (rows + (name == "path"))))
            if name == "path":
                extents.append((text.address - base, text.size) if text else (0, 0))
        if any(not 0 <= first <= first + length <= self._file.size for first, length in extents):
            raise RunError(
                f"{printable(self._file.file)} is compressed or has changed: run `qrdali data index` again"
            )
        return rows, *(first for first, _ in extents), extents[1][1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _numbers(
        self, first: npt.NDArray[np.int64], batch: Samples, rows: Samples, count: int = 1
    ) -> npt.NDArray[np.int32]:
        """Returns `count` numbers from each of `rows` on, int32 [N, count].

        `first`: where each record batch's begin.
        """
        return self._file.rows(first[batch] + 4 * rows, 4 * count).view(np.int32)

    def labels(self, samples: Samples) -> Samples:
        return self._numbers(self._label, *self._located(samples))[:, 0].astype(np.int64)

    def sizes(self, samples: Samples) -> npt.NDArray[np.int32]:
        batch, rows = self._located(samples)
        return np.concatenate(
            [self._numbers(first, batch, rows) for first in (self._height, self._width)], axis=1
        )

    def path_bytes(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        batch, rows = self._located(samples)
        begin, end = self._numbers(self._offsets, batch, rows, 2).astype(np.int64).T
        if (
            (begin < 0).any()
            or (end < begin).any()
            or (end > self._text_bytes[batch]).any()
            or (end - begin > _MAX_PATH_BYTES).any()
        ):
            raise RunError(
                f"{printable(self._file.file)} holds an impossible path: run `qrdali data index` again"
            )
        return [
            np.frombuffer(self._file.read(position, length), np.uint8)
            for position, length in zip(
                (self._text[batch] + begin).tolist(), (end - begin).tolist(), strict=True
            )
        ]

    def parts(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        for number, rows in enumerate(np.diff(self._starts).tolist()):
            label, width, height = (
                np.frombuffer(self._file.read(int(first[number]), 4 * rows), np.int32)
                for first in (self._label, self._width, self._height)
            )
            yield label, width, height

    def _located(self, samples: Samples) -> tuple[Samples, Samples]:
        """Returns the record batch of each sample, and its row there."""
        batch = np.searchsorted(self._starts, samples, side="right") - 1
        return batch, samples - self._starts[batch]
