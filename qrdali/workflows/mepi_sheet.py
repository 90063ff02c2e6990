"""A contact sheet of MEPIs: original, MEPI, quotient and class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qrdali.interfaces import ImageReducer
    from qrdali.mepi.folder import MepiSet

PAIRS, COLUMNS = 24, 4
_CELL, _GAP, _CAPTION, _TITLE = 150, 10, 18, 34


def draw(mepis: MepiSet, reduction: str, maker: ImageReducer, out: Path) -> None:
    """Writes a PNG of up to 24 images spread evenly over the set: the original beside its MEPI, in its place and size."""
    from PIL import Image, ImageDraw, ImageFont

    from qrdali.errors import printable
    from qrdali.mepi.search import FULL_STATE, params_of_states

    found = mepis.journal(reduction).with_mepi()
    if not len(found):
        out.unlink(missing_ok=True)
        return
    samples = found[np.unique(np.linspace(0, len(found) - 1, min(PAIRS, len(found))).astype(int))]
    some = mepis.journal(reduction).rows[samples]
    sizes, labels = mepis.index.sizes(samples), mepis.index.labels(samples)
    windows = params_of_states(some["state"], sizes, mepis.num_levels).window
    columns = min(COLUMNS, len(some))
    rows = -(-len(some) // columns)
    pitch, line = 2 * _CELL + 3 * _GAP, _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * pitch + _GAP, _TITLE + rows * line + _GAP), "white")
    pen, title, small = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    mean = mepis.journal(reduction).mean_quotient()
    pen.text(
        (_GAP, _TITLE / 2),
        f"{reduction}: original and MEPI of {len(some)} of {len(found)} images, mean quotient {mean:.4f}",
        "black",
        title,
        anchor="lm",
    )
    where = {int(sample): i for i, sample in enumerate(samples)}
    for sample, pixels in maker.decode(iter(where), lambda sample, reason: None):
        i = where[sample]
        row, label, window = some[i], int(labels[i]), windows[i].tolist()
        left, top = _GAP + i % columns * pitch, _TITLE + i // columns * line
        height, width = sizes[i].tolist()
        scale = _CELL / max(height, width)
        original = Image.fromarray(
            maker.reduced_images([pixels], params_of_states([FULL_STATE], sizes[i][None], mepis.num_levels))[
                0
            ]
        )
        with Image.open(mepis.png(reduction, sample)) as file:
            mepi = file.convert("RGB")
        cell = max(1, round(width * scale)), max(1, round(height * scale))
        below, right = top, left + _CELL + _GAP
        top += (_CELL - cell[1]) // 2
        sheet.paste(original.resize(cell, Image.Resampling.BOX), (left, top))
        pen.rectangle((right, top, right + cell[0] - 1, top + cell[1] - 1), "#e4e4e4")
        y, x, h, w = (v * scale for v in window)
        shown = max(1, round(w)), max(1, round(h))
        # Enlarging repeats pixels, so that a low resolution is seen for what it is.
        method = Image.Resampling.NEAREST if mepi.width < shown[0] else Image.Resampling.BOX
        sheet.paste(mepi.resize(shown, method), (right + round(x), top + round(y)))
        pen.text(
            (left, below + _CELL + _CAPTION / 2),
            printable(mepis.classes[label])[:24],
            "black",
            small,
            anchor="lm",
        )
        pen.text(
            (right, below + _CELL + _CAPTION / 2),
            f"{row['mepi'] / row['full']:.2%}  {mepi.width}x{mepi.height}",
            "black",
            small,
            anchor="lm",
        )
    partial = out.with_name(f".{out.name}.partial")
    sheet.save(partial, "PNG", optimize=True)
    partial.rename(out)
