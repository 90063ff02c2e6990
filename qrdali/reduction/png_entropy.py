"""Measures the entropy of an image: the bytes of its PNG, not Shannon's.

Every figure depends on the encoder, whose name and versions are therefore recorded beside it.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

PNG_LEVEL = 6  # zlib's; the definition pins it


def png_bytes(image: npt.NDArray[np.uint8]) -> bytes:
    """Returns the PNG of an RGB image, uint8 [H, W, 3]: Pillow, compress_level 6, no metadata."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image, "RGB").save(out, "PNG", compress_level=PNG_LEVEL, optimize=False)
    return out.getvalue()


def entropy(image: npt.NDArray[np.uint8]) -> int:
    """Returns the number of bytes of `png_bytes(image)`."""
    return len(png_bytes(image))


def entropy_within(image: npt.NDArray[np.uint8], bound: int) -> int | None:
    """Returns `entropy(image)` if that is at most `bound` bytes, else None.

    Encoding ends as soon as the bound is passed. That is exact: an encoder only adds to what it has written,
    so that a file that is longer than the bound halfway is longer at its end.
    """
    from PIL import Image

    counter = _Counter(bound)
    try:
        Image.fromarray(image, "RGB").save(counter, "PNG", compress_level=PNG_LEVEL, optimize=False)  # type: ignore[arg-type]
    except _Exceeded:
        return None
    return counter.total


class _Exceeded(Exception):
    pass


class _Counter:
    """Acts as a file that keeps nothing but its length, and raises _Exceeded beyond `bound` bytes."""

    def __init__(self, bound: int) -> None:
        self.total, self._bound = 0, bound

    def write(self, data: bytes) -> int:
        self.total += len(data)
        if self.total > self._bound:
            raise _Exceeded
        return len(data)

    def flush(self) -> None:
        pass


def encoder_name() -> str:
    """Returns the encoder's name and version and those of the zlib it was built with."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"
