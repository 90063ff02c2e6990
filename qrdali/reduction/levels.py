"""Says which level each image has in an epoch: the same for all, drawn at random, or each its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, RunError, printable
from qrdali.files.array_rows import MAPPED, open_npy
from qrdali.files.atomic import write_whole
from qrdali.files.mapping import can_be_mapped
from qrdali.reduction.counter_rng import Purpose, uniform
from qrdali.reduction.names import DISTORTIONS, SEARCHED
from qrdali.reduction.quality import (
    COLOR,
    CROP,
    DIMENSIONS,
    REDUCTIONS,
    RESOLUTION,
    Dimensions,
    LevelScale,
    level_of,
)

Samples = npt.NDArray[np.int64]
CHUNK = 65_536  # images read at once where all are gone through


class Levels(Protocol):
    """Gives the levels of an epoch for sample numbers, int64 [N]."""

    @property
    def distortions(self) -> tuple[str, ...]:
        """Returns the distortions that images may have."""
        ...

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        """Returns the levels, uint8 [N, 3] in the columns COLOR, CROP, RESOLUTION."""
        ...

    def of_distortion(self, name: str, samples: Samples) -> npt.NDArray[np.uint8]:
        """Returns the levels of one of `distortions`, uint8 [N]."""
        ...

    def window_origins(self, samples: Samples) -> npt.NDArray[np.int32] | None:
        """Returns top and left of each window, int32 [N, 2] pixels, where they are part of an image's state.

        Elsewhere None: the epoch's anchors then place the windows.
        """
        ...


class Moves(NamedTuple):
    """Says what a reduction moves: dimensions, or a distortion ("" for none)."""

    dimensions: Dimensions
    distortion: str


def moves_of(reduction: str) -> Moves:
    """Returns what a reduction of `names.TRAINED` moves."""
    if reduction in DISTORTIONS:
        return Moves(REDUCTIONS["none"], reduction)
    return Moves(REDUCTIONS[reduction], "")


def quality_names(reduction: str) -> tuple[str, ...]:
    """Returns the keys of the qualities of a run: its dimensions, and the distortion that its images have."""
    return (*DIMENSIONS, reduction) if reduction in DISTORTIONS else DIMENSIONS


@dataclass(frozen=True)
class ConstantLevels:
    """Gives every image the same levels. distorted: (name, level) of each distortion."""

    color: int = 0
    crop: int = 0
    resolution: int = 0
    distorted: tuple[tuple[str, int], ...] = ()

    @property
    def distortions(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.distorted)

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        return np.tile(np.array([self.color, self.crop, self.resolution], np.uint8), (len(samples), 1))

    def of_distortion(self, name: str, samples: Samples) -> npt.NDArray[np.uint8]:
        return np.full(len(samples), dict(self.distorted)[name], np.uint8)

    def window_origins(self, samples: Samples) -> None:
        return None


FULL_QUALITY = ConstantLevels()


def constant_levels(dimensions: Dimensions, level: int, distortion: str = "") -> ConstantLevels:
    """Returns `level` in the dimensions and the distortion that move, 0 in the others."""
    distorted = ((distortion, level),) if distortion and level else ()
    color, crop, resolution = (level if moves else 0 for moves in dimensions)
    return ConstantLevels(color, crop, resolution, distorted)


def reduced_split_levels(
    split: str, q: float, scale: LevelScale, reductions: Sequence[str] = SEARCHED
) -> dict[str, tuple[str, ConstantLevels]]:
    """Returns by reduction the name of a split at quality `q`, such as test-crop-0.5, and its levels.

    Raises InputError for a quality that is no level, or is 1.
    """
    level = level_of(q, scale)
    if not level:
        raise InputError("quality 1 is the untouched image: give a quality below 1")
    return {
        reduction: (
            f"{split}-{reduction}-{scale.quality_of(level):g}",
            levels_of(reduction, level),
        )
        for reduction in reductions
    }


def levels_of(reduction: str, level: int) -> ConstantLevels:
    """Returns `level` of a reduction of `names.TRAINED`, the same for every image."""
    moves = moves_of(reduction)
    return constant_levels(moves.dimensions, level, moves.distortion)


def qualities_of(levels: Levels, scale: LevelScale) -> dict[str, float]:
    """Returns the qualities of an image by dimension and by distortion, of levels that all images share."""
    first = np.zeros(1, np.int64)
    found = dict(zip(DIMENSIONS, levels.for_samples(first)[0], strict=True))
    found |= {name: levels.of_distortion(name, first)[0] for name in levels.distortions}
    return {name: scale.quality_of(int(level)) for name, level in found.items()}


@dataclass(frozen=True)
class RandomLevels:
    """Draws one level per image and epoch, evenly from `first` to `last`, both included.

    It is used in every dimension that moves, and in the distortion that does: plain augmentation. Keyed by
    (seed, epoch, sample).
    """

    dimensions: Dimensions
    first: int
    last: int
    seed: int
    epoch: int
    distortion: str = ""

    @property
    def distortions(self) -> tuple[str, ...]:
        return (self.distortion,) if self.distortion else ()

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        drawn = self._drawn(samples)
        levels: npt.NDArray[np.uint8] = (drawn[:, None] * np.array(self.dimensions)).astype(np.uint8)
        return levels

    def of_distortion(self, name: str, samples: Samples) -> npt.NDArray[np.uint8]:
        return self._drawn(samples).astype(np.uint8)

    def _drawn(self, samples: Samples) -> npt.NDArray[np.float64]:
        draws = uniform(self.seed, self.epoch, samples, Purpose.LEVEL)[:, 0]
        return self.first + np.floor(draws * (self.last - self.first + 1))

    def window_origins(self, samples: Samples) -> None:
        return None


class PerImageLevels:
    """Holds each image's own levels, and where its window lies if crops move.

    levels: uint8 [N, 3] in the columns COLOR, CROP, RESOLUTION. window_origins: int32 [N, 2] top, left in
    pixels, or None if crops do not move. steps: uint16 [N], the steps that online feedback has taken, or
    None. Loaded from a disk the arrays are mapped into memory or, where they are large, read row by row, so
    that 10^8 images take no memory.
    """

    distortions: tuple[str, ...] = ()  # a descent takes no step in them

    def __init__(
        self,
        levels: npt.NDArray[np.uint8],
        window_origins: npt.NDArray[np.int32] | None,
        steps: npt.NDArray[np.uint16] | None,
    ) -> None:
        self.levels, self._window_origins, self.steps = levels, window_origins, steps

    @classmethod
    def at_full_quality(cls, count: int, crop: bool, online: bool) -> PerImageLevels:
        """Returns `count` images at full quality; zeroed pages take no memory before they are written."""
        return cls(
            np.zeros((count, 3), np.uint8),
            np.zeros((count, 2), np.int32) if crop else None,
            np.zeros(count, np.uint16) if online else None,
        )

    @classmethod
    def load(
        cls, folder: Path, stage: int, count: int, scale: LevelScale, crop: bool, online: bool
    ) -> PerImageLevels:
        """Returns the levels that `save` wrote for `stage`, of `count` images, with levels of `scale`.

        crop, online: whether crops move and whether steps are kept. Raises RunError naming the file that is
        missing, damaged, or of another data set or step; impossible values of a large one are found where
        they are used.
        """
        return cls(
            _open_array(_array_file(folder, stage, "levels"), np.uint8, (count, 3), scale.count),
            _open_array(_array_file(folder, stage, "places"), np.int32, (count, 2), 2**31) if crop else None,
            _open_array(_array_file(folder, stage, "steps"), np.uint16, (count,), 3 * scale.count)
            if online
            else None,
        )

    def save(self, folder: Path, stage: int) -> None:
        """Writes `STAGE.NAME.npy` files, which are whole on the disk when this returns.

        `last/`, written after it, may therefore name them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in self._arrays():
            write_whole(_array_file(folder, stage, name), partial(_write_array, values))

    def _arrays(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yields the arrays there are, with the names of their files."""
        yield "levels", self.levels
        if self._window_origins is not None:
            yield "places", self._window_origins
        if self.steps is not None:
            yield "steps", self.steps

    def copy(self) -> PerImageLevels:
        """Returns a copy that `assign` may change."""
        return PerImageLevels(
            np.array(self.levels),
            None if self._window_origins is None else np.array(self._window_origins),
            None if self.steps is None else np.array(self.steps),
        )

    def assign(self, samples: Samples, levels: npt.NDArray[np.uint8], window: npt.NDArray[np.int32]) -> None:
        """Sets the levels [N, 3] and windows [N, 4] of `samples` [N]."""
        self.levels[samples] = levels
        if self._window_origins is not None:
            self._window_origins[samples] = window[:, :2]

    def for_samples(self, samples: Samples) -> npt.NDArray[np.uint8]:
        return np.asarray(self.levels[samples])

    def of_distortion(self, name: str, samples: Samples) -> npt.NDArray[np.uint8]:
        raise ValueError(f"levels per image have no {name}")

    def window_origins(self, samples: Samples) -> npt.NDArray[np.int32] | None:
        return None if self._window_origins is None else np.asarray(self._window_origins[samples])

    def window_origins_or_zero(self, samples: Samples) -> npt.NDArray[np.int32]:
        """Returns `window_origins`, or zeros where crops do not move."""
        return (
            np.zeros((len(samples), 2), np.int32)
            if self._window_origins is None
            else np.asarray(self._window_origins[samples])
        )


def _array_file(folder: Path, stage: int, name: str) -> Path:
    return folder / f"{stage:04d}.{name}.npy"


def _write_array(values: npt.NDArray[Any], file: Path) -> None:
    with open(file, "wb") as opened:  # given a name without .npy, numpy would append it
        np.save(opened, values, allow_pickle=False)


def _open_array(file: Path, dtype: type[Any], shape: tuple[int, ...], bound: int) -> Any:
    """Returns a read-only array of values below `bound`. Raises RunError if it is not that."""
    try:
        if not file.is_file():
            raise ValueError("it is not a file" if file.exists() else "it is missing")
        rows = open_npy(file)
    except Exception as error:  # numpy reads the header as Python text, whose errors have many types
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None
    if rows.dtype != dtype or rows.shape != shape:
        raise RunError(
            f"{printable(file)} holds {rows.dtype}{list(rows.shape)}, not {np.dtype(dtype)}{list(shape)}"
        )

    def check(part: npt.NDArray[Any]) -> None:
        if part.size and not 0 <= int(part.min()) <= int(part.max()) < bound:
            raise RunError(
                f"{printable(file)} holds values outside 0..{bound - 1}: it is damaged, or of another --step "
                "or --tail"
            )

    rows.check = check
    if rows.nbytes > MAPPED:
        return rows
    for start in range(0, shape[0], CHUNK):
        rows.part(start, min(start + CHUNK, shape[0]))
    if not can_be_mapped(file):
        return rows.part(0, shape[0])
    return np.load(file, mmap_mode="r", allow_pickle=False)


def histogram(
    levels: Levels, count: int, scale: LevelScale, names: Sequence[str] = DIMENSIONS
) -> npt.NDArray[np.int64]:
    """Returns how many of `count` images have each level, int64 [names, levels], a row per name.

    names: the dimensions, and distortions after them, as `quality_names` gives them.
    """
    result = np.zeros((len(names), scale.count), np.int64)
    is_constant = isinstance(levels, ConstantLevels)
    for start in range(0, 1 if is_constant else count, CHUNK):
        samples = np.arange(start, 1 if is_constant else min(start + CHUNK, count))
        part = levels.for_samples(samples)
        columns = [part[:, dimension] for dimension in (COLOR, CROP, RESOLUTION)]
        for name in names[len(columns) :]:
            is_distorted = name in levels.distortions
            columns.append(levels.of_distortion(name, samples) if is_distorted else np.zeros_like(part[:, 0]))
        for row, column in zip(result, columns, strict=True):
            row += np.bincount(column, minlength=scale.count)
    return result * count if is_constant else result
