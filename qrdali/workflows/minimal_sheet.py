"""Draws the sheet of a minimal image: the original, the minimal image, one step further, and the way."""

from __future__ import annotations

import io
import math
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qrdali.errors import printable
from qrdali.reduction.png_entropy import encoder_name
from qrdali.report.figures import LIGHT
from qrdali.workflows.minimal_image import MinimalImage, MinimalStep

# All in pixels of the sheet, which is as wide as a slide.
_WIDTH, _MARGIN, _GAP = 1920, 60, 30
_PANEL, _HEADING, _CAPTION = (410, 340), 34, 66
_LEAST_PANEL_HEIGHT = 300
_COLUMNS = 11
_CELL_GAP, _LINE = 14, 22
_CELL = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _CELL_GAP) // _COLUMNS
_DPI = 120  # of the curve
_WRONG = "#dc2626"
_LEGEND = (
    "under each picture: what the step reduced, to which quality, the share that is left of the bits "
    "(color), the area (crop) or the pixels (resolution);",
    "p: probability of the class;  Q: entropy quotient (PNG bytes ÷ the original's)",
)


class _Box(NamedTuple):
    """A rectangle of the sheet."""

    left: int
    top: int
    width: int
    height: int


def draw(found: MinimalImage) -> bytes:
    """Returns the sheet as the content of a PNG file, 1920 pixels wide and as high as the steps need."""
    steps = [*found.steps, *([found.next_step] if found.next_step else [])]
    cells = [_fitted(_picture(step), (_CELL, round(0.8 * _CELL))) for step in steps]
    panel_steps = [found.steps[0], *steps[len(found.steps) - 1 :]]
    panels = [_fitted(_picture(step), _PANEL) for step in panel_steps]
    panel_height = max(_LEAST_PANEL_HEIGHT, *(panel.height for panel in panels))
    cell_height = max(cell.height for cell in cells)
    row_height = cell_height + 3 * _LINE + 24
    head, rows = 164, -(-len(cells) // _COLUMNS)
    way_top = head + _HEADING + panel_height + _CAPTION + 28
    height = way_top + 52 + rows * row_height + (_LINE if found.next_step else 0) + 46
    sheet = Image.new("RGB", (_WIDTH, height), LIGHT.paper)
    _draw_title(sheet, found)
    top, names = head + _HEADING, ("original", "minimal image", "one step further")
    for i, (step, panel) in enumerate(zip(panel_steps, panels, strict=True)):
        box = _Box(_MARGIN + i * (_PANEL[0] + _GAP), top, _PANEL[0], panel_height)
        corner = _draw_panel(sheet, box, panel, names[i], step)
        if i == 0:
            _draw_window(sheet, corner, panel.width / found.steps[0].window.width, found)
    left = _MARGIN + len(panels) * (_PANEL[0] + _GAP)
    curve_box = _Box(left, top - _HEADING, _WIDTH - _MARGIN - left, panel_height + _HEADING + _CAPTION)
    with Image.open(io.BytesIO(_curve(found, curve_box))) as curve:
        sheet.paste(curve.convert("RGB"), (curve_box.left, curve_box.top))
    _draw_way_heading(sheet, way_top, found)
    for i, (step, cell) in enumerate(zip(steps, cells, strict=True)):
        row, column = divmod(i, _COLUMNS)
        corner_of_cell = _MARGIN + column * (_CELL + _CELL_GAP), way_top + 52 + row * row_height
        _draw_cell(sheet, _Box(*corner_of_cell, _CELL, cell_height), cell, step, step is found.next_step)
    _draw_foot(sheet, found)
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=9)
    return out.getvalue()


def _picture(step: MinimalStep) -> Image.Image:
    return Image.fromarray(step.image)


