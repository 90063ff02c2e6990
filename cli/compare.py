"""`qrdali compare`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run_a", type=click.Path())
@click.argument("run_b", type=click.Path())
@click.option(
    "--set",
    "name",
    default="test",
    show_default=True,
    help="Whose rows: val, test or a NAME given to `evaluate --set`.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def compare(run_a: str, run_b: str, name: str, as_json: bool) -> None:
    """McNemar's test of two runs on the same images.

    \b
    Example: qrdali compare runs/baseline runs/fixed --set test
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.terminal import emit, say
    from qrdali.errors import InputError, printable
    from qrdali.evaluation.prediction_rows import read_rows
    from qrdali.evaluation.stats import mcnemar, wilson
    from qrdali.runs import folder as run_folder

    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"--set is {printable(name)!r}: give the name of a set, such as test")
    folders = (Path(run_a), Path(run_b))
    rows = [
        read_rows(run, name, run_folder.describe_best(run).epoch if run_folder.holds_run(run) else None)
        for run in folders
    ]
    first, second = rows
    if len(first) != len(second) or any(
        not np.array_equal(first[key], second[key]) for key in ("sample", "path", "label")
    ):
        paths = [set(r["path"].tolist()) for r in rows]
        raise InputError(
            f"the rows of {printable(name)} are not of the same images: {printable(run_a)} has {len(first)}, "
            f"{printable(run_b)} {len(second)}, {len(paths[0] & paths[1])} of them in both; evaluate both on the same data"
        )
    correct = [r["correct"] for r in rows]
    test = mcnemar(*correct)
    images = len(first)
    intervals = [wilson(int(c.sum()), images) for c in correct]
    if as_json:
        emit(
            {
                "a": test.a,
                "b": test.b,
                "c": test.c,
                "d": test.d,
                "statistic": test.statistic,
                "p_value": test.p_value,
                "exact_p_value": test.exact_p_value,
                "stars": test.stars,
                "set": name,
                "images": images,
                "runs": [
                    {"run": run, "accuracy": float(c.mean()), "wilson_95": list(interval)}
                    for run, c, interval in zip((run_a, run_b), correct, intervals, strict=True)
                ],
            }
        )
        return
    for run, c, (low, high) in zip((run_a, run_b), correct, intervals, strict=True):
        say(
            f"{run}: {name} accuracy {c.mean():.4f} ({int(c.sum())} of {images}), 95% interval {low:.4f} to {high:.4f}"
        )
    table = Table("", "B right", "B wrong", title="A: the first run, B: the second")
    table.add_row("A right", f"{test.a:,}", f"{test.b:,}")
    table.add_row("A wrong", f"{test.c:,}", f"{test.d:,}")
    Console(stderr=True).print(table)
    say(
        f"McNemar: statistic {test.statistic:.4f}, p = {test.p_value:.3g} {test.stars}".rstrip()
        + f"; exact binomial p = {test.exact_p_value:.3g}"
    )
