"""Generates pictures for demos and tests: JPEGs of a textured, coloured shape on a cluttered background.

A class is a (colour, texture, shape) triple and the classes form a grid, so none of the three alone, nor any
two of them, tells all classes apart. Every picture is a function of (seed, split, class, number) alone.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from qrdali.errors import InputError

Floats = npt.NDArray[np.float32]

SPLITS = ("train", "val", "test")
COLORS = {"red": 2.0, "orange": 32.0, "violet": 285.0, "teal": 178.0}  # hue in degrees
TEXTURES = ("striped", "checked", "ringed")
SHAPES = ("disc", "square", "triangle", "star", "cross", "half", "arrow", "bowtie")
MAX_CLASSES = len(COLORS) * len(TEXTURES) * len(SHAPES)
_SUPERSAMPLE = 3


@dataclass(frozen=True)
class ShapesSpec:
    """Holds what to generate: classes, pictures per class and split, size and seed.

    `size` is (width, height) of a landscape picture in pixels; half of the pictures stand upright.
    """

    classes: int = 20
    train: int = 50
    val: int = 10
    test: int = 10
    size: tuple[int, int] = (500, 375)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MAX_CLASSES:
            raise InputError(f"--classes is {self.classes}: choose 2 to {MAX_CLASSES}")
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise InputError(f"--{split} is {getattr(self, split)}: choose 0 or more pictures per class")
        if min(self.size) < 32 or max(self.size) > 4096:
            raise InputError(f"--size is {self.size[0]}x{self.size[1]}: each side must be 32 to 4096 pixels")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}: choose 0 or more")

    @property
    def total(self) -> int:
        """Returns the number of files."""
        return self.classes * (self.train + self.val + self.test)


def class_names(classes: int) -> list[str]:
    """Returns the first cells of the smallest colour × texture × shape grid that holds them.

    A name is `red-striped-star`, for example.
    """
    num_colors, num_textures = next(
        (c, t)
        for c, t in ((2, 1), (2, 2), (3, 2), (4, 2), (4, 3))
        if classes <= c * t * len(SHAPES) and (c * t >= 4 or classes <= 8)
    )
    colors, textures = list(COLORS)[:num_colors], TEXTURES[:num_textures]
    shapes = SHAPES[: max(2, math.ceil(classes / (len(colors) * len(textures))))]
    grid = [f"{color}-{texture}-{shape}" for texture in textures for color in colors for shape in shapes]
    return grid[:classes]


def generate(
    root: Path,
    spec: ShapesSpec,
    *,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda files: None,
) -> int:
    """Writes `ROOT/SPLIT/CLASS/NUMBER.jpg` and returns the number of files.

    `progress` is called after each chunk with its number of files. Raises InputError if ROOT already holds
    one of the split folders (nothing is overwritten).
    """
    taken = [split for split in SPLITS if (root / split).exists()]
    if taken:
        raise InputError(f"{root} already holds {', '.join(taken)}/: choose another folder or remove it")
    jobs = list(_jobs(root, spec))
    for folder in sorted({path.parent for path, _ in jobs}):
        folder.mkdir(parents=True, exist_ok=True)
    chunk = 20
    chunks = [jobs[start : start + chunk] for start in range(0, len(jobs), chunk)]
    # spawn: a forked child would inherit the threads of whatever the parent has imported.
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for written in pool.map(partial(_write, size=spec.size), chunks):
            progress(written)
    return len(jobs)


def _jobs(root: Path, spec: ShapesSpec) -> Iterator[tuple[Path, tuple[str, tuple[int, ...]]]]:
    for split_number, split in enumerate(SPLITS):
        for label, name in enumerate(class_names(spec.classes)):
            for number in range(getattr(spec, split)):
                yield (
                    root / split / name / f"{number:05d}.jpg",
                    (name, (spec.seed, split_number, label, number)),
                )


def _write(jobs: list[tuple[Path, tuple[str, tuple[int, ...]]]], size: tuple[int, int]) -> int:
    for path, (name, key) in jobs:
        path.write_bytes(picture(name, key, size))
    return len(jobs)


def picture(name: str, key: tuple[int, ...], size: tuple[int, int]) -> bytes:
    """Returns one JPEG file of the class `name`. `key` seeds it; `size` is (width, height) in landscape."""
    rng = np.random.default_rng(key)
    color, texture, shape = name.split("-")
    width, height = size if rng.random() < 0.5 else size[::-1]
    canvas = _background(rng, height, width)
    for _ in range(int(rng.integers(4, 9))):
        _clutter(rng, canvas)
    _object(rng, canvas, COLORS[color], texture, shape)
    canvas *= _noise(rng, height, width, cells=3, channels=1) * 0.16 + 1.0  # uneven light
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(5.5, 9.0))
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=int(rng.integers(90, 96)))
    return out.getvalue()


def _noise(rng: np.random.Generator, height: int, width: int, cells: int, channels: int) -> Floats:
    """Returns smooth noise, float32 [height, width, channels], of about unit amplitude.

    It has `cells` bumps along the longer side.
    """
    rows = max(2, cells * height // max(height, width) + 1)
    columns = max(2, cells * width // max(height, width) + 1)
    grid = rng.standard_normal((rows, columns, channels), dtype=np.float32)
    planes = [
        np.asarray(Image.fromarray(grid[..., c]).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=-1)


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Returns octaves of noise with a 1/f fall, as natural images have, float32 [height, width, 3].

    Brightness varies in all octaves, tint in the coarse ones.
    """
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = rng.uniform(70, 170) + rng.uniform(-25, 25, 3)
    for octave, cells in enumerate((2, 4, 8, 16, 32, 64, 128)):
        canvas += _noise(rng, height, width, cells, 1) * np.float32(34 * 0.74**octave)
        if octave < 3:
            canvas += _noise(rng, height, width, cells, 3) * np.float32(9 * 0.7**octave)
    return canvas


