"""`qrdali preview`: a contact sheet of one image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROWS = ("color", "crop", "resolution", "combination")
COLUMNS = 8
_CELL, _GAP, _CAPTION, _MARGIN = 176, 12, 20, 116
_DETAIL, _SEEN, _LEAST = (
    0.48,
    0.14,
    16,
)  # the inset's side by the cell's, the share of the shorter side it shows, its least pixels
_COLUMN = 92  # least width of a column: its heading


def liveliest(picture: npt.NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Top and left of the square of `side` pixels with the most contrast in the middle of a uint8 [H, W, 3] picture."""
    places = [(top, left) for top in _grid(picture.shape[0], side) for left in _grid(picture.shape[1], side)]
    return max(
        places,
        key=lambda at: float(picture[at[0] : at[0] + side, at[1] : at[1] + side].std(axis=(0, 1)).sum()),
    )


def _grid(length: int, side: int) -> range:
    """Starts of squares within the middle half, which every level of a centred crop at quality 0.25 still holds."""
    return range(length // 4, max(length // 4, length * 3 // 4 - side) + 1, max(1, side // 4))


def detail(
    picture: npt.NDArray[np.uint8], window: npt.NDArray[np.int32], at: tuple[int, int], side: int
) -> npt.NDArray[np.uint8]:
    """What a reduced picture of `window` shows of the square `at` in the original; at least one pixel."""
    scale = picture.shape[0] / window[2], picture.shape[1] / window[3]
    start = [min(max(0, round((at[i] - int(window[i])) * scale[i])), picture.shape[i] - 1) for i in range(2)]
    extent = [max(1, round(side * scale[i])) for i in range(2)]
    return picture[start[0] : start[0] + extent[0], start[1] : start[1] + extent[1]]


@click.command()
@click.argument("image", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="PNG file to write.")
@click.option("--step", default=0.25, show_default=True, help="Grid of qualities, 1/n.")
def preview(image: str, out: str, step: float) -> None:
    """A contact sheet: a row per reduction, a column per level, the entropy quotient under each picture. IMAGE is a file, or
    s3://BUCKET/KEY, gs://BUCKET/KEY or the URL of a shard's member as it stands in a data set.

    \b
    Example: qrdali preview cat.jpg --out sheet.png
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from qrdali.cli.terminal import say
    from qrdali.data import storage
    from qrdali.data.inspect import MAX_BYTES, read_upright_size
    from qrdali.data.object_store import Unreachable
    from qrdali.errors import InputError, RunError, printable
    from qrdali.pipelines import host_ops as host
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.external_source import window_arrays
    from qrdali.pipelines.graphs import decode_windows
    from qrdali.reduction.png_entropy import encoder_name, entropy
    from qrdali.reduction.quality import REDUCTIONS, RESOLUTION, num_levels_of, reduction_params

    num_levels = num_levels_of(step)
    apart = storage.is_url(image)
    path = image if apart else str(Path(image).absolute())
    if not apart and not Path(path).is_file():
        raise InputError(f"{printable(image)} is not a file")
    if Path(out).suffix.lower() != ".png":
        raise InputError(f"--out is {printable(out)}: the sheet is a PNG, end the name in .png")
    if not Path(out).parent.is_dir():
        raise InputError(f"--out is {printable(out)}: {printable(Path(out).parent)} is not a folder")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise InputError(f"{printable(image)} is not UTF-8: rename it") from None
    try:
        if apart:
            encoded = storage.whole(path, MAX_BYTES)
        width, height = read_upright_size(io.BytesIO(encoded) if apart else path, verify=True)
    except Unreachable:
        raise
    except Exception as error:  # Pillow's decoders raise many types
        raise InputError(f"{printable(image)} cannot be decoded: {printable(error)}") from None
    levels = sorted(
        {
            round(i * (num_levels - 1) / (min(num_levels, COLUMNS) - 1))
            for i in range(min(num_levels, COLUMNS))
        }
    )
    grid = np.array(
        [[level if moves else 0 for moves in REDUCTIONS[row]] for row in ROWS for level in levels], np.uint8
    )
    count = len(grid)
    reduction = reduction_params(
        grid, np.tile(np.array([height, width], np.int32), (count, 1)), np.full((count, 2), 0.5), num_levels
    )
    name = np.frombuffer(encoded, np.uint8)
    emitted = iter([window_arrays([name] * count, reduction.window)])
    try:
        (decoded,) = decode_windows(lambda: next(emitted), Engine(depth=1), count, apart).run()
    except RuntimeError as error:  # what Pillow decodes and DALI does not
        raise RunError(f"{printable(image)} cannot be decoded: {printable(error)[:200]}") from None
    pictures = [
        host.reduce(np.array(decoded[i]), reduction.size[i], int(reduction.bin_width[i]))
        for i in range(count)
    ]
    full = entropy(pictures[0])
    spot_side = max(1, round(min(width, height) * _SEEN))
    spot = liveliest(pictures[0], spot_side)

    scale = _CELL / max(width, height)
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    pitch, indent = max(cell[0], _COLUMN) + _GAP, max(0, _COLUMN - cell[0]) // 2
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    sheet = Image.new(
        "RGB",
        (_MARGIN + len(levels) * pitch + _GAP, 36 + len(ROWS) * (cell[1] + _CAPTION + _GAP) + 26),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, level in enumerate(levels):
        left = _MARGIN + column * pitch + indent
        draw.text(
            (left + cell[0] / 2, 18),
            f"quality {(num_levels - level) / num_levels:.2f}",
            "black",
            font,
            anchor="mm",
        )
    for i, picture in enumerate(pictures):
        row, column = divmod(i, len(levels))
        left, top = _MARGIN + column * pitch + indent, 36 + row * (cell[1] + _CAPTION + _GAP)
        if column == 0:
            draw.text((_MARGIN - 10, top + cell[1] / 2), ROWS[row], "black", font, anchor="rm")
        y, x, h, w = (float(v) * scale for v in reduction.window[i])
        draw.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), "#e4e4e4")
        shown = max(1, round(w)), max(1, round(h))
        # Enlarging repeats pixels, so that a low resolution is seen for what it is.
        enlarged = picture.shape[1] < shown[0]
        tile = Image.fromarray(picture).resize(
            shown, Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
        )
        sheet.paste(tile, (left + round(x), top + round(y)))
        side = round(_DETAIL * min(cell))
        if REDUCTIONS[ROWS[row]][RESOLUTION] and side >= _LEAST:
            # A cell has fewer pixels than most levels: a magnified detail shows what the cell cannot.
            part = detail(picture, reduction.window[i], spot, spot_side)
            inset = Image.fromarray(part).resize((side, side), Image.Resampling.NEAREST)
            corner = left + cell[0] - side - 4, top + cell[1] - side - 4
            draw.rectangle(
                (corner[0] - 2, corner[1] - 2, corner[0] + side + 1, corner[1] + side + 1), "white"
            )
            sheet.paste(inset, corner)
        draw.text(
            (left + cell[0] / 2, top + cell[1] + _CAPTION / 2),
            f"{entropy(picture) / full:.1%}",
            "black",
            small,
            anchor="mm",
        )
    draw.text(
        (10, sheet.height - 16),
        f"{width}x{height}, {full:,} bytes of PNG = 100% ({encoder_name()})",
        "#555555",
        small,
        anchor="lm",
    )
    partial = Path(f"{out}.partial")
    try:
        sheet.save(partial, "PNG", optimize=True)
        partial.rename(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    say(f"{out}: {len(ROWS)} reductions at {len(levels)} qualities")
