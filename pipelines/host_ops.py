"""Implements the reductions of decoded pixels in host memory; dali_ops.py is the twin in a DALI graph.

DALI's antialiased resize takes about ten times as long on a CPU as torch's of uint8, and lies further from
the definition's oracle (Pillow: these are at most 1 apart, bicubic 2), so on a CPU DALI decodes and these
functions do the rest. All take uint8 HWC RGB.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qrdali.reduction.quality import ONE_VALUE

if TYPE_CHECKING:
    from qrdali.models import Preprocessing
    from qrdali.reduction.network_view import View

Pixels = npt.NDArray[np.uint8]

RESOLUTION_FILTER = "bilinear"  # with antialiasing: the triangle filter of the definition
FILTER_RADIUS = {"bilinear": 1, "bicubic": 2}  # in pixels of the larger of the two grids
# Up to so many times the pixels that are wanted, torch makes all and the rest is dropped: it takes a quarter
# of the time that Pillow takes for those alone, but cannot begin between two pixels.
_DROPPED = 4


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
    """Returns min(255, floor(v / d)·d + floor(d / 2)) of each value v for bins of `bin_width` d.

    d is 1 to 128, or 256, which leaves one value, 128.
    """
    if bin_width == 1:
        return image
    if bin_width == ONE_VALUE:  # more than uint8 holds
        return np.full_like(image, ONE_VALUE // 2)
    d, half = np.uint8(bin_width), np.uint8(bin_width // 2)
    if bin_width & (bin_width - 1) == 0:
        masked: Pixels = (image & np.uint8(256 - bin_width)) + half
        return masked
    # In uint8 the sum would wrap, so it is bounded before.
    binned: Pixels = np.minimum(image // d * d, np.uint8(255 - half)) + half
    return binned


def reduce(image: Pixels, size: npt.NDArray[np.integer], bin_width: int) -> Pixels:
    """Returns the reduced image of a window's pixels: resolution, then color. It may be `image` itself.

    size: height and width in pixels. bin_width: 1 to 128, or 256.
    """
    height, width = int(size[0]), int(size[1])
    if image.shape[:2] != (height, width):
        image = resize(image, height, width, RESOLUTION_FILTER)
    return color(image, bin_width)


def square(image: Pixels, seen: View, i: int, preprocessing: Preprocessing) -> Pixels:
    """Returns what a network sees of `image`, the `i`th of `seen`, uint8 [S, S, 3].

    It is the square cut from Pillow's resize of the whole region, at most 2 levels apart, without ever making
    the resized region: one axis after the other, and of each only what the square shows.
    """
    top, left, bottom, right = seen.region[i].tolist()
    resized, offset, side = seen.resized[i].tolist(), seen.offset[i].tolist(), preprocessing.input_size
    pixels = image[top:bottom, left:right]
    if resized == [side, side] and not seen.vertical_first[i] and pixels.shape[:2] != (side, side):
        # torch takes both passes at once as the loop below: columns first, uint8 between. No view has less
        # than what it shows of both axes.
        return resize(pixels, side, side, preprocessing.interpolation)
    for axis in (0, 1) if seen.vertical_first[i] else (1, 0):
        first, last = max(0, offset[axis]), min(resized[axis], offset[axis] + side)
        pixels = _resize_axis(pixels, axis, resized[axis], slice(first, last), preprocessing.interpolation)
    if pixels.shape[:2] == (side, side):
        return pixels
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = padding_color(preprocessing)
    top, left = max(0, -offset[0]), max(0, -offset[1])
    padded[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return padded


def padding_color(preprocessing: Preprocessing) -> tuple[int, ...]:
    """Returns the colour beyond the image: timm pads with the mean by "border", torchvision with black."""
    if preprocessing.crop_mode != "border":
        return (0, 0, 0)
    return tuple(round(255 * mean) for mean in preprocessing.mean)


def _resize_axis(image: Pixels, axis: int, length: int, wanted: slice, interpolation: str) -> Pixels:
    """Returns the rows (`axis` 0) or columns (1) `wanted` of `image` resized to `length` of them."""
    count = wanted.stop - wanted.start
    if length != image.shape[axis]:
        if length > _DROPPED * count:
            return _resize_part_of_axis(image, axis, image.shape[axis] / length, wanted, interpolation)
        height, width = (length, image.shape[1]) if axis == 0 else (image.shape[0], length)
        image = resize(image, height, width, interpolation)
    if count == length:
        return image
    return image[wanted] if axis == 0 else image[:, wanted]


def _resize_part_of_axis(image: Pixels, axis: int, scale: float, wanted: slice, interpolation: str) -> Pixels:
    """Returns what `_resize_axis` does, and makes nothing else.

    scale: pixels before for one after. What surrounds the part counts as it does in the whole.
    """
    from PIL import Image

    first, last = wanted.start * scale, wanted.stop * scale
    reach = FILTER_RADIUS[interpolation] * max(1.0, scale) + 1
    low, high = max(0, math.floor(first - reach)), min(image.shape[axis], math.ceil(last + reach))
    window = np.ascontiguousarray(image[low:high] if axis == 0 else image[:, low:high])
    size, box = [*window.shape[1::-1]], [0.0, 0.0, *window.shape[1::-1]]
    x_or_y = 1 - axis
    size[x_or_y] = wanted.stop - wanted.start
    box[x_or_y], box[x_or_y + 2] = first - low, min(last, high) - low
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    resized = Image.fromarray(window).resize((size[0], size[1]), method, (box[0], box[1], box[2], box[3]))
    return np.asarray(resized)


def mirrored(pixels: Pixels) -> Pixels:
    """Returns a square with its columns in the opposite order, in memory of its own."""
    return np.ascontiguousarray(pixels[:, ::-1])


def prepare(
    image: Pixels, seen: View, i: int, preprocessing: Preprocessing, out: npt.NDArray[np.float32]
) -> None:
    """Writes what a network sees of `image`, the `i`th of `seen`, into `out`, float32 [S, S, 3]."""
    normalize(square(image, seen, i, preprocessing), bool(seen.flip[i]), preprocessing, out)


def normalize(pixels: Pixels, flip: bool, preprocessing: Preprocessing, out: npt.NDArray[np.float32]) -> None:
    """Writes (v / 255 - mean) / std of each value of a square into `out`, float32 [S, S, 3].

    flip: mirrors it.
    """
    side = preprocessing.input_size
    mean, scale = _rows(preprocessing)
    # Rows of S·3 values: numpy is slow along an axis of three. It also keeps to one thread, which torch would
    # not.
    rows = pixels.reshape(side, side * 3)
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
