"""`qrdali demo`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qrdali.workflows.demo import DemoResult


@click.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for data and runs.")
def demo(out: str) -> None:
    """Generate pictures, index them, train four methods on them, evaluate, build MEPIs and write a report.

    shared is trained first, then baseline, linear and adaptive from it. Takes minutes on two cores. At the
    end it names what to look at, and three commands to go on with, on pictures of your own.

    \b
    Example: qrdali demo --out demo
    """
    from qrdali.cli.signals import terminal_control
    from qrdali.workflows.demo import run_demo

    with terminal_control() as control:
        result = run_demo(Path(out), control)
    _say_what_next(result, Path(out))


def _say_what_next(result: DemoResult, folder: Path) -> None:
    """Prints what to look at, three commands to go on with, and the path of the report last."""
    from qrdali.cli.terminal import say

    sheets = [sheet for sheet in result.sheets if sheet.stem == "combination"]
    say("")
    say("Minimal images, which the networks still get right:")
    for sheet in sheets:
        say(f"  {sheet}", is_whole=True)
    say("The runs in a table:")
    say(f"  qrdali runs {shlex.quote(str(result.runs))}", is_whole=True)
    say("")
    say("Next: the same with your own pictures. These commands work as they are, on the demo's pictures.")
    say(
        f"Put your own folder in place of {result.images}: it holds train/CLASS/*.jpg, and val/ and test/ "
        "likewise; if it holds CLASS/*.jpg, add --val-share 0.15 --test-share 0.15 to the first command."
    )
    for command in next_commands(result, folder):
        say(f"  {command}", is_whole=True)
    say("")
    say("The report, to be opened in a browser:")
    say(str(result.page), is_whole=True)


def next_commands(result: DemoResult, folder: Path) -> list[str]:
    """Returns three commands that index, train, and find the minimal image of a picture."""
    from qrdali.workflows.demo import EPOCHS, INPUT_SIZE, LR, MODEL

    own = folder / "own"
    images, data, run, picture, out = (
        shlex.quote(str(path))
        for path in (result.images, own / "data", own / "shared", result.picture, own / "minimal")
    )
    return [
        f"qrdali data index {images} --out {data}",
        f"qrdali train shared --data {data} --run {run} "
        f"--model {MODEL} --input-size {INPUT_SIZE} --lr {LR:g} --epochs {EPOCHS}",
        f"qrdali minimal {picture} --run {run} --out {out}",
    ]
