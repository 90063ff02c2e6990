"""A contact sheet of MEPIs: original, MEPI, quotient and class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qrdali.errors import printable
from qrdali.files.atomic import write_whole
from qrdali.interfaces import ImageReducer
from qrdali.mepi.folder import MepiSet
from qrdali.mepi.search_path import FULL_STATE, params_of_states
from qrdali.reduction.pair_picture import paste_pair

PAIRS, COLUMNS = 24, 4
_CELL, _GAP, _CAPTION, _TITLE = 150, 10, 18, 34  # pixels
_PITCH, _LINE = 2 * _CELL + 3 * _GAP, _CELL + _CAPTION + _GAP  # from one pair to the next, right and down


def draw(mepis: MepiSet, reduction: str, reducer: ImageReducer, out: Path) -> None:
    """Writes a PNG of up to 24 images spread evenly over the set, each beside its MEPI in place and size.

    Removes `out` if the reduction has no MEPI.
    """
    journal, source = mepis.journal(reduction), mepis.source
    with_mepi = journal.with_mepi()
    if not len(with_mepi):
        out.unlink(missing_ok=True)
        return
    spread = np.linspace(0, len(with_mepi) - 1, min(PAIRS, len(with_mepi)))
    samples = with_mepi[np.unique(spread.astype(int))]
    rows, sizes, labels = journal.rows[samples], source.index.sizes(samples), source.index.labels(samples)
    windows = params_of_states(rows["state"], sizes, source.scale).window
    columns = min(COLUMNS, len(samples))
    lines = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * _PITCH + _GAP, _TITLE + lines * _LINE + _GAP), "white")
    pen, title_font, font = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(12)
    title = (
        f"{reduction}: original and MEPI of {len(samples)} of {len(with_mepi)} images, "
        f"mean quotient {journal.mean_quotient():.4f}"
    )
    pen.text((_GAP, _TITLE / 2), title, "black", title_font, anchor="lm")
    number_of = {int(sample): i for i, sample in enumerate(samples)}
    for sample, pixels in reducer.decode(iter(number_of), lambda sample, reason: None):
        i = number_of[sample]
        left, top = _GAP + i % columns * _PITCH, _TITLE + i // columns * _LINE
        params = params_of_states([FULL_STATE], sizes[i][None], source.scale)
        original = Image.fromarray(reducer.reduced_images([pixels], params)[0])
        with Image.open(mepis.png(reduction, sample)) as file:
            mepi = file.convert("RGB")
        paste_pair(sheet, (left, top), original, mepi, windows[i], (_CELL, _GAP))
        captions = (
            printable(source.shown_name(int(labels[i])))[:24],
            f"{rows[i]['mepi'] / rows[i]['full']:.2%}  {mepi.width}x{mepi.height}",
        )
        for x, caption in zip((left, left + _CELL + _GAP), captions, strict=True):
            pen.text((x, top + _CELL + _CAPTION / 2), caption, "black", font, anchor="lm")
    write_whole(out, lambda partial: sheet.save(partial, "PNG", optimize=True))
