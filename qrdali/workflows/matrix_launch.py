"""Starts several workers of a matrix on this host: one per GPU, or some that share its processors.

Each is `qrdali reproduce` in a process of its own, and finds its tasks as any other worker does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from qrdali.errors import InputError, Interrupted, RunError, printable
from qrdali.experiment.estimate import Seconds
from qrdali.experiment.makespan import group_sizes
from qrdali.experiment.workers import NAME_VARIABLE, PARENT_VARIABLE
from qrdali.interfaces import ProgressListener
from qrdali.system import machine

_POLL_SECONDS = 0.2
_DEVICES = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"
_MOST_WORKERS = 1024
TASKS_FAILED = 3  # the exit status of a worker that came to the end of a matrix of which tasks failed


@dataclass(frozen=True)
class WorkerPlan:
    """Holds what one worker gets: what it is called, its GPUs ("" for none), its share of the threads."""

    name: str
    gpu: str
    threads: int


@dataclass(frozen=True)
class LaunchedMatrix:
    """Holds what a view of workers shows of the whole. keys: of all tasks.

    done: returns how many of them are done. left: returns the time that is left.
    """

    out: Path
    keys: tuple[str, ...]
    done: Callable[[], int]
    left: Callable[[], Seconds]


class WorkersView(Protocol):
    """Shows what workers print, how they end, and the whole, which it may look at in every `tick`."""

    def begin(self, matrix: LaunchedMatrix) -> None: ...
    def line(self, name: str, text: str) -> None: ...
    def ended(self, name: str, how: str) -> None: ...
    def tick(self) -> None: ...
    def end(self) -> None: ...


class ListenerView:
    """Hands what workers print to a listener, each line after its worker's name. Implements `WorkersView`."""

    def __init__(self, listener: ProgressListener) -> None:
        self._listener = listener

    def begin(self, matrix: LaunchedMatrix) -> None: ...

    def line(self, name: str, text: str) -> None:
        self._listener.line(f"[{name}] {text}")

    def ended(self, name: str, how: str) -> None:
        self._listener.warn(f"{name} {how}: its task goes back, and the others go on")

    def tick(self) -> None: ...
    def end(self) -> None: ...


def plans_for(
    workers: int | None, gpus: str | None, threads: int | None, needed: Callable[[], Sequence[int]] = tuple
) -> list[WorkerPlan]:
    """Returns the plans of `workers` that share the processors, or of one for each of `gpus`.

    needed: returns how many GPUs each network needs, by which GPUs are grouped; asked for `gpus` only.

    None of them where neither is given. Raises InputError for both, and as `cpu_workers` and `gpu_workers`
    do.
    """
    if workers is not None and gpus is not None:
        raise InputError("--workers and --gpus: give one of them")
    if gpus is not None:
        return gpu_workers(gpus, visible_gpus(), threads, needed())
    return [] if workers is None else cpu_workers(workers, threads)


def planned_gpus(workers: int | None, gpus: str | None, needed: Sequence[int]) -> list[int]:
    """Returns how many GPUs each worker has that these options ask for, on a host that has them.

    needed: by each network. Without options it is one worker with as many as any network needs, and so is
    each of `workers`, which shares processors. Raises InputError as `plans_for`, but not for GPUs that are
    not here.
    """
    if workers is not None and gpus is not None:
        raise InputError("--workers and --gpus: give one of them")
    if gpus is None:
        cpu_workers(1 if workers is None else workers, 1)
        return [max(needed, default=1)] * (workers or 1)
    chosen = _chosen(gpus, visible_gpus()) if gpus == "all" else _chosen(gpus, [])
    if not chosen or len(chosen) > _MOST_WORKERS or len(set(chosen)) < len(chosen):
        raise InputError(
            f"--gpus {printable(gpus)[:80]}: give all, a number from 1 to {_MOST_WORKERS}, or some as 0,2,5"
        )
    return group_sizes(len(chosen), needed)


def _chosen(text: str, visible: Sequence[str]) -> Sequence[int]:
    """Returns the places of the GPUs that --gpus names, whether they are there or not."""
    if text == "all":
        return range(len(visible))
    if "," in text:
        return [_number(part, text) for part in text.split(",") if part.strip()]
    return range(_number(text, text))


def cpu_workers(count: int, threads: int | None) -> list[WorkerPlan]:
    """Returns the plans of `count` workers that share the processors.

    threads: of all together; None for as many as this process may use. Raises InputError for a number that is
    out of range.
    """
    if not 1 <= count <= _MOST_WORKERS:
        raise InputError(f"--workers {count}: from 1 to {_MOST_WORKERS}")
    share = _share(threads, count)
    return [WorkerPlan(f"w{number}", "", share) for number in range(1, count + 1)]


