"""Defines quality, levels, and the integers that each level gives: window, size and bin width.

A level k of the grid of a step 1/n, k = 0 … n - 1, keeps the quality q = (n - k) / n of one dimension's
information (pixels times bits); level 0 is the untouched image. Levels k >= n, the tail, halve the quality
again and again. The definition is qrdali's own: the thesis names the reductions but does not fix the
operators. See docs/explanation/definitions.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, printable

Int32 = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
LevelArray = npt.NDArray[np.uint8]

COLOR, CROP, RESOLUTION = 0, 1, 2  # columns of an array of levels, in the order of DIMENSIONS
DIMENSIONS = ("color", "crop", "resolution")
MAX_BIN_WIDTH = 128  # of the grid: leaves two values of a channel
ONE_VALUE = 256  # the bin width that leaves one value of a channel, 128; on the tail alone
MAX_GRID = 200  # levels of a step's grid; version 0.1 took up to MAX_OLD_GRID, without a tail
MAX_OLD_GRID = 255
MAX_TAIL = 40  # levels; only sides above a million pixels could go on


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
    bin_width [N]: width d of a colour bin, 1 to 128, or 256 on the tail; 1 changes nothing.
    """

    window: Int32
    size: Int32
    bin_width: Int32


@dataclass(frozen=True)
class LevelScale:
    """Says which levels there are: those of the grid of the step 1/grid, and `tail` levels below it.

    grid: n, 2 to 200 (or to 255 without a tail, as version 0.1 had). tail: 0 to MAX_TAIL. Of n = 20, level 19
    has the quality .05, and levels 20, 21, 22 of its tail .025, .0125 and .00625. All levels fit into uint8.
    """

    grid: int
    tail: int = 0

    @property
    def count(self) -> int:
        """Returns how many levels there are, full quality included: 20 for step .05, 60 with all its tail."""
        return self.grid + self.tail

    def quality_of(self, level: int) -> float:
        """Returns the quality of one level, in (0, 1]. Raises ValueError for a level that there is not."""
        return float(quality(np.array(level), self))

    def describe(self, level: int) -> str:
        """Returns a level's quality in at most four digits, such as 0.75 or 0.003125."""
        return f"{self.quality_of(level):.4g}"


QUARTERS = LevelScale(4)  # of the step 0.25, the default of training


def scale_of(step: float, tail: str = "none", largest: int = MAX_GRID) -> LevelScale:
    """Returns the levels of a step and of what --tail says: "none", "full" or a number of levels.

    largest: as in `num_levels_of`; with a tail it is MAX_GRID, so that all levels fit into uint8. Raises
    InputError for a step that is not 1/n, and for another tail.
    """
    levels = tail_levels(tail)
    return LevelScale(num_levels_of(step, MAX_GRID if levels else largest), levels)


def tail_levels(tail: str) -> int:
    """Returns how many levels `tail` adds below the grid: 0 for "none", MAX_TAIL for "full", N for "N".

    Raises InputError for anything else.
    """
    if tail in ("none", "full"):
        return MAX_TAIL if tail == "full" else 0
    if tail.isascii() and tail.isdecimal() and len(tail) < 5 and 0 <= int(tail) <= MAX_TAIL:
        return int(tail)
    raise InputError(f"tail {printable(tail)[:40]!r}: give none, full or a number of levels up to {MAX_TAIL}")


def num_levels_of(step: float, largest: int = MAX_GRID) -> int:
    """Returns n of a step 1/n: 4 for 0.25, 20 for 0.05, 3 for 1/3.

    n is 2 to `largest`, which is MAX_OLD_GRID where a folder of version 0.1 is read. Raises InputError unless
    `step` is within 1e-9 of such a 1/n: 0.25 + 1e-10 is taken, 0.25 + 1e-6, 1 and 1/256 are not.
    """
    n = round(1 / step) if 1e-3 < step <= 1 else 0
    if not 2 <= n <= largest or abs(step - 1 / n) > 1e-9:
        raise InputError(
            f"step {step:g} is not 1/n for a whole n from 2 to {largest}: use 0.25, 0.2, 0.1 or 0.05, say"
        )
    return n


def level_of(quality: float, scale: LevelScale) -> int:
    """Returns the level of a quality: of step 0.25 0 for 1, 1 for 0.75, 3 for 0.25, on its tail 4 for 0.125.

    Raises InputError for a quality outside (0, 1], and for one that is more than 1e-9 (on the tail a share of
    1e-9) off the levels of `scale`: 0.6 of step 0.25, naming the levels around it.
    """
    if not 0 < quality <= 1:
        raise InputError(f"quality {quality:g} is outside (0, 1]: 1 is the untouched image")
    n = scale.grid
    if quality * n < 1 - 1e-9:
        return _tail_level_of(quality, scale)
    level = round((1 - quality) * n)
    if abs((n - level) / n - quality) > 1e-9:
        below, above = np.floor(quality * n) / n, np.ceil(quality * n) / n
        raise InputError(
            f"quality {quality:g} is no level of step {1 / n:g}: use {above:g}"
            + (f" or {below:g}" if below > 0 else "")
            + ", or a finer --step"
        )
    return level


