"""Image files of 48×36 pixels that Pillow reads and DALI's decoders refuse, made here in bytes."""

from __future__ import annotations

import zlib

import numpy as np
from malformed_images import chunk, jpeg, photo, saved, tiff


def refused() -> dict[str, bytes]:
    """By file name: whole pictures with a header, or padding, that only Pillow puts up with."""
    return _jpegs() | _pngs() | _others()


def _jpegs() -> dict[str, bytes]:
    data = jpeg()
    at = data.index(b"\xff\xdb")  # between the first segment and the tables
    return {
        f"{name}.jpg": content
        for name, content in {
            "one byte between": data[:at] + b"\x41" + data[at:],
            "line end between": data[:at] + b"\r\n" + data[at:],
            "3 kB between": data[:at] + b"\x20" * 3000 + data[at:],
            "segment of length 0": data[:at] + b"\xff\xe5\0\0" + data[at:],
            "restart marker in the header": data[:at] + b"\xff\xd0" + data[at:],
            "segment of length 1": data[:at] + b"\xff\xe5\0\1" + data[at:],
        }.items()
    }


def _pngs() -> dict[str, bytes]:
    rgb, indexed = saved(photo(), "PNG"), saved(photo().quantize(16), "PNG")
    head = rgb[16:29]
    raw = b"".join(b"\0" + row.tobytes() for row in np.asarray(photo()))
    packed = zlib.compress(raw)
    palette = indexed.index(b"PLTE") - 4
    colours = indexed[palette : palette + 12 + int.from_bytes(indexed[palette : palette + 4], "big")]
    end, signature = chunk(b"IEND", b""), rgb[:8]
    body = chunk(b"IDAT", packed) + end
    return {
        "header twice.png": signature + chunk(b"IHDR", head) * 2 + body,
        "unknown critical chunk.png": signature + chunk(b"IHDR", head) + chunk(b"ABCD", b"x") + body,
        "compression method 1.png": signature + chunk(b"IHDR", head[:10] + b"\1" + head[11:]) + body,
        "no checksum of the pixels.png": signature + chunk(b"IHDR", head) + chunk(b"IDAT", packed[:-4]) + end,
        "palette twice.png": indexed[:palette] + colours + indexed[palette:],
    }


def _others() -> dict[str, bytes]:
    inks = np.asarray(photo().convert("CMYK")).astype("<u2") * 257
    bits = saved(photo().convert("1"), "BMP")
    return {
        "inks of 16 bits.tif": tiff(4, 16, 5, inks.tobytes()),
        "no last padding.bmp": bits[:-2],
        "palette of 8194.bmp": bits[:47] + b"\x20" + bits[48:],
    }
