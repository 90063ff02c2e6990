"""The tasks of a matrix as commands, for schedulers other than qrdali's own workers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qrdali.errors import InputError, printable
from qrdali.experiment.estimate import Estimate, Seconds
from qrdali.experiment.makespan import needs_of
from qrdali.experiment.order import chains, in_order, task_seconds
from qrdali.experiment.tasks import GPU_KINDS, Task, Tasks
from qrdali.runs.setting_table import near_names


@dataclass(frozen=True)
class TaskCommand:
    """Holds a task and the command that does it.

    key: of the task. needs: keys of the tasks that must be done before. words: of the command. gpus: how many
    it uses where there are any. seconds: how long it may take, at least and at most; None where nothing is
    known. state: "done", "failed", "begun" or "waiting".
    """

    key: str
    needs: tuple[str, ...]
    words: tuple[str, ...]
    gpus: int
    seconds: Seconds
    state: str

    def as_json(self) -> dict[str, Any]:
        """Returns the task's line of `--commands`."""
        unknown = self.seconds.low is None or self.seconds.high is None
        return {
            "task": self.key,
            "needs": list(self.needs),
            "command": shlex.join(self.words),
            "gpus": self.gpus,
            "seconds": None if unknown else list(self.seconds),
            "state": self.state,
        }

    def as_shell(self) -> str:
        """Returns a command that first waits for what the task needs."""
        return shlex.join([*self.words, "--wait"])


def commands_of(tasks: Tasks, words: Sequence[str]) -> list[TaskCommand]:
    """Returns every task, each after those that it needs, and what the longest work hangs on first.

    words: of `qrdali reproduce` with its file and options.
    """
    estimate, needs = Estimate(tasks), needs_of(tasks)
    order = in_order(tasks, chains(tasks, task_seconds(tasks, estimate)))
    listed: list[TaskCommand] = []
    placed: set[str] = set()
    left = list(order)
    while left:  # a done task is of no length, so that order alone could put it behind what needs it
        task = next(task for task in left if placed.issuperset(needs[task.key]))
        left.remove(task)
        placed.add(task.key)
        listed.append(
            TaskCommand(
                task.key,
                needs[task.key],
                (*words, "--task", task.key),
                _gpus(tasks, task),
                _seconds(tasks, task, estimate),
                tasks.state(task)[0],
            )
        )
    return listed


def _gpus(tasks: Tasks, task: Task) -> int:
    if task.kind in GPU_KINDS and tasks.runs[task.name].settings.device == "cpu":
        return 0
    return tasks.gpus(task)


def _seconds(tasks: Tasks, task: Task, estimate: Estimate) -> Seconds:
    if tasks.done(task):
        return Seconds(0.0, 0.0)
    if task.kind == "train":
        return estimate.remaining(tasks.runs[task.name]).seconds
    return estimate.like(task) if task.kind in GPU_KINDS else Seconds(None, None)


def task_of(tasks: Tasks, key: str) -> Task:
    """Returns the task of this key. Raises InputError for an unknown one, with those that look alike."""
    found = next((task for task in tasks.all if task.key == key), None)
    if found is None:
        keys = [task.key for task in tasks.all]
        near = near_names(key[:200], keys) or f"; there are {', '.join(keys[:4])} and so on"
        raise InputError(
            f"--task {printable(key)[:200]!r} is no task of this matrix{printable(near)}; --commands lists "
            "all"
        )
    return found
