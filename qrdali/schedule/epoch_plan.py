"""One epoch's order, shards and per-image parameters, computed from (seed, epoch, sample) and stored nowhere.

Randomness is counter-based: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) with the seed as its key and (sample, epoch, purpose) as its counter. The stream therefore does not depend on
the batch size, the number of ranks or where a run was interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from qrdali.reduction.counter_rng import CROP, FLIP, ORDER, RESIZED_CROP, philox, uniform
from qrdali.reduction.levels import Levels
from qrdali.reduction.quality import CENTER, ReductionParams, reduction_params
from qrdali.reduction.view import View, random_view, view

Samples = npt.NDArray[np.int64]

_ROUNDS = 6  # of the Feistel network; four make a strong pseudorandom permutation (Luby and Rackoff, 1988)
_BLOCK = 4096  # positions permuted at once: numpy's cost per call spreads over them
_LOW = np.uint64(0xFFFFFFFF)


def permute(positions: Samples, count: int, seed: int, epoch: int) -> Samples:
    """Where a (seed, epoch) shuffle of 0..count-1 puts `positions`: a bijection, in memory bounded by `positions`.

    A Feistel network over the smallest power of two that holds `count`, walked until it lands inside.
    """
    bits = max(2, (count - 1).bit_length())
    result = positions.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        low, high = bits // 2, bits - bits // 2
        x = result[todo]
        left, right = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
        for turn in range(_ROUNDS):
            word = philox(seed, (right & _LOW, right >> np.uint64(32), epoch, ORDER | turn << 8))[0]
            left, right = right, left ^ (word & np.uint64((1 << high) - 1))
            low, high = high, low
        x = left << np.uint64(low) | right
        result[todo] = x
        todo = todo[x >= count]
    return result.astype(np.int64)


@lru_cache(maxsize=4)
def _block(number: int, count: int, seed: int, epoch: int) -> Samples:
    positions = np.arange(number * _BLOCK, min((number + 1) * _BLOCK, count), dtype=np.int64)
    return permute(positions, count, seed, epoch)


@dataclass(frozen=True)
class EpochPlan:
    """One pass over a split.

    samples: images in the split. batch_size: images of a global batch, all ranks together. levels: what level each
    image has, on the grid of the quality step 1/n. training: shuffled, random crop anchors, and `augment` ("flip",
    "rrc" or "none"); otherwise in index order with centre crops. rank, world: the shard, a part of each batch or, with
    `whole`, every world-th batch as it is, so that the network sees the same shapes in any world. first_batch: where to begin,
    for a pass that was interrupted. without: samples that are left out of their batches; all others stay in theirs.
    """

    samples: int
    batch_size: int
    levels: Levels
    num_levels: int = 4
    seed: int = 0
    epoch: int = 0
    training: bool = False
    augment: str = "none"
    rank: int = 0
    world_size: int = 1
    whole_batches: bool = False
    first_batch: int = 0
    excluded: tuple[int, ...] = ()

    @property
    def batches(self) -> int:
        """Global batches of a whole pass; the last may be partial."""
        return -(-self.samples // self.batch_size)

    def batch(self, number: int) -> Samples:
        """Sample numbers of this rank's part of global batch `number`; ranks in order give the whole batch."""
        samples = self._batch(number)
        return samples[~np.isin(samples, self.excluded)] if self.excluded else samples

    def count(self, number: int) -> int:
        """Images of global batch `number`, all ranks together."""
        if not self.excluded:
            return min(self.batch_size, self.samples - number * self.batch_size)
        return len(replace(self, rank=0, world_size=1).batch(number))

    def _batch(self, number: int) -> Samples:
        start = number * self.batch_size
        length = min(self.batch_size, self.samples - start)
        if self.whole_batches:
            first, last = start, start + (length if number % self.world_size == self.rank else 0)
        else:
            first, last = (
                start + length * self.rank // self.world_size,
                start + length * (self.rank + 1) // self.world_size,
            )
        positions = np.arange(first, last, dtype=np.int64)
        if not self.training:
            return positions
        if (
            self.world_size > 1 and 4 * self.batch_size >= _BLOCK
        ):  # a block would serve few steps, and most of it other ranks
            return permute(positions, self.samples, self.seed, self.epoch)
        parts = [
            _block(block, self.samples, self.seed, self.epoch)[
                max(0, first - block * _BLOCK) : last - block * _BLOCK
            ]
            for block in range(first // _BLOCK, -(-last // _BLOCK))
        ]
        return np.concatenate(parts) if parts else positions

    def parameters(self, samples: Samples, sizes: npt.NDArray[np.int32]) -> ReductionParams:
        """The reductions of `samples` [N], whose upright sizes (height, width) are `sizes` [N, 2]."""
        if self.training:
            anchors = uniform(self.seed, self.epoch, samples, CROP)[:, :2]
        else:
            anchors = np.full((len(samples), 2), CENTER)
        result = reduction_params(self.levels.for_samples(samples), sizes, anchors, self.num_levels)
        places = self.levels.window_origins(samples)
        if places is not None:
            result.window[:, :2] = places
        return result

    def view(self, samples: Samples, sizes: npt.NDArray[np.int32], fit: str, crop_share: float) -> View:
        """The part of each reduced image of `sizes` [N, 2] that the network sees, and whether it is mirrored."""
        seen = view(sizes, fit, crop_share)
        if not self.training or self.augment == "none":
            return seen
        flip = uniform(self.seed, self.epoch, samples, FLIP)[:, 0] < 0.5
        if self.augment == "rrc":
            draws = np.stack(
                [uniform(self.seed, self.epoch, samples, RESIZED_CROP, draw) for draw in range(10)], axis=1
            )
            return View(random_view(sizes, draws), flip)
        return View(seen.region, flip)
