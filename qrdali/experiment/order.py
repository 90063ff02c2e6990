"""The order in which the tasks of a matrix are taken: what the longest chain of work hangs on comes first."""

from __future__ import annotations

from qrdali.experiment.estimate import Estimate
from qrdali.experiment.tasks import Task, Tasks

_UNKNOWN_EPOCH = 1.0  # seconds: without any measured or stated time, epochs are counted


def task_seconds(tasks: Tasks, estimate: Estimate, *, longest: bool = True) -> dict[str, float]:
    """Returns how long each task still takes, in seconds, by key: at most, or at least; 0 for what is done.

    Where a network's times are not known, an epoch of it is taken to be as long as the mean of the others',
    and an evaluation or a MEPI set as one of its epochs at most.
    """
    known = [
        pace.epoch["full"]
        for network in tasks.matrix.network
        if "full" in (pace := estimate.pace(network.folder)).epoch
    ]
    epoch = sum(known) / len(known) if known else _UNKNOWN_EPOCH
    return {task.key: _seconds(tasks, task, estimate, epoch, int(longest)) for task in tasks.all}


def _seconds(tasks: Tasks, task: Task, estimate: Estimate, epoch: float, bound: int) -> float:
    """Returns a task's time. bound: 0 for the least, 1 for the most."""
    if task.kind == "train":
        remaining = estimate.remaining(tasks.runs[task.name])
        seconds = remaining.seconds[bound]
        return remaining.epochs[bound] * epoch if seconds is None else seconds
    if task.kind in ("evaluate", "mepi") and not tasks.done(task):
        seconds = estimate.like(task)[bound]
        return epoch if seconds is None else seconds
    return 0.0


def followers_of(tasks: Tasks) -> dict[str, list[str]]:
    """Returns, by key, the tasks that wait for a task, but for the report."""
    followers: dict[str, list[str]] = {task.key: [] for task in tasks.all}
    for task in tasks.all:
        for need in task.needs:
            followers.setdefault(need, []).append(task.key)
    return followers


def chains(tasks: Tasks, seconds: dict[str, float]) -> dict[str, float]:
    """Returns, by key, the time from a task's begin to the end of the longest chain of tasks after it.

    The report waits for all of them, and is of no length.
    """
    followers = followers_of(tasks)
    lengths: dict[str, float] = {}

    def length(key: str) -> float:
        if key not in lengths:
            behind = max((length(follower) for follower in followers[key]), default=0.0)
            lengths[key] = seconds.get(key, 0.0) + behind
        return lengths[key]

    return {task.key: length(task.key) for task in tasks.all}


def in_order(tasks: Tasks, lengths: dict[str, float]) -> list[Task]:
    """Returns the tasks, those of the longest chains first; of equal ones in the order of the matrix."""
    places = {task.key: place for place, task in enumerate(tasks.all)}
    return sorted(tasks.all, key=lambda task: (-lengths[task.key], places[task.key]))
