"""Computes one descent step: the neighbours at the next lower level and the choice among them. Pure numpy.

A state is three levels and a window. Adaptive training takes one step per stage; the MEPI search takes steps
until no neighbour is classified correctly.
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
    LevelScale,
    bin_width,
    drawn_offset,
    scaled_size,
    window_offset,
)

Bytes = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# Where a candidate window may lie inside the current one, (a_y, a_x) in [0, 1], by the number of windows
# (`--windows`).
ANCHORS = {
    5: np.array([(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]),
    9: np.array([(y, x) for y in (0, 0.5, 1) for x in (0, 0.5, 1)]),
}


@dataclass(frozen=True)
class Candidates:
    """Holds the neighbours of N states in K columns: color, resolution, crop windows, if they may move.

    exists: bool [N, K], whether there is a lower level that changes the image; where there is none, the other
    arrays hold the state itself. levels: uint8 [N, K, 3]. window: int32 [N, K, 4] top, left, height, width in
    pixels of the original. size: int32 [N, K, 2] height, width after the resolution reduction. bin_width:
    int32 [N, K], 1 to 128, or 256.
    """

    exists: Bools
    levels: Bytes
    window: Int32
    size: Int32
    bin_width: Int32


@dataclass(frozen=True)
class DescentRule:
    """Says what may move and how a neighbour is chosen.

    scale: the levels there are. windows: 5 or 9, a key of ANCHORS. prefer: "confidence" or "entropy", see
    `choose_neighbor`.
    """

    dimensions: Dimensions
    scale: LevelScale
    windows: int = 5
    prefer: str = "confidence"


def column_dimensions(dimensions: Dimensions, windows: int = 5) -> tuple[int, ...]:
    """Returns the dimension that each column of `Candidates` moves: (0, 2, 1, 1, 1, 1, 1) for all three."""
    return (
        (COLOR,) * dimensions.color
        + (RESOLUTION,) * dimensions.resolution
        + (CROP,) * (windows if dimensions.crop else 0)
    )


def window_of(levels: Bytes, origins: Int32, sizes: npt.NDArray[np.integer], scale: LevelScale) -> Int32:
    """Returns the windows, int32 [N, 4], of states with their top and left at `origins` [N, 2].

    sizes: [N, 2] of the originals.
    """
    return np.concatenate([origins, scaled_size(sizes, levels[:, CROP], scale)], axis=1)


def next_levels(
    levels: Bytes, window: Int32, sizes: npt.NDArray[np.integer], scale: LevelScale
) -> npt.NDArray[np.int64]:
    """Returns the next lower level of each dimension that changes the image, int64 [N, 3], or -1.

    A level that leaves the bin width, or every side, as it is, is dead and skipped: of step 0.05, whose bin
    widths begin 1, 1, 2, 2, 3, the level after color 0 is 2. levels: uint8 [N, 3]. window: int32 [N, 4].
    sizes: [N, 2] of the originals.
    """
    result = np.full(levels.shape, -1, np.int64)
    widths = bin_width(np.arange(scale.count), scale)
    size = scaled_size(window[:, 2:], levels[:, RESOLUTION], scale)
    for dimension in (COLOR, CROP, RESOLUTION):
        undecided, level = np.arange(len(levels)), levels[:, dimension].astype(np.int64)
        while len(undecided := undecided[level[undecided] + 1 < scale.count]):
            level[undecided] += 1
            k = level[undecided]
            if dimension == COLOR:
                changed = widths[k] != widths[levels[undecided, COLOR]]
            elif dimension == CROP:
                changed = (scaled_size(sizes[undecided], k, scale) != window[undecided, 2:]).any(axis=1)
            else:
                changed = (scaled_size(window[undecided, 2:], k, scale) != size[undecided]).any(axis=1)
            result[undecided[changed], dimension] = k[changed]
            undecided = undecided[~changed]
    return result


def neighbors_of(
    levels: Bytes,
    window: Int32,
    sizes: npt.NDArray[np.integer],
    dimensions: Dimensions,
    scale: LevelScale,
    windows: int = 5,
) -> Candidates:
    """Returns the states one step below: one for color, one for resolution, one per window for crop.

    A candidate window has the size of the next crop level of the original and lies inside the current one, at
    each of ANCHORS[windows]. levels: uint8 [N, 3]. window: int32 [N, 4]. sizes: [N, 2], upright height and
    width of the originals.
    """
    next_level = next_levels(levels, window, sizes, scale)
    exists, new_levels, new_window = [], [], []

    def add(dimension: int, moved_window: Int32 | None) -> None:
        has_next = next_level[:, dimension] >= 0
        moved = levels.copy()
        moved[has_next, dimension] = next_level[has_next, dimension]
        exists.append(has_next)
        new_levels.append(moved)
        new_window.append(
            window if moved_window is None else np.where(has_next[:, None], moved_window, window)
        )

    if dimensions.color:
        add(COLOR, None)
    if dimensions.resolution:
        add(RESOLUTION, None)
    if dimensions.crop:
        inner = scaled_size(sizes, np.maximum(next_level[:, CROP], levels[:, CROP]), scale)
        for anchor in ANCHORS[windows]:
            anchors = np.broadcast_to(anchor, (len(levels), 2))
            origin = window[:, :2] + window_offset(window[:, 2:], inner, anchors)
            add(CROP, np.concatenate([origin, inner], axis=1).astype(np.int32))
    if not exists:
        return _no_candidates(len(levels))
    stacked_levels, stacked_window = (
        np.stack(new_levels, axis=1),
        np.stack(new_window, axis=1).astype(np.int32),
    )
    size = scaled_size(
        stacked_window[..., 2:].reshape(-1, 2), stacked_levels[..., RESOLUTION].reshape(-1), scale
    )
    return Candidates(
        np.stack(exists, axis=1),
        stacked_levels,
        stacked_window,
        size.reshape(-1, len(exists), 2),
        bin_width(stacked_levels[..., COLOR], scale),
    )


def every_level(
    levels: Bytes,
    window: Int32,
    sizes: npt.NDArray[np.integer],
    dimension: int,
    scale: LevelScale,
) -> Candidates:
    """Returns every level of one dimension (not crop), columns 0 to the last; dead levels do not exist.

    levels: uint8 [N, 3]. window: int32 [N, 4]. sizes: [N, 2] of the originals.
    """
    count = len(levels)
    exists = np.zeros((count, scale.count), np.bool_)
    exists[:, 0] = True
    reached = np.zeros_like(levels)
    while True:
        after = next_levels(reached, window, sizes, scale)[:, dimension]
        rows = np.flatnonzero(after >= 0)
        if not len(rows):
            break
        exists[rows, after[rows]] = True
        reached[rows, dimension] = after[rows]
        reached[after < 0, dimension] = scale.count - 1
    every = np.zeros((count, scale.count, 3), np.uint8)
    every[:, :, dimension] = np.arange(scale.count)
    windows = np.repeat(window[:, None], scale.count, axis=1)
    size = scaled_size(windows.reshape(-1, 4)[:, 2:], every.reshape(-1, 3)[:, RESOLUTION], scale).reshape(
        count, scale.count, 2
    )
    return Candidates(
        exists,
        every,
        windows,
        size,
        bin_width(every[..., COLOR].reshape(-1), scale).reshape(count, scale.count),
    )


def _no_candidates(count: int) -> Candidates:
    empty = np.empty((count, 0), np.int32)
    return Candidates(
        empty.astype(np.bool_),
        np.empty((count, 0, 3), np.uint8),
        np.empty((count, 0, 4), np.int32),
        np.empty((count, 0, 2), np.int32),
        empty,
    )


def choose_neighbor(
    acceptable: Bools, confidence: npt.NDArray[np.floating], entropy: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.int64]:
    """Returns the column accepted for each state, int64 [N], or -1 where none is acceptable.

    acceptable: bool [N, K]. Chosen is the highest `confidence` [N, K], the probability in [0, 1] of the true
    class; or, where `entropy` [N, K] (PNG bytes) is given, the fewest bytes and among them the highest
    confidence. Remaining ties go to the first column.
    """
    count, columns = acceptable.shape
    if not columns:
        return np.full(count, -1, np.int64)
    eligible = acceptable.copy()
    if entropy is not None:
        png_bytes = np.where(eligible, entropy.astype(np.float64), np.inf)
        eligible &= png_bytes == png_bytes.min(axis=1, keepdims=True)
    value = np.where(eligible, confidence.astype(np.float64), -np.inf)
    best: npt.NDArray[np.int64] = value.argmax(axis=1).astype(np.int64)
    return np.where(eligible.any(axis=1), best, -1)


def accept_neighbor(
    levels: Bytes, window: Int32, candidates: Candidates, choice: npt.NDArray[np.int64]
) -> tuple[Bytes, Int32]:
    """Returns levels [N, 3] and windows [N, 4] after a step to the columns `choice` [N].

    A state whose choice is -1 stays as it was.
    """
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
    scale: LevelScale,
    draws: Callable[[int], Floats],
) -> tuple[Bytes, Int32, npt.NDArray[np.int64]]:
    """Returns the states after `steps` [N] steps that are taken without consulting the network.

    They begin at full quality. Returned are levels uint8 [N, 3], windows int32 [N, 4] and how many steps
    could be taken, int64 [N]. The steps go through the dimensions in turn: color, resolution, crop, color, …;
    one that has no further level is passed over. The crop of step t, from 0, lies where `draws(t)`, [N, 2] in
    [0, 1), fall among its places. A pure function of `steps`: undoing a step is asking for `steps` - 1.
    """
    count = len(steps)
    levels = np.zeros((count, 3), np.uint8)
    window = np.concatenate([np.zeros((count, 2), np.int32), sizes.astype(np.int32)], axis=1)
    taken, turn = np.zeros(count, np.int64), np.zeros(count, np.int64)
    order = np.array([d for d in (COLOR, RESOLUTION, CROP) if dimensions[d]])
    for t in range(int(steps.max(initial=0)) if len(order) else 0):
        next_level = next_levels(levels, window, sizes, scale)[:, order]
        next_level[steps <= t] = -1
        # The first dimension from each image's turn on that still has a level to go to.
        candidates = (turn[:, None] + np.arange(len(order))) % len(order)
        alive = np.take_along_axis(next_level, candidates, axis=1) >= 0
        rows = np.flatnonzero(alive.any(axis=1))
        pick = np.take_along_axis(candidates, alive.argmax(axis=1)[:, None], axis=1)[rows, 0]
        levels[rows, order[pick]] = next_level[rows, pick]
        cropped = rows[order[pick] == CROP]
        inner = scaled_size(sizes[cropped], levels[cropped, CROP], scale)
        window[cropped, :2] += drawn_offset(window[cropped, 2:], inner, draws(t)[cropped])
        window[cropped, 2:] = inner
        turn[rows] = (pick + 1) % len(order)
        taken[rows] += 1
    return levels, window, taken
