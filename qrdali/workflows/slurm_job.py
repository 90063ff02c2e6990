"""What runs within a job of Slurm: a worker of the matrix in a process of its own, and its end with a save.

submitit starts `WorkerJob` in the job, and calls its `checkpoint` from within a signal handler when the job's
time is nearly over or it is preempted. The process that trains is another one, so that it can go on to the
next batch and save while the handler waits for it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING

from qrdali.errors import RunError
from qrdali.experiment.workers import NAME_VARIABLE, PARENT_VARIABLE

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_POLL_SECONDS = 0.2
# After a worker was stopped by a signal that Slurm sends to all processes: until Slurm ends this job, too.
_END_SECONDS = 600.0
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class WorkerJob:
    """Is `qrdali reproduce` with these words as the function of a job of submitit, which pickles it.

    A worker without --threads decodes in as many threads as the job has processors.
    """

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def __call__(self) -> None:
        """Works until no task is left. Raises RunError, which fails the job, if the worker fails."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qrdali", "reproduce", *self.words, *self._threads()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
        )
        # Another thread waits: a handler that waited in this one, which is interrupted in a wait, would wait
        # for the lock that this one holds.
        threading.Thread(target=self._process.wait, name="end of the worker", daemon=True).start()
        signal.signal(signal.SIGTERM, self._pass_on)
        status = self._join()
        if status in {number for stop in _STOPS for number in (-stop, 128 + stop)}:
            # Slurm stops all processes of a job, then this job too, or asks for a checkpoint. To end before
            # would look like a job that is over, and is not requeued.
            time.sleep(_END_SECONDS)
        if status:
            how = f"status {status}" if status > 0 else f"signal {-status}"
            raise RunError(f"the worker ended with {how}; its output says why")

    def checkpoint(self) -> DelayedSubmission:
        """Returns what goes on with the work in the requeued job, once everything is saved.

        submitit calls it in a signal handler of the thread that waits in `__call__`.
        """
        from submitit.helpers import DelayedSubmission

        self._pass_on(signal.SIGTERM, None)
        self._join()
        return DelayedSubmission(WorkerJob(self.words))

    def _join(self) -> int:
        """Waits for the worker without a lock, since a signal handler does so too; returns its status."""
        while (status := self._process.returncode) is None:
            time.sleep(_POLL_SECONDS)
        return int(status)

    def _pass_on(self, signum: int, _: FrameType | None) -> None:
        self._process.send_signal(signum)  # whose repetition the worker passes over

    def _threads(self) -> list[str]:
        given = any(word == "--threads" or word.startswith("--threads=") for word in self.words)
        cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
        return [] if given or not cpus.isdigit() else [f"--threads={cpus}"]


def _environment() -> dict[str, str]:
    environment = {**os.environ, NAME_VARIABLE: f"job {job_name()}", PARENT_VARIABLE: str(os.getpid())}
    if cpus := os.environ.get("SLURM_CPUS_PER_TASK"):
        environment.setdefault("OMP_NUM_THREADS", cpus)
    return environment


def job_name() -> str:
    """Returns the number of the job that this process is in, as squeue prints it; "" outside of jobs."""
    array, element = (os.environ.get(f"SLURM_ARRAY_{part}", "") for part in ("JOB_ID", "TASK_ID"))
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")
