"""`qrdali report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
@click.option("--title", default="", help="Heading of the page.")
@click.option(
    "--gallery",
    default=8,
    show_default=True,
    type=click.IntRange(0, 1000),
    help="Images per MEPI set that are shown.",
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
    title: str,
    gallery: int,
    usd_per_kwh: float,
    watts: float | None,
    as_json: bool,
) -> None:
    """One page on RUNS: accuracy, significance, evolution, entropy quotients, minimal images and cost.

    Everything is computed from what the folders hold: no data set is read. The runs of several data sets or networks stand under
    headings of their own.

    \b
    Example: qrdali report runs/* --mepi mepi/baseline --mepi mepi/linear --out report
    """
    from qrdali.cli.terminal import emit, say

    file, told = write(
        [Path(run) for run in runs],
        [Path(mepi) for mepi in mepis],
        Path(out),
        title=title,
        gallery=gallery,
        usd_per_kwh=usd_per_kwh,
        watts=watts,
    )
    if as_json:
        emit(told)
    say(f"report: {file}")


def write(
    runs: list[Path],
    mepis: list[Path],
    out: Path,
    *,
    title: str = "",
    gallery: int = 8,
    usd_per_kwh: float = 0.17,
    watts: float | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Makes the report with a progress bar; returns its page and what report.json holds."""
    from qrdali.cli.terminal import Bar, warn
    from qrdali.report.build import build
    from qrdali.report.resources import Prices

    bar: Bar | None = None
    try:

        def progress(what: str, done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = Bar("figures", total, "figures")
                bar.__enter__()
            bar.advance(1, what)

        told = build(
            runs,
            mepis,
            out,
            title=title,
            prices=Prices(usd_per_kwh, watts),
            gallery_rows=gallery,
            warn=warn,
            progress=progress,
        )
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)
    return out / "report.html", told


def make(runs: list[Path], mepis: list[Path], out: Path) -> Path:
    """The report with default options; returns its page."""
    return write(runs, mepis, out)[0]
