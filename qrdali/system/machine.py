"""What this process may use of its machine: processors, memory, shared memory and disk, with a container's limits."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")  # where /proc and /sys are


@dataclass(frozen=True)
class Processors:
    """Of the machine, of this process' affinity, and the processors' worth of time its control group has (None: no limit)."""

    machine: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Threads that can run at once, at least 1."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota)))


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine, and the control group's limit (None: none below the machine's)."""

    machine: int
    limit: int | None


@dataclass(frozen=True)
class Space:
    """Bytes of a file system. problem: why nothing can be written there, or None."""

    total: int
    free: int
    problem: str | None = None


def processors(root: Path = ROOT) -> Processors:
    """Threads of this process: see `Processors`."""
    return Processors(os.cpu_count() or 1, len(os.sched_getaffinity(0)), min(_quotas(root), default=None))


def memory(root: Path = ROOT) -> Memory:
    """Memory of this process: see `Memory`."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_numbers(root, "memory.max", None), *_numbers(root, "memory.limit_in_bytes", "memory")]
    return Memory(total, min((value for value in limits if 0 < value < total), default=None))


def shared_memory(root: Path = ROOT) -> Space | None:
    """Of /dev/shm, None where there is none."""
    try:
        found = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return Space(found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail)


def disk(folder: Path) -> Space:
    """Of the file system on which `folder` is or would be made; a nameless file is written there and gone again."""
    place = folder.absolute()
    try:
        while not _there(place):
            place = place.parent
        if not place.is_dir():
            return Space(0, 0, "not a folder")
        found = os.statvfs(place)
        space = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a name with a null byte
        return Space(0, 0, _reason(error))
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
        return Space(*space)
    except OSError as error:
        return Space(*space, _reason(error))


def _there(place: Path) -> bool:
    try:
        os.lstat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _quotas(root: Path) -> Iterator[float]:
    for file in _files(root, "cpu.max", None):
        quota, _, period = _text(file).partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
    for file in _files(root, "cpu.cfs_quota_us", "cpu"):
        quota, period = _text(file), _text(file.with_name("cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and int(period):  # -1: no limit
            yield int(quota) / int(period)


def _numbers(root: Path, name: str, controller: str | None) -> Iterator[int]:
    for file in _files(root, name, controller):
        text = _text(file)
        if text.isdecimal():  # "max": no limit
            yield int(text)


def _files(root: Path, name: str, controller: str | None) -> Iterator[Path]:
    """`name` in this process' control group and those it lies in, as far as they can be seen: a container often sees its own as the
    root. controller: of version 1; None is version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers.split(",") != [""] if controller is None else controller not in controllers.split(","):
            continue
        bases = (
            [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
            if controller is None
            else [root / "sys/fs/cgroup" / controller]
        )
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for base in bases:
            yield from (base.joinpath(*parts[:depth], name) for depth in range(len(parts) + 1))


def _text(file: Path) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read(1 << 16).strip()
    except OSError:
        return ""