def _tail_level_of(quality: float, scale: LevelScale) -> int:
    """Returns the level of a quality below the grid's lowest; raises InputError where there is none."""
    n, halvings = scale.grid, round(-math.log2(quality * scale.grid))
    if 1 <= halvings <= scale.tail and abs(2.0**-halvings / n / quality - 1) <= 1e-9:
        return n + halvings - 1
    if not scale.tail:
        raise InputError(
            f"quality {quality:g} is no level of step {1 / n:g}: use {1 / n:g}, or a finer --step"
        )
    lowest = scale.describe(scale.count - 1)
    raise InputError(
        f"quality {quality:g} is no level of the tail of step {1 / n:g}, which halves {1 / n:g} down to "
        f"{lowest}"
    )


def quality(levels: npt.NDArray[np.integer], scale: LevelScale) -> Floats:
    """Returns the qualities of levels of any shape, in (0, 1].

    q = (n - k) / n on the grid of the step 1/n, and 2^-(k - n + 1) / n on its tail. Raises ValueError for a
    level outside the scale: 3 of n = 4 is 0.25; 4 is 0.125 with a tail and refused without.
    """
    if levels.size and not 0 <= int(levels.min()) <= int(levels.max()) < scale.count:
        raise ValueError(
            f"levels {levels.min()}..{levels.max()} are outside 0..{scale.count - 1} of step 1/{scale.grid}"
            + (f" with {scale.tail} levels of its tail" if scale.tail else "")
        )
    n, k = scale.grid, levels.astype(np.float64)
    # A power of two is exact in floating point; above the grid's end it is capped, as np.where computes both.
    return np.where(k < n, n - k, 2.0 ** -np.maximum(k - n + 1, 0)) / n


def round_half_up(x: Floats) -> npt.NDArray[np.int64]:
    """Returns floor(x + 0.5), the only rounding of the definitions: 2.4999 gives 2, 2.5 gives 3.

    numpy's own rounding takes halves to the even neighbour, so that 0.5 and 2.5 would go down and 1.5 up.
    """
    return np.floor(x + 0.5).astype(np.int64)


def bin_width_at(qualities: Floats) -> Int32:
    """Returns the width of a colour bin, min(128, round(256^(1 - q))): 1 to 128 values, any shape.

    A channel of 8 bits keeps about 8·q of them. Of step 0.25: 1, 4, 16, 64. Of step 0.05: 1, 1, 2, …, 111,
    128, 128: the bound takes effect between levels 17 (256^0.85 = 111.4) and 18 (256^0.9 = 147.0). This is
    the grid's formula, which serves qualities that belong to no level as well.
    """
    return np.minimum(MAX_BIN_WIDTH, round_half_up(256.0 ** (1 - qualities))).astype(np.int32)


def bin_width(color_levels: npt.NDArray[np.integer], scale: LevelScale) -> Int32:
    """Returns the width of a colour bin at levels of any shape: `bin_width_at`, and 256 at the tail's end.

    On the tail one value is left as soon as round(256^(1 - q)) exceeds 128. Of step 0.25 levels 3, 4, 5 give
    64, 128, 256; of step 0.05 levels 19 and 20 give 128 and 256.
    """
    qualities = quality(color_levels, scale)
    widths = bin_width_at(qualities)
    one_value = (color_levels >= scale.grid) & (round_half_up(256.0 ** (1 - qualities)) > MAX_BIN_WIDTH)
    return np.where(one_value, ONE_VALUE, widths).astype(np.int32)


def scaled_size_at(sizes: npt.NDArray[np.integer], qualities: Floats) -> Int32:
    """Returns max(1, round(side · √q)), int32 [N, 2] pixels: the area keeps the share q.

    sizes: [N, 2]. qualities: [N] in (0, 1]. At q = 0.5 a side of 375 gives 265 (265.17), one of 500 gives 354
    (353.55); at q = 0.25 one of 2 gives 1. At q = 0.05 a side of 1 would round to 0 and stays 1.
    """
    share = np.sqrt(qualities)[:, None]
    return np.maximum(1, round_half_up(sizes.astype(np.float64) * share)).astype(np.int32)


def scaled_size(sizes: npt.NDArray[np.integer], levels: npt.NDArray[np.integer], scale: LevelScale) -> Int32:
    """Returns `scaled_size_at` the qualities of levels [N], for sizes [N, 2]."""
    return scaled_size_at(sizes, quality(levels, scale))


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
    levels: LevelArray, sizes: npt.NDArray[np.integer], anchors: Floats, scale: LevelScale
) -> ReductionParams:
    """Returns the integers of N images: the window is cut first, then resized, then its colours are binned.

    levels: uint8 [N, 3] (color, crop, resolution). sizes: [N, 2] upright height and width in pixels, at least
    1. anchors: float64 [N, 2] (a_y, a_x) in [0, 1]. Raises ValueError for levels outside the scale.
    """
    params = reduction_params_at(quality(levels, scale), sizes, anchors)
    return replace(params, bin_width=bin_width(levels[:, COLOR], scale))


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
