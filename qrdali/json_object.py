"""A JSON object in a small file that may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qrdali.errors import RunError, printable

MOST_BYTES = 16 << 20  # in memory, lists of nothing take 20 times as much


def read_object(file: Path, advice: str = "") -> dict[str, Any]:
    """The object in `file`. Raises RunError, ending with `advice`, for anything but a file of at most MOST_BYTES that holds one."""
    try:
        if not file.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is no file" if file.exists() else "it is missing")
        with open(file, "rb") as data:
            text = data.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it is no file of at most {MOST_BYTES >> 20} MiB")
        found = json.loads(text.decode("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}{advice}") from None