def _clutter(rng: np.random.Generator, canvas: Floats) -> None:
    """Draws a ragged, textured blob of any colour, also those of the classes, but of none of their shapes."""
    height, width, _ = canvas.shape
    radius = float(rng.uniform(0.05, 0.2)) * min(height, width)
    corners = int(rng.integers(7, 12))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    spread = rng.uniform(0.35, 1.0, corners)
    points = np.stack([np.cos(angles) * spread, np.sin(angles) * spread], axis=1)
    hue = float(rng.choice(list(COLORS.values()))) if rng.random() < 0.5 else float(rng.uniform(0, 360))
    texture = str(rng.choice((*TEXTURES, "plain", "plain")))
    _paint(rng, canvas, _Figure([points], radius, hue, texture, saturation=(0.1, 0.7), inside=False))


def _object(rng: np.random.Generator, canvas: Floats, hue: float, texture: str, shape: str) -> None:
    """Draws the object that makes the class."""
    radius = float(rng.uniform(0.2, 0.38)) * min(canvas.shape[:2])
    hue = hue + float(rng.normal(0, 5))
    _paint(rng, canvas, _Figure(_outline(shape), radius, hue, texture, saturation=(0.45, 0.75), inside=True))


def _outline(shape: str) -> list[npt.NDArray[np.float64]]:
    """Returns polygons [K, 2] of (x, y) within the unit circle; their union is the shape."""

    def ring(count: int, start: float = 0.0, radius: float = 1.0) -> npt.NDArray[np.float64]:
        angles = start + np.arange(count) * 2 * math.pi / count
        return np.stack([np.cos(angles) * radius, np.sin(angles) * radius], axis=1)

    if shape == "star":
        points = ring(10, -math.pi / 2)
        points[1::2] *= 0.42
        return [points]
    bar = np.array([(-1.0, -0.3), (1.0, -0.3), (1.0, 0.3), (-1.0, 0.3)]) * 0.95
    return {
        "disc": [ring(60, radius=0.85)],
        "square": [ring(4, math.pi / 4)],
        "triangle": [ring(3, -math.pi / 2)],
        "cross": [bar, bar[:, ::-1]],
        "half": [ring(60)[:31]],
        "arrow": [
            np.array([(-1, -0.25), (0.1, -0.25), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.25), (-1, 0.25)])
        ],
        "bowtie": [np.array([(-0.9, -0.6), (0.9, 0.6), (0.9, -0.6), (-0.9, 0.6)])],
    }[shape]


@dataclass(frozen=True)
class _Figure:
    """Holds what `_paint` draws: polygons within the unit circle, scaled to `radius` pixels.

    hue is in degrees, saturation a range within 0..1. inside: for the object, which stands nearly upright,
    and the circle of that radius lies within the picture if it fits.
    """

    polygons: list[npt.NDArray[np.float64]]
    radius: float
    hue: float
    texture: str
    saturation: tuple[float, float]
    inside: bool


def _paint(rng: np.random.Generator, canvas: Floats, figure: _Figure) -> None:
    """Draws the union of the figure's polygons, turned, at a random place, shaded and textured."""
    height, width, _ = canvas.shape
    radius = figure.radius
    margin = radius + 2 if figure.inside else 0.0
    cx = float(rng.uniform(min(margin, width / 2), max(width - margin, width / 2)))
    cy = float(rng.uniform(min(margin, height / 2), max(height - margin, height / 2)))
    turn = float(rng.normal(0, 0.25) if figure.inside else rng.uniform(0, 2 * math.pi))
    left, top = max(0, int(cx - radius) - 1), max(0, int(cy - radius) - 1)
    right, bottom = min(width, int(cx + radius) + 2), min(height, int(cy + radius) + 2)

    rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
    mask = Image.new("L", ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE))
    draw = ImageDraw.Draw(mask)
    for polygon in figure.polygons:
        corners = ((polygon @ rotation) * radius + (cx - left, cy - top)) * _SUPERSAMPLE
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=255)
    smooth_mask = mask.resize((right - left, bottom - top), Image.Resampling.BOX)
    coverage = np.asarray(smooth_mask, np.float32)[..., None] / 255

    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
    v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
    period = float(rng.uniform(0.028, 0.05)) * max(height, width)
    phase = float(rng.uniform(0, 2 * math.pi))
    wave = 2 * math.pi / period
    pattern = {
        "plain": lambda: np.zeros_like(u),
        "striped": lambda: np.sin(u * wave + phase),
        "checked": lambda: np.sin(u * wave + phase) * np.sin(v * wave + phase) * 1.5,
        "ringed": lambda: np.sin(np.hypot(u, v) * wave + phase),
    }[figure.texture]()
    color = _rgb(figure.hue, float(rng.uniform(*figure.saturation)), float(rng.uniform(0.5, 0.85)))
    shade = 1 + (u * math.cos(phase) + v * math.sin(phase)) / max(radius, 1.0) * 0.18
    contrast = float(rng.uniform(0.14, 0.32))
    inked = color * (shade * (1 + contrast * pattern))[..., None]
    region = canvas[top:bottom, left:right]
    region += coverage * (inked.astype(np.float32) - region)


def _rgb(hue: float, saturation: float, value: float) -> npt.NDArray[np.float64]:
    """Returns HSV as RGB in 0..255, float64 [3]; hue in degrees, saturation and value in 0..1."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    rgb: npt.NDArray[np.float64] = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1)) * 255
    return rgb
