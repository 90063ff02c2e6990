"""`qrdali preview`."""

from __future__ import annotations

from pathlib import Path

import click

from qrdali.reduction.names import REDUCING


@click.command()
@click.argument("image", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="PNG file to write.")
@click.option("--step", default=0.25, show_default=True, help="Grid of qualities, 1/n.")
@click.option(
    "--reduction",
    "reductions",
    multiple=True,
    metavar="NAME",
    type=click.Choice([*REDUCING, "all"]),
    help=f"A row of the sheet: {', '.join(REDUCING)} or all; repeatable.  [default: the first four]",
)
def preview(image: str, out: str, step: float, reductions: tuple[str, ...]) -> None:
    """Draw a contact sheet: a row per reduction, a column per level, the entropy quotient under each picture.

    IMAGE is a file, or s3://BUCKET/KEY, gs://BUCKET/KEY or the URL of a shard's member as it stands in a data
    set. Distortions (gray, contrast, blur, noise, jpeg) are shown at the size of a network's input.

    \b
    Examples: qrdali preview cat.jpg --out sheet.png
              qrdali preview cat.jpg --out sheet.png --reduction jpeg
    """
    from qrdali.cli.terminal import say
    from qrdali.workflows.preview import draw_preview

    sheet = draw_preview(image, Path(out), step, reductions or None)
    say(f"{out}: {len(sheet.reductions)} reductions at {sheet.qualities} qualities")
