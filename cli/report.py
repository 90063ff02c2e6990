"""`qrdali report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out",
    required=True,
    type=click.Path(),
    help="Folder for report.html, tables/ and figures/; a report there is replaced.",
)
@click.option(
    "--mepi",
    "mepis",
    multiple=True,
    type=click.Path(),
    help="A folder made by `qrdali build-mepi`; repeatable.",
)
@click.option(
    "--humans",
    type=click.Path(),
    help="What people answered to the same images: CSV or Parquet with the columns path (or file name), "
    "person and answer, and optionally set.",
)
@click.option("--title", default="", help="Heading of the page.")
@click.option(
    "--gallery",
    default=8,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="Images per MEPI set that are shown, and images on which runs disagree.",
)
@click.option(
    "--usd-per-kwh", default=0.17, show_default=True, type=click.FloatRange(0), help="Price of electricity."
)
@click.option(
    "--watts", type=click.FloatRange(0), help="Power drawn, for runs whose energy could not be measured."
)
@click.option("--json", "as_json", is_flag=True, help="All tables as one JSON object on stdout.")
def report(
    runs: tuple[str, ...],
    out: str,
    mepis: tuple[str, ...],
    humans: str | None,
    title: str,
    gallery: int,
    usd_per_kwh: float,
    watts: float | None,
    as_json: bool,
) -> None:
    """Write one page on RUNS: findings, accuracy, evolution, calibration, confusions, error consistency,
    entropy quotients, minimal images and cost.

    Everything is computed from what the folders hold: no data set is read, but for the images that are shown.
    The runs of several data sets or networks stand under headings of their own.

    \b
    Examples: qrdali report runs/* --mepi mepi/baseline --out report
              qrdali report runs/* --humans answers.csv --out report
    """
    from qrdali.cli.terminal import TerminalListener, emit, say
    from qrdali.interfaces import JobControl
    from qrdali.workflows.report import write_report

    written = write_report(
        [Path(run) for run in runs],
        Path(out),
        mepi=[Path(folder) for folder in mepis],
        humans=None if humans is None else Path(humans),
        title=title,
        gallery=gallery,
        usd_per_kwh=usd_per_kwh,
        watts=watts,
        control=JobControl(TerminalListener()),
    )
    if as_json:
        emit(written.contents)
    say(f"report: {written.page}")
