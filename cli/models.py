"""`qrdali models`."""

from __future__ import annotations

from dataclasses import asdict

import click


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
    from rich.table import Table

    from qrdali import models as zoo
    from qrdali.cli.terminal import Bar, emit
    from qrdali.errors import InputError

    names = [*zoo.THESIS, *zoo.SMALL]
    if pattern:
        names = [name for name in zoo.model_names() if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise InputError(
            f"no model matches {pattern!r}: `qrdali models '*'` lists all {len(zoo.model_names())}"
        )
    rows = []
    with Bar("count", len(names), "models") as bar:
        for name in names:
            rows.append(zoo.describe(name))
            bar.advance(1, name)
    if as_json:
        emit({"models": [asdict(row) for row in rows]})
        return
    table = Table("name", "parameters", "GFLOP", "input")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.2f} M",
            "" if row.gmacs is None else f"{row.gmacs:.2f}",
            f"{row.input_size} px",
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(
        "Parameters with 1000 classes; GFLOP counts a multiply-add once, as the literature does.",
        highlight=False,
        soft_wrap=True,
    )
