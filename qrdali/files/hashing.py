"""The SHA-256 of a file of any size."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20  # bytes read at once


def sha256_of(file: Path | str) -> str:
    """Returns the SHA-256 of a file's content, hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with open(file, "rb") as data:
        while block := data.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
