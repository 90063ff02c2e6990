"""Where a data set comes from: source.json in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qrdali.files.atomic import write_whole
from qrdali.files.json_objects import read_object

FILE = "source.json"


def read(folder: Path) -> dict[str, Any]:
    """Returns what is known of a data set's origin; {} where there is no source.json.

    Raises RunError if it is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return {}
    return read_object(file)


def write(folder: Path, values: dict[str, Any]) -> None:
    """Writes the source.json of a data set."""
    write_whole(folder / FILE, encode(values))


def encode(values: dict[str, Any]) -> bytes:
    """Returns the content of a source.json."""
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def brief(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the plain values, and those of objects among them, without the lists of synsets.

    A run keeps these, and `data info` shows them.
    """

    def plain(inner: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in inner.items() if isinstance(value, (str, int, float))}

    objects = {key: plain(value) for key, value in values.items() if isinstance(value, dict)}
    return plain(values) | {key: inner for key, inner in objects.items() if inner}
