"""Which image files DALI decodes to Pillow's pixels. Each rule here was found by comparing the two; tests/test_hostile.py repeats it.

A file that only one of them reads, or that they read differently, would fail or lie in training: it is refused with the reason.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image

FORMATS = frozenset(("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP"))
_ORIENTATION = 0x0112  # EXIF and TIFF tag; 5 to 8 swap width and height
_TIFF_MODES = frozenset(("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"))
_TIFF_PACKED = frozenset(
    ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd")
)
_MOST_CHUNKS = 200_000  # of a PNG: 1.6 GB in chunks of 8 KB
_BLOCK = 1 << 20


def check(image: Image.Image, whole: bool) -> None:
    """Raises ValueError, or what reading raises, if an opened file is not decoded by the pipelines as Pillow would.

    `whole` also reads all of a PNG, where Pillow forgives a missing end. The pixels themselves are for `image.load`.
    """
    if image.format not in FORMATS:
        raise ValueError(f"{image.format} is not decoded by the pipelines")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise ValueError("animated")
    rules: dict[str, Callable[[Any, bool], None]] = {
        "JPEG": _jpeg,
        "MPO": _jpeg,
        "PNG": _png,
        "BMP": _bmp,
        "TIFF": _tiff,
    }
    rule = rules.get(image.format)
    if rule is not None:
        rule(image, whole)


def upright(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation. Raises ValueError for an orientation that DALI and Pillow read differently."""
    if image.format == "TIFF":  # Pillow has swapped them
        return image.size
    blocks = [
        data[6:]
        for name, data in getattr(image, "applist", ())
        if name == "APP1" and data.startswith(b"Exif\0\0")
    ]
    if image.format in ("PNG", "WEBP") and "exif" in image.info:
        blocks = [image.info["exif"].removeprefix(b"Exif\0\0")]
    read = {_orientation(block) for block in blocks} or {1}
    pillow = image.getexif().get(_ORIENTATION, 1)
    if read != {pillow if pillow in range(1, 9) else 1}:
        raise ValueError("its orientation is damaged, given twice or only in XMP: decoders disagree about it")
    return (image.height, image.width) if pillow in (5, 6, 7, 8) else image.size


def _orientation(block: bytes) -> int:
    """Orientation 1 to 8 of an EXIF block, 1 where it has none; 0 if it has one in a form that decoders read differently."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    start = struct.unpack(order + "I", block[4:8])[0]
    if start + 2 > len(block):
        return 1
    count, entries = struct.unpack(order + "H", block[start : start + 2])[0], block[start + 2 :]
    clean = len(entries) >= 12 * count
    found = []
    for at in range(0, min(12 * count, len(entries) - 1), 12):
        entry = entries[at : at + 12]
        if struct.unpack(order + "H", entry[:2])[0] == _ORIENTATION:
            found.append(entry)
    if not found:
        return 1
    if len(found) > 1 or not clean or struct.unpack(order + "HI", found[0][2:8]) != (3, 1):
        return 0
    value: int = struct.unpack(order + "H", found[0][8:10])[0]
    return value if value in range(1, 9) else 1


def _jpeg(image: Any, whole: bool) -> None:
    if image.mode == "CMYK" and "adobe" not in image.info:
        raise ValueError("CMYK without Adobe's marker: decoders disagree whether it is inverted")


@contextmanager
def _from_start(image: Any) -> Iterator[IO[bytes]]:
    """The image's file at its beginning; Pillow finds it afterwards where it was."""
    place = image.fp.tell()
    image.fp.seek(0)
    try:
        yield image.fp
    finally:
        image.fp.seek(place)


def _png(image: Any, whole: bool) -> None:
    if whole:
        with _from_start(image) as file:
            file.seek(8)
            _png_chunks(file)


