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


def entropy_within(image: npt.NDArray[np.uint8], bound: int) -> int | None:
    """`entropy` of an image if it is at most `bound` bytes, else None, found out as early as the encoder tells.

    Exact: an encoder only adds to what it has written, so that a file that is longer than the bound halfway is so at its end.
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
    """A file that keeps nothing but its length, and ends the writing beyond `bound`."""

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
    """The encoder's name and version and the zlib it was built with."""
    import PIL
    from PIL import features

    return f"Pillow {PIL.__version__}, zlib {features.version('zlib')}"
