"""Decodes text that people write, with any editor, and reads lines of files that may be anything.

Such a file may be huge, not text, or not even a file. Its lines may end as on Windows, and Windows' editors
begin it with a byte order mark.
"""

from __future__ import annotations

import codecs
import io
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from qrdali.errors import InputError, printable

MAX_LINES = 1_000_000
MAX_LINE_BYTES = 10_000


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yields (where, text) of each line that is neither empty nor a comment.

    `where` is FILE line N, for messages.

    Raises InputError, naming the line, for what is not a file, cannot be read or is not UTF-8; for control
    characters other than tabs, for a line above MAX_LINE_BYTES and a file above MAX_LINES.
    """
    file_name = printable(file)
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a FIFO would wait for ever
            raise InputError(f"{file_name} is not a file: give one of text")
        with open(file, "rb") as lines:
            number = 0
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{file_name} line {number}"
                if number > MAX_LINES:
                    raise InputError(f"{where}: more than {MAX_LINES:,} lines")
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{where} is longer than {MAX_LINE_BYTES:,} bytes")
                text = _text(line, where, number)
                if text and not text.startswith("#"):
                    yield where, text
    except OSError as error:
        raise InputError(f"{file_name} cannot be read: {printable(error.strerror)}") from None


def decode_text(content: bytes) -> str:
    """Returns UTF-8 text without its byte order mark. Raises ValueError, saying what to do, for any other."""
    if _is_utf16(content):
        raise ValueError("it is UTF-16 or binary: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise ValueError(f"it is not UTF-8 ({byte}): save it as UTF-8") from None


def split_lines(text: str) -> list[str]:
    """Returns the lines of `text` without their ends: LF, CR LF or CR.

    `str.splitlines` would also divide at U+2028 and others, which names may contain.
    """
    return [line.removesuffix("\n") for line in io.StringIO(text, newline=None)]


def quote(text: str) -> str:
    """Returns `text` quoted for a message: printable, at most 80 characters."""
    return repr(printable(text) if len(text) <= 80 else printable(text[:80]) + "…")


def _is_utf16(content: bytes) -> bool:
    """Returns whether `content` has a byte order mark of UTF-16 or 32, or a zero byte as they do."""
    return content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content


def _text(line: bytes, where: str, number: int) -> str:
    """Returns a line without its end, and without a byte order mark if it is the first. Raises InputError."""
    if number == 1 and _is_utf16(line):
        raise InputError(f"{where} is UTF-16 or binary: save the file as UTF-8")
    try:
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8: save the file as UTF-8") from None
    if any(unicodedata.category(c) == "Cc" and c != "\t" for c in text):
        raise InputError(f"{where} is {quote(text)}: control characters do not belong there")
    return text
