"""Draws counter-based random numbers: functions of (seed, epoch, sample, purpose), in whatever order.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the
seed as its key and (sample, epoch, purpose and draw) as its counter. Streams are keyed by the tuple, never by
a sum such as seed + epoch, whose neighbours would share numbers. Numbers of purposes are fixed: another one
would change the runs of the version before.

| purpose | what it draws (where) | counter besides it | draws |
|---|---|---|---|
| ORDER | the shuffle of an epoch (`epoch_plan`) | epoch, half of a position | one a Feistel round |
| CROP | where a training crop lies (`epoch_plan`) | epoch, sample | one |
| FLIP | whether a training image is mirrored (`epoch_plan`) | epoch, sample | one |
| RESIZED_CROP | the random resized crop (`epoch_plan`) | epoch, sample | ten attempts |
| LEVEL | the level of `random` (`levels`) | epoch, sample | one |
| ONLINE | where a step of online feedback crops (`probe`) | 0, sample | one a step |
| CHOICE | which images a sample of a set holds (`shuffled`) | CRC-32 of a name, position | one |
| SMALL_ORDER | the shuffle of an epoch of few images (`epoch_plan`) | epoch, sample | one |
| NOISE | the field of the distortion noise (`distortions`) | 1 in training, else 0; sample | one for 8 |
| AUTO_AUGMENT | operators, magnitudes and signs (`auto_augment`) | epoch, sample | one each, AugMix 11 |
| ERASE | whether and where an image is erased (`auto_augment`) | epoch, sample | one and ten attempts |
| MIX | mixup or CutMix, its share and its box (`mixing`) | epoch, step | one |
| PARTNER | which images are mixed (`mixing`) | epoch, step and position | one |
"""

from __future__ import annotations

import math
import zlib
from enum import IntEnum
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Samples = npt.NDArray[np.int64]


class Purpose(IntEnum):
    """Names what a stream of numbers is drawn for; see the table above."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    RESIZED_CROP = 4
    LEVEL = 5
    ONLINE = 6
    CHOICE = 7
    SMALL_ORDER = 8
    NOISE = 9
    AUTO_AUGMENT = 10
    ERASE = 11
    MIX = 12
    PARTNER = 13


NORMAL_UNIT = 1 / 4096  # of `normal_field`: int16 has room for ±8, and half the bytes of floats
MAX_NORMALS = 1 << 27  # of a field: 8 for each of 2^24 draws
_LOW = np.uint64(0xFFFFFFFF)
_NORMALS_AT_ONCE = 1 << 20  # so that the memory is bounded


def philox(key: int, counter: tuple[Words | int, Words | int, int, Words | int]) -> tuple[Words, ...]:
    """Returns the four 32-bit words of Philox4x32-10, each as uint64 [N].

    key: 64 bits. counter: four 32-bit words. Words of the counter that are arrays are broadcast: one call
    serves a whole batch.
    """
    x0, x1, x2, x3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    shift = np.uint64(32)
    for _ in range(10):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1, x2, x3 = (
            (p1 >> shift) ^ x1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> shift) ^ x3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3


def uniform(
    seed: int, epoch: int, samples: Samples, purpose: Purpose, draw: int = 0
) -> npt.NDArray[np.float64]:
    """Returns four independent uniforms in [0, 1) per sample, float64 [N, 4].

    Keyed by (seed, epoch, sample, purpose, draw). seed: 0 to 2^63 - 1. purpose: stands in the low byte of the
    counter's last word; `draw` counts in the rest.
    """
    s = samples.astype(np.uint64)
    words = philox(seed, (s & _LOW, s >> np.uint64(32), epoch, purpose | draw << 8))
    return np.stack(words, axis=1).astype(np.float64) / 2.0**32


def keys(seed: int, epoch: int, count: int, purpose: Purpose) -> Words:
    """Returns a random key of 64 bits for each sample 0 … count - 1, uint64 [count].

    Keyed as in `uniform`, whose first two words of 32 bits are its halves.
    """
    samples = np.arange(count, dtype=np.uint64)
    high, low, _, _ = philox(seed, (samples & _LOW, samples >> np.uint64(32), epoch, purpose))
    result: Words = high << np.uint64(32) | low
    return result


def normal_field(seed: int, stream: int, sample: int, shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    """Returns independent standard normals of one sample in units of `NORMAL_UNIT`, int16 of `shape`.

    Keyed by (seed, stream, sample). Each is the quantile of 16 bits, (k + ½) / 2^16, so that none is beyond
    ±4.3. Raises ValueError for more than `MAX_NORMALS`.
    """
    count = math.prod(shape)
    if count > MAX_NORMALS:
        raise ValueError(f"a field of {count} values: {MAX_NORMALS} are possible")
    field = np.empty(count, np.int16)
    quantiles = _normal_quantiles()
    for start in range(0, count, _NORMALS_AT_ONCE):
        part = field[start : start + _NORMALS_AT_ONCE]
        draws = np.arange(start // 8, -(-(start + len(part)) // 8), dtype=np.uint64)
        last = draws << np.uint64(8) | np.uint64(Purpose.NOISE)
        words = np.stack(philox(seed, (sample & 0xFFFFFFFF, sample >> 32, stream, last)), axis=1)
        halves = words.astype("<u4").view("<u2").reshape(-1)
        part[:] = quantiles[halves[: len(part)]]
    return field.reshape(shape)


@lru_cache(maxsize=1)
def _normal_quantiles() -> npt.NDArray[np.int16]:
    """Returns the normal quantile of each (k + ½) / 2^16, in units of `NORMAL_UNIT`."""
    from scipy.special import ndtri

    quantiles = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16))
    units: npt.NDArray[np.int16] = np.rint(quantiles / NORMAL_UNIT).astype(np.int16)
    return units


def shuffled(seed: int, name: str, count: int) -> Samples:
    """Returns an order of 0 … count - 1, int64 [count], keyed by (seed, name).

    Other names and their counts do not matter.
    """
    draws = uniform(seed, zlib.crc32(name.encode()), np.arange(count), Purpose.CHOICE)
    return np.argsort(draws[:, 0], kind="stable")
