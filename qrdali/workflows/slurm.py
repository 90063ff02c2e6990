"""Submits the workers of a matrix as jobs of a Slurm cluster, through submitit; or one job for each task.

    OUT/slurm.json      the name of the jobs that were submitted last, and their numbers
    OUT/slurm/          what the jobs print, and what submitit keeps of them

What the jobs do is in OUT/tasks and OUT/workers as of any worker; whether they wait or run, squeue says by
their name, which is noted before they are submitted: nothing is submitted twice, also by a call that follows
one that was killed half-way.
"""

from __future__ import annotations

import json
import re
import secrets
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrdali.errors import InputError, RunError, printable
from qrdali.experiment.estimate import Estimate
from qrdali.experiment.tasks import Task, Tasks
from qrdali.files.atomic import write_whole_among_writers
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire
from qrdali.interfaces import JobControl
from qrdali.workflows.slurm_cluster import (
    JobSize,
    QueuedJob,
    partition_for,
    queued,
    require_commands,
    size_for,
)
from qrdali.workflows.slurm_job import WorkerJob
from qrdali.workflows.slurm_options import SlurmOptions, signal_seconds, walltime

if TYPE_CHECKING:
    import submitit

NOTE, LOGS, LOCK = "slurm.json", "slurm", "submitting.lock"
DEFAULT_PARALLEL = 4
_NAME = re.compile(r"qrdali-[0-9a-f]{12}", re.ASCII)
_ADVICE = ": if none of its jobs is queued (squeue --me), remove it"


@dataclass(frozen=True)
class SubmittedJob:
    """Holds a job. number: as squeue prints it. task: its key, "" for a worker that takes any.

    minutes: how long it may run. after: the numbers of the jobs that it waits for.
    """

    number: str
    task: str
    minutes: int
    after: tuple[str, ...]


@dataclass(frozen=True)
class Jobs:
    """Holds what is in the queue for a matrix after a call.

    name: of the jobs. logs: the folder of what they print. submitted: by this call; none if `waiting` holds
    those of a call before, or if all tasks are done. size: of each submitted job.
    """

    name: str
    logs: Path
    submitted: tuple[SubmittedJob, ...] = ()
    waiting: tuple[QueuedJob, ...] = ()
    size: JobSize | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns what `--slurm --json` prints."""
        return {
            "name": self.name,
            "logs": str(self.logs),
            "submitted": [asdict(job) for job in self.submitted],
            "queued": [asdict(job) for job in self.waiting],
            "size": None if self.size is None else asdict(self.size),
        }


def _most_gpus(undone: Sequence[Task], tasks: Tasks) -> int:
    return max(1, *(tasks.gpus(task) for task in undone))


def submit(tasks: Tasks, words: Sequence[str], options: SlurmOptions, control: JobControl) -> Jobs:
    """Submits jobs for what is not done, unless some of an earlier call wait or run; returns at once.

    words: of `qrdali reproduce` in every job. Raises InputError where submitit or Slurm is missing or an
    option cannot be met, InUse while another process submits, and RunError if Slurm refuses or does not
    answer.
    """
    require_submitit()
    require_commands()
    out = tasks.folder.folder
    logs = out.resolve() / LOGS
    if "%" in str(logs):
        raise InputError(f"--slurm: {printable(out)} has a % in its path, which Slurm replaces: move it")
    with tasks.folder.lock(control.listener.warn):
        logs.mkdir(exist_ok=True)
        with acquire(logs / LOCK, lambda who: f"{who} submits jobs for {printable(out)}: wait for it"):
            name = noted_name(out)
            if name and (jobs := queued(name)):
                return Jobs(name, logs, waiting=jobs)
            undone = [task for task in tasks.all if not tasks.done(task)]
            if not undone:
                return Jobs("", logs)
            partition = partition_for(options)
            size = size_for(options, partition, tasks.matrix.train.get("device"), _most_gpus(undone, tasks))
            name = f"qrdali-{secrets.token_hex(6)}"
            _note(out, {"name": name, "jobs": []})
            queue = _Queue(name, logs, options, size)
            if options.per_task:
                submitted = _one_per_task(tasks, undone, words, queue)
            else:
                submitted = queue.workers(words, worker_count(undone, options))
            _note(out, {"name": name, "jobs": [asdict(job) for job in submitted]})
            return Jobs(name, logs, submitted, size=size)


def require_submitit() -> None:
    """Raises InputError where submitit is not installed."""
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise InputError("--slurm needs submitit: pip install 'qrdali[cluster]'") from None


def noted_name(out: Path) -> str:
    """Returns the name of the jobs that were submitted last, "" for none.

    Raises RunError for damaged notes.
    """
    file = out / NOTE
    if not file.exists():
        return ""
    name = read_object(file, _ADVICE).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RunError(f"{printable(file)} names no jobs{_ADVICE}")
    return name


def _note(out: Path, values: dict[str, Any]) -> None:
    write_whole_among_writers(out / NOTE, f"{json.dumps(values, indent=1)}\n".encode())


def worker_count(undone: Sequence[Task], options: SlurmOptions) -> int:
    """Returns how many workers are of use: not more than there are tasks besides the report."""
    tasks = sum(task.kind != "report" for task in undone)
    return min(options.parallel or DEFAULT_PARALLEL, max(1, tasks))


def dependencies(undone: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Returns, by key and in an order in which they can be submitted, the undone tasks that each waits for.

    The report waits for the end of all others, however they end; each other task for the success of its
    needs.
    """
    keys = {task.key for task in undone}
    left = {task.key: task for task in undone if task.kind != "report"}
    found: dict[str, tuple[str, ...]] = {}
    while left:
        ready = [task for task in left.values() if not any(need in left for need in task.needs)]
        assert ready, "tasks need one another in a circle"
        for task in ready:
            found[task.key] = tuple(need for need in task.needs if need in keys)
            del left[task.key]
    return found | {task.key: tuple(found) for task in undone if task.kind == "report"}


