"""JPEG: the picture is written as a JPEG file of libjpeg's quality max(1, round(100·q)) and read back.

Quality 1 alone is untouched. Chroma is subsampled (4:2:0), as libjpeg and Pillow do it by default. ImageNet-C
(Hendrycks and Dietterich, ICLR 2019) has the qualities 25, 18, 15, 10 and 7, of pictures of 224×224 pixels.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.distortions.interface import Amount, Field, Pixels, Values
from qrdali.reduction.quality import round_half_up

MAX_SIDE = 65_500  # pixels, of libjpeg
# Tables K.1 and K.2 of Recommendation ITU-T T.81: quantization of luma and chroma at libjpeg's quality 50.
LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
# From RGB to Y, Cb and Cr, of Recommendation ITU-T T.871 (JFIF).
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


class Jpeg:
    """Implements `Distortion`; an amount is libjpeg's quality, int32, 1 to 100; 0 is no JPEG."""

    has_field = False

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        written = np.maximum(1, round_half_up(100 * qualities))
        return np.where(qualities == 1, 0, written).astype(np.int32)

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        from PIL import Image

        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(amount))
        with Image.open(file) as image:
            return np.array(image)

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        return dali.fn.jpeg_compression_distortion(image, quality=amount)

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        return transcoded(pixels, int(amount), smooth_chroma=True)


def transcoded(pixels: Pixels, quality: int, smooth_chroma: bool) -> Values:
    """Returns what a JPEG file of libjpeg's `quality` keeps of an image, by the standards' formulas.

    smooth_chroma: whether chroma is interpolated, as libjpeg does it; DALI's operator on a GPU repeats it.
    """
    height, width = pixels.shape[:2]
    padding = ((0, -height % 16), (0, -width % 16), (0, 0))
    ycc = np.pad(pixels, padding, mode="edge") @ np.array(TO_YCC).T + (0, 128, 128)
    planes = [_quantized(ycc[..., 0], LUMA_TABLE, quality)]
    for channel in (1, 2):
        chroma = ycc[..., channel]
        small = (chroma[::2, ::2] + chroma[::2, 1::2] + chroma[1::2, ::2] + chroma[1::2, 1::2]) / 4
        small = _quantized(small, CHROMA_TABLE, quality)
        small = small[: -(-height // 2), : -(-width // 2)]
        planes.append(_doubled(_doubled(small, 0, smooth_chroma), 1, smooth_chroma))
    cropped = np.stack([plane[:height, :width] for plane in planes], axis=2)
    values: Values = np.clip((cropped - (0, 128, 128)) @ np.linalg.inv(np.array(TO_YCC)).T, 0, 255)
    return values


def _quantized(plane: Values, table: tuple[tuple[int, ...], ...], quality: int) -> Values:
    """Returns a plane whose sides are multiples of 8 after its cosine transform has been quantized."""
    from scipy.fft import dctn, idctn

    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    divisors = np.clip((np.array(table) * percent + 50) // 100, 1, 255)
    height, width = plane.shape
    blocks = np.rint(plane).reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2) - 128
    kept = np.rint(dctn(blocks, axes=(2, 3), norm="ortho") / divisors) * divisors
    values: Values = np.rint(idctn(kept, axes=(2, 3), norm="ortho") + 128)
    plane = values.swapaxes(1, 2).reshape(height, width)
    return np.clip(plane, 0, 255, out=plane)


def _doubled(plane: Values, axis: int, smooth: bool) -> Values:
    """Returns a plane with twice the values along one axis: ¾ of the nearer and ¼ of the further one."""
    if not smooth:
        return np.repeat(plane, 2, axis)
    length = plane.shape[axis]
    before = np.take(plane, np.maximum(np.arange(length) - 1, 0), axis)
    after = np.take(plane, np.minimum(np.arange(length) + 1, length - 1), axis)
    pairs = np.stack([(3 * plane + before) / 4, (3 * plane + after) / 4], axis + 1)
    shape = list(plane.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)
