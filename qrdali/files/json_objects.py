"""Reads JSON objects, one in a file or one in each line, from files that may be anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrdali.errors import RunError, printable
from qrdali.files.text_lines import decode_text

MOST_BYTES = 16 << 20  # of a file; `[[],[],…]` expands about 20-fold in memory
MAX_LINE_BYTES = 1 << 20


def read_object(file: Path, advice: str = "") -> dict[str, Any]:
    """Returns the object in `file`.

    Raises RunError, ending with `advice`, for anything but a file of at most MOST_BYTES that holds one.
    """
    try:
        if not file.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is not a file" if file.exists() else "it is missing")
        with open(file, "rb") as data:
            text = data.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it is larger than the allowed {MOST_BYTES >> 20} MiB")
        value = json.loads(decode_text(text))
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
        return value
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}{advice}") from None


def read_objects(file: Path, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the object of each line up to the first that is damaged or cut.

    With `whole`, ValueError for that one.

    Raises RunError if the file cannot be read.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is not a file")
        with open(file, "rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES), b""), 1):
                value = _object(line)
                if value is not None:
                    yield value
                elif whole:
                    raise ValueError(f"line {number} is cut or damaged")
                else:
                    return
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def _object(line: bytes) -> dict[str, Any] | None:
    """Returns the object in a line, None for one that is damaged or lacks its end."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and line.endswith(b"\n") else None
