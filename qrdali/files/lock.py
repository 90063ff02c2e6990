"""Locks a folder for one process at a time."""

from __future__ import annotations

import fcntl
import os
import platform
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from qrdali.errors import InUse, printable

_LOOKING_SECONDS = 0.05  # longer than `is_held` holds a lock
_warned_devices: set[int] = set()  # st_dev of the file systems without locks that a warning has named


def silent(text: str) -> None:
    """Reports nothing: where no other process can know the folder yet."""


def acquire(
    file: Path, refusal: Callable[[str], str], warn: Callable[[str], None] = silent, *, shared: bool = False
) -> TextIO:
    """Locks `file` (flock) and returns it; the lock is held until it is closed or the process ends.

    shared: any number of processes may hold it so, and none alone meanwhile. Where the file system has no
    locks, nothing is held: `warn` is called once per process and file system.
    Raises InUse if another process holds the lock, with the text that `refusal` makes of the holder's
    name, and OSError if the file cannot be opened.
    """
    lock = open(file, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
    try:
        _lock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    except OSError as error:
        # SMB answers EACCES where another process holds the lock.
        held = isinstance(error, BlockingIOError | PermissionError) and _can_lock_in(file.parent)
        if held:
            holder = _holder(lock)
            lock.close()
            raise InUse(refusal(holder)) from None
        _warn_once(file, error, warn)
        return lock
    with suppress(OSError):  # a name for messages, no more: a full disk shows in what is written next
        os.ftruncate(lock.fileno(), 0)
        os.write(lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
    return lock


def _lock(lock: TextIO, kind: int) -> None:
    """Locks an opened file, waiting a moment where it is locked: `is_held` may be looking at it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_LOOKING_SECONDS)
        fcntl.flock(lock, kind | fcntl.LOCK_NB)


def is_held(file: Path) -> bool:
    """Returns whether another process holds the lock of `file`; False where that cannot be known.

    The file is neither made nor changed.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for ever
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        # Shared: two that look do not take each other for a holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)  # which unlocks it
    return False


def _holder(lock: TextIO) -> str:
    try:
        lock.seek(0)
        return printable(lock.read(200)) or "another process"
    except OSError:  # on SMB, what is locked cannot be read either
        return "another process"


def _can_lock_in(folder: Path) -> bool:
    """Returns whether a file of this process alone can be locked there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as trial:
            fcntl.flock(trial, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _warn_once(file: Path, error: OSError, warn: Callable[[str], None]) -> None:
    device = file.stat().st_dev
    if device not in _warned_devices:
        _warned_devices.add(device)
        warn(
            f"the file system of {printable(file.parent)} has no locks ({error.strerror}): take care that no "
            "second process writes to this folder, it would not be refused"
        )
