"""The record batches of an index file, mapped where the file system maps files, else read."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from qrdali.errors import RunError, printable
from qrdali.files.mapping import map_file

_MAGIC_BYTES = 8  # before an Arrow file's first message: "ARROW1" and two zeros


def mapped(file: Path) -> mmap.mmap | bytes:
    """Returns a file's content: mapped read-only, or read where the file system maps no files.

    Raises RunError if it cannot be read.
    """
    try:
        return mapped_or_none(file) or file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None


def mapped_or_none(file: Path) -> mmap.mmap | None:
    """Returns a file mapped read-only, None where the file system maps no files. Raises RunError."""
    try:
        if not file.is_file():
            raise OSError("it is not a file")
        return map_file(file)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise unreadable(file, error) from None


def batches(file: Path, content: mmap.mmap | bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the record batches of an Arrow file, views of `content`.

    Raises RunError if it is not an Arrow file, has another schema or is damaged.
    """
    try:
        reader = pa.ipc.open_file(pa.py_buffer(content))
        _require_schema(file, reader.schema, schema)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            if batch.nbytes > len(content):  # ours are not compressed
                raise OSError(f"record batch {number} is larger than the file")
            yield batch
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise unreadable(file, error) from None


def located_batches(file: Path, schema: pa.Schema) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Reads an Arrow file's record batches one after another, and yields each with its `base`.

    A buffer at the address `base` + n is the file's content from byte n on. Raises RunError as `batches`.
    """
    try:
        with pa.OSFile(str(file), "rb") as source:
            _require_schema(file, pa.ipc.open_file(source).schema, schema)
            source.seek(_MAGIC_BYTES)
            with suppress(EOFError):  # the mark after the last record batch
                while True:
                    message = pa.ipc.read_message(source)
                    if message.type == "record batch" and message.body is not None:
                        batch = pa.ipc.read_record_batch(message, schema)
                        batch.validate()
                        yield batch, message.body.address - (source.tell() - message.body.size)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise unreadable(file, error) from None


def _require_schema(file: Path, schema: pa.Schema, wanted: pa.Schema) -> None:
    if schema != wanted:
        raise RunError(
            f"{printable(file)} has columns {printable(schema.names)}, not {wanted.names}: index it again"
        )


def unreadable(file: Path, error: Exception) -> RunError:
    """Returns the error for a file that is not an index or damaged."""
    return RunError(
        f"{printable(file)} is not a readable index ({printable(error)[:160]}): run `qrdali data index` again"
    )


def has_rows(file: Path, batch: pa.RecordBatch) -> bool:
    """Returns whether a record batch has rows. Raises RunError for empty cells."""
    if any(column.null_count for column in batch.columns):
        raise RunError(f"{printable(file)} has empty cells: run `qrdali data index` again")
    return bool(batch.num_rows)
