"""Draws how the images of a training step are mixed with one another: mixup and CutMix.

mixup: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. CutMix: Yun et al., "CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019. The formulas are
timm's (timm/data/mixup.py): one share and one box for all images of a step, and with both methods each comes
in half of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.reduction.counter_rng import Purpose, uniform

_POSITION_BITS = 20  # of a position in a batch: MAX_BATCH of `runs.settings` is 2^20


class Box(NamedTuple):
    """Holds a rectangle of a square image, in pixels; bottom and right lie outside."""

    top: int
    left: int
    bottom: int
    right: int


class Mix(NamedTuple):
    """Holds how N images of a step are mixed.

    share: of an image itself, in [0, 1]; its partner has the rest. partner: int64 [N], the positions of the
    partners. box: what CutMix takes from the partner, None for mixup.
    """

    share: float
    partner: npt.NDArray[np.int64]
    box: Box | None


@dataclass(frozen=True)
class MixRule:
    """Says how shares are drawn: from Beta(mixup, mixup), from Beta(cutmix, cutmix), or from either.

    mixup, cutmix: 0 is never. seed: 0 to 2^63 - 1. side: of the images, in pixels.
    """

    mixup: float
    cutmix: float
    seed: int
    side: int

    @property
    def mixes(self) -> bool:
        """Returns whether images are mixed at all."""
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, epoch: int, step: int, count: int) -> Mix:
        """Returns the mix of the `count` images that a process has of a step.

        Keyed by (seed, epoch, step): share and box are the same in all processes; partners are of the same
        process.
        """
        numbers = uniform(self.seed, epoch, np.array([step], np.int64), Purpose.MIX)[0].tolist()
        cuts = self.cutmix > 0 and (not self.mixup or numbers[0] < 0.5)
        share = _beta(self.cutmix if cuts else self.mixup, numbers[1])
        places = (np.int64(step) << _POSITION_BITS) + np.arange(count, dtype=np.int64)
        order = np.argsort(uniform(self.seed, epoch, places, Purpose.PARTNER)[:, 0], kind="stable")
        if not cuts:
            return Mix(share, order, None)
        center = math.floor(numbers[2] * self.side), math.floor(numbers[3] * self.side)
        box = cut_box(share, self.side, center)
        # What lies beyond the border is not cut, so that the image keeps more than was drawn.
        area = (box.bottom - box.top) * (box.right - box.left)
        return Mix(1 - area / self.side**2, order, box)


def cut_box(share: float, side: int, center: tuple[int, int]) -> Box:
    """Returns the square that leaves `share` of an image, around `center` (row, column), less what lies
    beyond the image."""
    length = int(side * math.sqrt(1 - share))
    row, column = center
    low, high = length // 2, (length + 1) // 2
    return Box(max(0, row - low), max(0, column - low), min(side, row + high), min(side, column + high))


def _beta(alpha: float, uniform_number: float) -> float:
    """Returns the quantile of Beta(alpha, alpha) at a number in [0, 1)."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, uniform_number))
