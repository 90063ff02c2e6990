"""`qrdali evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrdali.cli.search_options import class_map_options, machine_options
from qrdali.cli.setting_options import setting_option
from qrdali.reduction.names import REDUCING


@click.command()
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ is evaluated.")
@click.option("--data", type=click.Path(), help="Data set made by `qrdali data index`.")
@setting_option("root", default=None)
@click.option("--split", default="test", show_default=True, help="train, val or test of --data.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=FOLDER",
    help="A folder of class folders, such as mepi/crop, or s3:// or gs://; repeatable.",
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME=ROOT",
    help="A published suite as it is distributed: imagenet-a, imagenet-c, imagenet-r, imagenet-v2, "
    "imagenet-sketch, real (ReaL labels) or human (minimal images); repeatable.",
)
@click.option(
    "--curve", is_flag=True, help="Also accuracy at every level of each reduction, into RUN/curves/."
)
@click.option(
    "--reduced",
    type=float,
    help="Also the split at this quality in each reduction, centre crops; such as 0.5.",
)
@click.option(
    "--reduction",
    "reductions",
    multiple=True,
    metavar="NAME",
    type=click.Choice([*REDUCING, "all"]),
    help=f"A reduction of --curve and --reduced: {', '.join(REDUCING)} or all; repeatable.  "
    "[default: the first four]",
)
@setting_option("step", help="Grid of qualities of --curve and --reduced, 1/n.")
@setting_option(
    "tail",
    default="full",
    help="How far --curve goes below the grid, halving the quality: down to one pixel and one value.",
)
@class_map_options
@setting_option("batch_size", help="Images per forward pass, of all processes together.")
@machine_options("Decoding threads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    run: str,
    sets: tuple[str, ...],
    suites: tuple[str, ...],
    reductions: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Accuracy, top-5 accuracy, negative log-likelihood and expected calibration error of a run on a split,
    on named folders and on published suites; one row per image goes into RUN/predictions/NAME.parquet.

    \b
    Examples: qrdali evaluate --run runs/baseline --data data --split test
              qrdali evaluate --run runs/baseline --set mepi-crop=mepi/crop
              qrdali evaluate --run runs/baseline --data data --curve --step 0.05
              qrdali evaluate --run runs/baseline --data data --reduced 0.5
              qrdali evaluate --run runs/r50 --suite imagenet-a=/data/imagenet-a
              qrdali evaluate --run runs/baseline --data data \\
                --curve --reduction blur
              qrdali evaluate --run runs/imagenet --data humanet \\
                --class-map map.tsv --map-rule sum
    """
    from qrdali.cli.terminal import TerminalListener
    from qrdali.cli.torchrun import job
    from qrdali.data.set_names import parse_named_sets
    from qrdali.data.suite_names import parse_suites
    from qrdali.interfaces import JobControl
    from qrdali.runs import folder as run_folder
    from qrdali.system.deterministic import deterministic
    from qrdali.workflows import evaluate as workflow

    folders, roots = parse_named_sets(sets, "--set"), parse_suites(suites)
    # Entered here as well as in the workflow: a process group may begin CUDA, which reads its environment
    # then.
    with (
        deterministic(run_folder.is_deterministic(Path(run)), options["device"]),
        job(options["device"]) as group,
    ):
        control = JobControl(TerminalListener(), group=group)
        results = workflow.evaluate(
            run, sets=folders, suites=roots, reductions=reductions or None, control=control, **options
        )
        _show(results, as_json)


def _show(results: list[dict[str, Any]], as_json: bool) -> None:
    """Prints results, the first of which is the command's own where they are one JSON object."""
    from qrdali.cli.suite_lines import show_suite
    from qrdali.cli.terminal import emit, say

    suites = {result["suite"]: result for result in results if "suite" in result}
    results = [result for result in results if "suite" not in result]
    if as_json:
        sets = {result["set"]: result for result in results}
        emit({**(results[0] if results else {}), "sets": sets, **({"suites": suites} if suites else {})})
        return
    for result in results:
        _show_accuracy(result)
        for reduced in result.get("reduced", {}).values():
            _show_accuracy(reduced)
        for reduction, curve in result.get("curve", {}).items():
            if isinstance(curve, dict):
                points = zip(curve["quality"], curve["accuracy"], strict=True)
                text = ", ".join(f"{quality:g}: {accuracy:.3f}" for quality, accuracy in points)
                say(f"  {reduction:12s} area {curve['area']:.3f}, log {curve['log_area']:.3f}  {text}")
        if "curve" in result:
            say(f"curve: {result['curve']['files']}.png")
    for suite in suites.values():
        show_suite(suite)


def _show_accuracy(result: dict[str, Any]) -> None:
    from qrdali.cli.terminal import say

    notes = f", {result['unreadable']} unreadable" if result["unreadable"] else ""
    if result.get("unmapped"):
        notes += f", {result['unmapped']} of no class of the data"
    loss, calibration = result["negative_log_likelihood"], result["expected_calibration_error"]
    say(
        f"{result['set']}: accuracy {result['accuracy']:.4f} "
        f"({result['correct']} of {result['images']}{notes}), top-5 {result['top5_accuracy']:.4f}, "
        f"negative log-likelihood {'–' if loss is None else f'{loss:.4f}'}"
    )
    say(f"  expected calibration error {'–' if calibration is None else f'{calibration:.4f}'}")
    for note in result["notes"]:
        say(f"  {note}")
    say(f"  rows in {result['rows']}")
