"""Finds the levels that change something: a stage of any other would train on what the one before did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from qrdali.reduction.distortions import BY_NAME
from qrdali.reduction.distortions.interface import NOMINAL_SIDE
from qrdali.reduction.quality import (
    CENTER,
    COLOR,
    CROP,
    RESOLUTION,
    Dimensions,
    LevelScale,
    bin_width,
    quality,
    reduction_params,
)

Sizes = npt.NDArray[np.int32]
SizeChunks = Callable[[], Iterable[Sizes]]  # gives all images' upright sizes anew, int32 [N, 2] at a time


def live_levels(
    order: Sequence[int],
    dimensions: Dimensions,
    scale: LevelScale,
    size_chunks: SizeChunks | None,
    distortion: str = "",
    side: int = NOMINAL_SIDE,
) -> tuple[int, ...]:
    """Returns the levels of `order` that change at least one image against the live level before.

    The first is compared with full quality. size_chunks: None where the images are not known; then only
    levels of a reduction of colour alone, and of a distortion, can be told to be dead. side: of the squares
    that `distortion` acts on, in pixels.

    Of step 0.05 and color, bins are 1, 1, 2, 2, 3, … 111, 128, 128 values wide: levels 1, 3 and 19 are dead.
    """
    live, before = [], 0
    for level in order:
        if _amounts_differ(distortion, (before, level), scale, side) or _changes_an_image(
            before, level, dimensions, scale, size_chunks
        ):
            live.append(level)
            before = level
    return tuple(live)


def _amounts_differ(distortion: str, levels: tuple[int, int], scale: LevelScale, side: int) -> bool:
    """Returns whether a distortion, "" for none, does something else to squares of `side` at two levels."""
    if not distortion:
        return False
    first, second = BY_NAME[distortion].amounts(quality(np.array(levels), scale), side)
    return not np.array_equal(first, second)


def _changes_an_image(
    before: int, after: int, dimensions: Dimensions, scale: LevelScale, size_chunks: SizeChunks | None
) -> bool:
    levels = np.outer((before, after), np.array(dimensions)).astype(np.uint8)
    widths = bin_width(levels[:, COLOR], scale)
    if widths[0] != widths[1]:
        return True
    if not (dimensions[CROP] or dimensions[RESOLUTION]):
        return False
    if size_chunks is None:
        return before != after
    return any(_sizes_differ(levels, sizes, scale) for sizes in size_chunks())


def _sizes_differ(levels: npt.NDArray[np.uint8], sizes: Sizes, scale: LevelScale) -> bool:
    """Returns whether windows or sizes of any image differ between the two levels [2, 3]."""
    center = np.full((len(sizes), 2), CENTER)
    before, after = (
        reduction_params(np.tile(level, (len(sizes), 1)), sizes, center, scale) for level in levels
    )
    return not (
        np.array_equal(before.window[:, 2:], after.window[:, 2:]) and np.array_equal(before.size, after.size)
    )
