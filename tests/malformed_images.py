"""Image files as the world has them: every kind that is whole, and every kind of broken.

Made here, in bytes.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 48, 36


def photo(size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture without symmetry: a turn, a flip or a swap of channels changes it."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.4, height * 0.5), (250, 30, 60))
    draw.rectangle((width * 0.6, height * 0.55, width * 0.9, height * 0.7), (20, 200, 90))
    return image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(**options: Any) -> bytes:
    return saved(photo(), "JPEG", quality=90, **options)


def see_through() -> Image.Image:
    image = photo()
    image.putalpha(photo().convert("L"))
    return image


def segment(data: bytes) -> bytes:
    """An APP1 segment of a JPEG."""
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


def exif(*entries: tuple[int, int, int, int], order: str = "<", count: int | None = None) -> bytes:
    """An EXIF block of (tag, type, count, value); `count` is what it says of their number."""
    rows = b"".join(
        struct.pack(order + "HHI", *entry[:3])
        + struct.pack(
            order + ("HH" if entry[1] == 3 else "I"), *((entry[3], 0) if entry[1] == 3 else (entry[3],))
        )
        for entry in entries
    )
    return (
        b"Exif\0\0"
        + (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8)
        + struct.pack(order + "H", len(entries) if count is None else count)
        + rows
        + b"\0\0\0\0"
    )


def with_segments(*segments: bytes) -> bytes:
    data = jpeg()
    return data[:2] + b"".join(map(segment, segments)) + data[2:]


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    if kind == "TIFF":
        return saved(photo(), kind, tiffinfo={0x0112: orientation})
    block = Image.Exif()
    block[0x0112] = orientation
    return saved(photo(), kind, exif=block)


def cmyk(adobe: bool = True, transform: int = 0) -> bytes:
    """A JPEG of four channels.

    Pillow writes Adobe's inverted form with its marker; transform 2 calls the channels YCCK.
    """
    data = saved(photo().convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[: at + 15] + bytes([transform]) + data[at + 16 :] if adobe else data[:at] + data[at + 16 :]


def arithmetic() -> bytes:
    """A gray JPEG of one flat block, arithmetic-coded: its difference and end are two zero bytes."""
    table = b"\xff\xdb\x00\x43\x00" + b"\1" * 64
    frame = b"\xff\xc9\x00\x0b\x08" + struct.pack(">HH", 8, 8) + b"\1\1\x11\0"
    return b"\xff\xd8" + table + frame + b"\xff\xda\x00\x08\1\1\0\0\x3f\0" + b"\0\0" + b"\xff\xd9"


def said_to_be(width: int, height: int) -> bytes:
    """A baseline JPEG whose header says another size."""
    data = jpeg()
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int, height: int, depth: int, color: int, rows: bytes, interlace: int = 0, before: bytes = b""
) -> bytes:
    """A PNG of raw `rows`, each with its filter byte; `before` stands before the pixels."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def gray_rows(width: int, height: int) -> bytes:
    return b"".join(b"\0" + bytes(x * 7 + y * 5 for x in range(width)) for y in range(height))


def interlaced(missing: int = 0) -> bytes:
    """Adam7 of an 8×8 gray image: its seven passes, 79 bytes, less some at the end."""
    whole = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [whole[y::down, x::across] for x, y, across, down in steps]
    rows = b"".join(b"\0" + row.tobytes() for part in passes for row in part)
    return png(8, 8, 8, 0, rows[: len(rows) - missing], 1)


def deep_png(color: int) -> bytes:
    """A PNG of 16 bits per channel. color: 0 gray, 2 RGB, 4 gray with alpha, 6 RGB with alpha."""
    values = (
        np.asarray(photo().convert({0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}[color]))
        .reshape(HEIGHT, -1)
        .astype(np.uint32)
        * 257
    )
    values -= np.minimum(
        values, np.arange(values.shape[1], dtype=np.uint32) % 100
    )  # the low byte is no copy of the high one
    return png(WIDTH, HEIGHT, 16, color, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


def tiff(
    channels: int, bits: int, photometric: int, data: bytes, *more: tuple[int, int], order: str = "<"
) -> bytes:
    """An uncompressed TIFF of WIDTH×HEIGHT; `more`: tags with a short value."""
    values = {
        256: WIDTH,
        257: HEIGHT,
        259: 1,
        262: photometric,
        277: channels,
        278: HEIGHT,
        284: 1,
        **dict(more),
    }
    rows: list[bytes] = []
    depths = struct.pack(order + "H" * channels, *[bits] * channels)
    for tag in sorted({*values, 258, 273, 279}):
        if tag == 258:
            field = struct.pack(order + "HHI", tag, 3, channels) + (
                depths.ljust(4, b"\0") if len(depths) <= 4 else struct.pack(order + "I", 512)
            )
        elif tag in (273, 279):
            field = struct.pack(order + "HHII", tag, 4, 1, 1024 if tag == 273 else len(data))
        else:
            field = struct.pack(order + "HHIHH", tag, 3, 1, values[tag], 0)
        rows.append(field)
    head = (
        (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "I", 8)
        + struct.pack(order + "H", len(rows))
    )
    return (head + b"".join(rows) + b"\0\0\0\0").ljust(512, b"\0") + depths.ljust(512, b"\0") + data


def bmp(bits: int, packing: int, data: bytes, palette: int = 0, masks: bytes = b"") -> bytes:
    """A BMP of 8×4 pixels; `palette`: its colours."""
    colours = b"".join(bytes([i % 256, 255 - i % 256, i % 128, 0]) for i in range(palette))
    start = 54 + len(masks) + len(colours)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(data), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, bits, packing, len(data), 2835, 2835, palette, 0)
        + masks
        + colours
        + data
    )


