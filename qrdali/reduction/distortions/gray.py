"""Gray: colours fade to their luma, v' = Y + q·(v − Y) with Y = .299 R + .587 G + .114 B.

Luma is that of Recommendation ITU-R BT.601, as in JPEG files and in Pillow's mode L. The quality is the
saturation that is left; every level of the grid is another picture, and at quality 0, which no level reaches,
only gray would be left: the "grayscale" of Geirhos et al. (Generalisation in humans and deep neural networks,
NeurIPS 2018).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.distortions.interface import LOWEST_QUALITY, Amount, Field, Pixels, Values

LUMA = (0.299, 0.587, 0.114)


class Gray:
    """Implements `Distortion`; an amount is the matrix, float32 [3, 3], that a colour is multiplied by."""

    has_field = False

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        saturation = np.maximum(qualities, LOWEST_QUALITY)[:, None, None]
        to_luma = np.tile(np.array(LUMA), (3, 1))
        matrices: Amount = (saturation * np.eye(3) + (1 - saturation) * to_luma).astype(np.float32)
        return matrices

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        faded = pixels.reshape(-1, 3).astype(np.float32) @ amount.T
        rounded: Pixels = np.floor(faded + np.float32(0.5)).astype(np.uint8)
        return rounded.reshape(pixels.shape)

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        # Not `fn.saturation`: its matrices have three digits, which puts it a level off.
        return dali.fn.coord_transform(image, M=amount, dtype=dali.types.UINT8)

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        red, green, blue = np.moveaxis(pixels.astype(np.float64), 2, 0)
        luma = (299 * red + 587 * green + 114 * blue) / 1000
        saturation = float(amount[0, 0] - amount[1, 0])  # the second has only the luma's share
        return np.stack([luma + saturation * (v - luma) for v in (red, green, blue)], axis=2)
