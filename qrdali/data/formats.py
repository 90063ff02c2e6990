"""Which image files DALI decodes to Pillow's pixels.

A file that only one of them reads, or that they read differently, would fail or falsify training: it is
refused with the reason. Each rule was found by comparing the two; tests/data/test_malformed_images.py repeats
the comparison.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from PIL import Image

FORMATS = frozenset(("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "PPM"))  # PPM is Pillow's name of PGM, too
_ORIENTATION = 0x0112  # EXIF and TIFF tag; 5 to 8 swap width and height
_TIFF_MODES = frozenset(("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"))
_PNM_MODES = frozenset(("1", "L", "RGB", "I"))
_TIFF_PACKED = frozenset(
    ("raw", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "zstd")
)
_MAX_CHUNKS = 200_000  # of a PNG: 1.6 GB in chunks of 8 KB
_BLOCK = 1 << 20
# The passes of an interlaced PNG: first column, first row, and the steps between columns and rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check(image: Image.Image, whole: bool) -> None:
    """Raises ValueError, or what reading raises, for an image that the pipelines decode unlike Pillow.

    `whole` also reads all of a PNG, where Pillow forgives a missing end. The pixels themselves are for
    `image.load`.
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
        "PPM": _pnm,
    }
    rule = rules.get(image.format)
    if rule is not None:
        rule(image, whole)


def upright(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) after the EXIF orientation.

    Raises ValueError for an orientation that DALI and Pillow read differently.
    """
    if image.format == "TIFF":  # Pillow has swapped them
        return image.size
    blocks = [
        data[6:]
        for name, data in getattr(image, "applist", ())
        if name == "APP1" and data.startswith(b"Exif\0\0")
    ]
    if image.format in ("PNG", "WEBP") and "exif" in image.info:
        blocks = [image.info["exif"].removeprefix(b"Exif\0\0")]
    by_dali = {_orientation(block) for block in blocks} or {1}
    by_pillow = image.getexif().get(_ORIENTATION, 1)
    if by_dali != {by_pillow if by_pillow in range(1, 9) else 1}:
        raise ValueError("its orientation is damaged, given twice or only in XMP: decoders disagree about it")
    return (image.height, image.width) if by_pillow in (5, 6, 7, 8) else image.size


def _orientation(block: bytes) -> int:
    """Returns the orientation 1 to 8 of an EXIF block, 1 where it has none.

    0 if it has one in a form that decoders read differently.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 1
    start = struct.unpack(order + "I", block[4:8])[0]
    if start + 2 > len(block):
        return 1
    count = struct.unpack(order + "H", block[start : start + 2])[0]
    entries = block[start + 2 :]
    is_complete = len(entries) >= 12 * count
    orientations = []
    for offset in range(0, min(12 * count, len(entries) - 1), 12):
        entry = entries[offset : offset + 12]
        if struct.unpack(order + "H", entry[:2])[0] == _ORIENTATION:
            orientations.append(entry)
    if not orientations:
        return 1
    # One entry, of type 3 (SHORT) and count 1.
    if (
        len(orientations) > 1
        or not is_complete
        or struct.unpack(order + "HI", orientations[0][2:8]) != (3, 1)
    ):
        return 0
    value: int = struct.unpack(order + "H", orientations[0][8:10])[0]
    return value if value in range(1, 9) else 1


def _jpeg(image: Any, whole: bool) -> None:
    if image.mode == "CMYK" and "adobe" not in image.info:
        raise ValueError("CMYK without Adobe's marker: decoders disagree whether it is inverted")


@contextmanager
def _from_start(image: Any) -> Iterator[IO[bytes]]:
    """Yields the image's file at its beginning; Pillow finds it afterwards where it was."""
    position = image.fp.tell()
    image.fp.seek(0)
    try:
        yield image.fp
    finally:
        image.fp.seek(position)


def _png(image: Any, whole: bool) -> None:
    if whole:
        with _from_start(image) as file:
            file.seek(8)
            _check_png_chunks(file)


