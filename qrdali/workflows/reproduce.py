"""Carries out an experiment matrix: trains its runs, evaluates them, builds MEPIs and the report; or lists
what there is to do.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import InputError, Interrupted, RunError, printable
from qrdali.experiment import estimate
from qrdali.experiment.config import read
from qrdali.experiment.estimate import Estimate, Remaining, Seconds
from qrdali.experiment.expand import expand
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.tasks import Task, Tasks
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.runs import folder as run_folder
from qrdali.system.deterministic import cublas_workspace
from qrdali.workflows.matrix_checks import check_inputs, refuse_changes
from qrdali.workflows.tasks import perform


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
class _Overrides:
    """Holds what a call sets in place of the file's own."""

    only: Sequence[str]
    out: str | Path | None
    data: str | Path | None
    device: str | None
    threads: int | None


def plan(
    config: str | Path,
    *,
    only: Sequence[str] = (),
    out: str | Path | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> Plan:
    """Returns every task of a matrix, its state and the time it may take; nothing is written.

    Options as of `reproduce`.
    """
    tasks = _open(config, _Overrides(only, out, data, device, threads), control.listener)
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
    device: str | None = None,
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> MatrixResult:
    """Does every task of the matrix in the TOML file `config`: goes on where it was stopped and skips what is
    done.

    config: a file, or the name of one that came with qrdali, such as "humanet.toml". only: patterns of runs,
    done with those they start from. out, data, device, threads: in place of the file's. An error ends its
    task, not the matrix: raises TasksFailed at the end. Raises Interrupted after a signal; InputError for a
    matrix, inputs or results of earlier calls that do not go together, before anything is done.
    """
    tasks = _open(config, _Overrides(only, out, data, device, threads), control.listener)
    # CUDA reads this setting once: a run that needs it may come after others have begun CUDA.
    devices = [run.settings.device for run in tasks.wanted if run.settings.deterministic]
    with cublas_workspace(next((name for name in devices if name != "cpu"), "cpu")):
        check_inputs(tasks)
        return _execute(tasks, control)


def _open(config: str | Path, overrides: _Overrides, listener: ProgressListener) -> Tasks:
    """Raises InputError for a matrix that is wrong, or whose folder holds what was made by other settings."""
    out, data = (None if path is None else str(path) for path in (overrides.out, overrides.data))
    matrix = read(find_config(config, listener), out=out, data=data)
    changes = {"device": overrides.device, "threads": overrides.threads}
    given = {key: value for key, value in changes.items() if value is not None}
    matrix = matrix.model_copy(update={"train": {**matrix.train, **given}})
    folder = ExperimentFolder(Path(matrix.out))
    dataset = Path(matrix.data.folder) if matrix.data.folder else folder.folder / "data"
    tasks = Tasks(matrix, folder, dataset, expand(matrix, dataset), overrides.only)
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


def _execute(tasks: Tasks, control: JobControl) -> MatrixResult:
    listener = control.listener
    with tasks.folder.lock(listener.warn):
        tasks.folder.begin(tasks.tail)
        total, before = len(tasks.all), sum(map(tasks.done, tasks.all))
        done_already = f", {before} of them done already" if before else ""
        listener.line(f"{total} tasks in {tasks.folder.folder}{done_already}")
        waiting: dict[str, str] = {}
        for number, task in enumerate(tasks.all, 1):
            if tasks.done(task):
                continue
            if blocked := tasks.blocked(task):
                waiting[task.key] = blocked
                continue
            heading = f"[{number}/{total}] {task.key}"
            listener.line(heading)
            _attempt_or_stop(tasks, task, heading, control)
        result = _result(tasks, waiting)
    if result.failed or result.waiting:
        raise TasksFailed(result)
    return result


def _attempt_or_stop(tasks: Tasks, task: Task, heading: str, control: JobControl) -> None:
    """Does a task; raises Interrupted if a signal comes meanwhile, also where the task itself did not look
    for it.
    """
    stopped = f"{heading} was stopped: the same command goes on with it"
    if signum := control.stop():
        raise Interrupted(stopped, signum)
    try:
        _attempt(tasks, task, control)
    except Interrupted as interruption:
        control.listener.line(str(interruption))
        raise Interrupted(stopped, interruption.signum) from None
    except BaseException:  # KeyboardInterrupt, of callers without signal handlers
        control.listener.line(stopped)
        raise
    if signum := control.stop():
        raise Interrupted(stopped, signum)


def _attempt(tasks: Tasks, task: Task, control: JobControl) -> None:
    """Does a task and writes down how it ended; an error ends the task, not the matrix."""
    try:
        tasks.folder.succeeded(task.key, perform(tasks, task, control))
    except Interrupted:
        raise
    except (InputError, RunError, OSError) as error:
        tasks.folder.failed(task.key, str(error))
        control.listener.warn(f"{task.key} failed: {printable(error)}")
    except Exception as error:  # of a library: the other runs of a day shall not die of it
        reason = f"{type(error).__name__}: {error}"
        tasks.folder.failed(task.key, reason, traceback.format_exc())
        control.listener.warn(
            f"{task.key} failed: {type(error).__name__}: {printable(error)[:300]} (failures.json says where)"
        )
    finally:
        _release_memory()


def _release_memory() -> None:
    """Gives memory back: the next network needs what this one had, and DALI and torch cannot use each
    other's.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        from nvidia.dali import backend

        torch.cuda.empty_cache()
        backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


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
