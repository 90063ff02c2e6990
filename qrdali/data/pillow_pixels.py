"""Compares decoded pixels with Pillow's, which every other tool shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

_BAND_PIXELS = 4_000_000  # compared at once, so that a large image needs few copies
_PNG_BIT_DEPTH = 24  # offset of a byte in a PNG's file
_ROUNDED_TIFF_MODES = frozenset(("CMYK", "YCbCr", "P"))


def tolerance(image: Image.Image, content: bytes) -> int:
    """Returns by how many of 255 levels two correct decoders may differ, 0 for most images.

    It is 1 where they round: samples of 16 bits or another maximum than 255 become 8 bits, and libtiff
    computes the colours of CMYK, YCbCr and a palette of 16 bits in its own way. `image` is not loaded yet.
    """
    if image.format == "PNG":
        return int(content[_PNG_BIT_DEPTH] == 16)
    if image.format == "TIFF":
        has_16_bits = 16 in getattr(image, "tag_v2", {}).get(258, ())
        return int(has_16_bits or image.mode in _ROUNDED_TIFF_MODES)
    if image.format == "PPM":
        return int(image.mode == "I" or any(tile[0] == "ppm" for tile in getattr(image, "tile", ())))
    return 0


def disagreement(image: Image.Image, decoded: Pixels, shape: Sequence[int], allowed: int) -> str:
    """Returns how DALI's pixels of an image differ from Pillow's, by more than `allowed` of 255, or "".

    image: loaded, as in the file. decoded: uint8 [H, W, 3], upright RGB. shape: DALI's of the whole image.
    """
    upright = ImageOps.exif_transpose(image)
    if reason := size_disagreement(upright.size, shape):
        return reason
    difference = _largest_difference(upright, decoded)
    if difference <= allowed:
        return ""
    return (
        f"decoders disagree: the training decoder's (DALI's) pixels differ by up to {difference} of 255 "
        "from Pillow's"
    )


def size_disagreement(size: tuple[int, int], shape: Sequence[int]) -> str:
    """Returns how DALI's size of an image differs from Pillow's, or "".

    size: upright width and height by Pillow. shape: height and width by DALI, and the channels.
    """
    width, height = size
    if tuple(shape[:2]) == (height, width):
        return ""
    return (
        f"decoders disagree about its size: {width}x{height} by Pillow, "
        f"{shape[1]}x{shape[0]} by the training decoder (DALI)"
    )


def _largest_difference(upright: Image.Image, decoded: Pixels) -> int:
    worst, top = 0, 0
    for band in _rgb_bands(upright):
        ours = decoded[top : top + len(band)]
        top += len(band)
        if not np.array_equal(ours, band):
            worst = max(worst, int((np.maximum(ours, band) - np.minimum(ours, band)).max()))
    return worst


def _rgb_bands(image: Image.Image) -> Iterator[Pixels]:
    """Yields the rows of an image as RGB, uint8 [rows, W, 3]."""
    rows = max(1, _BAND_PIXELS // image.width)
    if image.height <= rows:
        yield _rgb(image)
        return
    for top in range(0, image.height, rows):
        yield _rgb(image.crop((0, top, image.width, min(top + rows, image.height))))


def _rgb(image: Image.Image) -> Pixels:
    """Returns an image as RGB. Pillow would cut 16-bit gray off above 255: it is scaled here."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = np.rint(np.asarray(image).astype(np.float64).clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
