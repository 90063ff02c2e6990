"""`qrdali build-mepi`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrdali.cli.search_options import SearchedReduction, class_map_options, descent_options, machine_options
from qrdali.cli.setting_options import setting_option


@click.command("build-mepi")
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ classifies.")
@click.option("--data", required=True, type=click.Path(), help="Data set made by `qrdali data index`.")
@setting_option("root", default=None)
@click.option("--out", required=True, type=click.Path(), help="Folder for the MEPIs.")
@click.option("--split", default="val", show_default=True, help="train, val or test.")
@click.option("--reduction", type=SearchedReduction(), default="all", show_default=True)
@setting_option("step", default=0.05)
@setting_option("tail", default=None, default_text="full, or the set's own")
@descent_options
@click.option(
    "--search",
    type=click.Choice(["descend", "exhaustive"]),
    default="descend",
    show_default=True,
    help="Step by step, or try every level (color and resolution).",
)
@class_map_options
@click.option(
    "--limit", type=click.IntRange(1), help="Search this many images, spread evenly over the split."
)
@setting_option("batch_size", help="As of `evaluate`, for reading back.")
@click.option(
    "--search-batch-size",
    type=click.IntRange(1, 1 << 16),
    help="Candidates per forward pass.  [default: 16 on a CPU, 256 on a GPU]",
)
@click.option(
    "--memory", type=click.IntRange(1), default=1024, show_default=True, help="MiB of decoded originals kept."
)
@machine_options("Decoding and encoding threads.")
@click.option("--resume", is_flag=True, help="Continue this folder; starts it if it has not begun.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on stdout.")
def build_mepi(as_json: bool, **options: Any) -> None:
    """For each image the run classifies correctly, a reduced image that it still gets right, but no step
    further (see --search).

    Writes REDUCTION/CLASS/SAMPLE.png, manifest.parquet, summary.json and a contact sheet per reduction.

    \b
    Examples: qrdali build-mepi --run runs/baseline --data data --reduction crop \\
                --out mepi
              qrdali build-mepi --run runs/r50 --data humanet \\
                --class-map map.tsv --map-rule sum --out mepi
    """
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.terminal import emit
    from qrdali.cli.torchrun import job
    from qrdali.runs import folder as run_folder
    from qrdali.system.deterministic import deterministic
    from qrdali.workflows import build_mepi as workflow

    # Entered here as well as in the workflow: a process group may begin CUDA, which reads its environment
    # then.
    with (
        deterministic(run_folder.is_deterministic(Path(options["run"])), options["device"]),
        job(options["device"]) as group,
        terminal_control(group) as control,
    ):
        summaries = workflow.build_mepi(control=control, **options)
        if as_json:
            emit(summaries)
