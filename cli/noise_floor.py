"""`qrdali noise-floor`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--mepi",
    "mepis",
    multiple=True,
    type=click.Path(),
    help="A folder made by `qrdali build-mepi` with one of RUNS, for the spread of quotients; repeatable.",
)
@click.option("--csv", "csv", type=click.Path(), help="Also write the table to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def noise_floor(runs: tuple[str, ...], mepis: tuple[str, ...], csv: str | None, as_json: bool) -> None:
    """How far RUNS of one configuration differ by their seeds alone, and what that hides.

    Every two runs that differ by nothing but the seed are an A/A pair: a test should tell few of them apart.
    Their spread says which differences between methods can be told from chance. It takes two runs of one
    configuration, better five, each evaluated on the same images.

    \b
    Example:
      qrdali noise-floor runs/baseline runs/baseline-seed-1
      qrdali noise-floor runs/*/baseline --mepi mepi/seed-0 --mepi mepi/seed-1
    """
    from qrdali.cli.terminal import TerminalListener, emit, say
    from qrdali.interfaces import JobControl
    from qrdali.workflows import noise_floor as workflow

    found = workflow.noise_floor(
        [Path(run) for run in runs],
        mepi=[Path(folder) for folder in mepis],
        csv=Path(csv) if csv is not None else None,
        control=JobControl(TerminalListener()),
    )
    if as_json:
        emit(found.to_json())
        return
    for sentence in found.sentences:
        say(sentence)
