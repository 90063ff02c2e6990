"""`qrdali models`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

COUNTING_SECONDS = 30  # of `models '*'`: there are more than a thousand


@click.command()
@click.argument("pattern", default="")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def models(pattern: str, as_json: bool) -> None:
    """List networks with parameters, cost and input size: the thesis' and two small ones, or all of PATTERN.

    \b
    Example: qrdali models 'efficientnet_b*'
    """
    import fnmatch

    from rich.console import Console

    from qrdali import models as zoo
    from qrdali.cli.terminal import emit, say
    from qrdali.errors import InputError

    names = [*zoo.THESIS, *zoo.SMALL]
    if pattern:
        names = [name for name in zoo.model_names() if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise InputError(
            f"no model matches {pattern!r}: `qrdali models '*'` lists all {len(zoo.model_names())}"
        )
    deadline = time.monotonic() + COUNTING_SECONDS
    console, width = Console(stderr=True), max(map(len, names))
    rows, left_out = [], 0
    if not as_json:
        console.print(_line("name", "parameters", "GFLOP", "input", width), style="bold", soft_wrap=True)
    for name in names:
        if time.monotonic() < deadline:
            row = zoo.describe(name)
        else:
            row = zoo.Description(name, None, None, zoo.preprocessing(name).input_size)
            left_out += 1
        rows.append(row)
        if not as_json:
            parameters = "" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"
            gmacs = "" if row.gmacs is None else f"{row.gmacs:.2f}"
            line = _line(row.name, parameters, gmacs, f"{row.input_size} px", width)
            console.print(line, highlight=False, soft_wrap=True)
    if as_json:
        emit({"models": [asdict(row) for row in rows]})
    if left_out:
        say(
            f"Counting was ended after {COUNTING_SECONDS} s: the last {left_out} have no figures. Give a "
            "narrower PATTERN for theirs."
        )
    if not as_json:
        say(
            "Parameters with 1000 classes; GFLOP counts a multiply-add once, as the literature does. Some "
            "networks cannot be counted."
        )


def _line(name: str, parameters: str, gmacs: str, side: str, width: int) -> str:
    return f"{name:<{width}}  {parameters:>10}  {gmacs:>8}  {side:>8}"