def _fitted(picture: Image.Image, most: tuple[int, int]) -> Image.Image:
    """Returns a picture as large as it can be within `most` (width, height)."""
    scale = min(most[0] / picture.width, most[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # Enlarging repeats pixels, so that a low resolution is seen for what it is.
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Returns `text` on one line, cut so that it is at most `width` pixels long."""
    text = printable(text)[:400]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def percent(share: float) -> str:
    """Returns a share in [0, 1] in percent with three digits, and never 100% for less than that."""
    value = 100 * share
    if value >= 99.95:
        return "100%" if share >= 1 else ">99.9%"
    if value >= 10:
        return f"{value:.1f}%"
    return f"{value:.2f}%" if value >= 0.1 else f"{value:.2g}%"


def _draw_title(sheet: Image.Image, found: MinimalImage) -> None:
    pen, width = ImageDraw.Draw(sheet), _WIDTH - 2 * _MARGIN
    title = f"An entropy quotient of {found.quotient:#.3g} is enough for “{found.class_name}”"
    pen.text((_MARGIN, 76), _cut(title, _font(46, True), width), LIGHT.ink, _font(46, True), anchor="ls")
    moved = "color, crop and resolution" if found.reduction == "combination" else found.reduction
    text = (
        f"{found.model} still takes {len(found.png):,} of {len(found.steps[0].png):,} bytes of PNG for this "
        f"class; reduced: {moved}"
    )
    pen.text((_MARGIN, 120), _cut(text, _font(24), width), LIGHT.faint, _font(24), anchor="ls")


def _draw_panel(
    sheet: Image.Image, box: _Box, picture: Image.Image, name: str, step: MinimalStep
) -> tuple[int, int]:
    """Draws a picture with its heading and what the network says of it; returns its left and top."""
    pen = ImageDraw.Draw(sheet)
    left, top = box.left, box.top + (box.height - picture.height) // 2
    is_wrong = name == "one step further"
    pen.text((box.left, box.top - 12), name, LIGHT.ink, _font(22, True), anchor="ls")
    sheet.paste(picture, (left, top))
    frame = (left - 1, top - 1, left + picture.width, top + picture.height)
    pen.rectangle(frame, outline=_WRONG if is_wrong else LIGHT.grid, width=1)
    below = box.top + box.height + 30
    answer = f"{percent(step.confidence)} {printable(step.answer)}"
    color = _WRONG if is_wrong else LIGHT.ink
    pen.text((box.left, below), _cut(answer, _font(22, True), box.width), color, _font(22, True), anchor="ls")
    height, width = step.size
    facts = f"{width}×{height} pixels, {len(step.png):,} bytes"
    pen.text((box.left, below + 28), facts, LIGHT.faint, _font(18), anchor="ls")
    return left, top


def _draw_window(sheet: Image.Image, corner: tuple[int, int], scale: float, found: MinimalImage) -> None:
    """Draws where the minimal image lies in the original, unless that is all of it.

    corner: left and top of the original on the sheet. scale: pixels of the sheet per pixel of the original.
    """
    if found.window == found.steps[0].window:
        return
    top, left, height, width = (value * scale for value in found.window)
    start, end = (
        (corner[0] + left, corner[1] + top),
        (corner[0] + left + width - 1, corner[1] + top + height - 1),
    )
    pen, color = ImageDraw.Draw(sheet), LIGHT.color("crop")
    # Around the window, so that it hides nothing of it; of a window of one pixel the frame is what is seen.
    pen.rectangle((start[0] - 4, start[1] - 4, end[0] + 4, end[1] + 4), outline="white", width=4)
    pen.rectangle((start[0] - 3, start[1] - 3, end[0] + 3, end[1] + 3), outline=color, width=2)


def _draw_way_heading(sheet: Image.Image, top: int, found: MinimalImage) -> None:
    pen = ImageDraw.Draw(sheet)
    pen.line((_MARGIN, top, _WIDTH - _MARGIN, top), LIGHT.grid, 2)
    count = len(found.steps) - 1
    heading = f"the way there in {count} step{'s' * (count != 1)}"
    pen.text((_MARGIN, top + 34), heading, LIGHT.ink, _font(22, True), anchor="ls")
    for line, text in enumerate(_LEGEND):
        place = _WIDTH - _MARGIN, top + 24 + line * 20
        pen.text(place, text, LIGHT.faint, _font(15), anchor="rs")


def _draw_cell(
    sheet: Image.Image, box: _Box, picture: Image.Image, step: MinimalStep, is_wrong: bool
) -> None:
    pen = ImageDraw.Draw(sheet)
    left, top = box.left, box.top + (box.height - picture.height) // 2
    sheet.paste(picture, (left, top))
    frame = (left - 1, top - 1, left + picture.width, top + picture.height)
    pen.rectangle(frame, outline=_WRONG if is_wrong else LIGHT.grid, width=3 if is_wrong else 1)
    line, small = box.top + box.height + _LINE, _font(16)
    text, color = "original", LIGHT.ink
    if step.reduced:
        quality = f"{getattr(step.qualities, step.reduced):.3g}".removeprefix("0")
        text, color = f"{step.reduced} {quality}", LIGHT.color(step.reduced)
    # Far down the tail a quality has many digits.
    sizes = (size for size in (16, 15, 14, 13) if _font(size, True).getlength(text) <= _CELL)
    pen.text((box.left, line), text, color, _font(next(sizes, 12), True), anchor="ls")
    pen.text((box.left, line + _LINE), f"p {percent(step.probability)}", LIGHT.ink, small, anchor="ls")
    pen.text((box.left, line + 2 * _LINE), f"Q {step.quotient:#.3g}", LIGHT.ink, small, anchor="ls")
    if is_wrong:
        answer = _cut(f"→ {step.answer}", _font(16, True), sheet.width - _MARGIN - box.left)
        pen.text((box.left, line + 3 * _LINE), answer, _WRONG, _font(16, True), anchor="ls")


def _draw_foot(sheet: Image.Image, found: MinimalImage) -> None:
    pen, small = ImageDraw.Draw(sheet), _font(15)
    facts = f"{found.evaluations:,} candidates classified; PNG by {encoder_name()}"
    name = PurePosixPath(found.name).name
    text = f"{name}; {facts}" if name else facts
    pen.text(
        (_MARGIN, sheet.height - 18), _cut(text, small, _WIDTH - 2 * _MARGIN), LIGHT.faint, small, anchor="ls"
    )


def _curve(found: MinimalImage, box: _Box) -> bytes:
    """Returns a PNG of the probability of the class against its entropy quotient, falling to the right."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.edgecolor": LIGHT.faint,
        "axes.labelcolor": LIGHT.ink,
        "text.color": LIGHT.ink,
        "xtick.color": LIGHT.ink,
        "ytick.color": LIGHT.ink,
        "grid.color": LIGHT.grid,
    }
    with rc_context(settings):
        figure = Figure(figsize=(box.width / _DPI, box.height / _DPI), layout="constrained", dpi=_DPI)
        axes = figure.add_subplot()
        quotient = np.array([step.quotient for step in found.steps])
        probability = np.array([100 * step.probability for step in found.steps])
        axes.plot(quotient, probability, color=LIGHT.faint, linewidth=1, zorder=1)
        axes.scatter(quotient[:1], probability[:1], s=26, color=LIGHT.ink, zorder=2, label="original")
        for name in dict.fromkeys(step.reduced for step in found.steps[1:]):
            own = [i for i, step in enumerate(found.steps) if step.reduced == name]
            color = LIGHT.color(name)
            axes.scatter(quotient[own], probability[own], s=26, color=color, zorder=2, label=name)
        ring: dict[str, Any] = {
            "s": 110,
            "facecolors": "none",
            "edgecolors": LIGHT.ink,
            "linewidths": 1.6,
            "zorder": 3,
        }
        axes.scatter(quotient[-1:], probability[-1:], label="minimal image", **ring)
        lowest = float(quotient.min())
        if found.next_step is not None:
            x, y = found.next_step.quotient, 100 * found.next_step.probability
            axes.plot(
                [quotient[-1], x], [probability[-1], y], color=_WRONG, linewidth=1, linestyle=":", zorder=1
            )
            axes.scatter([x], [y], s=44, color=_WRONG, marker="x", zorder=3, label="one step further")
            lowest = min(lowest, x)
        axes.set_xscale("log")
        axes.set_xlim(1.25, min(lowest / 1.25, 0.5))
        ticks = [t for t in _ticks(lowest) if t >= lowest / 1.25]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(-3, 103)
        axes.set_yticks([0, 25, 50, 75, 100], ["0", "25%", "50%", "75%", "100%"])
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("entropy quotient")
        axes.set_ylabel("probability of the class")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, handletextpad=0.2)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def _ticks(lowest: float) -> list[float]:
    """Returns shares for an axis from 1 down to `lowest`: powers of ten, and parts of them if it is short."""
    decades = math.ceil(-math.log10(lowest)) if lowest < 1 else 1
    parts = (1.0,) if decades > 2 else (1.0, 0.5, 0.2)
    return [part * 10.0**-exponent for exponent in range(decades + 1) for part in parts]
