"""Computes one epoch's order, shards and per-image parameters from (seed, epoch, sample); stores nothing.

Randomness is counter-based (`reduction.counter_rng`). The stream of images therefore does not depend on the
batch size, the number of ranks or where a run was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qrdali.reduction.auto_augment import ImageAugmentation, Policy, erased_windows, parse_policy
from qrdali.reduction.counter_rng import Purpose, keys, philox, uniform
from qrdali.reduction.distortions import DistortionParams, FieldKeys, distortion_params
from qrdali.reduction.levels import Levels
from qrdali.reduction.network_view import RRC_ATTEMPTS, View, random_regions, view, whole_regions
from qrdali.reduction.quality import (
    CENTER,
    QUARTERS,
    LevelScale,
    ReductionParams,
    drawn_offset,
    quality,
    reduction_params,
)

if TYPE_CHECKING:
    from qrdali.models import Preprocessing

Samples = npt.NDArray[np.int64]

_ROUNDS = 6  # of the Feistel network; four make a strong pseudorandom permutation (Luby and Rackoff, 1988)
_BLOCK = 4096  # positions permuted at once: numpy's cost per call spreads over them
_LOW = np.uint64(0xFFFFFFFF)


def permute(positions: Samples, count: int, seed: int, epoch: int) -> Samples:
    """Returns the samples, int64 [N], that a (seed, epoch) shuffle of 0 … count - 1 has at `positions` [N].

    A bijection of 0 … count - 1, computed in memory bounded by N: a Feistel network over the smallest power
    of two that holds `count`, whose result is put in again until it is below `count` (cycle walking; Black
    and Rogaway, 2002).
    """
    bits = max(2, (count - 1).bit_length())
    result = positions.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        low, high = bits // 2, bits - bits // 2
        x = result[outside]
        left, right = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
        for turn in range(_ROUNDS):
            word = philox(seed, (right & _LOW, right >> np.uint64(32), epoch, Purpose.ORDER | turn << 8))[0]
            left, right = right, left ^ (word & np.uint64((1 << high) - 1))
            low, high = high, low
        x = left << np.uint64(low) | right
        result[outside] = x
        outside = outside[x >= count]
    return result.astype(np.int64)


@lru_cache(maxsize=2)
def small_order(count: int, seed: int, epoch: int) -> Samples:
    """Returns a (seed, epoch) shuffle of 0 … count - 1, int64 [count]: any order is as likely as any other.

    The samples are sorted by random keys of 64 bits, ties by number. A Feistel network over so few would be
    far from that.
    """
    return np.argsort(keys(seed, epoch, count, Purpose.SMALL_ORDER), kind="stable")


@lru_cache(maxsize=4)
def _block(number: int, count: int, seed: int, epoch: int) -> Samples:
    positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, count), dtype=np.int64)
    return permute(positions, count, seed, epoch)


@dataclass(frozen=True)
class EpochPlan:
    """Says what one pass over a split is.

    samples: images in the split. batch_size: images of a global batch, all ranks together. levels: which
    level each image has, of those of `scale`.

    training: shuffled by (seed, epoch), with random crop anchors, `augment` ("flip", "rrc" or "none"), the
    operators of the policy `auto_augment` ("" for none) and, with the probability `erase`, a part erased.
    Otherwise, as by default, the pass is an evaluation: in index order, with centre crops, nothing augmented,
    and neither seed nor epoch matters.

    rank, world_size: the shard, which is a part of each batch or, with `whole_batches`, every world_size-th
    batch as it is, so that the network sees the same shapes in a world of any size. first_batch: where to
    begin, for a pass that was interrupted. excluded: samples that are left out of their batches; all others
    stay in theirs. definitions: of order, windows and view, 1 for an epoch that version 0.1 has begun.
    """

    samples: int
    batch_size: int
    levels: Levels
    scale: LevelScale = QUARTERS
    seed: int = 0
    epoch: int = 0
    training: bool = False
    augment: str = "none"
    auto_augment: str = ""
    erase: float = 0.0
    rank: int = 0
    world_size: int = 1
    whole_batches: bool = False
    first_batch: int = 0
    excluded: tuple[int, ...] = ()
    definitions: int = 2

    @property
    def batches(self) -> int:
        """Returns the number of global batches of a whole pass: 3 for 65 images in batches of 32."""
        return -(-self.samples // self.batch_size)

    def batch(self, number: int) -> Samples:
        """Returns the sample numbers of this rank's part of global batch `number`, int64 [N].

        The parts of all ranks, in order, are the whole batch.
        """
        samples = self._batch(number)
        return samples[~np.isin(samples, self.excluded)] if self.excluded else samples

    def count(self, number: int) -> int:
        """Returns how many images global batch `number` has, all ranks together."""
        if not self.excluded:
            return min(self.batch_size, self.samples - number * self.batch_size)
        return len(replace(self, rank=0, world_size=1).batch(number))

    def _batch(self, number: int) -> Samples:
        start = number * self.batch_size
        length = min(self.batch_size, self.samples - start)
        if self.whole_batches:
            first, last = start, start + (length if number % self.world_size == self.rank else 0)
        else:
            first = start + length * self.rank // self.world_size
            last = start + length * (self.rank + 1) // self.world_size
        positions = np.arange(first, last, dtype=np.int64)
        if not self.training:
            return positions
        if self.samples < _BLOCK and self.definitions > 1:
            return small_order(self.samples, self.seed, self.epoch)[first:last]
        # A block would serve few of the steps, and most of it other ranks.
        if self.world_size > 1 and 4 * self.batch_size >= _BLOCK:
            return permute(positions, self.samples, self.seed, self.epoch)
        parts = [
            _block(block, self.samples, self.seed, self.epoch)[
                max(0, first - block * _BLOCK) : last - block * _BLOCK
            ]
            for block in range(first // _BLOCK, -(-last // _BLOCK))
        ]
        return np.concatenate(parts) if parts else positions

    def parameters(self, samples: Samples, sizes: npt.NDArray[np.int32]) -> ReductionParams:
        """Returns the reductions of `samples` [N].

        sizes: [N, 2], their upright heights and widths in pixels.
        """
        if self.training:
            anchors = uniform(self.seed, self.epoch, samples, Purpose.CROP)[:, :2]
        else:
            anchors = np.full((len(samples), 2), CENTER)
        result = reduction_params(self.levels.for_samples(samples), sizes, anchors, self.scale)
        if self.training and self.definitions > 1:
            result.window[:, :2] = drawn_offset(sizes, result.window[:, 2:], anchors)
        origins = self.levels.window_origins(samples)
        if origins is not None:
            result.window[:, :2] = origins
        return result

    def distortions(
        self, samples: Samples, side: int, names: tuple[str, ...] = ()
    ) -> tuple[DistortionParams, ...]:
        """Returns the distortions of `samples` [N], and of `names` those too that they have not.

        side: of the square that the network sees, in pixels. Noise is keyed by (seed, sample), in training
        otherwise than in evaluation, where the seed does not matter.
        """
        of_plan = self.levels.distortions
        levels = {name: self.levels.of_distortion(name, samples) for name in of_plan}
        none = np.zeros(len(samples), np.uint8)
        qualities = {name: quality(levels.get(name, none), self.scale) for name in {*of_plan, *names}}
        field_keys = FieldKeys(self.seed if self.training else 0, self.training, samples)
        return distortion_params(qualities, side, field_keys)

    @property
    def policy(self) -> Policy | None:
        """Returns the policy by which operators are drawn, None for none."""
        return parse_policy(self.auto_augment) if self.training and self.auto_augment else None

    @property
    def erases(self) -> bool:
        """Returns whether parts of images are erased."""
        return self.training and self.erase > 0

    def augmentation(self, samples: Samples, side: int) -> ImageAugmentation | None:
        """Returns what is done to the squares of `side` pixels that the network sees of `samples`; None for
        nothing.
        """
        policy = self.policy
        if policy is None and not self.erases:
            return None
        return ImageAugmentation(
            policy,
            policy.draw(self.seed, self.epoch, samples) if policy else None,
            erased_windows(self.erase, self.seed, self.epoch, samples, side) if self.erases else None,
        )

    def view(self, samples: Samples, sizes: npt.NDArray[np.int32], preprocessing: Preprocessing) -> View:
        """Returns the part of each reduced image that the network sees, and whether it is mirrored.

        sizes: [N, 2] of the reduced images.
        """
        seen = view(sizes, preprocessing)
        if not self.training or self.augment == "none":
            return seen
        if self.augment == "rrc":
            attempts = [
                uniform(self.seed, self.epoch, samples, Purpose.RESIZED_CROP, draw)
                for draw in range(RRC_ATTEMPTS)
            ]
            seen = whole_regions(random_regions(sizes, np.stack(attempts, axis=1)), preprocessing.input_size)
        flip = uniform(self.seed, self.epoch, samples, Purpose.FLIP)[:, 0] < 0.5
        return replace(seen, flip=flip)
