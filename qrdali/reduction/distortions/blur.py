"""Blur: a Gaussian of σ = S·(3/224)·√(1/q − 1), S the shorter side in pixels; 3 pixels of 224 at q = .5.

Of a picture that a Gaussian of 3/224 of its side has blurred already, it leaves the share q of the
independent samples, whose number falls with the variance. At q = .75, .5 and .25 σ is 1.7, 3 and 5.2 pixels
of 224: ImageNet-C's `gaussian_blur` has 1, 2, 3, 4 and 6, the low-pass of Geirhos et al. (2018) 1 to 40. The
window reaches ceil(3σ) pixels to each side, and pixels beyond the edge are those before it (… c b a b c …).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.distortions.interface import LOWEST_QUALITY, Amount, Field, Pixels, Values

UNIT = 3 / 224  # share of the shorter side: σ at quality .5
LEAST = 0.25  # pixels: no σ up to here changes a value of 8 bits, so that all of them are one
_MATRIX_LENGTH = 512  # pixels: up to here a product of matrices takes less time than transforms


class Blur:
    """Implements `Distortion`; an amount is σ in pixels, float32, from `LEAST` up to .214·S."""

    has_field = False

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        kept = np.maximum(qualities, LOWEST_QUALITY)
        return np.maximum(LEAST, side * UNIT * np.sqrt(1 / kept - 1)).astype(np.float32)

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        blurred = pixels.astype(np.float32)
        for axis in (0, 1):
            blurred = _blur_axis(blurred, axis, float(amount))
        rounded: Pixels = np.floor(blurred + np.float32(0.5)).clip(0, 255).astype(np.uint8)
        return rounded

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        return dali.fn.gaussian_blur(image, sigma=amount)

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        from scipy.ndimage import correlate1d

        blurred = pixels.astype(np.float64)
        for axis in (0, 1):
            half = _weights(pixels.shape[axis], float(amount))
            blurred = correlate1d(blurred, np.concatenate([half[:0:-1], half]), axis, mode="mirror")
        return blurred


def _weights(length: int, sigma: float) -> Values:
    """Returns the window's weights from its middle to one end, float64 [radius + 1], normalised.

    Its radius is ceil(3σ), or less where an axis of `length` pixels has fewer to mirror.
    """
    radius = min(math.ceil(3 * sigma), length - 2)
    if radius < 1:
        return np.ones(1)
    weights: Values = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights[0] + 2 * weights[1:].sum()
    return weights


def _blur_axis(values: npt.NDArray[np.float32], axis: int, sigma: float) -> npt.NDArray[np.float32]:
    """Returns `values` [H, W, 3] convolved along axis 0 or 1, in a time that no σ changes."""
    from scipy.fft import dct, idct

    length = values.shape[axis]
    weights = _weights(length, sigma)
    if len(weights) == 1:
        return values
    lines = np.moveaxis(values, axis, 0).reshape(length, -1)
    if length <= _MATRIX_LENGTH:
        blurred = _matrix(length, sigma) @ lines
    else:
        # The cosine transform of type 1 is that of a line mirrored about its first and last pixel.
        response = dct(np.pad(weights, (0, length - len(weights))), type=1).astype(np.float32)
        blurred = idct(dct(lines, type=1, axis=0) * response[:, None], type=1, axis=0)
    across = values.shape[1 - axis]
    return np.moveaxis(blurred.reshape(length, across, 3), 0, axis)


@lru_cache(maxsize=64)
def _matrix(length: int, sigma: float) -> npt.NDArray[np.float32]:
    """Returns the convolution of a mirrored line of `length` pixels as a matrix, float32 [length, length]."""
    weights = _weights(length, sigma)
    rows, last = np.arange(length), length - 1
    matrix = np.zeros((length, length))
    for offset in range(1 - len(weights), len(weights)):
        columns = np.abs(rows + offset)
        # No row is hit twice by one offset.
        matrix[rows, np.minimum(columns, 2 * last - columns)] += weights[abs(offset)]
    return matrix.astype(np.float32)
