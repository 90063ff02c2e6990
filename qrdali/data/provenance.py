"""Where a data set comes from: source.json in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qrdali.files.json_objects import read_object

FILE = "source.json"


def read(folder: Path) -> dict[str, Any]:
    """What is known of a data set's origin; {} of one that `data index` made. Raises RunError for a damaged file."""
    file = folder / FILE
    if not file.exists():
        return {}
    return read_object(file)


def write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")


def brief(values: dict[str, Any]) -> dict[str, Any]:
    """The plain values, and those of objects among them: what a run keeps and `data info` shows, without the lists of synsets."""

    def plain(inner: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in inner.items() if isinstance(value, (str, int, float))}

    objects = {key: plain(value) for key, value in values.items() if isinstance(value, dict)}
    return plain(values) | {key: inner for key, inner in objects.items() if inner}
