"""Colour bins in float32 as a GPU's kernel computes them, for every width and value.

DALI's `brightness_contrast` evaluates `convert(value * multiplier + addend)` in float32. A compiler may fuse
the product and the sum into one operation with a single rounding (FMA) or leave both roundings, and
conversion to an integer rounds ties to even on a GPU and away from zero on a CPU. The result must not depend
on any of that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

Floats = npt.NDArray[np.float32]

WIDTHS = range(1, 257)
VALUES = np.arange(256, dtype=np.float32)


def separate(value: Floats, multiplier: np.float32, addend: np.float32) -> Floats:
    """Rounds the product, then the sum."""
    return value * multiplier + addend


def fused(value: Floats, multiplier: np.float32, addend: np.float32) -> Floats:
    """Rounds once. A product of two float32 has at most 48 bits, so extended precision holds it exactly."""
    exact = value.astype(np.longdouble) * np.longdouble(multiplier) + np.longdouble(addend)
    return exact.astype(np.float32)


def ties_to_even(value: Floats) -> Floats:
    return np.rint(value)


def ties_away(value: Floats) -> Floats:
    return np.trunc(value + np.copysign(np.float32(0.5), value))


def plain_addend(shift: np.float32, multiplier: np.float32) -> np.float32:
    """Returns the addend of a formula that leaves a contrast of 1 out."""
    return shift * np.float32(255)


def centered_addend(shift: np.float32, multiplier: np.float32) -> np.float32:
    """Returns the addend of the documented formula, with a contrast of 1 about the middle of the range."""
    center = np.float32(128)
    return shift * np.float32(255) + multiplier * (center - np.float32(1) * center)


Affine = Callable[[Floats, np.float32, np.float32], Floats]
Rounding = Callable[[Floats], Floats]
Addend = Callable[[np.float32, np.float32], np.float32]


@pytest.mark.parametrize("addend", [plain_addend, centered_addend])
@pytest.mark.parametrize("rounding", [ties_to_even, ties_away])
@pytest.mark.parametrize("affine", [separate, fused])
def test_bins_are_exact_in_float32(affine: Affine, rounding: Rounding, addend: Addend) -> None:
    wrong = [d for d in WIDTHS if not np.array_equal(_binned(d, affine, rounding, addend), _expected(d))]
    assert wrong == []


def test_no_value_comes_near_a_tie() -> None:
    """The first map stays 1/512 from every tie, half a value of the widest bin: far above float32's error."""
    distances = []
    for d in WIDTHS:
        exact = (np.arange(256) - (d - 1) / 2) / d
        distances.append(np.abs(exact - np.floor(exact) - 0.5).min())
    assert min(distances) >= 1 / 512


def _binned(d: int, affine: Affine, rounding: Rounding, addend: Addend) -> npt.NDArray[np.int64]:
    """Applies the two maps of `dali_ops.color_any`, with arguments computed in its graph's order."""
    one, width = np.float32(1), np.float32(d)
    brightness = one / width
    shift = -(width - one) / np.float32(2) / width / np.float32(255)
    bin_index = _saturate(rounding(affine(VALUES, brightness, addend(shift, brightness))))
    shift = np.float32(d // 2) / np.float32(255)
    return _saturate(rounding(affine(bin_index.astype(np.float32), width, addend(shift, width))))


def _saturate(value: Floats) -> npt.NDArray[np.int64]:
    return np.clip(value, 0, 255).astype(np.int64)


def _expected(d: int) -> npt.NDArray[np.int64]:
    value = np.arange(256)
    return np.minimum(255, value // d * d + d // 2)