def _png_chunks(file: IO[bytes]) -> None:
    """Reads a PNG from its first chunk to its end: chunks whole, checksums of the pixels' right, as many pixels as the header says."""
    pixels, rows, wanted, palette = zlib.decompressobj(), 0, 0, False
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("image file is truncated: the PNG has no end")
        length, name = struct.unpack(">I4s", head)
        checksum, left = zlib.crc32(name), length
        if name == b"IHDR":
            if length != 13:
                raise ValueError("the PNG's header is damaged")
            header = file.read(13)
            checksum, left = zlib.crc32(header, checksum), 0
            wanted = _png_bytes(*struct.unpack(">IIBBBBB", header.ljust(13, b"\0")))
            palette = header[9:10] == b"\3"
        palette = palette and name != b"PLTE"
        while left:
            part = file.read(min(left, _BLOCK))
            if not part:
                raise ValueError("image file is truncated: the PNG has no end")
            left -= len(part)
            checksum = zlib.crc32(part, checksum)
            if name == b"IDAT":
                rows += _inflated(pixels, part, wanted - rows)
        tail = file.read(4)
        if len(tail) < 4:
            raise ValueError("image file is truncated: the PNG has no end")
        if name == b"IDAT" and tail != struct.pack(">I", checksum):
            raise ValueError("broken PNG file: the checksum of its pixels is wrong")
        if name == b"IEND":
            break
    else:
        raise ValueError(f"the PNG has more than {_MOST_CHUNKS} chunks")
    if palette:
        raise ValueError("the PNG has no palette")
    if rows < wanted:
        raise ValueError(f"the PNG has {rows} of {wanted} bytes of pixels")


def _inflated(pixels: Any, part: bytes, most: int) -> int:
    """How many bytes `part` inflates to, counted to `most`, in bounded memory."""
    count = 0
    while part and count < most and not pixels.eof:
        count += len(pixels.decompress(part, _BLOCK))
        part = pixels.unconsumed_tail
    return min(count, most)


def _png_bytes(
    width: int, height: int, depth: int, color: int, packing: int, filters: int, interlace: int
) -> int:
    """Bytes of a PNG's rows with their filter bytes."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    passes = (
        [(0, 0, 1, 1)]
        if not interlace
        else [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ]
    )  # Adam7: x, y, steps
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    return sum(h * (1 + -(-w * bits // 8)) for w, h in sizes if w > 0 and h > 0)


def _bmp(image: Any, whole: bool) -> None:
    with _from_start(image) as file:
        head = file.read(66).ljust(66, b"\0")
    size = struct.unpack("<I", head[14:18])[0]
    bits, packing = (
        (struct.unpack("<H", head[24:26])[0], 0) if size == 12 else struct.unpack("<HI", head[28:34])
    )
    plain = packing == 3 and struct.unpack("<III", head[54:66]) == (0xFF0000, 0xFF00, 0xFF)
    if bits not in (1, 4, 8, 24, 32) or not (
        packing == 0 or (packing, bits) == (1, 8) or (bits == 32 and plain)
    ):
        raise ValueError(f"a BMP of {bits} bits, compression {packing}, is not decoded by the pipelines")


def _tiff(image: Any, whole: bool) -> None:
    tags = image.tag_v2
    depths, formats, extra = tags.get(258, ()), tags.get(339, (1,)), tags.get(338, ())
    packed = image.info.get("compression", "raw")
    if image.mode not in _TIFF_MODES or set(formats) != {1} or packed not in _TIFF_PACKED:
        raise ValueError(
            f"a TIFF of mode {image.mode}, compression {packed}, is not decoded by the pipelines as it is elsewhere"
        )
    if not depths or not set(depths) <= ({1} if image.mode == "1" else {8, 16}):
        raise ValueError(
            f"a TIFF of {'/'.join(map(str, depths)) or 'an unsaid number of'} bits is not decoded by the pipelines"
        )
    if 1 in extra:
        raise ValueError("a TIFF of premultiplied alpha is not decoded by the pipelines as it is elsewhere")
