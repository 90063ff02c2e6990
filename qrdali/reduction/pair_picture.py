"""Draws an original and, beside it, its reduced image where its window lies in the original."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw


def paste_pair(
    sheet: Image.Image,
    corner: tuple[int, int],
    original: Image.Image,
    reduced: Image.Image,
    window: npt.NDArray[np.integer],
    layout: tuple[int, int],
) -> None:
    """Pastes a pair into `sheet`, both at one scale, so that the longer side of the original fills a cell.

    corner: left and top of the pair. window: top, left, height, width in pixels of the original. layout:
    pixels of a cell's side, and between the two.
    """
    (left, top), (side, gap) = corner, layout
    scale = side / max(original.height, original.width)
    cell = max(1, round(original.width * scale)), max(1, round(original.height * scale))
    right = left + side + gap
    top += (side - cell[1]) // 2
    sheet.paste(original.resize(cell, Image.Resampling.BOX), (left, top))
    ImageDraw.Draw(sheet).rectangle((right, top, right + cell[0] - 1, top + cell[1] - 1), "#e4e4e4")
    y, x, height, width = (value * scale for value in window.tolist())
    size = max(1, round(width)), max(1, round(height))
    # Enlarging repeats pixels, so that a low resolution is seen for what it is.
    method = Image.Resampling.NEAREST if reduced.width < size[0] else Image.Resampling.BOX
    sheet.paste(reduced.resize(size, method), (right + round(x), top + round(y)))