def gpu_workers(
    text: str, visible: Sequence[str], threads: int | None, needed: Sequence[int] = ()
) -> list[WorkerPlan]:
    """Returns the plans of workers with a GPU each, or with several by `group_sizes` of what is `needed`.

    text: "all", how many, or places in a list as "0,2,5". visible: what CUDA calls each GPU that this process
    may use. threads: as of `cpu_workers`. needed: the GPUs of each network. Raises InputError for GPUs that
    are not there, and if there are too few for any network.
    """
    chosen = _chosen(text, visible)
    there = {0: "no usable GPU is here", 1: "one GPU is here"}.get(
        len(visible), f"{len(visible)} GPUs are here, 0 to {len(visible) - 1}"
    )
    if not chosen or any(number >= len(visible) for number in chosen) or len(set(chosen)) < len(chosen):
        instead = "" if visible else "; --workers N shares the processors"
        raise InputError(
            f"--gpus {printable(text)[:80]}: {there}; give all, how many, or some of them as 0,2,5{instead}"
        )
    sizes = group_sizes(len(chosen), needed)
    if not sizes:
        raise InputError(f"--gpus {printable(text)[:80]}: every network needs {min(needed)} GPUs or more")
    share, plans, left = _share(threads, len(chosen)), [], list(chosen)
    for size in sizes:
        group, left = left[:size], left[size:]
        name = f"gpu{'s' if size > 1 else ''} {','.join(map(str, group))}"
        plans.append(WorkerPlan(name, ",".join(visible[number] for number in group), share * size))
    return plans


def _number(part: str, text: str) -> int:
    if not (part.strip().isascii() and part.strip().isdigit() and len(part) < 10):
        raise InputError(f"--gpus {printable(text)[:80]}: give all, how many, or some of them as 0,2,5")
    return int(part)


def _share(threads: int | None, count: int) -> int:
    return max(1, (threads or machine.processors().usable) // count)


def most_gpus(device: str) -> int:
    """Returns how many GPUs a task may use in this process; 0 for any number of processes, without a GPU.

    device: as of `reproduce`.
    """
    return 0 if device == "cpu" else len(visible_gpus())


def visible_gpus() -> list[str]:
    """Returns what CUDA calls each GPU that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(_DEVICES, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def run_workers(
    plans: Sequence[WorkerPlan], words: Sequence[str], shown: WorkersView, stop: Callable[[], int]
) -> None:
    """Runs a worker for each plan until all have ended.

    words: of `qrdali reproduce`, without --threads. A worker that dies is reported, and the others go on with
    its task. Raises Interrupted after a signal, which every worker gets and saves after; RunError if all of
    them have died.
    """
    children = [_Child(plan, words, shown) for plan in plans]
    signum = 0
    try:
        while any(child.is_running for child in children):
            shown.tick()
            if not signum and (signum := stop()):
                for child in children:
                    child.send(signum)
            time.sleep(_POLL_SECONDS)
    except BaseException:  # a second Ctrl-C: nobody waits for a save any more
        for child in children:
            child.kill()
        raise
    finally:
        for child in children:
            child.join()
    if signum:
        raise Interrupted(
            f"{len(children)} workers were stopped: the same command goes on with what they did", signum
        )
    if not any(child.came_to_its_end for child in children):
        how = "; ".join(f"{child.plan.name} {child.how}" for child in children[:4])
        raise RunError(f"all {len(children)} workers have died: {how}. The same command goes on")


class _Child:
    """Is one worker's process; what it prints is handed on line by line."""

    def __init__(self, plan: WorkerPlan, words: Sequence[str], shown: WorkersView) -> None:
        self.plan, self._shown = plan, shown
        self._reported, self._sent = False, 0
        environment = {
            **os.environ,
            NAME_VARIABLE: plan.name,
            PARENT_VARIABLE: str(os.getpid()),
            _THREADS: os.environ.get(_THREADS, str(plan.threads)),
        }
        if plan.gpu:
            environment[_DEVICES] = plan.gpu
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qrdali", "reproduce", *words, "--threads", str(plan.threads)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C comes to the parent alone, which hands it on once
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._shown.line(self.plan.name, line.rstrip("\n"))

    @property
    def is_running(self) -> bool:
        """Returns whether the process runs; its end is reported once."""
        if self._process.poll() is None:
            return True
        if not self._reported:
            self._reported = True
            self._reader.join(5.0)
            was_stopped = self._sent and self._process.returncode in (-self._sent, 128 + self._sent)
            if not self.came_to_its_end and not was_stopped:
                self._shown.ended(self.plan.name, self.how)
        return False

    @property
    def came_to_its_end(self) -> bool:
        """Returns whether it did tasks until none was left, whether they failed or not."""
        return self._process.poll() in (0, TASKS_FAILED)

    @property
    def how(self) -> str:
        status = self._process.poll()
        if status is None:
            return "runs"
        if status < 0:
            name = signal.Signals(-status).name if -status in {*signal.Signals} else f"signal {-status}"
            return f"was killed by {name}"
        return f"ended with status {status}"

    def send(self, signum: int) -> None:
        if self._process.poll() is None:
            self._sent = signum
            self._process.send_signal(signum)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

    def join(self) -> None:
        self._process.wait()
        self._reader.join(5.0)
