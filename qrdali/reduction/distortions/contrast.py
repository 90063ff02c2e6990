"""Contrast: values draw near to middle gray, v' = 127.5 + q·(v − 127.5).

It is the contrast of Geirhos et al. (Generalisation in humans and deep neural networks, NeurIPS 2018;
`adjust_contrast` in their image_manipulation.py), who went down to 1% on gray pictures of 224×224 pixels.
ImageNet-C draws values near to each picture's own mean instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.distortions.interface import LOWEST_QUALITY, Amount, Field, Pixels, Values

CENTER = 127.5


class Contrast:
    """Implements `Distortion`; an amount is the share of contrast that is left, float32 in (0, 1]."""

    has_field = False

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        return np.maximum(qualities, LOWEST_QUALITY).astype(np.float32)

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        table = CENTER + np.float64(amount) * (np.arange(256) - CENTER)
        rounded: npt.NDArray[np.uint8] = np.floor(table + 0.5).astype(np.uint8)
        return rounded[pixels]

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        return dali.fn.contrast(image, contrast=amount, contrast_center=CENTER)

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        image = pixels / 255  # as the source has it, in 0 … 1
        return 255 * ((1 - float(amount)) / 2 + image * float(amount))
