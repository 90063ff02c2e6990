"""Looks at one image file: whether it can be decoded, its upright size, and why not."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
import unicodedata
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from threading import Lock

from PIL import Image, UnidentifiedImageError

from qrdali.data import formats, storage
from qrdali.data.object_store import Unreachable
from qrdali.errors import printable
from qrdali.files.hashing import sha256_of

MAX_PIXELS = 128_000_000  # a decoded image of 384 MB; checked on the header before anything is decoded
MAX_BYTES = 1 << 30  # of a file: decoders read it whole
_LARGE_PIXELS = 16_000_000  # from here on images are decoded one at a time, not one per thread
_large_image_lock = Lock()
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")  # Pillow's messages name a file by it


@dataclass(frozen=True)
class FileReport:
    """A file's upright size in pixels, its bytes and, if asked for, their SHA-256; or why it is rejected.

    warning: what decoders say of an image that is damaged and still read alike by all.
    """

    path: str
    width: int = 0
    height: int = 0
    file_bytes: int = 0
    sha256: bytes | None = None
    reason: str = ""
    warning: str = ""


def quiet_pillow() -> None:
    """Stops Pillow from limiting sizes and from warning of corrupt EXIF: `inspect_file` checks both."""
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def read_upright_size(path: str | BytesIO, verify: bool, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns the upright (width, height) of an image file; `verify` also decodes it.

    Raises ValueError or OSError with the reason, and whatever else Pillow raises for a damaged file.
    """
    with Image.open(path) as image:
        return _checked_size(image, verify, max_pixels)


def _checked_size(image: Image.Image, verify: bool, max_pixels: int) -> tuple[int, int]:
    size = checked_header(image, verify, max_pixels)
    if verify:
        with _large_image_lock if image.width * image.height > _LARGE_PIXELS else nullcontext():
            image.load()
    return size


def checked_header(image: Image.Image, whole: bool, max_pixels: int) -> tuple[int, int]:
    """Returns the upright (width, height) of an opened image. Raises as `read_upright_size` does.

    `whole` also reads what lies between the pixels of a PNG; nothing is decoded.
    """
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width}x{image.height} exceeds {max_pixels} pixels")
    formats.check(image, whole)
    return formats.upright(image)


def inspect_file(path: str, verify: bool, hashed: bool = False, max_pixels: int = MAX_PIXELS) -> FileReport:
    """Returns what a file is; `verify` decodes it, `hashed` computes its SHA-256.

    Whatever is wrong with the file is the report's `reason`; only Unreachable, a store that does not answer,
    is raised.
    """
    try:
        if not is_utf8(path):
            return FileReport(path, reason="the file name is not UTF-8")
        if storage.is_url(path):
            return _inspect_url(path, verify, hashed, max_pixels)
        _require_utf8_on_disk(path)
        length = _regular_length(path)
        width, height = read_upright_size(path, verify, max_pixels)
        digest = bytes.fromhex(sha256_of(path)) if hashed else None
        return FileReport(path, width, height, length, digest)
    except Unreachable:
        raise
    except Exception as error:  # Pillow's decoders raise many types; each is this file's reason, not ours
        return FileReport(path, reason=reason_of(error))


def reason_of(error: Exception) -> str:
    """Returns why a file is rejected, in one line without the addresses of Python's objects."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify the format of the image"
    return _OBJECT.sub("the file", printable(error)) or type(error).__name__


def read_content(path: str, max_local_bytes: int = MAX_BYTES) -> bytes | FileReport | None:
    """Returns the bytes of a file, or why it is rejected; None for a longer file on the disk.

    Raises Unreachable as `inspect_file` does.
    """
    try:
        if not is_utf8(path):
            return FileReport(path, reason="the file name is not UTF-8")
        if storage.is_url(path):
            return storage.whole(path, MAX_BYTES)
        _require_utf8_on_disk(path)
        if _regular_length(path) > max_local_bytes:
            return None
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except Unreachable:
        raise
    except Exception as error:  # of stores, too
        return FileReport(path, reason=reason_of(error))


def _require_utf8_on_disk(path: str) -> None:
    """Raises ValueError where Python would name another file than a decoder, which takes names as UTF-8."""
    if os.fsencode(path) != path.encode():
        encoding = sys.getfilesystemencoding()
        raise ValueError(f"Python takes names for {encoding}: start it with PYTHONUTF8=1")


def _regular_length(path: str) -> int:
    """Returns the bytes of a file. Raises ValueError for what is no file, or too long a one."""
    facts = os.stat(path)  # before it is opened: opening a FIFO would wait for ever
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError("not a regular file")
    if facts.st_size > MAX_BYTES:
        raise ValueError(f"{facts.st_size} bytes exceed {MAX_BYTES}")
    return facts.st_size


def _inspect_url(path: str, verify: bool, hashed: bool, max_pixels: int) -> FileReport:
    """Inspects an object or a shard's member, which is read once, and whole only where that is needed."""
    if verify or hashed:
        content = storage.whole(path, MAX_BYTES)
        with Image.open(BytesIO(content)) as image:
            width, height = _checked_size(image, verify, max_pixels)
        digest = hashlib.sha256(content).digest() if hashed else None
        return FileReport(path, width, height, len(content), digest)
    file = storage.opened(path)
    if file.length > MAX_BYTES:
        return FileReport(path, reason=f"{file.length} bytes exceed {MAX_BYTES}")
    with Image.open(file.buffered()) as image:
        width, height = _checked_size(image, verify, max_pixels)
    return FileReport(path, width, height, file.length)


def is_utf8(text: str) -> bool:
    """Returns whether `text` can be encoded; file names of other encodings hold surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def tsv_field(text: str) -> str:
    """Returns `text` as a field of a TSV file, with backslashes and control characters escaped."""
    named = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    return "".join(
        named.get(c) or (f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c) for c in text
    )
