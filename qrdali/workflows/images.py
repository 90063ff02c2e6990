"""Single images: pixels, reductions and entropy, by the functions that loaders and MEPI sets use."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from qrdali.errors import InputError, printable
from qrdali.reduction import png_entropy
from qrdali.reduction.counter_rng import MAX_NORMALS
from qrdali.reduction.names import DISTORTIONS
from qrdali.reduction.quality import (
    CENTER,
    DIMENSIONS,
    MAX_TAIL,
    LevelArray,
    LevelScale,
    num_levels_of,
    reduction_params,
    reduction_params_at,
)
from qrdali.workflows.public import public

Pixels = npt.NDArray[np.uint8]


@public
def read(path: str | os.PathLike[str]) -> Pixels:
    """Returns the pixels of an image file, upright, as the pipelines decode it on a CPU.

    path: a JPEG, PNG, WebP, BMP or TIFF file, or one in a store, s3:// or gs://. The result is uint8 [H, W,
    3], RGB, and belongs to the caller. Raises InputError if there is no such file, RunError naming it if it
    cannot be decoded.

    Example:
        >>> image = qrdali.read("photo.jpg")
        >>> image.shape, image.dtype
        ((72, 96, 3), dtype('uint8'))
    """
    from qrdali.data import storage
    from qrdali.pipelines.single_image import decode_image

    name = os.fspath(path)
    if not storage.exists(name):
        raise InputError(f"{printable(name)} does not exist")
    return decode_image(name)


@public
def reduce(
    image: Pixels,
    *,
    color: float = 1.0,
    crop: float = 1.0,
    resolution: float = 1.0,
    level: tuple[int, int, int] | None = None,
    step: float = 0.25,
    anchor: tuple[float, float] = CENTER,
    seed: int = 0,
    **distortions: float,
) -> Pixels:
    """Returns a reduced image: a window is cut and resized, and its colours are put into bins.

    It has the bytes that `build_mepi` writes and that loaders on a CPU show to a network. Distortions act on
    the result; a loader applies them to the square that the network sees instead.

    image: uint8 [H, W, 3], which is not changed.
    color, crop, resolution: qualities in (0, 1], the share of bits or pixels that stays; 1 changes nothing.
    level: instead, three levels k (color, crop, resolution) of `step`: 0 to n − 1 for (n − k)/n, and from n
        to n + 39 those of its tail, each of half the quality of the one before, as manifests have them.
    step: 1/n, n from 2 to 200.
    anchor: where the window lies, (a_y, a_x) in [0, 1]: (0, 0) is top left, (0.5, 0.5) the centre.
    distortions: qualities in (0, 1] of gray, contrast, blur, noise and jpeg, applied in this order.
    seed: of the noise.

    The result is uint8 [h, w, 3], h = max(1, round(max(1, round(H·√crop))·√resolution)) and w likewise;
    docs/explanation/definitions.md has all formulas. Raises InputError for another dtype, shape or range, and
    for `level` together with a quality.

    Example:
        >>> image = qrdali.read("photo.jpg")
        >>> qrdali.reduce(image, crop=.5, resolution=.25, color=.5).shape
        (26, 34, 3)
        >>> qrdali.reduce(image, level=(0, 2, 0), step=.25).shape
        (51, 68, 3)
        >>> qrdali.reduce(image, blur=.5).shape
        (72, 96, 3)
    """
    from qrdali.pipelines import host_ops

    require_image(image, "image")
    qualities = [color, crop, resolution]
    if unknown := sorted(set(distortions) - set(DISTORTIONS)):
        known = ", ".join((*DIMENSIONS, *DISTORTIONS))
        raise InputError(f"there is no reduction {printable(unknown[0])!r}: give a quality of {known}")
    for name, value in (*zip(DIMENSIONS, qualities, strict=True), *distortions.items()):
        if not 0 < value <= 1:
            raise InputError(f"{name} = {value:g} is outside (0, 1]: 1 is the untouched image")
    if level is not None and qualities != [1.0, 1.0, 1.0]:
        raise InputError("level and qualities both say how much is reduced: give one of them")
    if len(anchor) != 2 or not all(0 <= part <= 1 for part in anchor):
        raise InputError(f"anchor = {anchor!r} is not (a_y, a_x) in [0, 1]: (0.5, 0.5) is the centre")
    size, anchors = np.array([image.shape[:2]], np.int32), np.array([anchor], np.float64)
    if level is None:
        params = reduction_params_at(np.array([qualities], np.float64), size, anchors)
    else:
        scale = LevelScale(num_levels_of(step), MAX_TAIL)
        params = reduction_params(_checked_levels(level, scale), size, anchors, scale)
    window = host_ops.cut(image, params.window[0, :2], params.window[0, 2:])
    reduced = host_ops.reduce(window, params.size[0], int(params.bin_width[0]))
    reduced = _distorted(reduced, distortions, seed)
    return reduced.copy() if np.may_share_memory(reduced, image) else reduced


def _distorted(image: Pixels, distortions: dict[str, float], seed: int) -> Pixels:
    """Returns an image at qualities by distortion, or the image itself; raises as `reduce` does."""
    from qrdali.reduction.distortions import FieldKeys, distort, distortion_params
    from qrdali.reduction.distortions.jpeg import MAX_SIDE

    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}: choose 0 to 2⁶³ − 1")
    if "noise" in distortions and image.size > MAX_NORMALS:
        raise InputError(f"noise has {MAX_NORMALS:,} values at most, the image has {image.size:,}")
    if "jpeg" in distortions and max(image.shape[:2]) > MAX_SIDE:
        raise InputError(f"a JPEG has {MAX_SIDE:,} pixels a side at most, the image {max(image.shape[:2]):,}")
    qualities = {name: np.array([value], np.float64) for name, value in distortions.items()}
    keys = FieldKeys(seed, False, np.zeros(1, np.int64))
    return distort(image, distortion_params(qualities, min(image.shape[:2]), keys), 0)


@public
def entropy(image: Pixels) -> int:
    """Returns the bytes of an image's PNG (Pillow, compress_level 6), the entropy of all figures and reports.

    image: uint8 [H, W, 3], RGB. Raises InputError for another dtype or shape.

    Example:
        >>> image = qrdali.read("photo.jpg")
        >>> qrdali.entropy(qrdali.reduce(image, color=.5)) < qrdali.entropy(image)
        True
    """
    require_image(image, "image")
    return png_entropy.entropy(image)


@public
def quotient(reduced: Pixels, image: Pixels) -> float:
    """Returns the entropy of a reduced image over that of the image it was made from.

    Both uint8 [H, W, 3], of any sizes. Raises InputError for another dtype or shape.

    Example:
        >>> image = qrdali.read("photo.jpg")
        >>> qrdali.quotient(image, image)
        1.0
    """
    require_image(reduced, "reduced")
    require_image(image, "image")
    return png_entropy.entropy(reduced) / png_entropy.entropy(image)


def _checked_levels(level: tuple[int, int, int], scale: LevelScale) -> LevelArray:
    """Returns three levels as an array, uint8 [1, 3]. Raises InputError for what is none."""
    levels = np.asarray(level)
    if levels.shape != (3,) or levels.dtype.kind not in "iu":
        raise InputError(f"level = {level!r} is not three whole numbers (color, crop, resolution)")
    if levels.min() < 0 or levels.max() >= scale.count:
        raise InputError(
            f"level = {level!r} is outside 0..{scale.count - 1}, the levels of step {1 / scale.grid:g} and "
            "of its tail"
        )
    return levels[None].astype(np.uint8)


def require_image(image: Pixels, name: str) -> None:
    """Raises InputError unless `image` is uint8 [H, W, 3] with at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} is a {type(image).__name__}: give a numpy array, uint8 [H, W, 3]")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"{name} is {image.dtype}{list(image.shape)}: give uint8 [H, W, 3], RGB in 0..255")
