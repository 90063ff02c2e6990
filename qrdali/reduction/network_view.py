"""Computes the part of a reduced image that a network sees: all, a centre crop, or a random crop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Regions = npt.NDArray[np.float32]

# Ranges of a random resized crop, as in the Inception papers and torchvision's RandomResizedCrop.
RRC_SCALE = (0.08, 1.0)  # share of the area
RRC_RATIO = (3 / 4, 4 / 3)  # width ÷ height
RRC_ATTEMPTS = 10


@dataclass(frozen=True)
class View:
    """Holds what a network sees of N reduced images.

    region: float32 [N, 4] top, left, bottom, right in pixels of the reduced image, not always whole. flip:
    bool [N], whether it is mirrored.
    """

    region: Regions
    flip: npt.NDArray[np.bool_]


def view(sizes: npt.NDArray[np.int32], fit: str, crop_share: float) -> View:
    """Returns what an evaluated network sees of images of `sizes` [N, 2] (height, width).

    fit: "whole", everything, or "center", the centred square whose side is `crop_share` of the shorter side:
    what resizing the shorter side and cropping the centre shows, without ever making the resized image.
    """
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    if fit == "whole":
        region = np.stack([0 * height, 0 * width, height, width], axis=1)
    else:
        side = np.minimum(height, width) * crop_share
        top, left = (height - side) / 2, (width - side) / 2
        region = np.stack([top, left, top + side, left + side], axis=1)
    return View(region.astype(np.float32), np.zeros(len(sizes), np.bool_))


def random_view(sizes: npt.NDArray[np.int32], draws: npt.NDArray[np.float64]) -> Regions:
    """Returns random resized crops of images of `sizes` [N, 2], float32 [N, 4] in whole pixels.

    The columns are top, left, bottom, right. draws: float64 [N, RRC_ATTEMPTS, 4] in [0, 1). The four of an
    attempt choose area, aspect ratio (log-uniform), top and left; the first attempt that fits is taken, and
    where none fits the largest centred window whose ratio is allowed.
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
    return np.stack([top, left, top + h, left + w], axis=1).astype(np.float32)
