"""Draws a contact sheet of one image: a row per reduction, a column per level, the entropy quotient under
each picture.

Distortions act on what a network sees, so their rows show the image at a network's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from qrdali.data import storage
from qrdali.errors import InputError, printable
from qrdali.files.atomic import write_whole
from qrdali.pipelines import host_ops
from qrdali.pipelines.single_image import NotAnImage, decode_image
from qrdali.reduction.distortions import FieldKeys, distort, distortion_params
from qrdali.reduction.distortions.interface import NOMINAL_SIDE
from qrdali.reduction.levels import moves_of
from qrdali.reduction.names import DISTORTIONS, chosen
from qrdali.reduction.png_entropy import encoder_name, entropy
from qrdali.reduction.quality import (
    RESOLUTION,
    LevelScale,
    ReductionParams,
    num_levels_of,
    quality,
    reduction_params,
)

Pixels = npt.NDArray[np.uint8]

MAX_COLUMNS = 8
# Pixels of the sheet.
_CELL, _GAP, _CAPTION, _HEAD, _FOOT, _MARGIN = 176, 12, 20, 36, 44, 116
_QUALITY = (
    "quality: the share that is left (of the bits by color, the area by crop, the pixels by resolution)"
)
_COLUMN = 92  # least width of a column: its heading
_INSET_SHARE = 0.48  # side of the inset by the cell's shorter side
_DETAIL_SHARE = 0.14  # side of the square that the inset shows, by the image's shorter side
_LEAST_INSET = 16


@dataclass(frozen=True)
class PreviewSheet:
    """Says what a contact sheet shows: its reductions, and at how many qualities."""

    reductions: tuple[str, ...]
    qualities: int


@dataclass(frozen=True)
class _Layout:
    """Says where the pictures stand. scale: pixels of the sheet per pixel of the image.

    cell: (width, height).
    """

    rows: int
    columns: int
    scale: float
    cell: tuple[int, int]

    @property
    def _pitch(self) -> int:
        return max(self.cell[0], _COLUMN) + _GAP

    @property
    def size(self) -> tuple[int, int]:
        height = _HEAD + self.rows * (self.cell[1] + _CAPTION + _GAP) + _FOOT
        return _MARGIN + self.columns * self._pitch + _GAP, height

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Returns (left, top) of a cell."""
        indent = max(0, _COLUMN - self.cell[0]) // 2
        left = _MARGIN + column * self._pitch + indent
        return left, _HEAD + row * (self.cell[1] + _CAPTION + _GAP)


def draw_preview(
    image: str, out: Path, step: float = 0.25, reductions: Sequence[str] | None = None
) -> PreviewSheet:
    """Writes a PNG of reductions of `image` at up to eight levels of the grid `step`.

    image: a file, or the URL of an object or of a shard's member. reductions: the rows, as
    `names.chosen` takes them. Raises InputError for an image, a step, a reduction or an
    `out` that cannot be used, RunError for an image that Pillow decodes and DALI does not, or otherwise.
    """
    scale = LevelScale(num_levels_of(step))
    rows = chosen(reductions)
    original = _decoded(image, out)
    columns = min(scale.count, MAX_COLUMNS)
    levels = sorted({round(i * (scale.count - 1) / (columns - 1)) for i in range(columns)})
    grid = [[level if moves else 0 for moves in moves_of(row).dimensions] for row in rows for level in levels]
    size = np.array(original.shape[:2], np.int32)
    reduction = reduction_params(
        np.array(grid, np.uint8), np.tile(size, (len(grid), 1)), np.full((len(grid), 2), 0.5), scale
    )
    pictures = _reduced(original, reduction)
    qualities = quality(np.array(levels), scale)
    for i, row in enumerate(rows):
        if row in DISTORTIONS:
            first = i * len(levels)
            pictures[first : first + len(levels)] = _distorted(original, row, qualities)
    sheet = _draw(original, _Grid(rows, qualities.tolist(), pictures, reduction))
    write_whole(out, lambda partial: sheet.save(partial, "PNG", optimize=True))
    return PreviewSheet(rows, len(levels))


@dataclass(frozen=True)
class _Grid:
    """Holds the pictures of a sheet, row by row, and what each shows of the image."""

    rows: tuple[str, ...]
    qualities: list[float]
    pictures: list[Pixels]
    reduction: ReductionParams


def _decoded(image: str, out: Path) -> Pixels:
    """Returns the upright pixels of an image, uint8 [H, W, 3]; raises as `draw_preview` does."""
    if not storage.is_url(image) and not Path(image).is_file():
        raise InputError(f"{printable(image)} is not a file: give an image")
    if out.suffix.lower() != ".png":
        raise InputError(f"--out is {printable(out)}: the sheet is a PNG, end the name in .png")
    if not out.parent.is_dir():
        raise InputError(f"--out is {printable(out)}: {printable(out.parent)} is not a folder")
    try:
        return decode_image(image)
    except NotAnImage as error:
        raise InputError(str(error)) from None


def _reduced(original: Pixels, reduction: ReductionParams) -> list[Pixels]:
    """Returns the reduced images, uint8 [H, W, 3], in the order of `reduction`."""
    return [
        host_ops.reduce(
            host_ops.cut(original, window[:2], window[2:]), reduction.size[i], int(reduction.bin_width[i])
        )
        for i, window in enumerate(reduction.window)
    ]


