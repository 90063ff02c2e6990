"""`qrdali compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qrdali.evaluation.consistency import ErrorConsistency
    from qrdali.workflows.compare import Comparison


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
    """McNemar's test of two runs on the same images, and whether they err on the same ones (Cohen's kappa).

    \b
    Example: qrdali compare runs/baseline runs/fixed --set test
    """
    from qrdali.cli.terminal import emit
    from qrdali.workflows import compare as workflow

    comparison = workflow.compare(run_a, run_b, set=name)
    if as_json:
        emit(comparison.to_json())
    else:
        _show(comparison)


def consistency_text(consistency: ErrorConsistency) -> str:
    """Returns a line on whether two runs err on the same images."""
    kappa = consistency.kappa
    shown = "undefined, both are right or both wrong on every image" if kappa is None else f"κ = {kappa:.4f}"
    return (
        f"error consistency: {shown} (alike on {100 * consistency.observed:.2f}% of the images, "
        f"{100 * consistency.expected:.2f}% expected by chance)"
    )


def _show(comparison: Comparison) -> None:
    """Prints accuracies, the table of agreement and the test."""
    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.terminal import say
    from qrdali.evaluation.stats import p_text

    for one in comparison.runs:
        low, high = one.wilson_95
        say(
            f"{one.run}: {comparison.set} accuracy {one.accuracy:.4f} "
            f"({one.correct} of {comparison.images}), 95% interval {low:.4f} to {high:.4f}"
        )
    table = Table("", "B right", "B wrong", title="A: the first run, B: the second")
    table.add_row("A right", f"{comparison.a:,}", f"{comparison.b:,}")
    table.add_row("A wrong", f"{comparison.c:,}", f"{comparison.d:,}")
    Console(stderr=True).print(table)
    p, exact = (p_text(value, 3) for value in (comparison.p_value, comparison.exact_p_value))
    test = f"McNemar: statistic {comparison.statistic:.4f}, p = {p} {comparison.stars}"
    say(f"{test.rstrip()}; exact binomial p = {exact}")
    say(consistency_text(comparison.consistency))
    for note in comparison.notes:
        say(f"note: {note}")
