"""`qrdali reproduce`."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from qrdali.cli.setting_options import setting_option

if TYPE_CHECKING:
    from qrdali.workflows.matrix_launch import WorkerPlan
    from qrdali.workflows.reproduce import MatrixResult, MatrixStatus, Plan, PlannedTask


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
@click.option(
    "--status",
    "show_status",
    is_flag=True,
    help="Show what is done, who does what and the time left; nothing is touched.",
)
@click.option("--out", type=click.Path(), help="Folder of the matrix in place of the file's.")
@click.option(
    "--data", type=click.Path(), help="Data set made by `qrdali data index` in place of the file's."
)
@click.option("--root", metavar="[OLD=]NEW", help="Where the images of the data set are now, if they moved.")
@setting_option("device", default=None, help="In place of the file's.")
@setting_option("threads", help="Decoding threads, of all workers together.  [default: all it may use]")
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=1,
    show_default=True,
    help="How often a task that failed is tried again.",
)
@click.option("--workers", type=int, metavar="N", help="Work in N processes that share the processors.")
@click.option("--gpus", metavar="N|all|0,2,5", help="Work in a process per GPU: N of them, all, or these.")
@click.option(
    "--commands",
    "commands_form",
    is_flag=False,
    flag_value="json",
    type=click.Choice(["json", "shell"]),
    help="List every task with the command that does it, for other schedulers: JSON lines that say what it "
    "needs, or shell commands that wait for it; nothing is touched.",
)
@click.option(
    "--slurm",
    metavar="K=V[,K=V…]",
    help="Submit workers as jobs of a Slurm cluster and return: partition, time, parallel, per-task, gpus, "
    "cpus, mem, account, qos, constraint, exclude, nodelist, reservation, max-num-timeout, signal-seconds.",
)
@click.option("--task", metavar="KEY", help="Do this task alone, as 'train NETWORK/RUN' (see --commands).")
@click.option(
    "--wait", is_flag=True, help="With --task: wait for the tasks that it needs, and for who has it."
)
@click.option(
    "--json", "as_json", is_flag=True, help="With --dry-run, --status or --slurm: one JSON object on stdout."
)
def reproduce(
    dry_run: bool,
    show_status: bool,
    workers: int | None,
    gpus: str | None,
    slurm: str | None,
    task: str | None,
    as_json: bool,
    commands_form: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Carry out an experiment matrix: CONFIG.toml's runs, their evaluation, minimal images and the report.

    The same command goes on where it was stopped, skips what is done and tries again what failed. Started
    several times, on any hosts that share the folder, it shares the tasks among all of them. Four files are
    part of qrdali: humanet.toml and imagenet.toml, the thesis' matrices, humanet-study.toml, with seeds and
    controls, and demo.toml. A PATTERN without a slash names the last part of a run's name.

    \b
    Examples: qrdali reproduce demo.toml
              qrdali reproduce humanet.toml --dry-run
              qrdali reproduce humanet.toml --gpus all
              qrdali reproduce humanet.toml --slurm partition=gpu,parallel=16
              qrdali reproduce humanet.toml --status
              qrdali reproduce humanet.toml --only 'efficientnet_b3/*-crop'
              qrdali reproduce humanet.toml --task 'train resnet152/shared'
    """
    from qrdali.cli.terminal import TerminalListener, emit
    from qrdali.errors import InputError
    from qrdali.interfaces import JobControl
    from qrdali.workflows import reproduce as workflow
    from qrdali.workflows.matrix_launch import plans_for

    looks = dry_run or show_status
    if as_json and not (looks or slurm is not None):
        raise InputError("--json is for --dry-run, --status and --slurm")
    if wait and task is None:
        raise InputError("--wait is for --task KEY")
    ways = {"--dry-run": dry_run, "--status": show_status, "--slurm": slurm is not None}
    ways |= {"--commands": commands_form is not None, "--task": task is not None}
    if not dry_run:  # which says how long these would take
        ways |= {"--workers": workers is not None, "--gpus": gpus is not None}
    if len(given := [name for name, is_given in ways.items() if is_given]) > 1:
        raise InputError(f"{' and '.join(given)}: give one of them")
    if commands_form is not None:
        for command in workflow.commands(**options, control=JobControl(TerminalListener())):
            if commands_form == "json":
                click.echo(json.dumps(command.as_json()))
            elif command.state != "done":
                click.echo(command.as_shell())
    elif looks:
        del options["retries"]
        control = JobControl(TerminalListener())
        seen: Plan | MatrixStatus
        if dry_run:
            seen = workflow.plan(**options, workers=workers, gpus=gpus, control=control)
        else:
            seen = workflow.status(**options, control=control)
        if as_json:
            emit(seen.as_json())
        elif isinstance(seen, workflow.Plan):
            _list(seen)
        else:
            _show_status(seen)
    elif slurm is not None:
        from qrdali.cli.slurm_lines import submit

        submit(slurm, options, as_json, _show_status)
    elif plans := plans_for(workers, gpus, options["threads"], lambda: workflow.gpus_needed(**options)):
        _launch(options, plans)
    else:
        _work(options | {"task": task, "wait": wait})


