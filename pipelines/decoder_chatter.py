"""What C libraries print to standard error while they decode, where that is a file of this process's own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from qrdali.errors import printable

_MAX_BYTES = 1 << 16  # read at once of what decoders print
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE_PLACES = re.compile(r"^\[ ?(?:WARN|ERROR):\S+ global \S+ \S+ |OpenCV\([^)]*\) \S+: ")
# Printed of files in perfect order: by a decoder whose turn goes to the next one, or about colour profiles.
_HARMLESS = re.compile(r"not supported|[Uu]nsupported|iCCP|sRGB|gAMA|cHRM|Unknown field|custom tag")


class Chatter:
    """Reads the file that is this process's standard error."""

    def __init__(self) -> None:
        self._heard = False

    def begin(self) -> None:
        """Forgets what was printed so far."""
        self.take()
        self._heard = False

    def heard_anything(self) -> bool:
        """Returns whether anything was printed since `begin`, taken or not."""
        return bool(self.take()) or self._heard

    def take(self) -> list[str]:
        """Returns the lines printed since the last call, without colours and places in source files."""
        size = os.fstat(2).st_size
        if not size:
            return []
        self._heard = True
        text = os.pread(2, min(size, _MAX_BYTES), 0).decode("utf-8", "replace")
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)
        lines = (_SOURCE_PLACES.sub("", _ESCAPES.sub("", line)).strip() for line in text.splitlines())
        return [printable(line)[:200] for line in lines if line]


def first_serious(lines: Sequence[str]) -> str:
    """Returns the first line that is printed of damaged images only, or ""."""
    return next((line for line in lines if not _HARMLESS.search(line)), "")
