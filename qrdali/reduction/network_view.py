"""Computes what a network sees of a reduced image: all, the published centre crop, or a random crop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from qrdali.models import Preprocessing

Sizes = npt.NDArray[np.int32]  # [N, 2] height, width
Regions = npt.NDArray[np.int64]  # [N, 4] top, left, bottom, right

# Ranges of a random resized crop, as in the Inception papers and torchvision's RandomResizedCrop.
RRC_SCALE = (0.08, 1.0)  # share of the area
RRC_RATIO = (3 / 4, 4 / 3)  # width ÷ height
RRC_ATTEMPTS = 10


@dataclass(frozen=True)
class View:
    """Holds what a network sees of N reduced images: a square of S pixels of a resized region.

    region: what is resized, in pixels of the reduced image; what is outside it does not count. resized: int64
    [N, 2], height and width that the region is resized to. offset: int64 [N, 2], top and left of the square
    in the resized region; negative where the square reaches beyond it on both sides. flip: bool [N], whether
    the square is mirrored.
    """

    region: Regions
    resized: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    flip: npt.NDArray[np.bool_]

    def select(self, mask: npt.NDArray[np.bool_]) -> View:
        """Returns the views of those images where `mask`, bool [N], is true."""
        return View(self.region[mask], self.resized[mask], self.offset[mask], self.flip[mask])

    @cached_property
    def vertical_first(self) -> npt.NDArray[np.bool_]:
        """Returns whether the columns are resized before the rows, bool [N].

        Values are rounded between the two passes, so that their order shows. This is Pillow's, since version
        13 (ImagingResampleInner in src/libImaging/Resample.c): the columns first if the height loses more
        than twice as many pixels as the width.
        """
        height, width = (self.region[:, 2:] - self.region[:, :2] - self.resized).T
        order: npt.NDArray[np.bool_] = (height > 0) & (height > 2 * width)
        return order


def view(sizes: Sizes, preprocessing: Preprocessing) -> View:
    """Returns what an evaluated network sees of images of `sizes`.

    "whole" resizes the image to the square. "center" has the integers of timm's evaluation transform
    (transforms_imagenet_eval in timm/data/transforms_factory.py): those of torchvision's Resize and
    CenterCrop, and for "border" of timm's ResizeKeepRatio and CenterCropOrPad.
    """
    side = preprocessing.input_size
    height, width = sizes.astype(np.int64).T
    region = np.stack([0 * height, 0 * width, height, width], axis=1)
    if preprocessing.fit == "whole":
        return whole_regions(region, side)
    scale = math.floor(side / preprocessing.crop_share)
    if preprocessing.crop_mode == "squash":
        resized = np.full_like(region[:, 2:], scale)
    elif preprocessing.crop_mode == "border":
        # By the ratio, as timm does it: it rounds otherwise in a few cases. An image has at least one pixel.
        ratio = np.maximum(height / scale, width / scale)[:, None]
        resized = np.maximum(1, np.rint(region[:, 2:] / ratio)).astype(np.int64)
    else:
        shorter = np.minimum(height, width)[:, None]
        resized = np.floor(scale * region[:, 2:] / shorter).astype(np.int64)
    # Half a pixel goes to the even number, as Python rounds; padding has its odd pixel at the end.
    beyond = resized - side
    offset = np.where(beyond < 0, -(-beyond // 2), np.rint(beyond / 2)).astype(np.int64)
    return View(region, resized, offset, np.zeros(len(sizes), np.bool_))


def whole_regions(region: Regions, side: int) -> View:
    """Returns the views of regions that are resized to a square of `side`, none of them mirrored."""
    square = np.full((len(region), 2), side)
    return View(region, square, np.zeros_like(square), np.zeros(len(region), np.bool_))


def shown_share(height: int, width: int, preprocessing: Preprocessing) -> float:
    """Returns which share of an image's area an evaluated network sees, in (0, 1]."""
    resized = view(np.array([[height, width]], np.int32), preprocessing).resized[0]
    return float((np.minimum(resized, preprocessing.input_size) / resized).prod())


def random_regions(sizes: Sizes, draws: npt.NDArray[np.float64]) -> Regions:
    """Returns random resized crops of images of `sizes`.

    draws: float64 [N, RRC_ATTEMPTS, 4] in [0, 1). The four of an attempt choose area, aspect ratio
    (log-uniform), top and left; the first attempt that fits is taken, and where none fits the largest centred
    window whose ratio is allowed.
    """
    height, width = sizes[:, :1].astype(np.float64), sizes[:, 1:].astype(np.float64)
    area = height * width * (RRC_SCALE[0] + draws[..., 0] * (RRC_SCALE[1] - RRC_SCALE[0]))
    low, high = math.log(RRC_RATIO[0]), math.log(RRC_RATIO[1])
    ratio = np.exp(low + draws[..., 1] * (high - low))
    h, w = np.maximum(1, np.rint(np.sqrt(area / ratio))), np.maximum(1, np.rint(np.sqrt(area * ratio)))
    fits = (h <= height) & (w <= width)
    pick = fits.argmax(axis=1)[:, None]
    h, w, top, left = (np.take_along_axis(a, pick, 1)[:, 0] for a in (h, w, draws[..., 2], draws[..., 3]))
    rows, columns = height[:, 0], width[:, 0]
    none = ~fits.any(axis=1)
    h = np.where(none, np.minimum(rows, np.maximum(1, np.rint(columns / RRC_RATIO[0]))), h)
    w = np.where(none, np.minimum(columns, np.maximum(1, np.rint(rows * RRC_RATIO[1]))), w)
    top = np.floor(np.where(none, (rows - h) / 2, top * (rows - h + 1)))
    left = np.floor(np.where(none, (columns - w) / 2, left * (columns - w + 1)))
    return np.stack([top, left, top + h, left + w], axis=1).astype(np.int64)
