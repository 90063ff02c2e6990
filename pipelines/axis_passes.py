"""Computes the two resizes, one axis each, by which a DALI graph makes the square that a network sees.

`host_ops.square` does the same on a CPU. DALI repeats the pixels at an image's edge where a filter reaches
beyond it; Pillow leaves out what is not there, and divides by the weights of the rest. So zeros are put
around the image, and each row or column of the result is divided by the share of the filter that lay inside.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.models import Preprocessing
from qrdali.pipelines.graph_inputs import AxisPass, SquareInputs, WindowBounds
from qrdali.pipelines.host_ops import FILTER_RADIUS
from qrdali.reduction.network_view import View

Float32 = npt.NDArray[np.float32]


class _Axis(NamedTuple):
    """One axis of one image: what is wanted of it, and what that needs.

    length: of the region. low, high: the pixels that the filter reaches, also beyond the region. first, last:
    where in the region the wanted part begins and ends, not always whole. gain: float32 [count], what each
    resized row or column is multiplied by.
    """

    length: int
    low: int
    high: int
    first: float
    last: float
    gain: Float32


def square_inputs(seen: View, preprocessing: Preprocessing) -> SquareInputs:
    """Returns the numbers of both passes for each image of `seen`."""
    side, radius = preprocessing.input_size, FILTER_RADIUS[preprocessing.interpolation]
    lengths = (seen.region[:, 2:] - seen.region[:, :2]).tolist()
    passes: tuple[list[_Pass], list[_Pass]] = ([], [])
    for length, resized, offset, vertical_first in zip(
        lengths, seen.resized.tolist(), seen.offset.tolist(), seen.vertical_first.tolist(), strict=True
    ):
        axes = [
            _axis(length[a], resized[a], (max(0, offset[a]), min(resized[a], offset[a] + side)), radius)
            for a in (0, 1)
        ]
        order = (0, 1) if vertical_first else (1, 0)
        passes[0].append(_first_pass(axes, order))
        passes[1].append(_second_pass(axes, order))
    return SquareInputs(
        region=WindowBounds(
            seen.region[:, :2].astype(np.int32), (seen.region[:, 2:] - seen.region[:, :2]).astype(np.int32)
        ),
        first=_stack(passes[0]),
        second=_stack(passes[1]),
        corner=np.minimum(0, seen.offset).astype(np.int32),
    )


@lru_cache(maxsize=1024)
def _axis(length: int, resized: int, wanted: tuple[int, int], radius: int) -> _Axis:
    first, last = wanted
    if length == resized:
        return _Axis(length, first, last, first, last, np.ones(last - first, np.float32))
    scale = length / resized
    reach = radius * max(1.0, scale) + 1
    low, high = math.floor(first * scale - reach), math.ceil(last * scale + reach)
    return _Axis(length, low, high, first * scale, last * scale, _gain(length, scale, wanted, radius))


def _gain(length: int, scale: float, wanted: tuple[int, int], radius: int) -> Float32:
    """Returns the filter's weights ÷ those of them that lie on the `length` pixels of the image."""
    stretch = max(1.0, scale)
    centers = (np.arange(*wanted)[:, None] + 0.5) * scale
    taps = np.floor(centers) + np.arange(-math.ceil(radius * stretch) - 1, math.ceil(radius * stretch) + 2)
    x = np.abs(taps + 0.5 - centers) / stretch
    if radius == 1:
        weights = np.maximum(0, 1 - x)
    else:  # Keys' cubic with a = -0.5, as Pillow has it
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
        weights[x >= 2] = 0
    inside = np.where((taps >= 0) & (taps < length), weights, 0)
    gain: Float32 = (weights.sum(axis=1) / inside.sum(axis=1)).astype(np.float32)
    return gain


class _Pass(NamedTuple):
    """The values of one image for the fields of `AxisPass`."""

    start: list[int]
    shape: list[int]
    size: list[float]
    roi_start: list[float]
    roi_end: list[float]
    gain: Float32


def _first_pass(axes: list[_Axis], order: tuple[int, int]) -> _Pass:
    """Resizes the first axis for those rows or columns of the other that the second pass needs."""
    here, there = order
    axis, other = axes[here], axes[there]
    low, high = max(0, other.low), min(other.length, other.high)
    return _pass(axis, here, low, high)


def _second_pass(axes: list[_Axis], order: tuple[int, int]) -> _Pass:
    done, here = order
    axis = axes[here]
    moved = max(0, axis.low)
    shifted = axis._replace(
        low=axis.low - moved, high=axis.high - moved, first=axis.first - moved, last=axis.last - moved
    )
    return _pass(shifted, here, 0, len(axes[done].gain))


def _pass(axis: _Axis, here: int, low: int, high: int) -> _Pass:
    """Returns the pass of `axis`, the image's axis `here`, over `low` to `high` of the other one."""

    def pair(own: float, other: float) -> list[float]:
        return [own, other] if here == 0 else [other, own]

    count, length = len(axis.gain), high - low
    return _Pass(
        start=[int(v) for v in pair(axis.low, low)],
        shape=[int(v) for v in pair(axis.high - axis.low, length)],
        size=pair(count, length),
        roi_start=pair(axis.first - axis.low, 0),
        roi_end=pair(axis.last - axis.low, length),
        gain=axis.gain.reshape([-1, 1, 1] if here == 0 else [1, -1, 1]),
    )


def _stack(passes: list[_Pass]) -> AxisPass:
    return AxisPass(
        start=np.array([p.start for p in passes], np.int32),
        shape=np.array([p.shape for p in passes], np.int32),
        size=np.array([p.size for p in passes], np.float32),
        roi_start=np.array([p.roi_start for p in passes], np.float32),
        roi_end=np.array([p.roi_end for p in passes], np.float32),
        gain=[p.gain for p in passes],
    )
