"""Quality, levels, and the integers each level gives: window, size and bin width.

A level k of a step 1/n keeps the quality q = (n - k) / n of one dimension's information (pixels times bits). The
definition is qrdali's own: the thesis names the reductions but does not fix the operators. See docs/definitions.md.
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
CENTER = (0.5, 0.5)


@dataclass(frozen=True)
class ReductionParams:
    """What the pipelines apply to N images, all int32.

    window [N, 4]: top, left, height, width in the upright original.
    size [N, 2]: height and width the window is resized to.
    bin_width [N]: width d of a colour bin, 1 to 128; 1 changes nothing.
    """

    window: Int32
    size: Int32
    bin_width: Int32


def num_levels_of(step: float) -> int:
    """n of a step 1/n. Raises InputError unless `step` is 1/n within 1e-9 with n from 2 to 255."""
    n = round(1 / step) if 1e-3 < step <= 1 else 0
    if not 2 <= n <= 255 or abs(step - 1 / n) > 1e-9:
        raise InputError(
            f"step {step:g} is not 1/n for a whole n from 2 to 255: use 0.25, 0.2, 0.1 or 0.05, say"
        )
    return n


def level_of(quality: float, num_levels: int) -> int:
    """The level whose quality is `quality`. Raises InputError outside (0, 1] or off the grid of the step 1/n."""
    if not 0 < quality <= 1:
        raise InputError(f"quality {quality:g} is outside (0, 1]: 1 is the untouched image")
    level = round((1 - quality) * num_levels)
    if abs((num_levels - level) / num_levels - quality) > 1e-9:
        below, above = (
            np.floor(quality * num_levels) / num_levels,
            np.ceil(quality * num_levels) / num_levels,
        )
        raise InputError(
            f"quality {quality:g} is no level of step {1 / num_levels:g}: use {above:g}"
            + (f" or {below:g}" if below > 0 else "")
            + ", or a finer --step"
        )
    return level


def quality(levels: npt.NDArray[np.integer], num_levels: int) -> Floats:
    """q = (n - k) / n for levels k of the step 1/n, any shape. Raises ValueError for a level outside 0..n-1."""
    if levels.size and not 0 <= int(levels.min()) <= int(levels.max()) < num_levels:
        raise ValueError(
            f"levels {levels.min()}..{levels.max()} are outside 0..{num_levels - 1} of step 1/{num_levels}"
        )
    return (num_levels - levels.astype(np.float64)) / num_levels


def round_half_up(x: Floats) -> npt.NDArray[np.int64]:
    """floor(x + 0.5), the only rounding of the definitions (numpy's own rounds halves to even)."""
    return np.floor(x + 0.5).astype(np.int64)


def bin_width_at(qualities: Floats) -> Int32:
    """Returns d = min(128, round(256^(1 - q))) for colour qualities in (0, 1] of any shape; 1 to 128."""
    return np.minimum(128, round_half_up(256.0 ** (1 - qualities))).astype(np.int32)


def bin_width(color_levels: npt.NDArray[np.integer], num_levels: int) -> Int32:
    """Returns `bin_width_at` the qualities of levels of any shape."""
    return bin_width_at(quality(color_levels, num_levels))


def scaled_size_at(sizes: npt.NDArray[np.integer], qualities: Floats) -> Int32:
    """Returns max(1, round(side · √q)) for sizes [N, 2] and qualities [N] in (0, 1]: the area keeps the share q."""
    share = np.sqrt(qualities)[:, None]
    return np.maximum(1, round_half_up(sizes.astype(np.float64) * share)).astype(np.int32)


def scaled_size(sizes: npt.NDArray[np.integer], levels: npt.NDArray[np.integer], num_levels: int) -> Int32:
    """Returns `scaled_size_at` the qualities of levels [N], for sizes [N, 2]."""
    return scaled_size_at(sizes, quality(levels, num_levels))


def window_offset(outer: npt.NDArray[np.integer], inner: npt.NDArray[np.integer], anchors: Floats) -> Int32:
    """round(a · (outer - inner)): where windows of size `inner` [N, 2] lie within `outer` [N, 2], by anchors [N, 2]."""
    return round_half_up(anchors * (outer.astype(np.int64) - inner)).astype(np.int32)


def reduction_params(
    levels: LevelArray, sizes: npt.NDArray[np.integer], anchors: Floats, num_levels: int
) -> ReductionParams:
    """Integers for N images.

    levels: uint8 [N, 3] (color, crop, resolution). sizes: [N, 2] upright height and width in pixels, at least 1.
    anchors: float64 [N, 2] (a_y, a_x) in [0, 1]. Raises ValueError for levels outside 0..n-1.
    """
    return reduction_params_at(quality(levels, num_levels), sizes, anchors)


def reduction_params_at(
    qualities: Floats, sizes: npt.NDArray[np.integer], anchors: Floats
) -> ReductionParams:
    """Returns integers for N images at any qualities.

    qualities: float64 [N, 3] (color, crop, resolution) in (0, 1]. sizes, anchors: as in `reduction_params`.
    """
    window_size = scaled_size_at(sizes, qualities[:, CROP])
    window = np.concatenate([window_offset(sizes, window_size, anchors), window_size], axis=1)
    return ReductionParams(
        window, scaled_size_at(window_size, qualities[:, RESOLUTION]), bin_width_at(qualities[:, COLOR])
    )
