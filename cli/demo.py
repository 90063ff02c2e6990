"""`qrdali demo`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder for data and runs.")
def demo(out: str) -> None:
    """Generate pictures, index them, train four methods on them, evaluate, build MEPIs and write a report.

    shared is trained first, then baseline, linear and adaptive from it. Takes minutes on two cores.

    \b
    Example: qrdali demo --out demo
    """
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.terminal import say
    from qrdali.workflows.demo import run_demo

    with terminal_control() as control:
        page = run_demo(Path(out), control)
    say(str(page))
