"""The workers of a matrix: each has a file in OUT/workers that says who it is, and gives signs of life.

Workers are numbered in the order in which they began: `workers/000007.worker` is created by exactly one
process, whose lock (flock) is on it for as long as it lives, and which counts its second line up every few
seconds.
Another one is gone if it says so, if its lock is free where this machine can tell, or if its count has not
changed while this process watched. No clock of any host is compared with another's.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import InputError, printable
from qrdali.files.atomic import sync_opened, write_whole_among_writers
from qrdali.files.changes import describe_changes
from qrdali.files.lock import is_held

FOLDER = "workers"
BEAT_SECONDS = 3.0  # between signs of life
# Without one for so long a worker is taken for gone: longer than NFS keeps names and sizes of files (60 s).
SILENT_SECONDS = 120.0
_MOST_PER_LOOK = 10.0  # seconds that one look adds to a silence: who was stopped itself has not watched
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"(\d{6,12})\.worker", re.ASCII)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NAME_VARIABLE = "QRDALI_WORKER"  # of the environment: what a worker is called
PARENT_VARIABLE = "QRDALI_WORKER_PARENT"  # the process whose end ends the worker


@dataclass(frozen=True)
class Worker:
    """Holds what a worker's file says. machine: tells a running system and a file system on it from others.

    gpu: the devices that it sees, "" for all. matrix: the settings that it began with. begun: by its own
    clock, seconds since 1970. locked: whether its file system has locks. count: of its signs of life, as they
    stand in the file. ended: whether it has said so. most_gpus: how many a task may use there, 0 for any
    number, on processors.
    """

    number: int
    host: str
    pid: int
    machine: str
    name: str
    gpu: str
    begun: float
    locked: bool
    matrix: dict[str, Any]
    count: str
    ended: bool
    most_gpus: int = 1

    def can_use(self, gpus: int) -> bool:
        """Returns whether a task that uses so many GPUs can be done there."""
        return not self.most_gpus or gpus <= self.most_gpus

    @property
    def title(self) -> str:
        """Returns who it is, for people."""
        called = f"{self.name}, " if self.name else ""
        gpu = f", GPU {self.gpu}" if self.gpu else ""
        return printable(f"worker {self.number} ({called}process {self.pid} on {self.host}{gpu})")


class Watch:
    """Tells for how long something has been seen not to change, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float, float]] = {}

    def unchanged(self, what: str, value: object) -> float:
        """Returns the seconds in which `what` has had this value at every look."""
        now = time.monotonic()
        before, silence, looked = self._seen.get(what, (object(), 0.0, now))
        silence = silence + min(now - looked, _MOST_PER_LOOK) if before == value else 0.0
        self._seen[what] = (value, silence, now)
        return silence


class Workers:
    """Reads the files of all workers of a matrix. Nothing is written."""

    def __init__(self, folder: Path) -> None:
        """folder: that of the matrix."""
        self.folder = folder / FOLDER
        self.watch = Watch()
        self._ended: set[int] = set()

    def numbers(self) -> list[int]:
        """Returns the numbers of all workers whose files are there, in ascending order."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))

    def file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.worker"

    def read(self, number: int) -> Worker | None:
        """Returns what a worker's file says; None while it cannot be read."""
        return _parsed(number, self._content(number) or b"")

    def all(self) -> Iterator[Worker]:
        """Yields the workers that have not said that they have ended."""
        for number in self.numbers():
            if number not in self._ended and (worker := self.read(number)) is not None:
                if worker.ended:
                    self._ended.add(number)
                else:
                    yield worker

    def is_gone(self, number: int) -> bool:
        """Returns whether a worker is known to be gone: at once, or after it was silent at every look.

        A file is removed only when its worker is gone.
        """
        if number in self._ended:
            return True
        content = self._content(number)
        if content is None:
            return True
        worker = _parsed(number, content)
        if worker is not None and (worker.ended or self.is_alive(worker) is False):
            if worker.ended:
                self._ended.add(number)
            return True
        return self.watch.unchanged(f"worker {number}", content) >= SILENT_SECONDS

    def is_alive(self, worker: Worker) -> bool | None:
        """Returns what the worker's lock says now; None where it says nothing here.

        It says so only to the same running system through the same file system: elsewhere a lock may not be
        seen although it is held.
        """
        file = self.file(worker.number)
        if not worker.locked or worker.machine != machine_of(file):
            return None
        return is_held(file)

    def _content(self, number: int) -> bytes | None:
        """Returns what is in a worker's file, nothing where it cannot be read; None if there is no file."""
        try:
            with open(self.file(number), "rb", opener=_without_waiting) as file:
                return file.read(_MOST_BYTES)
        except FileNotFoundError:
            return None
        except OSError:
            return b""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for ever


def machine_of(file: Path) -> str:
    """Returns what tells this running system, and the file system that `file` is on, from others; "" where
    that cannot be said."""
    try:
        return f"{_BOOT_ID.read_text(encoding='utf-8').strip()} {file.stat().st_dev}"
    except OSError:
        return ""