def _check_png_chunks(file: IO[bytes]) -> None:
    """Reads a PNG from its first chunk to its end, in bounded memory.

    Raises ValueError unless chunks are whole, the checksums of the pixels right, and the pixels as many as
    the header claims.
    """
    inflater = zlib.decompressobj()
    inflated_bytes, expected_bytes = 0, 0
    lacks_palette, has_exif = False, False
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("image file is truncated: the PNG has no end")
        length, name = struct.unpack(">I4s", head)
        checksum, remaining = zlib.crc32(name), length
        if name == b"IHDR":
            if length != 13:
                raise ValueError("the PNG's header is damaged")
            header = file.read(13).ljust(13, b"\0")
            checksum, remaining = zlib.crc32(header, checksum), 0
            expected_bytes = _PngHeader(*struct.unpack(">IIBBBBB", header)).row_bytes()
            lacks_palette = header[9:10] == b"\3"
        lacks_palette = lacks_palette and name != b"PLTE"
        if name == b"eXIf":
            if has_exif:
                raise ValueError("the PNG has two eXIf chunks: decoders disagree which of them counts")
            has_exif = True
        while remaining:
            part = file.read(min(remaining, _BLOCK))
            if not part:
                raise ValueError("image file is truncated: the PNG has no end")
            remaining -= len(part)
            checksum = zlib.crc32(part, checksum)
            if name == b"IDAT":
                inflated_bytes += _inflated(inflater, part, expected_bytes - inflated_bytes)
        tail = file.read(4)
        if len(tail) < 4:
            raise ValueError("image file is truncated: the PNG has no end")
        if name == b"IDAT" and tail != struct.pack(">I", checksum):
            raise ValueError("broken PNG file: the checksum of its pixels is wrong")
        if name == b"IEND":
            break
    else:
        raise ValueError(f"the PNG has more than {_MAX_CHUNKS} chunks")
    if lacks_palette:
        raise ValueError("the PNG has no palette")
    if inflated_bytes < expected_bytes:
        raise ValueError(f"the PNG has {inflated_bytes} of {expected_bytes} bytes of pixels")


def _inflated(inflater: Any, part: bytes, max_bytes: int) -> int:
    """Returns how many bytes `part` inflates to, counted to `max_bytes`, in bounded memory."""
    count = 0
    while part and count < max_bytes and not inflater.eof:
        count += len(inflater.decompress(part, _BLOCK))
        part = inflater.unconsumed_tail
    return min(count, max_bytes)


class _PngHeader(NamedTuple):
    """A PNG's IHDR chunk."""

    width: int
    height: int
    bit_depth: int
    color_type: int
    compression: int
    filter_method: int
    interlace: int

    def row_bytes(self) -> int:
        """Returns the bytes of all rows with their filter bytes, over all passes."""
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(self.color_type, 1)
        passes = _ADAM7 if self.interlace else ((0, 0, 1, 1),)
        total = 0
        for x, y, step_x, step_y in passes:
            columns = -(-(self.width - x) // step_x)
            rows = -(-(self.height - y) // step_y)
            if columns > 0 and rows > 0:
                total += rows * (1 + -(-columns * self.bit_depth * channels // 8))
        return total


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


def _pnm(image: Any, whole: bool) -> None:
    if image.mode not in _PNM_MODES:
        raise ValueError(f"a PNM of mode {image.mode} is not decoded by the pipelines")
    codec, _, _, arguments = image.tile[0]
    maximum = arguments[1] if codec.startswith("ppm") and isinstance(arguments, tuple) else 255
    if maximum not in (255, 65535):
        raise ValueError(
            f"a PNM whose largest value is {maximum} is not decoded by the pipelines: 255 and 65535 are"
        )


def _tiff(image: Any, whole: bool) -> None:
    tags = image.tag_v2
    bit_depths, sample_formats, extra_samples = tags.get(258, ()), tags.get(339, (1,)), tags.get(338, ())
    compression = image.info.get("compression", "raw")
    if image.mode not in _TIFF_MODES or set(sample_formats) != {1} or compression not in _TIFF_PACKED:
        raise ValueError(
            f"a TIFF of mode {image.mode}, compression {compression}, is not decoded by the pipelines as it "
            "is elsewhere"
        )
    if not bit_depths or not set(bit_depths) <= ({1} if image.mode == "1" else {8, 16}):
        bits = "/".join(map(str, bit_depths)) or "an unsaid number of"
        raise ValueError(f"a TIFF of {bits} bits is not decoded by the pipelines")
    if 1 in extra_samples:
        raise ValueError("a TIFF of premultiplied alpha is not decoded by the pipelines as it is elsewhere")
