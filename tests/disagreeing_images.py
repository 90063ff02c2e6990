"""Image files that Pillow reads and the training decoder does not, or not to the same pixels.

All are made here, in bytes; each was accepted when only Pillow was asked.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from malformed_images import HEIGHT, WIDTH, bmp, chunk, exif, jpeg, photo, pixels, with_segments
from numpy.typing import NDArray

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TYPES = {3: "H", 4: "I"}


def segments_end(data: bytes, marker: int) -> int:
    """Returns where the segment of `marker` begins in a JPEG."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def between_segments(junk: bytes, marker: int = 0xDB) -> bytes:
    """A JPEG with `junk` before its first segment of `marker`."""
    data = jpeg()
    at = segments_end(data, marker)
    return data[:at] + junk + data[at:]


def between_scans(junk: bytes) -> bytes:
    """A progressive JPEG with `junk` between the table of its second scan and that scan."""
    data = jpeg(progressive=True)
    at = data.index(b"\xff\xda", segments_end(data, 0xDA) + 2)
    return data[:at] + junk + data[at:]


def lossless_jpeg() -> bytes:
    """A lossless JPEG, 16 × 16, gray: each pixel is what is predicted for it."""
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, 16, 16, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 20, 0) + b"\x01" + bytes(15) + b"\0"
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + table + scan + bytes(32) + b"\xff\xd9"


def incomplete_progressive(scans: int) -> bytes:
    """A progressive JPEG after its first `scans` scans."""
    data = jpeg(progressive=True)
    at = segments_end(data, 0xDA)
    for _ in range(scans - 1):
        at = data.index(b"\xff\xda", at + 2)
    end = at + 2
    while not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
        end += 1
    return data[:end] + b"\xff\xd9"


def damaged_scan(start: float, length: int, replacement: bytes) -> bytes:
    """A JPEG of whose scan `length` bytes at the part `start` of it are replaced."""
    data = jpeg()
    at = segments_end(data, 0xDA)
    at += int((len(data) - at) * start)
    return data[:at] + replacement + data[at + length :]


def png_of(*chunks: bytes, depth: int = 8, color: int = 2, compression: int = 0) -> bytes:
    """A PNG of the picture with `chunks` between its header and its end."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, color, compression, 0, 0)
    return PNG_MAGIC + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def _rows(values: NDArray[np.uint8]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in values)


def _damaged_pngs() -> dict[str, bytes]:
    image = np.asarray(photo())
    packed = zlib.compress(_rows(image))
    idat = chunk(b"IDAT", packed)
    indices = chunk(b"IDAT", zlib.compress(_rows(image[..., 0] % 4)))
    palette = chunk(b"PLTE", bytes(range(12)))

    def turned(orientation: int) -> bytes:
        return chunk(b"eXIf", exif((0x0112, 3, 1, orientation))[6:])

    small_window = bytes([0x08, 0x1D]) + packed[2:]
    return {
        "window too small.png": png_of(chunk(b"IDAT", small_window)),
        "no Adler-32.png": png_of(chunk(b"IDAT", packed[:-4])),
        "two palettes.png": png_of(palette, palette, indices, color=3),
        "empty palette.png": png_of(chunk(b"PLTE", b""), idat),
        "palette of 13 bytes.png": png_of(chunk(b"PLTE", bytes(13)), indices, color=3),
        "two headers.png": png_of(
            chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)), idat
        ),
        "unknown critical chunk.png": png_of(chunk(b"ABCD", b"x"), idat),
        "compression method 1.png": png_of(idat, compression=1),
        "exif twice.png": png_of(turned(6), turned(6), idat),
        "turned after its pixels.png": png_of(idat, turned(3)),
        "no frames.png": png_of(chunk(b"acTL", bytes(8)), idat),
        "12 MB of another chunk.png": png_of(chunk(b"prVt", bytes(12_000_000)), idat),
    }


def tagged(tags: dict[int, tuple[int, tuple[int, ...]]], *parts: bytes) -> bytes:
    """A TIFF with `tags`, type and values by number, and its data in `parts`.

    The tags of offsets and lengths (273 and 279, or 324 and 325 with a tag 322) are added.
    """
    offsets = tuple(1024 + sum(map(len, parts[:i])) for i in range(len(parts)))
    place, size = (324, 325) if 322 in tags else (273, 279)
    tags = tags | {place: (4, offsets), size: (4, tuple(map(len, parts)))}
    entries, more, start = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{_TYPES[kind]}", *values)
        entries += struct.pack("<HHI", tag, kind, len(values))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", start + len(more))
            more += packed
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + more
    return head.ljust(1024, b"\0") + b"".join(parts)


def _tags(
    channels: int, bits: int = 8, photometric: int = 2, **more: int
) -> dict[int, tuple[int, tuple[int, ...]]]:
    """The tags of a TIFF of the picture in one strip. `more`: short values, by t and a tag's number."""
    return {
        256: (3, (WIDTH,)),
        257: (3, (HEIGHT,)),
        258: (3, (bits,) * channels),
        259: (3, (1,)),
        262: (3, (photometric,)),
        277: (3, (channels,)),
        278: (3, (HEIGHT,)),
    } | {int(name[1:]): (3, (value,)) for name, value in more.items()}


