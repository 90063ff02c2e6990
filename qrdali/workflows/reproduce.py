"""Carries out an experiment matrix: trains its runs, evaluates them, builds MEPIs and the report; or lists
what there is to do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import InputError, RunError, printable
from qrdali.experiment.config import read
from qrdali.experiment.estimate import Estimate, Seconds
from qrdali.experiment.expand import expand
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.makespan import longest_chain, makespan_of
from qrdali.experiment.tasks import Tasks
from qrdali.experiment.workers import Presence, require_room
from qrdali.interfaces import JobControl, ProgressListener, SilentListener
from qrdali.system.deterministic import cublas_workspace
from qrdali.workflows.matrix_checks import check_inputs, compared_settings, refuse_changes
from qrdali.workflows.matrix_commands import TaskCommand, commands_of, task_of
from qrdali.workflows.matrix_launch import (
    LaunchedMatrix,
    WorkerPlan,
    WorkersView,
    most_gpus,
    planned_gpus,
    run_workers,
)
from qrdali.workflows.matrix_plan import Plan, PlannedTask
from qrdali.workflows.matrix_result import MatrixResult, TasksFailed, result_of
from qrdali.workflows.matrix_status import MatrixStatus, status_of, time_left
from qrdali.workflows.matrix_worker import MatrixWorker
from qrdali.workflows.slurm import Jobs, submit
from qrdali.workflows.slurm_options import parsed
from qrdali.workflows.stop_requests import raise_if_stopped

__all__ = [
    "MatrixResult",
    "MatrixStatus",
    "Plan",
    "PlannedTask",
    "TaskCommand",
    "TasksFailed",
    "commands",
    "plan",
    "reproduce",
    "reproduce_in_workers",
    "reproduce_on_slurm",
    "status",
]


@dataclass(frozen=True)
class _Options:
    """Holds what a call sets in place of the file's own, and how it goes about it."""

    only: Sequence[str]
    out: str | Path | None
    data: str | Path | None
    root: str | None
    device: str | None
    threads: int | None
    retries: int = 1
    task: str | None = None
    wait: bool = False


def plan(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    workers: int | None = None,
    gpus: str | None = None,
    control: JobControl = JobControl(),
) -> Plan:
    """Returns every task of a matrix, its state and the time it may take; nothing is written.

    workers, gpus: with which the time until all is done is computed, of any host: the GPUs need not be here.
    The other options are those of `reproduce`. Raises InputError for invalid `workers` or `gpus`.
    """
    tasks = _open(config, _Options(only, out, data, root, device, threads), control.listener)
    times = Estimate(tasks)
    planned = []
    for task in tasks.all:
        state, why = tasks.state(task)
        remaining = times.remaining(tasks.runs[task.name]) if task.kind == "train" else None
        seconds = None
        if task.kind in ("evaluate", "mepi"):
            seconds = Seconds(0.0, 0.0) if state == "done" else times.like(task)
        planned.append(PlannedTask(task.kind, task.name, state, why, remaining, seconds))
    needed = network_gpus(tasks)
    return Plan(
        tasks.folder.folder,
        tuple(planned),
        times.sources(),
        makespan_of(tasks, times, planned_gpus(workers, gpus, needed)),
        longest_chain(tasks, times),
    )


