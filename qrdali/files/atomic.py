"""What is on the disk when the power goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_atomically(partial: Path, place: Path) -> None:
    """Gives the complete file or folder `partial` its name; what is in `place` after a loss of power is the old or the new, whole."""
    for path in partial.rglob("*") if partial.is_dir() else ():
        sync(path)
    sync(partial)
    partial.rename(place)
    sync(place.parent)


def write_whole(file: Path, data: bytes | Callable[[Path], None]) -> None:
    """Writes `file` so that it holds the old or the new content, whole, whatever happens, also after a loss
    of power.

    data: the content, or a function that writes it into the path it is given.
    """
    partial = file.with_name(f".{file.name}.partial")
    if callable(data):
        data(partial)
    else:
        partial.write_bytes(data)
    replace_atomically(partial, file)
