"""Maps files into memory, or reads them on a file system that maps none, as some of FUSE do."""

from __future__ import annotations

import mmap
from pathlib import Path

from qrdali.files.unsupported import is_unsupported


def map_file(file: Path) -> mmap.mmap | None:
    """Returns a file mapped read-only, None where its file system maps no files.

    Raises ValueError for an empty file, OSError if it cannot be opened.
    """
    with open(file, "rb") as opened:
        try:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if is_unsupported(error):
                return None
            raise


def can_be_mapped(file: Path) -> bool:
    """Returns whether the file system maps `file`. Raises as `map_file` does."""
    content = map_file(file)
    if content is None:
        return False
    content.close()
    return True