def pixels(*channels: int) -> bytes:
    """Chosen channels of the picture, interleaved, a byte each."""
    return np.ascontiguousarray(np.asarray(photo())[..., list(channels)]).tobytes()


def deep(order: str) -> bytes:
    return (np.asarray(photo())[..., 0].astype(np.uint16) * 257).astype(order + "u2").tobytes()


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def accepted() -> dict[str, bytes]:
    """By file name: what DALI decodes to Pillow's pixels."""
    image, gray, few = photo(), photo().convert("L"), photo().quantize(16)
    files = {f"exif {o}.jpg": turned(o) for o in range(1, 9)}
    files |= {
        f"exif 6.{name}": turned(6, kind)
        for name, kind in (("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF"))
    }
    files |= {
        f"chroma {s}.jpg": jpeg(subsampling=s.replace("-", ":")) for s in ("4-4-4", "4-2-2", "4-2-0", "4-1-1")
    }
    files |= {
        "baseline.jpg": jpeg(),
        "progressive.jpg": jpeg(progressive=True),
        "optimized.jpeg": jpeg(optimize=True),
        "restarts.JPG": jpeg(restart_marker_blocks=2),
        "rgb.jpg": saved(image, "JPEG", keep_rgb=True),
        "arithmetic.jpg": arithmetic(),
        "gray.jpg": saved(gray, "JPEG"),
        "cmyk.jpg": cmyk(),
        "ycck.jpg": cmyk(transform=2),
        "trailing.jpg": jpeg() + b"trailing" * 9,
        "profile.jpg": saved(image, "JPEG", icc_profile=b"no profile" * 9),
        "taller.jpg": said_to_be(WIDTH, 72),
        "two pictures.jpg": saved(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        "exif big-endian.jpg": with_segments(exif((0x0112, 3, 1, 6), order=">")),
        "exif 0.jpg": with_segments(exif((0x0112, 3, 1, 0))),
        "exif outside.jpg": with_segments(b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xee" * 16),
        "exif garbage.jpg": with_segments(b"Exif\0\0" + bytes(range(100, 140))),
        "exif short.jpg": with_segments(b"ab"),
        "exif cut.jpg": with_segments(exif((0x010F, 3, 1, 6), count=200)),
        "1x1.jpg": saved(photo((1, 1)), "JPEG"),
        "1x5000.jpg": saved(photo((1, 5000)), "JPEG"),
        "1x1.png": saved(photo((1, 1)), "PNG"),
        "png.JPEG": saved(image, "PNG"),
        "rgb.PNG": saved(image, "PNG"),
        "alpha.png": saved(see_through(), "PNG"),
        "gray alpha.png": saved(see_through().convert("LA"), "PNG"),
        "gray.png": saved(gray, "PNG"),
        "bits.png": saved(image.convert("1"), "PNG"),
        "palette.png": saved(few, "PNG"),
        "palette see-through.png": saved(few, "PNG", transparency=3),
        "interlaced.png": interlaced(),
        "gray 2.png": png(8, 4, 2, 0, b"\0\x1b\xe4" * 4),
        "gray 4.png": png(8, 4, 4, 0, b"\0\x01\x23\x45\xef" * 4),
        "gamma.png": png(9, 9, 8, 0, gray_rows(9, 9), before=chunk(b"gAMA", struct.pack(">I", 20000))),
        "trailing.png": saved(image, "PNG") + b"trailing" * 9,
        **{f"deep {c}.png": deep_png(c) for c in (0, 2, 4, 6)},
        "rgb.bmp": saved(image, "BMP"),
        "gray.bmp": saved(gray, "BMP"),
        "palette.bmp": saved(few, "BMP"),
        "bits.bmp": saved(image.convert("1"), "BMP"),
        "alpha.bmp": saved(see_through(), "BMP"),
        "runs.bmp": bmp(8, 1, b"\4\x0a\4\xc8\0\0" * 4 + b"\0\1", 256),
        "masks.bmp": bmp(32, 3, bytes(range(128)), masks=struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)),
        "rgb.tif": saved(image, "TIFF"),
        "gray.tiff": saved(gray, "TIFF"),
        "alpha.tif": saved(see_through(), "TIFF"),
        "palette.tif": saved(few, "TIFF"),
        "cmyk.tif": saved(image.convert("CMYK"), "TIFF"),
        "ycc.tif": saved(image.convert("YCbCr"), "TIFF"),
        "pages.tif": saved(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
        "bits.tif": tiff(1, 1, 1, bytes(range(216))),
        "white.tif": tiff(1, 8, 0, pixels(0)),
        "deep.tif": tiff(1, 16, 1, deep("<")),
        "deep big-endian.tif": tiff(1, 16, 1, deep(">"), order=">"),
        **{
            f"{c}.tif": saved(image, "TIFF", compression=c)
            for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd")
        },
        "group4.tif": saved(image.convert("1"), "TIFF", compression="group4"),
        "lossy.webp": saved(image, "WEBP"),
        "lossless.webp": saved(image, "WEBP", lossless=True),
        "alpha.webp": saved(see_through(), "WEBP"),
    }
    return files


TRUNCATED = "[Tt]runcat|cannot identify|not enough|create decoder"
DISAGREE = "decoders disagree"


def cut() -> dict[str, tuple[bytes, str]]:
    """Each format at 1, 50 and 99% of its length, and without its last byte."""
    image = photo()
    whole = {
        kind.lower()[:4].replace("jpeg", "jpg"): saved(image, kind)
        for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
    }
    return {
        f"cut {share}.{kind}": (data[: min(len(data) - 1, len(data) * share // 100)], TRUNCATED)
        for kind, data in whole.items()
        for share in (1, 50, 99, 100)
    }


def rejected() -> dict[str, tuple[bytes, str]]:
    """By file name: what DALI does not decode, or not to Pillow's pixels, and a pattern of the reason."""
    image, whole = photo(), saved(photo(), "PNG")
    at = whole.index(b"IDAT") + 4
    end = at + struct.unpack(">I", whole[at - 8 : at - 4])[0]
    return cut() | {
        "zero.jpg": (b"", "cannot identify"),
        "garbage.png": (bytes((i * 37 + i // 7) % 256 for i in range(500)), "cannot identify"),
        "gif.jpg": (saved(image.quantize(16), "GIF"), "GIF"),
        "heic.jpg": (struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(300), "cannot identify"),
        "huge.jpg": (said_to_be(20000, 20000), "20000x20000 exceeds 128000000 pixels"),
        "cmyk plain.jpg": (cmyk(adobe=False), DISAGREE),
        "exif twice.jpg": (with_segments(exif((0x0112, 3, 1, 6)), exif((0x0112, 3, 1, 1))), DISAGREE),
        "exif cut at it.jpg": (with_segments(exif((0x0112, 3, 1, 6))[:-6]), DISAGREE),
        "exif overrun.jpg": (with_segments(exif((0x0112, 3, 1, 6), count=200)), DISAGREE),
        "exif long.jpg": (with_segments(exif((0x0112, 4, 1, 6), order=">")), DISAGREE),
        "exif byte.jpg": (with_segments(exif((0x0112, 1, 1, 6))), DISAGREE),
        "xmp.jpg": (with_segments(XMP), DISAGREE),
        "checksum.png": (whole[:end] + b"abcd" + whole[end + 4 :], "checksum"),
        "no palette.png": (png(8, 4, 8, 3, bytes(36)), "no palette"),
        "too few rows.png": (png(8, 9, 8, 0, gray_rows(8, 4)), "36 of 81 bytes"),
        "too few rows interlaced.png": (interlaced(missing=5), "74 of 79 bytes"),
        "flipped.png": (
            whole[: at + 60] + bytes(b ^ 90 for b in whole[at + 60 : at + 70]) + whole[at + 70 :],
            ".",
        ),
        "runs.bmp": (bmp(4, 2, b"\x08\x1f\0\0" * 4 + b"\0\1", 16), "4 bits, compression 2"),
        "16 bits.bmp": (bmp(16, 0, bytes(range(64))), "16 bits"),
        "no depth.tif": (saved(image.convert("1"), "TIFF"), "unsaid number of bits"),
        "4 bits.tif": (tiff(1, 4, 1, bytes(864)), "4 bits"),
        "float.tif": (saved(image.convert("F"), "TIFF"), "mode F"),
        "integers.tif": (saved(image.convert("I"), "TIFF"), "mode I"),
        "gray alpha.tif": (tiff(2, 8, 1, pixels(0, 1), (338, 2)), "mode LA"),
        "signed.tif": (tiff(1, 8, 1, pixels(0), (339, 2)), "mode L"),
        "premultiplied.tif": (tiff(4, 8, 2, pixels(0, 1, 2, 0), (338, 1)), "premultiplied"),
    }


def animated() -> dict[str, tuple[bytes, str]]:
    """What DALI shows the first picture of, and is rejected all the same."""
    more = {"save_all": True, "append_images": [photo().rotate(180)], "duration": 100}
    return {
        "animated.webp": (saved(photo(), "WEBP", **more), "animated"),
        "animated.png": (saved(photo(), "PNG", **more), "animated"),
    }
