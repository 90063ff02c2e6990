"""Noise: a normal variable is added to each value, v' = v + 255·σ·z with σ = .226·√(1/q − 1).

.226 is the standard deviation of ImageNet's values in 0 … 1 (the mean of the .229, .224 and .225 that
networks are normalised by), so that the share q of a noisy picture's variance is the picture's, before values
are cut to 0 … 255. At q = .75, .5 and .25 σ is .13, .23 and .39: ImageNet-C's `gaussian_noise` (Hendrycks and
Dietterich, ICLR 2019) has .08, .12, .18, .26 and .38.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.counter_rng import NORMAL_UNIT
from qrdali.reduction.distortions.interface import LOWEST_QUALITY, Amount, Field, Pixels, Values

IMAGENET_STD = 0.226


class Noise:
    """Implements `Distortion`; an amount is the σ of values in 0 … 1, float32, 3.6 at most."""

    has_field = True

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        kept = np.maximum(qualities, LOWEST_QUALITY)
        return (IMAGENET_STD * np.sqrt(1 / kept - 1)).astype(np.float32)

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        assert field is not None, "noise is drawn by whoever calls"
        noisy = field * np.float32(amount * 255 * NORMAL_UNIT)
        noisy += pixels
        noisy += np.float32(0.5)
        rounded: Pixels = np.floor(noisy, out=noisy).clip(0, 255).astype(np.uint8)
        return rounded

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        return dali.fn.cast(image + field * (amount * (255 * NORMAL_UNIT)), dtype=dali.types.UINT8)

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        assert field is not None, "noise is drawn by whoever calls"
        image = pixels / 255
        return np.clip(image + float(amount) * (field / 4096), 0, 1) * 255