def _work(options: dict[str, Any]) -> None:
    """Works in this process; of several that a launcher started, without printing what all of them see."""
    from qrdali.cli.signals import terminal_control
    from qrdali.experiment.workers import PARENT_VARIABLE
    from qrdali.workflows import matrix_launch
    from qrdali.workflows import reproduce as workflow

    is_launched = PARENT_VARIABLE in os.environ
    # Slurm sends its signals to all processes of a job, and the parent hands them on: it kills when need be.
    with terminal_control(repeats=math.inf if is_launched else 0.0) as control:
        try:
            result = workflow.reproduce(**options, control=control)
        except workflow.TasksFailed as failure:
            if is_launched:
                sys.exit(matrix_launch.TASKS_FAILED)
            _show(failure.result)
            raise
    if not is_launched and options["task"] is None:
        _show_end(result)


def _launch(options: dict[str, Any], plans: list[WorkerPlan]) -> None:
    """Starts workers on this host and shows them until the matrix is done."""
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.worker_view import view_for
    from qrdali.workflows import reproduce as workflow

    with terminal_control() as control:
        try:
            result = workflow.reproduce_in_workers(
                plans=plans, view=view_for(plans), **options, control=control
            )
        except workflow.TasksFailed as failure:
            _show(failure.result)
            raise
    _show_end(result)


def _show_end(result: MatrixResult) -> None:
    """Prints what a matrix has come to, and the path of its report last."""
    from qrdali.cli.terminal import say

    _show(result)
    if result.page is not None:
        say(str(result.page))


def _show_status(status: MatrixStatus) -> None:
    """Prints every worker, every task that is not done, and counts, on stdout."""
    from qrdali.cli.worker_view import pass_text
    from qrdali.experiment.estimate import duration_text, span_text

    for worker in status.workers:
        called = f"{worker.name}, " if worker.name else ""
        gpu = f", GPU {worker.gpu}" if worker.gpu else ""
        since = f" for {duration_text(worker.seconds)}" if worker.seconds is not None else ""
        doing = f"{worker.task}{since}{pass_text(worker.activity)}" if worker.task else "waits"
        silent = " (no sign of life just now: it may be gone)" if worker.is_silent else ""
        click.echo(
            f"worker {worker.number} ({called}process {worker.pid} on {worker.host}{gpu}): {doing}{silent}"
        )
    width = max(len(task.key) for task in status.tasks)
    for task in status.tasks:
        if task.state != "done":
            by = f"by worker {task.worker} " if task.worker is not None else ""
            click.echo(f"{task.state:8} {task.key:{width}}  {by}{task.why}".rstrip())
    counts = ", ".join(
        f"{status.count(state)} {state}" for state in ("done", "running", "ready", "waiting", "failed")
    )
    click.echo(f"# {len(status.tasks)} tasks: {counts}")
    if status.count("done") < len(status.tasks):
        who = f"{len(status.workers)} workers" if len(status.workers) > 1 else "one worker"
        click.echo(f"# left: {span_text(status.left)} with {who}")


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
    rows = []
    for number, task in enumerate(plan.tasks, 1):
        what = f"{number:4d}  {task.kind:8}  {task.name:{width}}"
        rows.append((what, "  ".join([f"{task.state:7}", _remaining(task), task.why]).rstrip()))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    fits = columns is None or all(len(what) + 2 + len(state) <= columns for what, state in rows)
    between = (
        "  " if fits else f"\n{'':16}"
    )  # a narrow terminal: what becomes of a task stands below its name
    for what, state in rows:
        click.echo(f"{what if fits else what.rstrip()}{between}{state}")
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
    _list_makespan(plan)
    for network, source in plan.sources.items():
        click.echo(f"# time of {network}: {source}")


def _list_makespan(plan: Plan) -> None:
    """Prints the time until all is done with the workers asked for, and the longest chain."""
    from qrdali.experiment.estimate import span_text

    makespan, chain = plan.makespan, plan.longest_chain
    if not chain.keys:
        return
    several = [count for count in makespan.gpus if count > 1]
    with_gpus = f" ({', '.join(map(str, makespan.gpus[:8]))} GPUs each)" if several else ""
    who = f"{len(makespan.gpus)} workers" if len(makespan.gpus) != 1 else "one worker"
    share = makespan.idle_share.high
    idle = f", {share:.0%} of their time idle" if share is not None and len(makespan.gpus) > 1 else ""
    click.echo(f"# until all is done: {span_text(makespan.seconds)} with {who}{with_gpus}{idle}")
    click.echo(f"# longest chain: {span_text(chain.seconds)}: {', then '.join(chain.keys)}")
    if makespan.impossible:
        more = f" and {len(makespan.impossible) - 1} more" if len(makespan.impossible) > 1 else ""
        click.echo(f"# no such worker has the GPUs for {makespan.impossible[0]}{more}")


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
