"""Counter-based random numbers: a function of (seed, epoch, sample, purpose), so that nothing depends on their order."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Samples = npt.NDArray[np.int64]

ORDER, CROP, FLIP, RESIZED_CROP, LEVEL, ONLINE, CHOICE = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
)  # purposes; the low byte, the rest counts draws
_LOW = np.uint64(0xFFFFFFFF)


def philox(key: int, counter: tuple[Words | int, Words | int, int, int]) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 for a 64-bit key and counters of four 32-bit words; returns four arrays of 32-bit words."""
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


def uniform(seed: int, epoch: int, samples: Samples, purpose: int, draw: int = 0) -> npt.NDArray[np.float64]:
    """Four independent uniforms in [0, 1) per sample, [N, 4], keyed by (seed, epoch, sample, purpose, draw)."""
    s = samples.astype(np.uint64)
    words = philox(seed, (s & _LOW, s >> np.uint64(32), epoch, purpose | draw << 8))
    return np.stack(words, axis=1).astype(np.float64) / 2.0**32


def shuffled(seed: int, name: str, count: int) -> Samples:
    """An order of 0 … count − 1, int64 [count], keyed by (seed, name): other names and their counts do not matter."""
    return np.argsort(uniform(seed, zlib.crc32(name.encode()), np.arange(count), CHOICE)[:, 0], kind="stable")
