"""`qrdali reproduce`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qrdali.cli.setting_options import setting_option

if TYPE_CHECKING:
    from qrdali.workflows.reproduce import MatrixResult, Plan, PlannedTask


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Runs of this name, and those they start from; * and ? as in a shell. Repeatable.",
)
@click.option(
    "--dry-run", is_flag=True, help="List every task, its state and the time it may take; nothing is touched."
)
@click.option("--out", type=click.Path(), help="Folder of the matrix in place of the file's.")
@click.option(
    "--data", type=click.Path(), help="Data set made by `qrdali data index` in place of the file's."
)
@setting_option("device", default=None, help="In place of the file's.")
@setting_option("threads")
@click.option(
    "--json", "as_json", is_flag=True, help="With --dry-run: the list as one JSON object on stdout."
)
def reproduce(
    config: str,
    only: tuple[str, ...],
    dry_run: bool,
    out: str | None,
    data: str | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Carry out an experiment matrix: CONFIG.toml's runs, their evaluation, minimal images and the report.

    The same command goes on where it was stopped, skips what is done and tries again what failed. Three files
    are part of qrdali: humanet.toml and imagenet.toml, the thesis' matrices, and demo.toml. A PATTERN without
    a slash names the last part of a run's name.

    \b
    Examples: qrdali reproduce demo.toml
              qrdali reproduce humanet.toml --dry-run
              qrdali reproduce humanet.toml --only 'efficientnet_b3/*-crop'
    """
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.terminal import TerminalListener, emit, say
    from qrdali.errors import InputError
    from qrdali.interfaces import JobControl
    from qrdali.workflows import reproduce as workflow

    if as_json and not dry_run:
        raise InputError("--json is for --dry-run")
    if dry_run:
        plan = workflow.plan(
            config,
            only=only,
            out=out,
            data=data,
            device=device,
            threads=threads,
            control=JobControl(TerminalListener()),
        )
        if as_json:
            emit(plan.as_json())
        else:
            _list(plan)
        return
    with terminal_control() as control:
        try:
            result = workflow.reproduce(
                config,
                only=only,
                out=out,
                data=data,
                device=device,
                threads=threads,
                control=control,
            )
        except workflow.TasksFailed as failure:
            _show(failure.result)
            raise
    _show(result)
    if result.page is not None:
        say(str(result.page))


def _show(result: MatrixResult) -> None:
    """Prints accuracies, state and seconds of every run, then what failed and what waits, on stderr."""
    from rich.console import Console
    from rich.table import Table

    from qrdali.cli.terminal import say
    from qrdali.errors import printable

    table = Table(box=None, pad_edge=False)
    for column in ("run", "val", result.split if result.split != "val" else "val again", "state", "seconds"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right", overflow="fold")
    for run in result.runs:
        table.add_row(
            printable(run.name),
            "" if run.val is None else f"{run.val:.4f}",
            "" if run.accuracy is None else f"{run.accuracy:.4f}",
            run.state,
            "" if run.seconds is None else f"{run.seconds:,.0f}",
        )
    Console(stderr=True, markup=False, highlight=False).print(table)
    for key, reason in result.failed.items():
        say(f"failed: {key}: {reason}")
    for key, blocked in result.waiting.items():
        say(f"waiting for {blocked}: {key}")


def _list(plan: Plan) -> None:
    """Prints every task with its state, and sums of their times, on stdout."""
    from qrdali.experiment.estimate import Seconds, span_text

    width = max(len(task.name) for task in plan.tasks)
    for number, task in enumerate(plan.tasks, 1):
        columns = (f"{number:4d}", f"{task.kind:8}", f"{task.name:{width}}", f"{task.state:7}")
        click.echo("  ".join([*columns, _remaining(task), task.why]).rstrip())
    states = [task.state for task in plan.tasks]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    click.echo(f"# {len(states)} tasks: {counts}")
    click.echo(f"# training left: {span_text(plan.training)} on one machine, without validation")
    times = [task.seconds for task in plan.tasks if task.seconds is not None]
    if times:
        low = [time.low for time in times if time.low is not None]
        high = [time.high for time in times if time.high is not None]
        unknown = len(times) - len(low)
        more = f"; {unknown} more take an unknown time until one like them is done" if unknown else ""
        click.echo(f"# evaluation and MEPIs left: {span_text(Seconds(sum(low), sum(high)))}{more}")
    for network, source in plan.sources.items():
        click.echo(f"# time of {network}: {source}")


def _remaining(task: PlannedTask) -> str:
    """Returns the epochs and the time that a task still takes."""
    from qrdali.experiment.estimate import span_text

    if task.state == "done":
        return ""
    if task.remaining is not None:
        low, high = task.remaining.epochs
        epochs = f"{low}–{high} epochs" if low != high else f"{low} epochs"
        return f"{epochs:14} {span_text(task.remaining.seconds)}"
    return "" if task.seconds is None else f"{'':14} {span_text(task.seconds)}"
