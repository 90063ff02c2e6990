"""Locks a folder for one process at a time."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from qrdali.errors import RunError, printable


def acquire(file: Path, refusal: Callable[[str], str]) -> TextIO:
    """Locks `file` (flock) and returns it; the lock is held until it is closed or the process ends.

    Raises RunError if another process holds it, with the text that `refusal` makes of the holder's name.
    """
    lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = printable(lock.read(200)) or "another process"
        lock.close()
        raise RunError(refusal(holder)) from None
    except OSError:
        return lock  # a file system without locks: nothing to hold
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
    return lock
