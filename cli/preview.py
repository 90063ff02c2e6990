"""`qrdali preview`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("image", type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="PNG file to write.")
@click.option("--step", default=0.25, show_default=True, help="Grid of qualities, 1/n.")
def preview(image: str, out: str, step: float) -> None:
    """Draw a contact sheet: a row per reduction, a column per level, the entropy quotient under each picture.

    IMAGE is a file, or s3://BUCKET/KEY, gs://BUCKET/KEY or the URL of a shard's member as it stands in a data
    set.

    \b
    Example: qrdali preview cat.jpg --out sheet.png
    """
    from qrdali.cli.terminal import say
    from qrdali.workflows.preview import draw_preview

    sheet = draw_preview(image, Path(out), step)
    say(f"{out}: {len(sheet.reductions)} reductions at {sheet.qualities} qualities")
