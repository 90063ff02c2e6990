"""Decodes one image file as the pipelines do, for whoever has a path and wants its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from qrdali.data.inspect import MAX_PIXELS, FileReport, checked_header, quiet_pillow, read_content, reason_of
from qrdali.data.pillow_pixels import disagreement, tolerance
from qrdali.errors import RunError, printable
from qrdali.pipelines.batch_decoder import BatchDecoder, Window
from qrdali.pipelines.diagnose import refused_image


class NotAnImage(RunError):
    """A file cannot be read, or Pillow cannot decode it. The message is one line and names it."""


@dataclass(frozen=True)
class _OpenedFile:
    """Holds a file that Pillow decodes. image: loaded, as in the file. width, height: upright.

    tolerance: of 255, by how much a right decoder may differ from Pillow.
    """

    content: bytes
    image: Image.Image
    width: int
    height: int
    tolerance: int


def decode_image(path: str) -> npt.NDArray[np.uint8]:
    """Returns the upright RGB pixels of an image file, uint8 [H, W, 3], decoded by DALI on the CPU.

    path: a file's name, or the URL of an object or of a member of a tar shard. Raises NotAnImage for a
    file that Pillow cannot decode, RunError for one that DALI alone cannot decode, or decodes to other
    pixels than Pillow; both name the file.

    Both decode in this process: a child would take a second to start. Pillow comes first, so that DALI sees
    no file that is not an image, and DALI's is the decoder of windows, which mutated files have never crashed
    (docs/explanation/reliability.md).
    """
    opened = _open(path)
    try:
        whole = Window(0, 0, opened.height, opened.width)
        ((pixels, shape),) = BatchDecoder(threads=1).run([opened.content], [whole])
    except (RuntimeError, MemoryError) as error:
        raise refused_image(path, error) from None
    try:
        reason = disagreement(opened.image, pixels, shape, opened.tolerance)
    except Exception as error:  # whatever Pillow's conversion to RGB raises
        raise _undecodable(path, reason_of(error)) from None
    if reason:
        raise RunError(f"{printable(path)} cannot be used: {reason}: save it anew")
    return np.array(pixels)


def _open(path: str) -> _OpenedFile:
    quiet_pillow()
    content = read_content(path)
    if not isinstance(content, bytes):
        raise _undecodable(path, content.reason if isinstance(content, FileReport) else "it is too long")
    try:
        with Image.open(BytesIO(content)) as header:
            width, height = checked_header(header, True, MAX_PIXELS)
            allowed = tolerance(header, content)
        # Opened again: what Pillow knows of a PNG's orientation before the pixels may change after them.
        image = Image.open(BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's decoders raise many types
        raise _undecodable(path, reason_of(error)) from None
    return _OpenedFile(content, image, width, height, allowed)


def _undecodable(path: str, reason: str) -> NotAnImage:
    return NotAnImage(f"{printable(path)} cannot be decoded: {reason}")
