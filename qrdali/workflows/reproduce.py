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
from qrdali.experiment import estimate
from qrdali.experiment.config import read
from qrdali.experiment.estimate import Estimate, Remaining, Seconds
from qrdali.experiment.expand import expand
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.tasks import Task, Tasks
from qrdali.experiment.workers import Presence, require_room
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.runs import folder as run_folder
from qrdali.system.deterministic import cublas_workspace
from qrdali.workflows.matrix_checks import check_inputs, compared_settings, refuse_changes
from qrdali.workflows.matrix_worker import MatrixWorker
from qrdali.workflows.stop_requests import raise_if_stopped


@dataclass(frozen=True)
class PlannedTask:
    """Describes a task of a matrix before it is done.

    state: "done", "failed", "begun" or "waiting"; why: the reason, or what it waits for. remaining: of a
    training run. seconds: of an evaluation or a MEPI set, as others of the same network took.
    """

    kind: str
    name: str
    state: str
    why: str
    remaining: Remaining | None = None
    seconds: Seconds | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the task's entry in the list of `--dry-run --json`."""
        entry: dict[str, Any] = {"kind": self.kind, "name": self.name, "state": self.state, "why": self.why}
        if self.remaining is not None:
            entry |= {"epochs": self.remaining.epochs, "seconds": self.remaining.seconds}
        elif self.seconds is not None:
            entry["seconds"] = self.seconds
        return entry


@dataclass(frozen=True)
class Plan:
    """Holds what a call would do.

    out: the matrix' folder. sources: where the times of each network come from, in words.
    """

    out: Path
    tasks: tuple[PlannedTask, ...]
    sources: dict[str, str]

    @property
    def training(self) -> Seconds:
        """Returns the time that all runs still take on one machine, without validation; None where a run's is
        unknown.
        """
        times = [task.remaining.seconds for task in self.tasks if task.remaining is not None]
        low, high = [time.low for time in times], [time.high for time in times]
        return Seconds(_sum_if_known(low), _sum_if_known(high))

    def as_json(self) -> dict[str, Any]:
        """Returns the list of `--dry-run --json`."""
        total = self.training
        unknown = total.low is None or total.high is None
        return {
            "out": str(self.out),
            "tasks": [task.as_json() for task in self.tasks],
            "seconds": None if unknown else list(total),
            "source": self.sources,
        }


def _sum_if_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


@dataclass(frozen=True)
class RunResult:
    """Holds a run of the matrix as it is now; None for what is not there yet.

    val: accuracy of its best weights by training. accuracy: on the first split that is evaluated. seconds: of
    training and probes.
    """

    name: str
    state: str
    val: float | None
    accuracy: float | None
    seconds: float | None


@dataclass(frozen=True)
class MatrixResult:
    """Holds what a call has left.

    tasks: how many there are. split: on which `RunResult.accuracy` was measured. failed: reasons by task.
    waiting: by task, the task that it waits for. page: of the report, if there is one.
    """

    tasks: int
    split: str
    runs: tuple[RunResult, ...]
    failed: dict[str, str]
    waiting: dict[str, str]
    page: Path | None


class TasksFailed(RunError):
    """Says that tasks of a matrix failed; the others are done, and `result` has both."""

    def __init__(self, result: MatrixResult) -> None:
        behind = f" and {len(result.waiting)} wait for them" if result.waiting else ""
        super().__init__(
            f"{len(result.failed)} of {result.tasks} tasks failed{behind}: the same command tries them again"
        )
        self.result = result


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


def plan(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    root: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> Plan:
    """Returns every task of a matrix, its state and the time it may take; nothing is written.

    Options as of `reproduce`.
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
    return Plan(tasks.folder.folder, tuple(planned), times.sources())


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
    control: JobControl = JobControl(),
) -> MatrixResult:
    """Does every task of the matrix in the TOML file `config`: goes on where it was stopped and skips what is
    done.

    config: a file, or the name of one that came with qrdali, such as "humanet.toml". only: patterns of runs,
    done with those they start from. out, data, root, device, threads: in place of the file's. retries: how
    often a task that failed is tried again. Any number of processes may do this at once, on any hosts that
    share the folder: each takes tasks that no other one has, and returns when all are done. An error ends its
    task, not the matrix: raises TasksFailed at the end. Raises Interrupted after a signal; InputError for a
    matrix, inputs or results of earlier calls that do not go together, before anything is done.
    """
    options = _Options(only, out, data, root, device, threads, retries)
    tasks = _open(config, options, control.listener)
    # CUDA reads this setting once: a run that needs it may come after others have begun CUDA.
    devices = [run.settings.device for run in tasks.wanted if run.settings.deterministic]
    with cublas_workspace(next((name for name in devices if name != "cpu"), "cpu")):
        check_inputs(tasks)
        return _execute(tasks, options, control)


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
        with Presence(tasks.folder.folder, compared_settings(tasks)) as presence:
            require_room(presence, _Waiting(control))
            worker = MatrixWorker(tasks, presence, options.retries, control)
            done_already = f", {worker.done} of them done already" if worker.done else ""
            listener.line(f"{len(tasks.all)} tasks in {tasks.folder.folder}{done_already}")
            waiting = worker.work()
        result = _result(tasks, waiting)
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


def _result(tasks: Tasks, waiting: dict[str, str]) -> MatrixResult:
    split = tasks.matrix.evaluate.splits[0]
    failures = tasks.folder.failures
    failed = {
        task.key: failures[task.key].get("reason", "")
        for task in tasks.all
        if task.key in failures and not tasks.done(task)
    }
    page = tasks.folder.report / "report.html"
    return MatrixResult(
        len(tasks.all),
        split,
        tuple(_run_result(tasks, run.name, split) for run in tasks.wanted),
        failed,
        waiting,
        page if page.exists() else None,
    )


def _run_result(tasks: Tasks, name: str, split: str) -> RunResult:
    accuracies = None
    if tasks.done(Task("evaluate", name)):
        accuracies = tasks.folder.done[f"evaluate {name}"].get("accuracy")
    accuracy = accuracies.get(split) if isinstance(accuracies, dict) else None
    try:
        val = run_folder.describe_best(tasks.folder.run(name)).val_accuracy
    except (RunError, ValueError):
        val = None
    rows = estimate.rows(tasks.folder.run(name))
    return RunResult(
        name,
        tasks.state(tasks.run_task(name))[0],
        val,
        accuracy if isinstance(accuracy, float) else None,
        rows[-1].get("total_seconds", 0) if rows else None,
    )
