"""What is on the disk when the power goes."""

from __future__ import annotations

import os
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
