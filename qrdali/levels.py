"""What level each image has in an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Levels(Protocol):
    """Levels of samples: uint8 [N, 3] in the order color, crop, resolution, for sample numbers int64 [N]."""

    def of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Constant:
    """The same levels for every image."""

    color: int = 0
    crop: int = 0
    resolution: int = 0

    def of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.tile(np.array([self.color, self.crop, self.resolution], np.uint8), (len(samples), 1))


FULL = Constant()


def constant(moving: tuple[bool, bool, bool], level: int) -> Constant:
    """`level` in the dimensions that move, 0 in the others."""
    return Constant(*(level if moves else 0 for moves in moving))
