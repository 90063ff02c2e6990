"""Draws what RandAugment, TrivialAugment, AugMix and random erasing do to each training image.

Only numbers are made here, by (seed, epoch, sample): the pixels are `pipelines.host_augment`'s and
`pipelines.dali_augment`'s. Operators, their order, their tables of magnitudes and their signs are those of
torchvision's RandAugment, TrivialAugmentWide and AugMix (torchvision/transforms/autoaugment.py); neither
torchvision nor DALI draws anything.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from qrdali.reduction.counter_rng import Purpose, Samples, uniform

Float64 = npt.NDArray[np.float64]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

# A number drawn is a place in this order: another one would change what is drawn.
OPERATORS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
IDENTITY = OPERATORS.index("identity")
_SIGNED = np.array([1 <= number <= 9 for number in range(len(OPERATORS))])  # shear_x to sharpness
RAND_OPERATORS = 2  # that RandAugment applies to an image, one after the other
RAND_BINS = 31  # magnitudes of an operator of RandAugment and TrivialAugment
AUGMIX_WIDTH = 3  # chains of AugMix
AUGMIX_DEPTH = 3  # operators of a chain, at most: 1, 2 or 3
AUGMIX_BINS = 10
AUGMIX_SEVERITY = 3  # of these bins, the lowest so many are drawn

# Ranges of random erasing, as of torchvision's RandomErasing.
ERASE_AREA = (0.02, 0.33)  # share of the image's area
ERASE_RATIO = (0.3, 3.3)  # height ÷ width
ERASE_ATTEMPTS = 10

AUGMIX_ON_GPU = "augmix is made on a CPU only: use rand-m9 or trivial on a GPU, or device cpu"

_RAND = re.compile(r"rand-m([0-9]|[12][0-9]|30)")


class OperatorDraws(NamedTuple):
    """Holds which K operators each of N images goes through, one after the other.

    operator: uint8 [N, K], numbers of OPERATORS. bin: uint8 [N, K], columns of `Policy.magnitudes`. negative:
    bool [N, K], whether the magnitude is negated. weights: of AugMix, float64 [N, 1 + AUGMIX_WIDTH] with sum
    1, of the image itself and of its chains, each of which has AUGMIX_DEPTH of the K operators; else None.
    """

    operator: UInt8
    bin: UInt8
    negative: Bool
    weights: Float64 | None = None

    def select(self, mask: Bool) -> OperatorDraws:
        """Returns the draws of those images where `mask`, bool [N], is true."""
        weights = None if self.weights is None else self.weights[mask]
        return OperatorDraws(self.operator[mask], self.bin[mask], self.negative[mask], weights)


@dataclass(frozen=True)
class Policy:
    """Says how operators are drawn.

    name: as the option has it. kind: "rand", "trivial" or "augmix". bin: the magnitude of all operators of
    "rand", 0 to 30.
    """

    name: str
    kind: Literal["rand", "trivial", "augmix"]
    bin: int = 0

    @property
    def operators(self) -> int:
        """Returns how many operators an image goes through."""
        return {"rand": RAND_OPERATORS, "trivial": 1, "augmix": AUGMIX_WIDTH * AUGMIX_DEPTH}[self.kind]

    def magnitudes(self, side: int) -> Float64:
        """Returns the magnitudes of all operators on a square of `side` pixels, float64 [14, bins].

        Shears: the tangent of the angle. Translations: pixels, of which the whole part counts. Rotation:
        degrees, counterclockwise. brightness to sharpness: the factor less 1. posterize: bits that are kept.
        solarize: the value from which on values are inverted. The others have none, which is 0.
        """
        bins = AUGMIX_BINS if self.kind == "augmix" else RAND_BINS
        wide = self.kind == "trivial"
        translation = {"rand": 150 / 331 * side, "trivial": 32.0, "augmix": side / 3}[self.kind]
        most_bits, range_of_bits = {"rand": (8, 4), "trivial": (8, 6), "augmix": (4, 4)}[self.kind]
        ends = {
            "shear_x": 0.99 if wide else 0.3,
            "shear_y": 0.99 if wide else 0.3,
            "translate_x": translation,
            "translate_y": translation,
            "rotate": 135.0 if wide else 30.0,
            **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 0.99 if wide else 0.9),
        }
        table = np.zeros((len(OPERATORS), bins))
        for name, end in ends.items():
            table[OPERATORS.index(name)] = np.linspace(0, end, bins)
        steps = np.arange(bins) / ((bins - 1) / range_of_bits)
        table[OPERATORS.index("posterize")] = most_bits - np.rint(steps)
        table[OPERATORS.index("solarize")] = np.linspace(255, 0, bins)
        return table

    def draw(self, seed: int, epoch: int, samples: Samples) -> OperatorDraws:
        """Returns what `samples`, int64 [N], go through in an epoch."""
        numbers = np.stack(
            [uniform(seed, epoch, samples, Purpose.AUTO_AUGMENT, k) for k in range(self.operators)], axis=1
        )
        if self.kind == "augmix":
            return _augmix(numbers, seed, epoch, samples)
        operator = (numbers[..., 0] * len(OPERATORS)).astype(np.uint8)
        if self.kind == "rand":
            chosen = np.full(operator.shape, self.bin, np.uint8)
        else:
            chosen = (numbers[..., 2] * RAND_BINS).astype(np.uint8)
        return OperatorDraws(operator, chosen, _negative(numbers, operator))


def _augmix(numbers: Float64, seed: int, epoch: int, samples: Samples) -> OperatorDraws:
    """Returns the draws of AugMix. numbers: uniforms [N, K, 4] of the operators.

    Every operator but the identity may come; places beyond a chain's depth have the identity. The weights are
    those of the AugMix paper with alpha = 1: Dirichlet(1, 1, 1) of the chains, and Beta(1, 1), which is
    uniform, of what they make together.
    """
    count, first = len(samples), AUGMIX_WIDTH * AUGMIX_DEPTH
    operator = (1 + numbers[..., 0] * (len(OPERATORS) - 1)).astype(np.uint8)
    depths = uniform(seed, epoch, samples, Purpose.AUTO_AUGMENT, first)[:, :AUGMIX_WIDTH]
    depth = 1 + (depths * AUGMIX_DEPTH).astype(np.int64)
    beyond = np.arange(AUGMIX_DEPTH) >= depth[:, :, None]
    operator[beyond.reshape(count, -1)] = IDENTITY
    chosen = (numbers[..., 2] * AUGMIX_SEVERITY).astype(np.uint8)
    shares = uniform(seed, epoch, samples, Purpose.AUTO_AUGMENT, first + 1)
    # Exponential variables, divided by their sum, are Dirichlet(1, 1, 1). Half a step of 2^-32 keeps the sum
    # from 0.
    exponential = -np.log1p(-(shares[:, :AUGMIX_WIDTH] + 2.0**-33))
    chains = exponential / exponential.sum(axis=1, keepdims=True)
    own = shares[:, AUGMIX_WIDTH:]
    weights = np.concatenate([own, (1 - own) * chains], axis=1)
    return OperatorDraws(operator, chosen, _negative(numbers, operator), weights)


def _negative(numbers: Float64, operator: UInt8) -> Bool:
    result: Bool = (numbers[..., 1] < 0.5) & _SIGNED[operator]
    return result


def parse_policy(name: str) -> Policy:
    """Returns the policy of a name: rand-m0 to rand-m30, trivial or augmix. Raises ValueError for others."""
    if match := _RAND.fullmatch(name):
        return Policy(name, "rand", int(match[1]))
    if name == "trivial":
        return Policy(name, "trivial")
    if name == "augmix":
        return Policy(name, "augmix")
    raise ValueError("give rand-mM with M from 0 to 30, such as rand-m9, or trivial, or augmix")


def erased_windows(
    probability: float, seed: int, epoch: int, samples: Samples, side: int
) -> npt.NDArray[np.int32]:
    """Returns what is erased of squares of `side` pixels: int32 [N, 4] top, left, height, width.

    All four are 0 for an image of which nothing is erased. Area and ratio (log-uniform) are drawn until the
    window is smaller than the square, ten times at most, as torchvision's RandomErasing does it.
    """
    chosen = uniform(seed, epoch, samples, Purpose.ERASE)[:, 0] < probability
    draws = np.stack(
        [uniform(seed, epoch, samples, Purpose.ERASE, 1 + k) for k in range(ERASE_ATTEMPTS)], axis=1
    )
    area = side * side * (ERASE_AREA[0] + draws[..., 0] * (ERASE_AREA[1] - ERASE_AREA[0]))
    low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
    ratio = np.exp(low + draws[..., 1] * (high - low))
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (height < side) & (width < side)
    pick = fits.argmax(axis=1)[:, None]
    h, w, top, left = (
        np.take_along_axis(a, pick, 1)[:, 0] for a in (height, width, draws[..., 2], draws[..., 3])
    )
    windows = np.stack([np.floor(top * (side - h + 1)), np.floor(left * (side - w + 1)), h, w], axis=1)
    windows[~chosen | ~fits.any(axis=1)] = 0
    return windows.astype(np.int32)


class ImageAugmentation(NamedTuple):
    """Holds what is done to the squares that a network sees of N images.

    policy, draws: which operators, None for none. erased: int32 [N, 4], as `erased_windows` gives it, None
    where nothing is ever erased.
    """

    policy: Policy | None
    draws: OperatorDraws | None
    erased: npt.NDArray[np.int32] | None

    def select(self, mask: Bool) -> ImageAugmentation:
        """Returns the augmentation of those images where `mask`, bool [N], is true."""
        return ImageAugmentation(
            self.policy,
            None if self.draws is None else self.draws.select(mask),
            None if self.erased is None else self.erased[mask],
        )
