"""One descent step: an image's neighbours at the next lower level, and the choice among them. Pure numpy.

A state is three levels and a window. Adaptive training takes one step per stage, the MEPI search takes them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qrdali.reduction.quality import (
    COLOR,
    CROP,
    RESOLUTION,
    Dimensions,
    bin_width,
    scaled_size,
    window_offset,
)

Bytes = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ANCHORS = {
    5: np.array([(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]),
    9: np.array([(y, x) for y in (0, 0.5, 1) for x in (0, 0.5, 1)]),
}


@dataclass(frozen=True)
class Candidates:
    """The neighbours of N states, K columns in the order color, resolution, crop windows (those that may move).

    exists: bool [N, K]. levels: uint8 [N, K, 3]. window: int32 [N, K, 4] top, left, height, width in the original.
    size: int32 [N, K, 2] after the resolution reduction. bin_width: int32 [N, K]. Where nothing exists the state stands.
    """

    exists: Bools
    levels: Bytes
    window: Int32
    size: Int32
    bin_width: Int32


def column_dimensions(dimensions: Dimensions, windows: int = 5) -> tuple[int, ...]:
    """The dimension that each of the K columns of `neighbours` moves."""
    return (
        (COLOR,) * dimensions.color
        + (RESOLUTION,) * dimensions.resolution
        + (CROP,) * (windows if dimensions.crop else 0)
    )


def window_of(levels: Bytes, places: Int32, sizes: npt.NDArray[np.integer], num_levels: int) -> Int32:
    """Windows [N, 4] of states whose top and left are `places` [N, 2] in images of `sizes` [N, 2]."""
    return np.concatenate([places, scaled_size(sizes, levels[:, CROP], num_levels)], axis=1)


def next_levels(
    levels: Bytes, window: Int32, sizes: npt.NDArray[np.integer], num_levels: int
) -> npt.NDArray[np.int64]:
    """The next lower level of each dimension that changes the image, int64 [N, 3]; -1 where there is none.

    A level that leaves the bin width, or every side, as it is, is dead and skipped.
    """
    result = np.full(levels.shape, -1, np.int64)
    widths = bin_width(np.arange(num_levels), num_levels)
    size = scaled_size(window[:, 2:], levels[:, RESOLUTION], num_levels)
    for dimension in (COLOR, CROP, RESOLUTION):
        todo, level = np.arange(len(levels)), levels[:, dimension].astype(np.int64)
        while len(todo := todo[level[todo] + 1 < num_levels]):
            level[todo] += 1
            k = level[todo]
            if dimension == COLOR:
                changed = widths[k] != widths[levels[todo, COLOR]]
            elif dimension == CROP:
                changed = (scaled_size(sizes[todo], k, num_levels) != window[todo, 2:]).any(axis=1)
            else:
                changed = (scaled_size(window[todo, 2:], k, num_levels) != size[todo]).any(axis=1)
            result[todo[changed], dimension] = k[changed]
            todo = todo[~changed]
    return result


def neighbors_of(
    levels: Bytes,
    window: Int32,
    sizes: npt.NDArray[np.integer],
    dimensions: Dimensions,
    num_levels: int,
    windows: int = 5,
) -> Candidates:
    """The states one step below: one for color, one for resolution, one per candidate window for crop.

    levels: uint8 [N, 3]. window: int32 [N, 4]. sizes: [N, 2], upright height and width of the originals.
    """
    after = next_levels(levels, window, sizes, num_levels)
    exists, new_levels, new_window = [], [], []

    def add(dimension: int, place: Int32 | None) -> None:
        there = after[:, dimension] >= 0
        moved = levels.copy()
        moved[there, dimension] = after[there, dimension]
        exists.append(there)
        new_levels.append(moved)
        new_window.append(window if place is None else np.where(there[:, None], place, window))

    if dimensions.color:
        add(COLOR, None)
    if dimensions.resolution:
        add(RESOLUTION, None)
    if dimensions.crop:
        inner = scaled_size(sizes, np.maximum(after[:, CROP], levels[:, CROP]), num_levels)
        for anchor in ANCHORS[windows]:
            place = window[:, :2] + window_offset(
                window[:, 2:], inner, np.broadcast_to(anchor, (len(levels), 2))
            )
            add(CROP, np.concatenate([place, inner], axis=1).astype(np.int32))
    k = len(exists)
    if not k:
        empty = np.empty((len(levels), 0), np.int32)
        return Candidates(
            empty.astype(np.bool_),
            np.empty((len(levels), 0, 3), np.uint8),
            np.empty((len(levels), 0, 4), np.int32),
            np.empty((len(levels), 0, 2), np.int32),
            empty,
        )
    lv, wd = np.stack(new_levels, axis=1), np.stack(new_window, axis=1).astype(np.int32)
    size = scaled_size(wd[..., 2:].reshape(-1, 2), lv[..., RESOLUTION].reshape(-1), num_levels).reshape(
        -1, k, 2
    )
    return Candidates(np.stack(exists, axis=1), lv, wd, size, bin_width(lv[..., COLOR], num_levels))


def choose_neighbor(
    acceptable: Bools, confidence: npt.NDArray[np.floating], entropy: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.int64]:
    """The column accepted for each state, int64 [N]; -1 where none is acceptable (exists and is classified correctly).

    By the highest `confidence` [N, K] in the true class; or, where `entropy` [N, K] (PNG bytes) is given, by the fewest
    bytes and then by confidence. Remaining ties go to the first column.
    """
    n, k = acceptable.shape
    if not k:
        return np.full(n, -1, np.int64)
    good = acceptable.copy()
    if entropy is not None:
        bytes_ = np.where(good, entropy.astype(np.float64), np.inf)
        good &= bytes_ == bytes_.min(axis=1, keepdims=True)
    value = np.where(good, confidence.astype(np.float64), -np.inf)
    best: npt.NDArray[np.int64] = value.argmax(axis=1).astype(np.int64)
    return np.where(good.any(axis=1), best, -1)


def accept_neighbor(
    levels: Bytes, window: Int32, candidates: Candidates, choice: npt.NDArray[np.int64]
) -> tuple[Bytes, Int32]:
    """The states after a step: those chosen, or as they were where the choice is -1."""
    if not candidates.exists.shape[1]:
        return levels, window
    rows, column = np.arange(len(choice)), np.maximum(choice, 0)
    moved = (choice >= 0)[:, None]
    return (
        np.where(moved, candidates.levels[rows, column], levels).astype(np.uint8),
        np.where(moved, candidates.window[rows, column], window).astype(np.int32),
    )


def levels_after(
    steps: npt.NDArray[np.integer],
    sizes: npt.NDArray[np.integer],
    dimensions: Dimensions,
    num_levels: int,
    anchors: Callable[[int], Floats],
) -> tuple[Bytes, Int32, npt.NDArray[np.int64]]:
    """States after `steps` [N] unasked steps from full quality, one dimension after another in the order color,
    resolution, crop; the window of step t is placed by `anchors(t)`, [N, 2] in [0, 1].

    Returns levels, windows and the steps that could be taken. A pure function of `steps`: the step before is `steps` - 1.
    """
    count = len(steps)
    levels = np.zeros((count, 3), np.uint8)
    window = np.concatenate([np.zeros((count, 2), np.int32), sizes.astype(np.int32)], axis=1)
    taken, turn = np.zeros(count, np.int64), np.zeros(count, np.int64)
    order = np.array([d for d in (COLOR, RESOLUTION, CROP) if dimensions[d]])
    for t in range(int(steps.max(initial=0)) if len(order) else 0):
        after = next_levels(levels, window, sizes, num_levels)[:, order]
        after[steps <= t] = -1
        # The first dimension from each image's turn on that still has a level to go to.
        ahead = (turn[:, None] + np.arange(len(order))) % len(order)
        alive = np.take_along_axis(after, ahead, axis=1) >= 0
        rows = np.flatnonzero(alive.any(axis=1))
        pick = np.take_along_axis(ahead, alive.argmax(axis=1)[:, None], axis=1)[rows, 0]
        levels[rows, order[pick]] = after[rows, pick]
        cropped = rows[order[pick] == CROP]
        inner = scaled_size(sizes[cropped], levels[cropped, CROP], num_levels)
        window[cropped, :2] += window_offset(window[cropped, 2:], inner, anchors(t)[cropped])
        window[cropped, 2:] = inner
        turn[rows] = (pick + 1) % len(order)
        taken[rows] += 1
    return levels, window, taken


@dataclass(frozen=True)
class DescentRule:
    """What may move and how a neighbour is chosen. n: of the step 1/n. windows: 5 or 9. prefer: "confidence" or "entropy"."""

    dimensions: Dimensions
    num_levels: int
    windows: int = 5
    prefer: str = "confidence"