def tiles(image: NDArray[np.uint8]) -> list[bytes]:
    """The picture in tiles of 16 × 16, row by row, filled up with black."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), *((0, 0),) * (image.ndim - 2)))
    return [
        np.ascontiguousarray(padded[top : top + 16, left : left + 16]).tobytes()
        for top in range(0, height, 16)
        for left in range(0, width, 16)
    ]


def _damaged_tiffs() -> dict[str, bytes]:
    image = np.asarray(photo())
    four = np.dstack([image, 255 - image[..., 0]])
    tile = {"t322": 16, "t323": 16}
    return {
        "tiled and turned.tif": tagged(_tags(3, t274=3, **tile), *tiles(image)),
        "cmyk of 16 bits.tif": tagged(_tags(4, 16, 5), (four.astype("<u2") * 257).tobytes()),
        "tiled planes.tif": tagged(
            _tags(3, t284=2, **tile), *(part for plane in range(3) for part in tiles(image[..., plane]))
        ),
        "gray and unspecified.tif": tagged(_tags(2, photometric=1, t338=0), pixels(0, 1)),
        "planes of 16 bits.tif": tagged(
            _tags(3, 16, t284=2), *((image[..., i].astype("<u2") * 257).tobytes() for i in range(3))
        ),
        "planes with alpha.tif": tagged(
            _tags(4, t284=2, t338=2), *(np.ascontiguousarray(four[..., i]).tobytes() for i in range(4))
        ),
    }


def _damaged_bmps() -> dict[str, bytes]:
    one_bit = bmp(1, 0, bytes(range(16)), palette=2)
    one_bit = one_bit[:54] + b"\0\0\0\0\xff\xff\xff\0" + one_bit[62:]
    gray = bmp(8, 0, bytes(range(32)), palette=256)
    rgb = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54 + 24 * 4, 0, 0, 54, 40, 7, 4, 1, 24, 0, 96, 0, 0, 0, 0)
    forgets = struct.pack("<I", 54)
    return {
        "no last padding.bmp": rgb + bytes(range(95)),
        "run longer than its row.bmp": bmp(8, 1, b"\x09\x05\0\0" * 4 + b"\0\1", palette=256),
        "offset of no palette 1.bmp": one_bit[:10] + forgets + one_bit[14:],
        "offset of no palette 8.bmp": gray[:10] + forgets + gray[14:],
        "one colour of one bit.bmp": one_bit[:46] + struct.pack("<I", 1) + one_bit[50:],
    }


def refused() -> dict[str, bytes]:
    """By file name: what must be rejected."""
    damaged_order = exif((0x0112, 3, 1, 6), order=">").replace(b"MM\0*", b"M\x03\0*")
    return {
        "one byte between.jpg": between_segments(b"\0"),
        "line break between.jpg": between_segments(b"\r\n"),
        "3 kB between.jpg": between_segments(bytes(3000)),
        "length 0.jpg": between_segments(b"\xff\xe5\0\0"),
        "length 1.jpg": between_segments(b"\xff\xe5\0\1"),
        "00E1.jpg": between_segments(b"\0\xe1\0\x08abcdef"),
        "restart in the header.jpg": between_segments(b"\xff\xd0", marker=0xC4),
        "junk before the scan.jpg": between_segments(b"\0", marker=0xDA),
        "lossless.jpg": lossless_jpeg(),
        "one scan of a progressive.jpg": incomplete_progressive(1),
        "half of the scans.jpg": incomplete_progressive(5),
        "damaged byte order.jpg": with_segments(damaged_order),
        **_damaged_pngs(),
        **_damaged_tiffs(),
        **_damaged_bmps(),
    }


def damaged() -> dict[str, bytes]:
    """By file name: JPEGs that all decoders repair alike."""
    return {
        "zeros.jpg": damaged_scan(0.1, 300, bytes(300)),
        "early end.jpg": damaged_scan(0.6, 2, b"\xff\xd9"),
        "a third lost.jpg": damaged_scan(0.3, 150, b""),
        "flipped.jpg": damaged_scan(0.5, 4, b"\x5a\xa5\x12\x77"),
        "junk between scans.jpg": between_scans(b"\0"),
        "restart missing.jpg": jpeg(restart_marker_blocks=2).replace(b"\xff\xd1", b"", 1),
    }
