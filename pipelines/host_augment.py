"""Augments the squares that a network sees, on the host; dali_augment.py is the twin in a DALI graph.

The pixels are made by torchvision's functional operators of Pillow images, which draw nothing: `Policy.draw`
has drawn operators, magnitudes and signs. As in torchvision, what lies beyond the image is black.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qrdali.reduction.auto_augment import (
    AUGMIX_DEPTH,
    AUGMIX_WIDTH,
    IDENTITY,
    OPERATORS,
    ImageAugmentation,
    OperatorDraws,
    Policy,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from torchvision.transforms import InterpolationMode

Pixels = npt.NDArray[np.uint8]
Operator = Callable[["Image", float, "InterpolationMode"], "Image"]


def augment(pixels: Pixels, augmentation: ImageAugmentation, i: int) -> Pixels:
    """Returns the augmented square of image `i`, uint8 [S, S, 3]: operators only, nothing is erased."""
    policy, draws = augmentation.policy, augmentation.draws
    if policy is None or draws is None:
        return pixels
    if draws.weights is not None:
        return _augmix(pixels, policy, draws, i)
    return _through(pixels, policy, draws, i, range(policy.operators))


def erase(target: npt.NDArray[np.float32], augmentation: ImageAugmentation, i: int) -> None:
    """Sets the window that is erased of image `i` to 0 in a normalised square, float32 [S, S, 3].

    0 is the mean colour.
    """
    if augmentation.erased is not None:
        top, left, height, width = augmentation.erased[i].tolist()
        target[top : top + height, left : left + width] = 0


def _augmix(pixels: Pixels, policy: Policy, draws: OperatorDraws, i: int) -> Pixels:
    assert draws.weights is not None
    weights = draws.weights[i].astype(np.float32)
    mixed = weights[0] * pixels.astype(np.float32)
    for chain in range(AUGMIX_WIDTH):
        places = range(chain * AUGMIX_DEPTH, (chain + 1) * AUGMIX_DEPTH)
        mixed += weights[1 + chain] * _through(pixels, policy, draws, i, places)
    rounded: Pixels = np.floor(mixed + np.float32(0.5)).clip(0, 255).astype(np.uint8)
    return rounded


def _through(pixels: Pixels, policy: Policy, draws: OperatorDraws, i: int, places: range) -> Pixels:
    """Returns what the operators drawn at `places` make of a square, one after the other."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode

    wanted = [place for place in places if draws.operator[i, place] != IDENTITY]
    if not wanted:
        return pixels
    magnitudes, functions = _magnitudes(policy, len(pixels)), _operators()
    mode = InterpolationMode.BILINEAR if policy.kind == "augmix" else InterpolationMode.NEAREST
    image = Image.fromarray(np.ascontiguousarray(pixels))
    for place in wanted:
        operator = int(draws.operator[i, place])
        magnitude = magnitudes[operator][draws.bin[i, place]]
        image = functions[operator](image, -magnitude if draws.negative[i, place] else magnitude, mode)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _magnitudes(policy: Policy, side: int) -> list[list[float]]:
    table: list[list[float]] = policy.magnitudes(side).tolist()
    return table


@lru_cache(maxsize=1)
def _operators() -> tuple[Operator, ...]:
    """Returns the functions of OPERATORS: of an image, a signed magnitude and how pixels are interpolated."""
    from torchvision.transforms import functional as F

    def affine(image: Image, mode: InterpolationMode, **values: Any) -> Image:
        whole = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **values}
        sheared: Image = F.affine(image, interpolation=mode, **whole)
        return sheared

    def degrees(tangent: float) -> float:
        return math.degrees(math.atan(tangent))

    functions: dict[str, Operator] = {
        "identity": lambda image, m, mode: image,
        "shear_x": lambda image, m, mode: affine(image, mode, shear=[degrees(m), 0.0], center=[0, 0]),
        "shear_y": lambda image, m, mode: affine(image, mode, shear=[0.0, degrees(m)], center=[0, 0]),
        "translate_x": lambda image, m, mode: affine(image, mode, translate=[int(m), 0]),
        "translate_y": lambda image, m, mode: affine(image, mode, translate=[0, int(m)]),
        "rotate": lambda image, m, mode: F.rotate(image, m, interpolation=mode),
        "brightness": lambda image, m, mode: F.adjust_brightness(image, 1 + m),
        "color": lambda image, m, mode: F.adjust_saturation(image, 1 + m),
        "contrast": lambda image, m, mode: F.adjust_contrast(image, 1 + m),
        "sharpness": lambda image, m, mode: F.adjust_sharpness(image, 1 + m),
        "posterize": lambda image, m, mode: F.posterize(image, int(m)),
        "solarize": lambda image, m, mode: F.solarize(image, m),
        "auto_contrast": lambda image, m, mode: F.autocontrast(image),
        "equalize": lambda image, m, mode: F.equalize(image),
    }
    return tuple(functions[name] for name in OPERATORS)
