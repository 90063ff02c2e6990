"""What is asked of a Slurm cluster: its partitions by sinfo, the state of jobs by squeue. Never sacct."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from qrdali.errors import InputError, RunError, printable
from qrdali.runs.setting_table import near_names
from qrdali.workflows.slurm_options import (
    DEFAULT_MINUTES,
    SlurmOptions,
    minutes_of,
    time_text,
)

_ANSWER_SECONDS = 60.0
_MOST_JOBS_SHOWN = 100_000
_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_NEEDED = ("sbatch", "squeue", "sinfo", "srun", "scontrol")


@dataclass(frozen=True)
class Partition:
    """Holds a partition. cpus, gpus: of its smallest nodes. minutes: the longest job, None for no limit."""

    name: str
    is_default: bool
    cpus: int
    gpus: int
    minutes: int | None


@dataclass(frozen=True)
class QueuedJob:
    """Holds a job that waits or runs. number: as squeue prints it. why: what it waits for, or its node."""

    number: str
    name: str
    state: str
    elapsed: str
    why: str


def require_commands() -> None:
    """Raises InputError on a host that cannot submit jobs."""
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        raise InputError(
            f"--slurm: {missing[0]} is not on this host; give the command where jobs are submitted, on a "
            "login node, or use --workers or --gpus here"
        )


def partitions_in(text: str) -> list[Partition]:
    """Returns the partitions in what `sinfo -h -e -o '%P|%c|%G|%l'` prints: a line per kind of node."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 4 or not parts[1].rstrip("+").isdigit():
            continue
        name, cpus = parts[0].rstrip("*"), int(parts[1].rstrip("+"))
        gpus = sum(map(int, _GPUS.findall(parts[2])))
        try:
            limit = minutes_of(parts[3])
        except ValueError:  # "infinite"
            limit = None
        kind = Partition(name, parts[0].endswith("*"), cpus, gpus, limit)
        if name not in found or (cpus / max(1, gpus)) < (found[name].cpus / max(1, found[name].gpus)):
            found[name] = kind
    return list(found.values())


def jobs_in(text: str) -> tuple[QueuedJob, ...]:
    """Returns the jobs in what `squeue -h -r -o '%i|%j|%T|%M|%R'` prints."""
    lines = (line.strip().split("|", 4) for line in text.splitlines()[:_MOST_JOBS_SHOWN])
    return tuple(QueuedJob(*map(printable, parts)) for parts in lines if len(parts) == 5)


def queued(name: str) -> tuple[QueuedJob, ...]:
    """Returns the jobs of a name that wait or run. Raises RunError if squeue cannot say."""
    return jobs_in(_said(["squeue", "-h", "-r", f"--name={name}", "-o", "%i|%j|%T|%M|%R"]))


def partition_for(options: SlurmOptions) -> Partition:
    """Returns the partition that jobs go to; of several the one with the smallest nodes.

    Raises InputError for one that the cluster does not have.
    """
    there = partitions_in(_said(["sinfo", "-h", "-e", "-o", "%P|%c|%G|%l"]))
    names = [one.name for one in there]
    if not there:
        raise RunError("sinfo names no partition of this cluster: ask whoever runs it")
    if not options.partition:
        return next((one for one in there if one.is_default), there[0])
    chosen = options.partition.split(",")
    for name in chosen:
        if name not in names:
            raise InputError(
                f"--slurm partition={printable(name)}: the cluster has no such partition"
                f"{near_names(name, names)}; there are {', '.join(names)}"
            )
    return min((one for one in there if one.name in chosen), key=lambda one: one.cpus / max(1, one.gpus))


@dataclass(frozen=True)
class JobSize:
    """Holds what each job gets: processors, GPUs and the longest time in minutes."""

    cpus: int
    gpus: int
    minutes: int


def size_for(options: SlurmOptions, partition: Partition, device: str | None, most: int = 1) -> JobSize:
    """Returns the size of a job: GPUs with their share of the node's processors, or a whole node without
    GPUs.

    device: as of `reproduce`; "cpu" asks for no GPU. most: the GPUs of the task that needs most, which a job
    has unless the options say otherwise. Raises InputError for a longer time than the partition allows; what
    no node has, sbatch refuses.
    """
    gpus = options.gpus
    if gpus is None:
        gpus = 0 if device == "cpu" else min(most, partition.gpus)
    share = partition.cpus * gpus // max(gpus, partition.gpus) if gpus else partition.cpus
    cpus = options.cpus or max(1, share)
    limit = partition.minutes
    minutes = min(DEFAULT_MINUTES, limit or DEFAULT_MINUTES) if options.minutes is None else options.minutes
    if limit is not None and minutes > limit:
        raise InputError(
            f"--slurm time={time_text(minutes)}: partition {partition.name} allows {time_text(limit)} at most"
        )
    return JobSize(cpus, gpus, minutes)


def _said(command: list[str]) -> str:
    """Returns what a command of Slurm prints. Raises RunError if it fails."""
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_SECONDS,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{command[0]} cannot be asked: {printable(error)[:200]}; try again later") from None
    if answer.returncode:
        why = printable(" ".join(answer.stderr.split()))[:300]
        raise RunError(f"{command[0]} cannot say: {why or f'status {answer.returncode}'}; try again later")
    return answer.stdout
