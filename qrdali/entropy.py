"""Entropy of an image: the size of its PNG. Every figure depends on the encoder, so that is recorded beside it."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

PNG_LEVEL = 6  # zlib's; the definition pins it


def png_bytes(image: npt.NDArray[np.uint8]) -> bytes:
    """The PNG file of a uint8 [H, W, 3] RGB image: Pillow, compress_level 6, not optimised, without metadata."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image, "RGB").save(out, "PNG", compress_level=PNG_LEVEL, optimize=False)
    return out.getvalue()


def entropy(image: npt.NDArray[np.uint8]) -> int:
    """Bytes of `png_bytes`."""
    return len(png_bytes(image))


def encoder() -> str:
    """The encoder's name and version and the zlib it was built with."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"
