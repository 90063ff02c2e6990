"""Implements the reductions of decoded pixels in host memory; dali_ops.py is the twin in a DALI graph.

DALI's antialiased resize takes about ten times as long on a CPU as torch's of uint8, and lies further from
the definition's oracle (Pillow: these are at most 1 apart, bicubic 2), so on a CPU DALI decodes and these
functions do the rest. All take uint8 HWC RGB.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qrdali.models import Preprocessing

Pixels = npt.NDArray[np.uint8]

RESOLUTION_FILTER = "bilinear"  # with antialiasing: the triangle filter of the definition


def cut(image: Pixels, start: npt.NDArray[np.integer], shape: npt.NDArray[np.integer]) -> Pixels:
    """Returns the window `start`, `shape` (top, left; height, width; pixels) of an image, as a view."""
    top, left, height, width = int(start[0]), int(start[1]), int(shape[0]), int(shape[1])
    return image[top : top + height, left : left + width]


def resize(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """Returns `image` resized to `height` x `width`, antialiased. interpolation: "bilinear" or "bicubic"."""
    import torch

    # Contiguous: views of a window take torch's slow path. The batch's axis comes before the permutation:
    # only then has it the stride by which torch sees channels-last, and writes the result so too.
    planes = torch.from_numpy(np.require(image, requirements=["C", "W"])).unsqueeze(0).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(
        planes, size=(height, width), mode=interpolation, antialias=True
    )
    pixels: Pixels = resized.permute(0, 2, 3, 1)[0].contiguous().numpy()
    return pixels


def color(image: Pixels, bin_width: int) -> Pixels:
    """Returns min(255, floor(v / d)·d + floor(d / 2)) of each value v for bins of `bin_width` d, 1 to 128."""
    if bin_width == 1:
        return image
    d, half = np.uint8(bin_width), np.uint8(bin_width // 2)
    if bin_width & (bin_width - 1) == 0:
        masked: Pixels = (image & np.uint8(256 - bin_width)) + half
        return masked
    # In uint8 the sum would wrap, so it is bounded before.
    binned: Pixels = np.minimum(image // d * d, np.uint8(255 - half)) + half
    return binned


def reduce(image: Pixels, size: npt.NDArray[np.integer], bin_width: int) -> Pixels:
    """Returns the reduced image of a window's pixels: resolution, then color. It may be `image` itself.

    size: height and width in pixels. bin_width: 1 to 128.
    """
    height, width = int(size[0]), int(size[1])
    if image.shape[:2] != (height, width):
        image = resize(image, height, width, RESOLUTION_FILTER)
    return color(image, bin_width)


def square(image: Pixels, region: npt.NDArray[np.float32], side: int, interpolation: str) -> Pixels:
    """Returns `region` (top, left, bottom, right in pixels) as a network sees it, uint8 [side, side, 3]."""
    top, left, bottom, right = map(float, region)
    if all(edge.is_integer() for edge in (top, left, bottom, right)):
        return resize(image[int(top) : int(bottom), int(left) : int(right)], side, side, interpolation)
    # torch cannot begin between two pixels; Pillow's filter is the same one.
    from PIL import Image

    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((side, side), method, box=(left, top, right, bottom)))


def prepare(
    image: Pixels,
    region: npt.NDArray[np.float32],
    flip: bool,
    preprocessing: Preprocessing,
    out: npt.NDArray[np.float32],
) -> None:
    """Writes `region` of an image as a network's input into `out`, float32 [S, S, 3].

    flip: mirrors it. A normalised value is (v / 255 - mean) / std.
    """
    side = preprocessing.input_size
    mean, scale = _rows(preprocessing)
    # Rows of S·3 values: numpy is slow along an axis of three. It also keeps to one thread, which torch would
    # not.
    rows = square(image, region, side, preprocessing.interpolation).reshape(side, side * 3)
    target = out.reshape(side, side * 3)
    if flip:
        for channel in range(3):
            target[:, channel::3] = rows[:, side * 3 - 3 + channel :: -3]
    else:
        target[...] = rows
    target -= mean
    target *= scale


@lru_cache(maxsize=8)
def _rows(preprocessing: Preprocessing) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns mean and reciprocal standard deviation, of 0 … 255, for each of the S·3 values of a row."""
    side = preprocessing.input_size
    mean = np.tile(np.array(preprocessing.mean, np.float64) * 255, side)
    std = np.tile(np.array(preprocessing.std, np.float64) * 255, side)
    return mean.astype(np.float32), (1 / std).astype(np.float32)
