"""`qrdali minimal`."""

from __future__ import annotations

from typing import Any

import click

from qrdali.cli.search_options import SearchedReduction, descent_options, machine_options
from qrdali.cli.setting_options import setting_option


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path())
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ classifies.")
@click.option("--label", metavar="NAME", help="The class.  [default: the network's own answer]")
@click.option("--reduction", type=SearchedReduction(), default="combination", show_default=True)
@setting_option("step", default=0.05)
@setting_option("tail", default="full")
@descent_options
@click.option(
    "--out", default="minimal", show_default=True, type=click.Path(), help="Folder for the results."
)
@click.option(
    "--search-batch-size",
    type=click.IntRange(1, 1 << 16),
    help="Candidates per forward pass.  [default: as build-mepi, 16 on a CPU, 256 on a GPU]",
)
@machine_options("Decoding and encoding threads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def minimal(images: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """The minimal image of photographs: what a network needs to see to still take each for its class.

    For each IMAGE, a file or an s3:// or gs:// URL, writes OUT/NAME-REDUCTION.png, whose bytes are what is
    counted, and OUT/NAME-REDUCTION-sheet.png: the original, the minimal image, and every step of the way.

    \b
    Examples: qrdali minimal eagle.jpg --run runs/baseline
              qrdali minimal *.jpg --run runs/baseline --label eagle --out sheets
    """
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.terminal import emit
    from qrdali.workflows.minimal_files import write_minimal_images

    with terminal_control() as control:
        rows = write_minimal_images(images, control=control, **options)
        if as_json:
            emit({"images": rows})
