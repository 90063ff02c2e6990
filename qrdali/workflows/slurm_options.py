"""What `--slurm K=V[,K=V…]` says, and the times of Slurm. Nothing is asked of a cluster here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from qrdali.errors import InputError, printable
from qrdali.runs.setting_table import near_names

DEFAULT_MINUTES = 24 * 60
MOST_MINUTES = 365 * 24 * 60
MOST_JOBS = 1024
TIME_FORMS = "minutes, HH:MM:SS, D-HH or D-HH:MM:SS"

_MARGIN = 1.5  # of an estimate from epochs that were timed on this or another machine
_EXTRA_MINUTES = 10  # for the start of the process, and what no estimate holds
_ROUND_MINUTES = 5
_LEAST_MINUTES = 20  # submitit takes any end of a job of less than ten minutes for a time-out
_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,7})(?::(\d{1,2}))?(?::(\d{1,2}))?", re.ASCII)
_WORD = re.compile(r"[\w.@%+:/&|!*()\[\],-]{1,200}", re.ASCII)
_MEMORY = re.compile(r"[1-9]\d{0,9}[KMGT]?B?", re.ASCII | re.IGNORECASE)
_LISTS = ("partition", "exclude", "nodelist")  # whose values may hold commas themselves


@dataclass(frozen=True)
class SlurmOptions:
    """Holds what `--slurm` asks for; None and "" stand for what is taken from the cluster or left to it.

    minutes: how long a job may run. parallel: how many workers. per_task: whether each task is a job of its
    own. gpus, cpus, mem: of one job. max_num_timeout: how often a job goes on after its time was over.
    signal_seconds: how long before its end a job is asked to save.
    """

    partition: str = ""
    minutes: int | None = None
    parallel: int | None = None
    per_task: bool = False
    gpus: int | None = None
    cpus: int | None = None
    mem: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    nodelist: str = ""
    reservation: str = ""
    max_num_timeout: int = 3
    signal_seconds: int | None = None


def minutes_of(text: str) -> int:
    """Returns the minutes, rounded up, of a time as sbatch takes it. Raises ValueError for any other text.

    >>> minutes_of("90"), minutes_of("24:00:00"), minutes_of("1-12"), minutes_of("00:01:30")
    (90, 1440, 2160, 2)
    """
    wrong = ValueError(f"{printable(text)[:80]} is no time of Slurm: {TIME_FORMS}")
    match = _TIME.fullmatch(text)
    if match is None:
        raise wrong
    days, first, second, third = (None if part is None else int(part) for part in match.groups())
    assert first is not None
    if days is not None:
        seconds = ((days * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    elif third is not None:
        seconds = (first * 60 + (second or 0)) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    if (second or 0) > 59 or (third or 0) > 59 or (days is not None and first > 23) or not seconds:
        raise wrong
    return math.ceil(seconds / 60)


def time_text(minutes: int) -> str:
    """Returns minutes as HH:MM:SS, or D-HH:MM:SS from a day on."""
    days, rest = divmod(minutes, 24 * 60)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock


def walltime(seconds: float | None, most: int) -> int:
    """Returns the minutes to ask for of a task that takes `seconds` at most by an estimate.

    most: the minutes that a job may take; also what is returned where there is no estimate (None).
    """
    if seconds is None or not math.isfinite(seconds):
        return most
    minutes = seconds * _MARGIN / 60 + _EXTRA_MINUTES
    return min(most, max(_LEAST_MINUTES, math.ceil(minutes / _ROUND_MINUTES) * _ROUND_MINUTES))


def signal_seconds(asked: int | None, minutes: int) -> int:
    """Returns how long before its end a job of so many minutes is asked to save: 2 minutes, or what is asked.

    Never more than a quarter of the job's time by default, so that a short job does some work.
    """
    return min(120, minutes * 15) if asked is None else asked


def parsed(text: str) -> SlurmOptions:
    """Returns what K=V[,K=V…] asks for. Raises InputError for unknown keys and for values that are wrong."""
    values: dict[str, Any] = {}
    for key, value in _pairs(text):
        if key not in _KEYS:
            near = near_names(key, list(_KEYS))
            raise InputError(f"--slurm {_shown(key)}=…: there is no such key{near}; keys: {', '.join(_KEYS)}")
        field, read, rule = _KEYS[key]
        if field in values:
            raise InputError(f"--slurm {key}=…: it is given twice")
        try:
            values[field] = read(value)
        except ValueError:
            raise InputError(f"--slurm {key}={_shown(value)}: give {rule}") from None
    options = SlurmOptions(**values)
    if options.per_task and options.parallel is not None:
        raise InputError(
            "--slurm per-task=yes,parallel=…: give one of them; each task is a job of its own, or `parallel` "
            "workers share the tasks"
        )
    return options


def _pairs(text: str) -> list[tuple[str, str]]:
    """Splits at commas; a piece without "=" goes on with a list, as in exclude=n1,n2."""
    pairs: list[tuple[str, str]] = []
    depth, piece = 0, ""
    pieces: list[str] = []
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth <= 0:
            pieces.append(piece)
            piece = ""
        else:
            piece += character
    for part in (one.strip() for one in [*pieces, piece]):
        key, equals, value = part.partition("=")
        if equals:
            pairs.append((key.strip().lower().replace("_", "-"), value.strip()))
        elif part and pairs and pairs[-1][0] in _LISTS:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part}")
        elif part:
            raise InputError(
                f"--slurm …,{_shown(part)},…: give keys with their values, as in "
                "partition=gpu,time=24:00:00,parallel=16"
            )
    return pairs


def _shown(text: str) -> str:
    return printable(text)[:80]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
            raise ValueError
        return int(text)

    return read


def _yes(text: str) -> bool:
    return {"yes": True, "true": True, "no": False, "false": False}[_known(text.lower())]


def _known(text: str) -> str:
    if text not in ("yes", "true", "no", "false"):
        raise ValueError
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text) or text.startswith("-"):
        raise ValueError
    return text


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError
    return text


def _time(text: str) -> int:
    minutes = minutes_of(text)
    if minutes > MOST_MINUTES:
        raise ValueError
    return minutes


_NAME_RULE = "a name as sbatch takes it"
# By key: the field, what reads its value, and what is right.
_KEYS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "partition": ("partition", _word, _NAME_RULE),
    "time": ("minutes", _time, f"the longest time of a job as {TIME_FORMS}, at most a year"),
    "parallel": ("parallel", _whole(1, MOST_JOBS), f"how many workers, from 1 to {MOST_JOBS}"),
    "per-task": ("per_task", _yes, "yes or no"),
    "gpus": ("gpus", _whole(0, 64), "the GPUs of one job, from 0 to 64"),
    "cpus": ("cpus", _whole(1, 4096), "the processors of one job, from 1 to 4096"),
    "mem": ("mem", _memory, "the memory of one job, as in 32G"),
    "account": ("account", _word, _NAME_RULE),
    "qos": ("qos", _word, _NAME_RULE),
    "constraint": ("constraint", _word, "features of nodes as sbatch takes them"),
    "exclude": ("exclude", _word, "nodes as sbatch takes them, as in n[1-3],n7"),
    "nodelist": ("nodelist", _word, "nodes as sbatch takes them, as in n[1-3],n7"),
    "reservation": ("reservation", _word, _NAME_RULE),
    "max-num-timeout": ("max_num_timeout", _whole(0, 1000), "how often, from 0 to 1000"),
    "signal-seconds": ("signal_seconds", _whole(10, 65535), "seconds, from 10 to 65535"),
}
assert {field for field, _, _ in _KEYS.values()} == {field.name for field in fields(SlurmOptions)}
