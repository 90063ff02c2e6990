"""The columns of an index' file: views of it mapped, or rows read one by one where it is large."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.errors import RunError, printable
from qrdali.files.array_rows import MAPPED, ReadFile

Samples = npt.NDArray[np.int64]

_GIVEN_BACK = (
    64  # record batches of a large file after whose opening its pages are given back: each touches some
)
_LONGEST = 1 << 16  # bytes of a path that are read
_NO_PATH = np.empty(0, np.uint8)


class Columns(Protocol):
    """Rows of a file, for sample numbers [N] below its length."""

    def __len__(self) -> int: ...

    def labels(self, samples: Samples) -> Samples:
        """int64 [N]."""
        ...

    def sizes(self, samples: Samples) -> npt.NDArray[np.int32]:
        """(height, width), int32 [N, 2]."""
        ...

    def path_bytes(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        """uint8 [length] each."""
        ...

    def parts(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """All labels, widths and heights, a record batch at a time."""
        ...


def open_columns(file: Path, schema: pa.Schema) -> Columns:
    """Raises RunError for a file that is no such index."""
    content = mapped(file)
    if len(content) <= MAPPED:
        return MappedColumns(file, content, schema)
    return ReadColumns(file, content, schema)


def mapped(file: Path) -> mmap.mmap:
    """Raises RunError for a file that cannot be mapped."""
    try:
        if not file.is_file():
            raise OSError("it is no file")
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise _unreadable(file, error) from None


def batches(file: Path, content: mmap.mmap, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file, views of `content`. Raises RunError if it is none, has another schema or is damaged."""
    try:
        reader = pa.ipc.open_file(pa.py_buffer(content))
        if reader.schema != schema:
            raise RunError(
                f"{printable(file)} has columns {printable(reader.schema.names)}, not {schema.names}: index it again"
            )
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            if batch.nbytes > len(content):  # ours are not compressed
                raise OSError(f"record batch {number} is larger than the file")
            yield batch
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> RunError:
    return RunError(
        f"{printable(file)} is not a readable index ({printable(error)[:160]}): run `qrdali data index` again"
    )


def _filled(file: Path, content: mmap.mmap, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in batches(file, content, schema):
        if any(column.null_count for column in batch.columns):
            raise RunError(f"{printable(file)} has holes: run `qrdali data index` again")
        if batch.num_rows:
            yield batch


class MappedColumns:
    """Views of a mapped file."""

    def __init__(self, file: Path, content: mmap.mmap, schema: pa.Schema) -> None:
        self._columns = [_Views(batch) for batch in _filled(file, content, schema)]
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
        """Each record batch that holds some of `samples`: its columns, the rows wanted, and their places in `samples`; both as arrays,
        or as slices of one."""
        batch = np.searchsorted(self._starts, samples, side="right") - 1
        rows, numbers = samples - self._starts[batch], np.unique(batch)
        if 8 * len(numbers) > len(
            samples
        ):  # a shuffled batch: one after another is faster than looking for those together
            for place, (number, row) in enumerate(zip(batch.tolist(), rows.tolist(), strict=True)):
                yield self._columns[number], slice(row, row + 1), slice(place, place + 1)
            return
        for number in numbers.tolist():
            places = np.flatnonzero(batch == number)
            yield self._columns[number], rows[places], places


class _Views:
    def __init__(self, batch: pa.RecordBatch) -> None:
        buffers: list[Any] = batch.column(0).buffers()
        offsets, text = buffers[1], buffers[2] or b""
        shift = batch.column(0).offset
        self._offsets = np.frombuffer(offsets, np.int32)[shift : shift + batch.num_rows + 1]
        self._text = np.frombuffer(text, np.uint8)
        self.label = batch.column(1).to_numpy()
        self.width, self.height = batch.column(2).to_numpy(), batch.column(3).to_numpy()

    def path(self, row: int) -> npt.NDArray[np.uint8]:
        return self._text[self._offsets[row] : self._offsets[row + 1]]


class ReadColumns:
    """Where each record batch' columns lie in the file, which is read from then on and no longer mapped."""

    def __init__(self, file: Path, content: mmap.mmap, schema: pa.Schema) -> None:
        try:
            self._file = ReadFile(file)
        except OSError as error:
            raise _unreadable(file, error) from None
        if self._file.size != len(content):
            raise _unreadable(file, OSError("it changes while it is opened"))
        content.madvise(
            mmap.MADV_RANDOM
        )  # 10^8 rows from a cold disk open in 0.5 s; with pages read around each in 3.5 s
        base, places = pa.py_buffer(content).address, []
        for number, batch in enumerate(_filled(file, content, schema)):
            places.append(self._place(batch, base))
            if number % _GIVEN_BACK == 0:
                content.madvise(mmap.MADV_DONTNEED)
        # By record batch: rows, then where the paths' offsets, the paths, labels, widths and heights begin, and the paths' bytes.
        rows, *columns = np.array(places, np.int64).reshape(-1, 7).T
        self._offsets, self._text, self._label, self._width, self._height, self._text_bytes = columns
        self._starts = np.append(0, np.cumsum(rows))

    def _place(self, batch: pa.RecordBatch, base: int) -> tuple[int, ...]:
        rows, found = batch.num_rows, []
        for column, name in zip(batch.columns, batch.schema.names, strict=True):
            buffers: list[Any] = column.buffers()
            text = buffers[2] if len(buffers) > 2 else None
            first = buffers[1].address - base + 4 * column.offset
            found.append((first, 4 * (rows + (name == "path"))))
            if name == "path":
                found.append((text.address - base, text.size) if text else (0, 0))
        if any(not 0 <= first <= first + length <= self._file.size for first, length in found):
            raise RunError(
                f"{printable(self._file.file)} is compressed or has changed: run `qrdali data index` again"
            )
        return rows, *(first for first, _ in found), found[1][1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _numbers(
        self, first: npt.NDArray[np.int64], batch: Samples, rows: Samples, count: int = 1
    ) -> npt.NDArray[np.int32]:
        """`count` numbers from each of `rows` on, of columns that begin at `first` of their record batch, int32 [N, count]."""
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
            or (end - begin > _LONGEST).any()
        ):
            raise RunError(
                f"{printable(self._file.file)} holds a path that cannot be: run `qrdali data index` again"
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
        """The record batch of each sample, and its row there."""
        batch = np.searchsorted(self._starts, samples, side="right") - 1
        return batch, samples - self._starts[batch]
