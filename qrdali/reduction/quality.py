"""Defines quality, levels, and the integers that each level gives: window, size and bin width.

A level k of a step 1/n, k = 0 … n - 1, keeps the quality q = (n - k) / n of one dimension's information
(pixels times bits); level 0 is the untouched image. The definition is qrdali's own: the thesis names the
reductions but does not fix the operators. See docs/definitions.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError

Int32 = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
LevelArray = npt.NDArray[np.uint8]

COLOR, CROP, RESOLUTION = 0, 1, 2  # columns of an array of levels, in the order of DIMENSIONS
DIMENSIONS = ("color", "crop", "resolution")
MAX_BIN_WIDTH = 128  # leaves two values of a channel; 256 would leave one, and no image


class Dimensions(NamedTuple):
    """Says which dimensions a reduction moves, in the order of DIMENSIONS."""

    color: bool
    crop: bool
    resolution: bool


REDUCTIONS: dict[str, Dimensions] = {
    "color": Dimensions(True, False, False),
    "crop": Dimensions(False, True, False),
    "resolution": Dimensions(False, False, True),
    "combination": Dimensions(True, True, True),
    "none": Dimensions(False, False, False),
}
CENTER = (0.5, 0.5)  # the anchor (a_y, a_x) of every crop outside training


@dataclass(frozen=True)
class ReductionParams:
    """Holds what the pipelines apply to N images, all int32.

    window [N, 4]: top, left, height, width in pixels of the upright original.
    size [N, 2]: height and width in pixels that the window is resized to.
    bin_width [N]: width d of a colour bin, 1 to 128; 1 changes nothing.
    """

    window: Int32
    size: Int32
    bin_width: Int32


def num_levels_of(step: float) -> int:
    """Returns n of a step 1/n: 4 for 0.25, 20 for 0.05, 3 for 1/3.

    n is 2 to 255, since levels are stored as uint8. Raises InputError unless `step` is within 1e-9 of such a
    1/n: 0.25 + 1e-10 is taken, 0.25 + 1e-6, 1 and 1/256 are not.
    """
    n = round(1 / step) if 1e-3 < step <= 1 else 0
    if not 2 <= n <= 255 or abs(step - 1 / n) > 1e-9:
        raise InputError(
            f"step {step:g} is not 1/n for a whole n from 2 to 255: use 0.25, 0.2, 0.1 or 0.05, say"
        )
    return n


def level_of(quality: float, num_levels: int) -> int:
    """Returns the level k = (1 - q)·n of the quality q: of step 0.25 0 for 1, 1 for 0.75, 3 for 0.25.

    Raises InputError for a quality outside (0, 1], and for one that is more than 1e-9 off the grid of the
    step 1/n: 0.6 of step 0.25, naming the levels around it.
    """
    if not 0 < quality <= 1:
        raise InputError(f"quality {quality:g} is outside (0, 1]: 1 is the untouched image")
    level = round((1 - quality) * num_levels)
    if abs((num_levels - level) / num_levels - quality) > 1e-9:
        below = np.floor(quality * num_levels) / num_levels
        above = np.ceil(quality * num_levels) / num_levels
        raise InputError(
            f"quality {quality:g} is no level of step {1 / num_levels:g}: use {above:g}"
            + (f" or {below:g}" if below > 0 else "")
            + ", or a finer --step"
        )
    return level


def quality(levels: npt.NDArray[np.integer], num_levels: int) -> Floats:
    """Returns q = (n - k) / n, in [1/n, 1], for levels k of the step 1/n, of any shape.

    Raises ValueError for a level outside 0 … n - 1: 3 of n = 4 is 0.25, 4 is refused.
    """
    if levels.size and not 0 <= int(levels.min()) <= int(levels.max()) < num_levels:
        raise ValueError(
            f"levels {levels.min()}..{levels.max()} are outside 0..{num_levels - 1} of step 1/{num_levels}"
        )
    return (num_levels - levels.astype(np.float64)) / num_levels


def round_half_up(x: Floats) -> npt.NDArray[np.int64]:
    """Returns floor(x + 0.5), the only rounding of the definitions: 2.4999 gives 2, 2.5 gives 3.

    numpy's own rounding takes halves to the even neighbour, so that 0.5 and 2.5 would go down and 1.5 up.
    """
    return np.floor(x + 0.5).astype(np.int64)


def bin_width_at(qualities: Floats) -> Int32:
    """Returns the width of a colour bin, min(128, round(256^(1 - q))): 1 to 128 values, any shape.

    A channel of 8 bits keeps about 8·q of them. Of step 0.25: 1, 4, 16, 64. Of step 0.05: 1, 1, 2, …, 111,
    128, 128: the bound takes effect between levels 17 (256^0.85 = 111.4) and 18 (256^0.9 = 147.0).
    """
    return np.minimum(MAX_BIN_WIDTH, round_half_up(256.0 ** (1 - qualities))).astype(np.int32)


def bin_width(color_levels: npt.NDArray[np.integer], num_levels: int) -> Int32:
    """Returns `bin_width_at` the qualities of levels of any shape."""
    return bin_width_at(quality(color_levels, num_levels))


def scaled_size_at(sizes: npt.NDArray[np.integer], qualities: Floats) -> Int32:
    """Returns max(1, round(side · √q)), int32 [N, 2] pixels: the area keeps the share q.

    sizes: [N, 2]. qualities: [N] in (0, 1]. At q = 0.5 a side of 375 gives 265 (265.17), one of 500 gives 354
    (353.55); at q = 0.25 one of 2 gives 1. At q = 0.05 a side of 1 would round to 0 and stays 1.
    """
    share = np.sqrt(qualities)[:, None]
    return np.maximum(1, round_half_up(sizes.astype(np.float64) * share)).astype(np.int32)


def scaled_size(sizes: npt.NDArray[np.integer], levels: npt.NDArray[np.integer], num_levels: int) -> Int32:
    """Returns `scaled_size_at` the qualities of levels [N], for sizes [N, 2]."""
    return scaled_size_at(sizes, quality(levels, num_levels))


def window_offset(outer: npt.NDArray[np.integer], inner: npt.NDArray[np.integer], anchors: Floats) -> Int32:
    """Returns where windows `inner` [N, 2] begin in `outer` [N, 2]: round(a · (outer - inner)), int32 [N, 2].

    anchors: float64 [N, 2] in [0, 1]: 0 is the upper or left edge, 1 the lower or right one, 0.5 the centre.
    Of 375 - 265 = 110 pixels to spare 0 gives 0, 0.5 gives 55, 1 gives 110; of 1 pixel 0.49 gives 0 and 0.5
    gives 1.
    """
    return round_half_up(anchors * (outer.astype(np.int64) - inner)).astype(np.int32)


def drawn_offset(outer: npt.NDArray[np.integer], inner: npt.NDArray[np.integer], draws: Floats) -> Int32:
    """Returns where windows `inner` [N, 2] begin in `outer` [N, 2] at random, int32 [N, 2].

    draws: float64 [N, 2], uniform in [0, 1): every place from 0 to outer - inner is as likely as any other.
    Of 375 - 265 = 110 pixels to spare, 0 gives 0, 0.5 gives 55, 0.999 gives 110. (`window_offset` would give
    both borders half the chance of the other places.)
    """
    result: Int32 = np.floor(draws * (outer.astype(np.int64) - inner + 1)).astype(np.int32)
    return result


def reduction_params(
    levels: LevelArray, sizes: npt.NDArray[np.integer], anchors: Floats, num_levels: int
) -> ReductionParams:
    """Returns the integers of N images: the window is cut first, then resized, then its colours are binned.

    levels: uint8 [N, 3] (color, crop, resolution). sizes: [N, 2] upright height and width in pixels, at least
    1. anchors: float64 [N, 2] (a_y, a_x) in [0, 1]. Raises ValueError for levels outside 0 … n - 1.
    """
    return reduction_params_at(quality(levels, num_levels), sizes, anchors)


def reduction_params_at(
    qualities: Floats, sizes: npt.NDArray[np.integer], anchors: Floats
) -> ReductionParams:
    """Returns the integers of N images at any qualities, on a grid or not.

    qualities: float64 [N, 3] (color, crop, resolution) in (0, 1]. sizes, anchors: as in `reduction_params`.
    """
    window_size = scaled_size_at(sizes, qualities[:, CROP])
    window = np.concatenate([window_offset(sizes, window_size, anchors), window_size], axis=1)
    return ReductionParams(
        window,
        scaled_size_at(window_size, qualities[:, RESOLUTION]),
        bin_width_at(qualities[:, COLOR]),
    )
