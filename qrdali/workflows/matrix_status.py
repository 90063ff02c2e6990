"""How far a matrix is: tasks by state, who does what, and the time left with the workers there are.

Only reads, so that it works beside running workers and on a folder that cannot be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import RunError, printable
from qrdali.experiment.claims import read_holder
from qrdali.experiment.estimate import Estimate, Seconds
from qrdali.experiment.order import chains, task_seconds
from qrdali.experiment.tasks import Task, Tasks
from qrdali.experiment.workers import BEAT_SECONDS, Worker, Workers, activity_file
from qrdali.files.json_objects import read_object

STATES = ("running", "ready", "waiting", "failed", "done")
_WATCHED_SECONDS = 2.5 * BEAT_SECONDS


@dataclass(frozen=True)
class WorkerStatus:
    """Holds a worker that is not known to be gone.

    begun: by its own clock, seconds since 1970. is_silent: whether it gave no sign of life while it was
    watched, so that it may be gone. task: the key of what it does, "" for nothing. seconds: since it began
    with that. activity: the pass under way (what, unit, done, total, rate per second), {} for none.
    """

    number: int
    name: str
    host: str
    pid: int
    gpu: str
    begun: float
    is_silent: bool
    task: str
    seconds: float | None
    activity: dict[str, Any]


@dataclass(frozen=True)
class TaskStatus:
    """Holds a task as it is now.

    state: one of STATES. why: the reason of a failure, what is waited for, or that it was begun and left.
    worker: the number of the one that has it. attempts: how often it has failed since it was last done.
    """

    kind: str
    name: str
    state: str
    why: str
    worker: int | None
    attempts: int

    @property
    def key(self) -> str:
        return Task(self.kind, self.name).key


@dataclass(frozen=True)
class MatrixStatus:
    """Holds a whole matrix as it is now. left: the time that the workers there are, or one, still take."""

    out: Path
    tasks: tuple[TaskStatus, ...]
    workers: tuple[WorkerStatus, ...]
    left: Seconds

    def count(self, state: str) -> int:
        """Returns how many tasks are in a state."""
        return sum(task.state == state for task in self.tasks)

    def as_json(self) -> dict[str, Any]:
        """Returns what `--status --json` prints."""
        unknown = self.left.low is None or self.left.high is None
        return {
            "out": str(self.out),
            "counts": {state: self.count(state) for state in STATES},
            "seconds_left": None if unknown else list(self.left),
            "workers": [asdict(worker) for worker in self.workers],
            "tasks": [asdict(task) for task in self.tasks],
        }


def status_of(tasks: Tasks, say: Callable[[str], None]) -> MatrixStatus:
    """Returns how far a matrix is. say: is called with a line where workers must be watched for a moment."""
    living = living_workers(Workers(tasks.folder.folder), say)
    of_task: dict[str, int] = {}
    for task in tasks.all:
        holder = read_holder(tasks.folder.task(task.key))
        if holder is not None and not holder.is_free and holder.worker in {one.number for one in living}:
            of_task[task.key] = holder.worker
    done = {task.key for task in tasks.all if tasks.done(task)}
    listed = tuple(_task_status(tasks, task, done, of_task) for task in tasks.all)
    return MatrixStatus(tasks.folder.folder, listed, living, time_left(tasks, len(living)))


def known_workers(workers: Workers) -> tuple[WorkerStatus, ...]:
    """Returns the workers that are not known to be gone, without watching any."""
    return tuple(
        _worker_status(workers, worker, False)
        for worker in workers.all()
        if workers.is_alive(worker) is not False
    )


def living_workers(workers: Workers, say: Callable[[str], None]) -> tuple[WorkerStatus, ...]:
    """Returns the workers that are not known to be gone; those of other hosts are watched for a moment."""
    found = [(worker, workers.is_alive(worker)) for worker in workers.all()]
    unknown = [worker for worker, alive in found if alive is None]
    silent: set[int] = set()
    if unknown:
        say(f"looking for {_WATCHED_SECONDS:.0f} s whether {len(unknown)} workers of other hosts live")
        time.sleep(_WATCHED_SECONDS)
        for worker in unknown:
            now = workers.read(worker.number)
            if now is None or now.count == worker.count:
                silent.add(worker.number)
    return tuple(
        _worker_status(workers, worker, worker.number in silent)
        for worker, alive in found
        if alive is not False
    )


def _worker_status(workers: Workers, worker: Worker, is_silent: bool) -> WorkerStatus:
    try:
        doing = read_object(activity_file(workers.folder, worker.number))
    except RunError:
        doing = {}
    seconds = doing.pop("seconds", None)
    task = doing.pop("task", "")
    known = {key: doing[key] for key in ("what", "unit", "done", "total", "rate") if key in doing}
    return WorkerStatus(
        worker.number,
        printable(worker.name),
        printable(worker.host),
        worker.pid,
        printable(worker.gpu),
        worker.begun,
        is_silent,
        printable(task) if isinstance(task, str) else "",
        float(seconds) if isinstance(seconds, int | float) else None,
        {key: printable(value) if isinstance(value, str) else value for key, value in known.items()},
    )


def _task_status(tasks: Tasks, task: Task, done: set[str], of_task: dict[str, int]) -> TaskStatus:
    attempts = tasks.folder.attempts(task.key)
    state, why = "done", ""
    if task.key in of_task:
        state, why = "running", f"tried again after: {attempts[-1].get('reason')}" if attempts else ""
    elif task.key not in done:
        state, why = tasks.state(task)
        if state != "failed":
            needs = [need for need in task.needs if need not in done]
            if task.kind == "report":
                needs = [other.key for other in tasks.all if other.key not in done and other is not task]
            left = "begun, and left by its worker" if state == "begun" else ""
            state, why = ("waiting", f"for {needs[0]}") if needs else ("ready", left)
    worker = of_task.get(task.key)
    return TaskStatus(task.kind, task.name, state, printable(why), worker, len(attempts))


def time_left(tasks: Tasks, workers: int) -> Seconds:
    """Returns the time left: the work shared among the workers, but not less than the longest chain of it."""
    estimate = Estimate(tasks)
    networks = {run.network for run in tasks.wanted if not tasks.done(tasks.run_task(run.name))}
    if any(not estimate.pace(network).epoch for network in networks):
        return Seconds(None, None)
    bounds = []
    for longest in (False, True):
        seconds = task_seconds(tasks, estimate, longest=longest)
        chain = max(chains(tasks, seconds).values(), default=0.0)
        bounds.append(max(sum(seconds.values()) / max(1, workers), chain))
    return Seconds(*bounds)
