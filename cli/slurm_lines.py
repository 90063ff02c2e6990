"""Lines of `qrdali reproduce --slurm`: what was submitted, or what waits and runs, and how to watch it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qrdali.workflows.reproduce import MatrixStatus
    from qrdali.workflows.slurm import Jobs


def submit(
    slurm: str, options: dict[str, Any], as_json: bool, show_status: Callable[[MatrixStatus], None]
) -> None:
    """Submits jobs, or shows those that wait or run. options: of `reproduce`."""
    from qrdali.cli.terminal import TerminalListener, emit
    from qrdali.interfaces import JobControl
    from qrdali.workflows import reproduce as workflow

    control = JobControl(TerminalListener())
    jobs = workflow.reproduce_on_slurm(slurm=slurm, **options, control=control)
    status = None
    if jobs.waiting:
        looked_at = {name: value for name, value in options.items() if name != "retries"}
        status = workflow.status(**looked_at, control=control)
    if as_json:
        emit(jobs.as_json() | {"status": None if status is None else status.as_json()})
        return
    for line in lines(jobs, _status_command(options)):
        click.echo(line)
    if status is not None:
        show_status(status)


def _status_command(options: dict[str, Any]) -> str:
    given = [f"--{name}={options[name]}" for name in ("out", "data") if options[name] is not None]
    patterns = [f"--only={pattern}" for pattern in options["only"]]
    return shlex.join(["qrdali", "reproduce", str(options["config"]), *given, *patterns, "--status"])


def lines(jobs: Jobs, status_command: str) -> list[str]:
    """Returns what a call of `--slurm` prints, without the state of the tasks.

    status_command: the one that shows it.
    """
    from qrdali.errors import printable
    from qrdali.workflows.slurm_options import time_text

    if not jobs.submitted and not jobs.waiting:
        return ["nothing to submit: all tasks are done"]
    if jobs.waiting:
        width = max(len(job.number) for job in jobs.waiting)
        found = [
            f"job {job.number:{width}}  {job.state:10} {job.elapsed:>10}  {job.why}" for job in jobs.waiting
        ]
        found.append(f"# {len(jobs.waiting)} jobs wait or run; nothing was submitted")
    else:
        width = max(len(job.number) for job in jobs.submitted)
        found = []
        for job in jobs.submitted:
            after = f"  after {', '.join(job.after)}" if 0 < len(job.after) <= 8 else ""
            after = after or (f"  after {len(job.after)} jobs" if job.after else "")
            does = printable(job.task) or "worker"
            found.append(f"job {job.number:{width}}  {time_text(job.minutes):>10}  {does}{after}")
        assert jobs.size is not None
        has = f"{jobs.size.cpus} CPUs, {jobs.size.gpus} GPUs"
        found.append(f"# {len(jobs.submitted)} jobs submitted, {has} for each")
    return [
        *found,
        f"# what they print: {printable(jobs.logs)}",
        f"# watch: squeue --name={jobs.name}; {printable(status_command)}",
        f"# stop all, with a save: scancel --name={jobs.name}",
    ]