def _parsed(number: int, content: bytes) -> Worker | None:
    first, _, second = content.partition(b"\n")
    try:
        values = json.loads(first)
        word, count = second.decode("ascii").split()
        return Worker(
            number,
            str(values["host"]),
            int(values["pid"]),
            str(values["machine"]),
            str(values["name"]),
            str(values["gpu"]),
            float(values["begun"]),
            bool(values["locked"]) and bool(values["machine"]),
            dict(values["matrix"]),
            count,
            word == "ended",
            int(values.get("most_gpus", 1)),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


class Presence:
    """Is this process among the workers: it is numbered, gives signs of life, and says what it is doing.

    `end` says that it has ended; a process that is killed leaves that to its lock and its silence.
    """

    def __init__(self, folder: Path, matrix: dict[str, Any], most_gpus: int = 1) -> None:
        """Takes the next number in the matrix' folder. Raises OSError if nothing can be written there.

        most_gpus: as of `Worker`.
        """
        self.workers = Workers(folder)
        self.workers.folder.mkdir(parents=True, exist_ok=True)
        numbers = self.workers.numbers()
        self._prune(numbers)
        self.number, self._descriptor = self._take_number(max(numbers, default=0) + 1)
        file = self.workers.file(self.number)
        values = {
            "host": platform.node(),
            "pid": os.getpid(),
            "machine": machine_of(file),
            "name": os.environ.get(NAME_VARIABLE, ""),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "begun": round(time.time(), 3),
            "locked": _lock(self._descriptor),
            "matrix": matrix,
            "most_gpus": most_gpus,
        }
        first = f"{json.dumps(values)}\n".encode()
        self._offset, self._count = len(first), 0
        self._written = time.monotonic()
        os.pwrite(self._descriptor, first + self._line("beats"), 0)
        sync_opened(self._descriptor)
        self._activity: Callable[[], dict[str, Any]] = dict
        self._said: dict[str, Any] = {}
        self._over = threading.Event()
        self._parent = os.environ.get(PARENT_VARIABLE, "")
        self.orphaned = False
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)
        self._thread.start()

    def _prune(self, numbers: list[int]) -> None:
        """Removes the files of workers that are known to be gone, but for the newest: its number is taken."""
        for number in numbers[:-1]:
            worker = self.workers.read(number)
            if worker is not None and (worker.ended or self.workers.is_alive(worker) is False):
                for file in (self.workers.file(number), activity_file(self.workers.folder, number)):
                    with suppress(OSError):
                        file.unlink(missing_ok=True)

    def _take_number(self, number: int) -> tuple[int, int]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            try:
                return number, os.open(self.workers.file(number), flags, 0o666)
            except FileExistsError:
                number += 1

    def _line(self, word: str) -> bytes:
        return f"{word} {self._count:020d}\n".encode()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self.orphaned = bool(self._parent) and str(os.getppid()) != self._parent
            self._count += 1
            with suppress(OSError):  # a full disk shows in what the task writes; long silence in `is_silent`
                self._write("beats")
            self._write_activity()

    def _write(self, word: str) -> None:
        """Counts up in place: that takes no new space on a disk."""
        if not os.fstat(self._descriptor).st_nlink:
            raise OSError("somebody has removed the file: others take this worker for gone")
        os.pwrite(self._descriptor, self._line(word), self._offset)
        sync_opened(self._descriptor)
        self._written = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Returns whether no sign of life could be written for so long that others may take over."""
        return time.monotonic() - self._written > SILENT_SECONDS / 2

    def says(self, activity: Callable[[], dict[str, Any]]) -> None:
        """Has `activity` asked now and then for what the worker is doing, {} for nothing, for others."""
        self._activity = activity

    def _write_activity(self) -> None:
        activity = self._activity()
        if activity == self._said:
            return
        with suppress(OSError):
            write_whole_among_writers(
                activity_file(self.workers.folder, self.number), f"{json.dumps(activity)}\n".encode()
            )
            self._said = activity

    def end(self) -> None:
        """Says that this worker has ended."""
        self._over.set()
        self._thread.join(BEAT_SECONDS)
        with suppress(OSError):
            self._write("ended")
            activity_file(self.workers.folder, self.number).unlink(missing_ok=True)
        os.close(self._descriptor)

    def __enter__(self) -> Presence:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def activity_file(folder: Path, number: int) -> Path:
    """Returns the file that says what a worker is doing."""
    return folder / f"{number:06d}.activity"


def _lock(descriptor: int) -> bool:
    """Locks a worker's own file; returns whether the file system has locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def require_room(presence: Presence, wait: Callable[[str], None]) -> None:
    """Returns once no earlier worker that lives has other settings than this one.

    wait: is called with a text while one is watched whose life cannot be told at once; it sleeps, and raises
    to stop. Raises InputError naming the other worker and the first differences.
    """
    workers = presence.workers
    own = workers.read(presence.number)
    for other in list(workers.all()):
        if own is None or other.number >= presence.number:
            continue
        changes = describe_changes(flat(other.matrix), flat(own.matrix))
        if changes and _lives(workers, other, wait):
            raise InputError(
                f"{other.title} works on {printable(workers.folder.parent)} with other settings than the "
                f"file now says: {'; '.join(changes)[:600]}. Say the same, wait for it, or choose another out"
            )


def _lives(workers: Workers, worker: Worker, wait: Callable[[str], None]) -> bool:
    """Returns whether a worker is alive, watching it where its lock says nothing."""
    while not workers.is_gone(worker.number):
        now = workers.read(worker.number)
        if workers.is_alive(worker) or (now is not None and now.count != worker.count):
            return not (now is not None and now.ended)
        wait(f"{worker.title} began with other settings: looking whether it still lives")
    return False


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested tables as one: "runs.methods" for the key methods in runs."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, one in enumerate(value, 1):
                found |= flat(one, f"{prefix}{key}.{number}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
