"""Computes how long a number of workers take for a matrix, by letting them take its tasks in the engine's
order.

Pure: what a worker does first is `experiment/order.py`, as in the engine itself; how long a task takes is the
caller's.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qrdali.experiment.estimate import Estimate, Seconds
from qrdali.experiment.order import chains, followers_of, in_order, task_seconds
from qrdali.experiment.tasks import Tasks

REPORT = "report"


@dataclass(frozen=True)
class Placement:
    """Says which worker, by its place, does a task from when to when, in seconds."""

    key: str
    worker: int
    begin: float
    end: float


@dataclass(frozen=True)
class Timetable:
    """Holds who does what when. gpus: of each worker. needed: GPUs of each task, by key."""

    placements: tuple[Placement, ...]
    gpus: tuple[int, ...]
    needed: Mapping[str, int]

    @property
    def makespan(self) -> float:
        """Returns the seconds until the last task is done."""
        return max((one.end for one in self.placements), default=0.0)

    @property
    def idle_share(self) -> float:
        """Returns the share of the workers' GPU time in which no task used the GPU; 0 where there is none."""
        whole = self.makespan * sum(self.gpus)
        used = sum((one.end - one.begin) * max(1, self.needed[one.key]) for one in self.placements)
        return 1 - used / whole if whole else 0.0


@dataclass(frozen=True)
class Makespan:
    """Holds how long `workers` take at least and at most; seconds and idle_share are None where no epoch's
    time is known.

    gpus: of each worker. impossible: keys of tasks that need more GPUs than any of them has, and of those
    that wait for them.
    """

    gpus: tuple[int, ...]
    seconds: Seconds
    idle_share: Seconds
    impossible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chain:
    """Holds the tasks that must be done one after the other and take longest together, and their time."""

    keys: tuple[str, ...]
    seconds: Seconds


def needs_of(tasks: Tasks) -> dict[str, tuple[str, ...]]:
    """Returns, by key, the tasks that are done before a task; the report comes after all others."""
    others = tuple(task.key for task in tasks.all if task.kind != REPORT)
    return {task.key: others if task.kind == REPORT else task.needs for task in tasks.all}


def group_sizes(count: int, needed: Sequence[int]) -> list[int]:
    """Returns how many GPUs each worker gets of `count`.

    needed: what each network needs. One worker has as many as the network that needs most; the others have
    as many as the one that needs least. GPUs that are left over are not used. Where there are fewer than the
    most, all have the least, if that is possible.
    """
    most, least = max(needed, default=1), min(needed, default=1)
    if count < most:
        return [least] * (count // least)
    return [most] + [least] * ((count - most) // least)


def timetable(
    tasks: Tasks, seconds: Mapping[str, float], order: Sequence[str], gpus: Sequence[int]
) -> Timetable:
    """Returns who does what when, if each worker that is free takes the first task that is ready.

    seconds: of each task by key; order: the keys, as workers look through them. gpus: of each worker; one
    with several first looks for a task that needs several, as the engine does. Tasks that need more than any
    worker has are left out, with those behind them.
    """
    needed = {task.key: tasks.gpus(task) for task in tasks.all}
    needs = needs_of(tasks)
    open_needs = {key: set(needs[key]) for key in order}
    behind: dict[str, list[str]] = {}
    for key in order:
        for need in needs[key]:
            behind.setdefault(need, []).append(key)
    ready = [key for key in order if not open_needs[key]]
    place = {key: number for number, key in enumerate(order)}
    free = sorted(range(len(gpus)), key=lambda worker: (gpus[worker], worker))
    running: list[tuple[float, int, str]] = []
    placed: list[Placement] = []
    now = 0.0
    while True:
        for worker in list(free):
            fitting = [key for key in ready if needed[key] <= gpus[worker]]
            if fitting:
                key = min(fitting, key=lambda key: (-max(1, needed[key]), place[key]))
                ready.remove(key)
                free.remove(worker)
                end = now + seconds[key]
                placed.append(Placement(key, worker, now, end))
                heapq.heappush(running, (end, worker, key))
        if not running:
            return Timetable(tuple(placed), tuple(gpus), needed)
        now = running[0][0]
        while running and running[0][0] == now:
            _, worker, ended = heapq.heappop(running)
            free.append(worker)
            for key in behind.get(ended, ()):
                open_needs[key].discard(ended)
                if not open_needs[key]:
                    ready.append(key)
        free.sort(key=lambda worker: (gpus[worker], worker))


def makespan_of(tasks: Tasks, estimate: Estimate, gpus: Sequence[int]) -> Makespan:
    """Returns how long workers with so many GPUs each take for what is left.

    They take the longest chains first by what is at most left of them, as workers do.
    """
    order = _order(tasks, estimate)
    tables = [
        timetable(tasks, task_seconds(tasks, estimate, longest=longest), order, gpus)
        for longest in (False, True)
    ]
    done = {placement.key for placement in tables[0].placements}
    impossible = tuple(key for key in order if key not in done and key != REPORT)
    if not _is_known(tasks, estimate) or not gpus:
        return Makespan(tuple(gpus), Seconds(None, None), Seconds(None, None), impossible)
    return Makespan(
        tuple(gpus),
        Seconds(*(table.makespan for table in tables)),
        Seconds(*(table.idle_share for table in tables)),
        impossible,
    )


def longest_chain(tasks: Tasks, estimate: Estimate) -> Chain:
    """Returns the longest chain of what is left at most, without tasks that take no time."""
    seconds = task_seconds(tasks, estimate)
    lengths = chains(tasks, seconds)
    followers = followers_of(tasks)
    keys: list[str] = []
    key = max(lengths, key=lambda key: lengths[key], default="")
    while key:
        keys.append(key)
        key = max(followers[key], key=lambda key: lengths[key], default="")
    if not _is_known(tasks, estimate):
        return Chain(tuple(key for key in keys if seconds[key]), Seconds(None, None))
    least = chains(tasks, task_seconds(tasks, estimate, longest=False))
    return Chain(
        tuple(key for key in keys if seconds[key]),
        Seconds(max(least.values(), default=0.0), max(lengths.values(), default=0.0)),
    )


def _order(tasks: Tasks, estimate: Estimate) -> list[str]:
    return [task.key for task in in_order(tasks, chains(tasks, task_seconds(tasks, estimate)))]


def _is_known(tasks: Tasks, estimate: Estimate) -> bool:
    networks = {run.network for run in tasks.wanted if not tasks.done(tasks.run_task(run.name))}
    return all(estimate.pace(network).epoch for network in networks)
