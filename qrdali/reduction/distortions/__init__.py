"""Distortions of what a network sees, one in each file: levels to amounts, two operators and an oracle.

To add one, write a file like `contrast.py`, and give its name here and in `qrdali/reduction/names.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qrdali.reduction.counter_rng import normal_field
from qrdali.reduction.distortions.blur import Blur
from qrdali.reduction.distortions.contrast import Contrast
from qrdali.reduction.distortions.gray import Gray
from qrdali.reduction.distortions.interface import Amount, Distortion, Field, Pixels
from qrdali.reduction.distortions.jpeg import Jpeg
from qrdali.reduction.distortions.noise import Noise
from qrdali.reduction.names import DISTORTIONS

_IMPLEMENTED: dict[str, Distortion] = {
    "gray": Gray(),
    "contrast": Contrast(),
    "blur": Blur(),
    "noise": Noise(),
    "jpeg": Jpeg(),
}
BY_NAME: dict[str, Distortion] = {name: _IMPLEMENTED[name] for name in DISTORTIONS}
NO_FIELD = np.zeros((1, 1, 3), np.int16)  # where a graph takes a field that is not used


@dataclass(frozen=True)
class FieldKeys:
    """Says what the noise of N images is drawn by.

    seed: of the run. training: training images and all others have different noise. samples: int64 [N].
    """

    seed: int
    training: bool
    samples: npt.NDArray[np.int64]

    def field(self, i: int, shape: tuple[int, ...]) -> Field:
        """Returns the standard normals of image `i`, which are the same in every epoch."""
        return normal_field(self.seed, int(self.training), int(self.samples[i]), shape)


@dataclass(frozen=True)
class DistortionParams:
    """Holds what one distortion does to N images.

    applied: bool [N]. amount: [N, …], as `Distortion.amounts` gives it.
    """

    name: str
    applied: npt.NDArray[np.bool_]
    amount: Amount
    keys: FieldKeys

    def select(self, mask: npt.NDArray[np.bool_]) -> DistortionParams:
        """Returns the params of those images where `mask`, bool [N], is true."""
        keys = FieldKeys(self.keys.seed, self.keys.training, self.keys.samples[mask])
        return DistortionParams(self.name, self.applied[mask], self.amount[mask], keys)

    def field(self, i: int, shape: tuple[int, ...]) -> Field | None:
        """Returns what is fed in for image `i`: noise, nothing to see if it is not applied, or None."""
        if not BY_NAME[self.name].has_field:
            return None
        return self.keys.field(i, shape) if self.applied[i] else NO_FIELD


def distortion_params(
    qualities: Mapping[str, npt.NDArray[np.float64]], side: int, keys: FieldKeys
) -> tuple[DistortionParams, ...]:
    """Returns the params of N images at qualities [N] by distortion, in the order of `DISTORTIONS`.

    side: pixels of the shorter side of what is distorted.
    """
    return tuple(
        DistortionParams(name, qualities[name] < 1, BY_NAME[name].amounts(qualities[name], side), keys)
        for name in DISTORTIONS
        if name in qualities
    )


def distort(pixels: Pixels, params: Sequence[DistortionParams], i: int) -> Pixels:
    """Returns image `i` of `params` distorted, or `pixels` themselves where nothing is applied to it."""
    for each in params:
        if each.applied[i]:
            field = each.field(i, pixels.shape)
            pixels = BY_NAME[each.name].on_host(pixels, each.amount[i], field)
    return pixels