def estimated_seconds(tasks: Tasks, task: Task, estimate: Estimate) -> float | None:
    """Returns how long a task still takes at most; None where no time is known."""
    if task.kind == "train":
        return estimate.remaining(tasks.runs[task.name]).seconds.high
    return estimate.like(task).high if task.kind in ("evaluate", "mepi") else None


def _one_per_task(
    tasks: Tasks, undone: Sequence[Task], words: Sequence[str], queue: _Queue
) -> tuple[SubmittedJob, ...]:
    estimate = Estimate(tasks)
    by_key = {task.key: task for task in undone}
    jobs: dict[str, SubmittedJob] = {}
    for key, needs in dependencies(undone).items():
        minutes = walltime(estimated_seconds(tasks, by_key[key], estimate), queue.size.minutes)
        kind = "afterany" if by_key[key].kind == "report" else "afterok"
        after = tuple(jobs[need].number for need in needs)
        number = queue.one([*words, f"--task={key}"], minutes, kind, after)
        jobs[key] = SubmittedJob(number, key, minutes, after)
    return tuple(jobs.values())


class _Queue:
    """Submits jobs of one name and size."""

    def __init__(self, name: str, logs: Path, options: SlurmOptions, size: JobSize) -> None:
        self._name, self._logs, self._options, self.size = name, logs, options, size

    def workers(self, words: Sequence[str], count: int) -> tuple[SubmittedJob, ...]:
        """Submits an array of workers that share the tasks."""
        executor = self._executor(self.size.minutes)
        executor.update_parameters(array_parallelism=count)
        numbers = self._submitted(executor, [WorkerJob(tuple(words))] * count)
        return tuple(SubmittedJob(number, "", self.size.minutes, ()) for number in numbers)

    def one(self, words: Sequence[str], minutes: int, kind: str, after: Sequence[str]) -> str:
        """Submits a job that waits for others (kind: afterok or afterany); returns its number."""
        executor = self._executor(minutes)
        if after:
            executor.update_parameters(dependency=":".join((kind, *after)))
        (number,) = self._submitted(executor, [WorkerJob(tuple(words))])
        return number

    def _executor(self, minutes: int) -> submitit.SlurmExecutor:
        import submitit

        options = self._options
        executor = submitit.SlurmExecutor(self._logs, max_num_timeout=options.max_num_timeout)
        # Requeued by us even where a site's default forbids it; gone if what they wait for has failed.
        more = {"requeue": True, "kill-on-invalid-dep": "yes", "mem": options.mem}
        more["reservation"] = options.reservation
        named = ("partition", "account", "qos", "constraint", "exclude", "nodelist")
        given = {name: getattr(options, name) for name in named if getattr(options, name)}
        executor.update_parameters(
            job_name=self._name,
            time=minutes,  # in minutes: submitit tells a time-out from a preemption by it
            cpus_per_task=self.size.cpus,
            srun_args=[f"--cpus-per-task={self.size.cpus}"],  # srun does not take it from sbatch
            signal_delay_s=signal_seconds(options.signal_seconds, minutes),
            stderr_to_stdout=True,
            additional_parameters={key: value for key, value in more.items() if value},
            **({"gpus_per_node": self.size.gpus} if self.size.gpus else {}),
            **given,
        )
        return executor

    def _submitted(self, executor: submitit.SlurmExecutor, jobs: Iterable[WorkerJob]) -> list[str]:
        """Returns the numbers of the jobs. Raises RunError with the words of sbatch if it refuses them."""
        from submitit.core.utils import FailedSubmissionError, UncompletedJobError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with executor.batch():
                    handles = [executor.submit(job) for job in jobs]
        except (UncompletedJobError, FailedSubmissionError) as error:
            size = f"{self.size.cpus} CPUs, {self.size.gpus} GPUs a job"
            raise RunError(
                f"sbatch refuses ({size}): {printable(' '.join(str(error).split()))[:400]}; what it took "
                f"before is in squeue --name={self._name}"
            ) from None
        return [str(handle.job_id) for handle in handles]
