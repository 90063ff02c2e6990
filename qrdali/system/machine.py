"""Measures what this process may use of its machine, within a container's limits."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")  # where /proc and /sys are


@dataclass(frozen=True)
class Processors:
    """Numbers of logical processors: of the machine, in this process's affinity, and of its control group.

    quota: the group's limit of time, in processors; None without a limit.
    """

    machine: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """Returns how many threads can run at once, at least 1."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota)))


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: of the machine, and the control group's limit (None: none below the machine's)."""

    machine: int
    limit: int | None


@dataclass(frozen=True)
class Space:
    """Bytes of a file system, in all and free; 0 in all where it does not tell.

    problem: why nothing can be written there, or None.
    """

    total: int
    free: int
    problem: str | None = None


def processors(root: Path = ROOT) -> Processors:
    """Returns the processors that this process may use."""
    return Processors(os.cpu_count() or 1, len(os.sched_getaffinity(0)), min(_quotas(root), default=None))


def memory(root: Path = ROOT) -> Memory:
    """Returns the memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_numbers(root, "memory.max", None), *_numbers(root, "memory.limit_in_bytes", "memory")]
    return Memory(total, min((value for value in limits if 0 < value < total), default=None))


def shared_memory(root: Path = ROOT) -> Space | None:
    """Returns the space of /dev/shm, None where there is none."""
    try:
        facts = os.statvfs(root / "dev/shm")
    except OSError:
        return None
    return Space(facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bavail)


def disk(folder: Path) -> Space:
    """Returns the space of the file system on which `folder` is or would be made.

    Whether it can be written is tried with a nameless file, which leaves nothing.
    """
    existing = folder.absolute()
    try:
        while not _exists(existing):
            existing = existing.parent
        if not existing.is_dir():
            return Space(0, 0, "not a folder")
        space = _space(existing)
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a name with a null byte
        return Space(0, 0, _reason(error))
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\0" * 4096)
        return Space(*space)
    except OSError as error:
        return Space(*space, _reason(error))


def _space(folder: Path) -> tuple[int, int]:
    """Returns the bytes of a file system, in all and free; zeros where it does not tell."""
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0, 0
        raise
    return facts.f_frsize * facts.f_blocks, facts.f_frsize * facts.f_bavail


def _exists(path: Path) -> bool:
    """Returns whether something has this name, be it a broken link; other errors are raised."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _quotas(root: Path) -> Iterator[float]:
    """Yields the quotas of processor time, in processors, that bind this process."""
    for file in _files(root, "cpu.max", None):
        quota, _, period = _text(file).partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period)
    for file in _files(root, "cpu.cfs_quota_us", "cpu"):
        quota, period = _text(file), _text(file.with_name("cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and int(period):  # -1: no limit
            yield int(quota) / int(period)


def _numbers(root: Path, name: str, controller: str | None) -> Iterator[int]:
    """Yields the numbers in the files that `_files` finds."""
    for file in _files(root, name, controller):
        text = _text(file)
        if text.isdecimal():  # "max": no limit
            yield int(text)


def _files(root: Path, name: str, controller: str | None) -> Iterator[Path]:
    """Yields the files `name` of this process's control group and of those around it, where visible.

    A container often sees its own group as the root. controller: of version 1 of control groups; None for
    version 2.
    """
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
