"""What level each image has in an epoch: the same for all, drawn, or each image's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, RunError, printable
from qrdali.files.array_rows import MAPPED, open_npy
from qrdali.files.atomic import replace_atomically
from qrdali.reduction.counter_rng import LEVEL, uniform
from qrdali.reduction.quality import REDUCTIONS, Dimensions, level_of

Samples = npt.NDArray[np.int64]
CHUNK = 65_536  # images looked at together where all are


class Levels(Protocol):
    """Levels of samples, for sample numbers int64 [N]."""

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        """uint8 [N, 3] in the order color, crop, resolution."""
        ...

    def window_origins(self, samples: Samples) -> npt.NDArray[np.int32] | None:
        """Top and left of each window, int32 [N, 2], where they are part of an image's state; None: anchors place them."""
        ...


@dataclass(frozen=True)
class ConstantLevels:
    """The same levels for every image."""

    color: int = 0
    crop: int = 0
    resolution: int = 0

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        return np.tile(np.array([self.color, self.crop, self.resolution], np.uint8), (len(samples), 1))

    def window_origins(self, samples: Samples) -> None:
        return None


FULL_QUALITY = ConstantLevels()


def constant_levels(dimensions: Dimensions, level: int) -> ConstantLevels:
    """`level` in the dimensions that move, 0 in the others."""
    return ConstantLevels(*(level if moves else 0 for moves in dimensions))


def reduced_split_levels(split: str, q: float, num_levels: int) -> dict[str, tuple[str, ConstantLevels]]:
    """By reduction: the name of a split at quality `q` of the step 1/n, such as test-crop-0.5, and its levels.

    Raises InputError for a quality that is no level, or is 1.
    """
    level = level_of(q, num_levels)
    if not level:
        raise InputError("quality 1 is the untouched image: give a quality below 1")
    return {
        reduction: (
            f"{split}-{reduction}-{(num_levels - level) / num_levels:g}",
            constant_levels(dimensions, level),
        )
        for reduction, dimensions in REDUCTIONS.items()
        if any(dimensions)
    }


@dataclass(frozen=True)
class RandomLevels:
    """One level per image and epoch, drawn evenly from `highest` quality's level to `lowest`'s, both included, and used in
    every dimension that moves: plain augmentation."""

    dimensions: Dimensions
    first: int
    last: int
    seed: int
    epoch: int

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        drawn = self.first + np.floor(
            uniform(self.seed, self.epoch, samples, LEVEL)[:, 0] * (self.last - self.first + 1)
        )
        levels: npt.NDArray[np.uint8] = (drawn[:, None] * np.array(self.dimensions)).astype(np.uint8)
        return levels

    def window_origins(self, samples: Samples) -> None:
        return None


class PerImageLevels:
    """Each image's own levels, and the place of its window where crops move: arrays on disk, mapped into memory or, where they
    are large, read row by row.

    levels: uint8 [N, 3]. places: int32 [N, 2] top, left, or None. steps: uint16 [N] of online feedback, or None.
    """

    def __init__(
        self,
        levels: npt.NDArray[np.uint8],
        places: npt.NDArray[np.int32] | None,
        steps: npt.NDArray[np.uint16] | None,
    ) -> None:
        self.levels, self._window_origins, self.steps = levels, places, steps

    @classmethod
    def at_full_quality(cls, count: int, crop: bool, online: bool) -> PerImageLevels:
        """Every image at full quality; no memory is touched before it is written."""
        return cls(
            np.zeros((count, 3), np.uint8),
            np.zeros((count, 2), np.int32) if crop else None,
            np.zeros(count, np.uint16) if online else None,
        )

    @classmethod
    def load(
        cls, folder: Path, stage: int, count: int, num_levels: int, crop: bool, online: bool
    ) -> PerImageLevels:
        """Raises RunError naming the file that is missing, damaged, or of another data set or step; values of a large one that cannot
        be are found where they are used."""

        def array(name: str, dtype: type[Any], shape: tuple[int, ...], bound: int) -> Any:
            file = folder / f"{stage:04d}.{name}.npy"
            try:
                if not file.is_file():
                    raise ValueError("it is no file" if file.exists() else "it is missing")
                found = open_npy(file)
            except Exception as error:  # numpy reads the header as Python text, whose errors have many types
                raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None
            if found.dtype != dtype or found.shape != shape:
                raise RunError(
                    f"{printable(file)} holds {found.dtype}{list(found.shape)}, not {np.dtype(dtype)}{list(shape)}"
                )

            def check(part: npt.NDArray[Any]) -> None:
                if part.size and not 0 <= int(part.min()) <= int(part.max()) < bound:
                    raise RunError(
                        f"{printable(file)} holds values outside 0..{bound - 1}: it is damaged or of another --step"
                    )

            found.check = check
            if found.nbytes > MAPPED:
                return found
            for start in range(0, shape[0], CHUNK):
                found.part(start, min(start + CHUNK, shape[0]))
            return np.load(file, mmap_mode="r", allow_pickle=False)

        return cls(
            array("levels", np.uint8, (count, 3), num_levels),
            array("places", np.int32, (count, 2), 2**31) if crop else None,
            array("steps", np.uint16, (count,), 3 * num_levels) if online else None,
        )

    def save(self, folder: Path, stage: int) -> None:
        """Writes `STAGE.NAME.npy` files, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in (
            ("levels", self.levels),
            ("places", self._window_origins),
            ("steps", self.steps),
        ):
            if values is not None:
                partial = folder / f"{stage:04d}.{name}.partial"
                with open(partial, "wb") as file:
                    np.save(file, values, allow_pickle=False)
                replace_atomically(partial, folder / f"{stage:04d}.{name}.npy")

    def copy(self) -> PerImageLevels:
        """A copy that `put` may change."""
        return PerImageLevels(
            np.array(self.levels),
            None if self._window_origins is None else np.array(self._window_origins),
            None if self.steps is None else np.array(self.steps),
        )

    def assign(self, samples: Samples, levels: npt.NDArray[np.uint8], window: npt.NDArray[np.int32]) -> None:
        self.levels[samples] = levels
        if self._window_origins is not None:
            self._window_origins[samples] = window[:, :2]

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        return np.asarray(self.levels[samples])

    def window_origins(self, samples: Samples) -> npt.NDArray[np.int32] | None:
        return None if self._window_origins is None else np.asarray(self._window_origins[samples])

    def window_origins_or_zero(self, samples: Samples) -> npt.NDArray[np.int32]:
        """As `places`; zeros where crops do not move."""
        return (
            np.zeros((len(samples), 2), np.int32)
            if self._window_origins is None
            else np.asarray(self._window_origins[samples])
        )


def histogram(levels: Levels, count: int, num_levels: int) -> npt.NDArray[np.int64]:
    """How many of `count` images have each level, int64 [3, n]."""
    result = np.zeros((3, num_levels), np.int64)
    if isinstance(levels, ConstantLevels):
        result[np.arange(3), levels.for_samples(np.zeros(1, np.int64))[0]] = count
        return result
    for start in range(0, count, CHUNK):
        part = levels.for_samples(np.arange(start, min(start + CHUNK, count)))
        for dimension in range(3):
            result[dimension] += np.bincount(part[:, dimension], minlength=num_levels)
    return result