def status(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> MatrixStatus:
    """Returns how far a matrix is, beside the workers that do it; nothing is written.

    Options as of `reproduce`.
    """
    tasks = _open(config, _Options(only, out, data, root, device, threads), control.listener)
    return status_of(tasks, control.listener.line)


def reproduce(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    retries: int = 1,
    task: str | None = None,
    wait: bool = False,
    control: JobControl = JobControl(),
) -> MatrixResult:
    """Does every task of the matrix in the TOML file `config`: goes on where it was stopped and skips what is
    done.

    config: a file, or the name of one that came with qrdali, such as "humanet.toml". only: patterns of runs,
    done with those they start from. out, data, root, device, threads: in place of the file's. retries: how
    often a task that failed is tried again. task: the key of the only one to do, as in "train NETWORK/RUN",
    whose needs must be done; with wait, they are waited for. Any number of processes may do this at once, on
    any hosts that share the folder: each takes tasks that no other one has, and returns when all are done. An
    error ends its task, not the matrix: raises TasksFailed at the end. Raises Interrupted after a signal;
    InputError for a matrix, inputs or results of earlier calls that do not go together, before anything is
    done; RunError for a `task` that another worker has, whose needs are not done, or that fails.
    """
    options = _Options(only, out, data, root, device, threads, retries, task, wait)
    tasks = _open(config, options, control.listener)
    with cublas_workspace(_deterministic_device(tasks)):
        check_inputs(tasks)
        return _execute(tasks, options, control)


def commands(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    retries: int = 1,
    control: JobControl = JobControl(),
) -> list[TaskCommand]:
    """Returns every task of a matrix with what it needs and the command that does it; nothing is written.

    Options as of `reproduce`, which the commands repeat.
    """
    options = _Options(only, out, data, root, device, threads, retries)
    words = ["qrdali", "reproduce", *_words(config, options), *_threads_word(threads)]
    return commands_of(_open(config, options, control.listener), words)


def _deterministic_device(tasks: Tasks) -> str:
    """Returns the device of the runs that are deterministic, "cpu" where none is on another."""
    # CUDA reads this setting once: a run that needs it may come after others have begun CUDA.
    devices = [run.settings.device for run in tasks.wanted if run.settings.deterministic]
    return next((name for name in devices if name != "cpu"), "cpu")


def reproduce_in_workers(
    config: str | Path,
    plans: Sequence[WorkerPlan],
    view: WorkersView,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    retries: int = 1,
    control: JobControl = JobControl(),
) -> MatrixResult:
    """Does as `reproduce`, by several processes on this host: one for each of `plans`.

    view: is called with what they print. Raises RunError if all of them have died.
    """
    options = _Options(only, out, data, root, device, threads, retries)
    tasks = _open(config, options, control.listener)
    check_inputs(tasks)
    notes = [tasks.folder.task(task.key) / "done.json" for task in tasks.all]
    view.begin(
        LaunchedMatrix(
            tasks.folder.folder,
            tuple(task.key for task in tasks.all),
            lambda: sum(note.exists() for note in notes),
            lambda: time_left(tasks, len(plans)),
        )
    )
    try:
        run_workers(plans, _words(config, options), view, control.stop)
    finally:
        view.end()
    tasks = _open(config, options, SilentListener())
    blocked = {task.key: tasks.blocked(task) for task in tasks.all if not tasks.done(task)}
    result = result_of(tasks, {key: need for key, need in blocked.items() if need})
    if result.failed:
        raise TasksFailed(result)
    if blocked:
        raise RunError(
            f"{len(blocked)} tasks are left, among them {next(iter(blocked))}: the same command goes on"
        )
    return result


def reproduce_on_slurm(
    config: str | Path,
    slurm: str,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    retries: int = 1,
    control: JobControl = JobControl(),
) -> Jobs:
    """Submits jobs of a Slurm cluster that do as `reproduce`, and returns what is in the queue then.

    slurm: as "partition=gpu,time=24:00:00,parallel=16". Nothing is submitted while jobs of an earlier call
    wait or run. Raises as `qrdali.workflows.slurm.submit`.
    """
    asked = parsed(slurm)
    options = _Options(only, out, data, root, device, threads, retries)
    tasks = _open(config, options, control.listener)
    check_inputs(tasks)
    words = _words(config, options)
    return submit(tasks, [*words, *_threads_word(threads)], asked, control)


def _threads_word(threads: int | None) -> list[str]:
    return [] if threads is None else [f"--threads={threads}"]


def _words(config: str | Path, options: _Options) -> list[str]:
    """Returns the words of `qrdali reproduce` that a worker gets, without --threads, of which it has a share.

    Each is one word, so that a value that begins with a dash is no option.
    """
    words = [str(config), *(f"--only={pattern}" for pattern in options.only)]
    given = ("out", "data", "root", "device", "retries")
    return words + [f"--{name}={value}" for name in given if (value := getattr(options, name)) is not None]


def gpus_needed(
    config: str | Path, *, only: Sequence[str] = (), out: str | Path | None = None, **_: Any
) -> list[int]:
    """Returns how many GPUs each network of a call needs. Options as of `reproduce`."""
    return network_gpus(_open(config, _Options(only, out, None, None, None, None), SilentListener()))


def network_gpus(tasks: Tasks) -> list[int]:
    """Returns how many GPUs each network of this call needs."""
    wanted = {run.network for run in tasks.wanted}
    return [network.gpus for network in tasks.matrix.network if network.folder in wanted]


def _open(config: str | Path, options: _Options, listener: ProgressListener) -> Tasks:
    """Raises InputError for a matrix that is wrong, or whose folder holds what was made by other settings."""
    out, data = (None if path is None else str(path) for path in (options.out, options.data))
    matrix = read(find_config(config, listener), out=out, data=data)
    changes = {"device": options.device, "threads": options.threads, "root": options.root}
    given = {key: value for key, value in changes.items() if value is not None}
    matrix = matrix.model_copy(update={"train": {**matrix.train, **given}})
    folder = ExperimentFolder(Path(matrix.out))
    dataset = Path(matrix.data.folder) if matrix.data.folder else folder.folder / "data"
    tasks = Tasks(matrix, folder, dataset, expand(matrix, dataset), options.only)
    refuse_changes(tasks)
    for name in tasks.foreign:
        listener.line(
            f"{name}: the adopted network does not know the classes of the data; it is not evaluated on "
            "them, and the runs after it replace its last layer"
        )
    return tasks


def find_config(config: str | Path, listener: ProgressListener) -> Path:
    """Returns the file, or the one of that name that came with qrdali.

    Raises InputError if there is neither.
    """
    import qrdali

    file = Path(config)
    if file.exists():
        return file
    shipped = Path(qrdali.__file__).parent / "configs"
    if str(file.parent) in (".", "configs") and (shipped / file.name).is_file():
        listener.line(f"{config} is not here: the one that came with qrdali is used, {shipped / file.name}")
        return shipped / file.name
    names = ", ".join(sorted(path.name for path in shipped.glob("*.toml")))
    raise InputError(f"{printable(config)} does not exist; {names} came with qrdali")


def _execute(tasks: Tasks, options: _Options, control: JobControl) -> MatrixResult:
    listener = control.listener
    with tasks.folder.lock(listener.warn):
        tasks.folder.begin(tasks.tail)
        if options.task is not None and tasks.done(task_of(tasks, options.task)):
            listener.line(f"{options.task} is done already")
            return result_of(tasks, {})
        if all(map(tasks.done, tasks.all)):
            listener.line(f"{len(tasks.all)} tasks in {tasks.folder.folder}, all of them done already")
            return result_of(tasks, {})
        here = most_gpus(str(tasks.matrix.train.get("device", "auto")))
        with Presence(tasks.folder.folder, compared_settings(tasks), here) as presence:
            require_room(presence, _Waiting(control))
            worker = MatrixWorker(tasks, presence, options.retries, control)
            done_already = f", {worker.done} of them done already" if worker.done else ""
            listener.line(f"{len(tasks.all)} tasks in {tasks.folder.folder}{done_already}")
            if options.task is not None:
                worker.work_on(task_of(tasks, options.task), options.wait)
                return result_of(tasks, {})
            waiting = worker.work()
        result = result_of(tasks, waiting)
    if result.failed or result.waiting:
        raise TasksFailed(result)
    return result


class _Waiting:
    """Says what is waited for, once, and sleeps a moment. Raises Interrupted after a signal."""

    def __init__(self, control: JobControl) -> None:
        self._control, self._said = control, ""

    def __call__(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._control.listener.line(text)
        time.sleep(1.0)
        raise_if_stopped(self._control.stop)