def _distorted(original: Pixels, distortion: str, qualities: npt.NDArray[np.float64]) -> list[Pixels]:
    """Returns the image at a network's size and at each of `qualities`."""
    height, width = original.shape[:2]
    share = min(1.0, NOMINAL_SIDE / min(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    seen = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BILINEAR))
    keys = FieldKeys(0, False, np.zeros(len(qualities), np.int64))
    params = distortion_params({distortion: qualities}, min(seen.shape[:2]), keys)
    return [distort(seen, params, i) for i in range(len(qualities))]


def _draw(original: Pixels, grid: _Grid) -> Image.Image:
    height, width = original.shape[:2]
    pictures, reduction, qualities = grid.pictures, grid.reduction, grid.qualities
    scale = _CELL / max(width, height)
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    layout = _Layout(len(grid.rows), len(qualities), scale, cell)
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    sheet = Image.new("RGB", layout.size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, shown in enumerate(qualities):
        left, _ = layout.corner(0, column)
        pen.text((left + cell[0] / 2, _HEAD / 2), f"quality {shown:.2f}", "black", font, anchor="mm")
    full = entropy(original)
    detail_side = max(1, round(min(width, height) * _DETAIL_SHARE))
    detail_corner = liveliest(original, detail_side)
    undistorted = full
    for i, picture in enumerate(pictures):
        row, column = divmod(i, len(qualities))
        left, top = layout.corner(row, column)
        if column == 0:
            pen.text((_MARGIN - 10, top + cell[1] / 2), grid.rows[row], "black", font, anchor="rm")
            undistorted = entropy(picture)  # level 0, of distortions at another size
        pen.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), "#e4e4e4")
        _paste_in_place(sheet, picture, reduction.window[i] * scale, (left, top))
        moves = moves_of(grid.rows[row])
        if moves.dimensions[RESOLUTION] or moves.distortion:
            # A cell has fewer pixels than most levels: a magnified detail shows what the cell cannot.
            part = detail(picture, reduction.window[i], detail_corner, detail_side)
            _paste_inset(sheet, part, (left + cell[0], top + cell[1]), round(_INSET_SHARE * min(cell)))
        quotient = f"{entropy(picture) / undistorted:#.3g}"
        pen.text((left + cell[0] / 2, top + cell[1] + _CAPTION / 2), quotient, "black", small, anchor="mm")
    encoded = f"{full:,} bytes of PNG ({width}x{height}, {encoder_name()})"
    facts = f"under each picture: entropy quotient, of {encoded}"
    for line, legend in enumerate((_QUALITY, facts)):
        text = legend if small.getlength(legend) <= sheet.width - 20 else legend.partition(" (")[0]
        pen.text((10, sheet.height - _FOOT + 10 + line * 18), text, "#555555", small, anchor="lm")
    return sheet


def _paste_in_place(
    sheet: Image.Image, picture: Pixels, window: npt.NDArray[np.float64], corner: tuple[int, int]
) -> None:
    """Pastes a reduced picture where its window (top, left, height, width, in pixels of the sheet) lies in
    the cell at `corner`.
    """
    top, left, height, width = window.tolist()
    shown = max(1, round(width)), max(1, round(height))
    # Enlarging repeats pixels, so that a low resolution is seen for what it is.
    method = Image.Resampling.NEAREST if picture.shape[1] < shown[0] else Image.Resampling.BOX
    tile = Image.fromarray(picture).resize(shown, method)
    sheet.paste(tile, (corner[0] + round(left), corner[1] + round(top)))


def _paste_inset(sheet: Image.Image, part: Pixels, end: tuple[int, int], side: int) -> None:
    """Pastes `part` as a framed square of `side` pixels into the lower right corner of the cell that ends at
    `end`.
    """
    if side < _LEAST_INSET:
        return
    left, top = end[0] - side - 4, end[1] - side - 4
    frame = (left - 2, top - 2, left + side + 1, top + side + 1)
    ImageDraw.Draw(sheet).rectangle(frame, "white")
    sheet.paste(Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST), (left, top))


def liveliest(picture: Pixels, side: int) -> tuple[int, int]:
    """Returns top and left of the square of `side` pixels with the most contrast in the middle of a uint8 [H,
    W, 3] picture.
    """
    corners = [
        (top, left) for top in _starts(picture.shape[0], side) for left in _starts(picture.shape[1], side)
    ]
    return max(
        corners,
        key=lambda at: float(picture[at[0] : at[0] + side, at[1] : at[1] + side].std(axis=(0, 1)).sum()),
    )


def _starts(length: int, side: int) -> range:
    """Returns where squares start within the middle half, which every level of a centred crop at quality 0.25
    still holds.
    """
    return range(length // 4, max(length // 4, length * 3 // 4 - side) + 1, max(1, side // 4))


def detail(picture: Pixels, window: npt.NDArray[np.int32], corner: tuple[int, int], side: int) -> Pixels:
    """Returns what a reduced picture of `window` shows of a square of the original, at least one pixel.

    corner: the square's (top, left).
    """
    scale = picture.shape[0] / window[2], picture.shape[1] / window[3]
    start = [
        min(max(0, round((corner[i] - int(window[i])) * scale[i])), picture.shape[i] - 1) for i in range(2)
    ]
    extent = [max(1, round(side * scale[i])) for i in range(2)]
    return picture[start[0] : start[0] + extent[0], start[1] : start[1] + extent[1]]
