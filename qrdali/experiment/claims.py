"""Claims of tasks: which worker does which task of a matrix, decided by the file system alone.

The claims of a task are numbered files in its folder, `claim-000001` and so on; each names a worker. The
newest counts. A task is free if it has no claim, if the newest says "free", or if its worker is gone. Whoever
creates the next number has the task: a file system lets exactly one process create a file of a name. No
number is ever used twice, so that nobody takes a claim over from somebody who has just taken it over himself.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qrdali.errors import RunError, printable
from qrdali.experiment.workers import SILENT_SECONDS, Presence, Workers
from qrdali.files.atomic import sync_opened

_NAME = re.compile(r"claim-(\d{6,12})", re.ASCII)
# In this form "held" can be overwritten by "free" in place, which a full disk permits too.
_PREFIX = '{"state": "'
_MOST_BYTES = 4096


class ClaimLost(RunError):
    """Another worker has taken a task over, which this one must not go on with."""


@dataclass(frozen=True)
class Holder:
    """Says who has a task. number: of the claim. worker: the worker's number, None while it cannot be read.

    is_free: whether the task was given back.
    """

    number: int
    worker: int | None
    is_free: bool


def read_holder(folder: Path) -> Holder | None:
    """Returns who has, or last had, the task of a folder; None if nobody ever had."""
    number = _newest(folder)
    return _holder(folder, number) if number else None


def _newest(folder: Path) -> int:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return 0
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)


def _file(folder: Path, number: int) -> Path:
    return folder / f"claim-{number:06d}"


def _content(folder: Path, number: int) -> bytes:
    try:
        descriptor = os.open(_file(folder, number), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _MOST_BYTES)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _holder(folder: Path, number: int) -> Holder:
    try:
        values = json.loads(_content(folder, number))
        return Holder(number, int(values["worker"]), values["state"] == "free")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Holder(number, None, False)


@dataclass(frozen=True)
class Claim:
    """Is this worker's hold on a task. before: the claim that it took over from a worker that is gone."""

    folder: Path
    number: int
    presence: Presence
    before: Holder | None = None

    def require(self) -> None:
        """Raises ClaimLost if another worker has taken the task over, or may by now."""
        if _file(self.folder, self.number + 1).exists():
            raise ClaimLost(
                "another worker has taken this task over, since this one gave no sign of life: it goes on "
                "there"
            )
        if self.presence.is_silent:
            raise ClaimLost(
                f"no sign of life could be written to {printable(self.presence.workers.folder)} for "
                f"{SILENT_SECONDS / 2:.0f} s: another worker may take this task over"
            )

    def release(self) -> None:
        """Gives the task back, for others or for good."""
        with suppress(OSError):  # then it is free when this worker has ended
            descriptor = os.open(_file(self.folder, self.number), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, b"free", len(_PREFIX))
                sync_opened(descriptor)
            finally:
                os.close(descriptor)


class Claims:
    """Takes tasks for one worker."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence

    @property
    def _workers(self) -> Workers:
        return self._presence.workers

    def take(self, folder: Path) -> Claim | None:
        """Returns a claim of the task whose folder is given, which is made; None if another worker has it.

        Raises OSError if nothing can be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        number = _newest(folder)
        while True:
            before = _holder(folder, number) if number else None
            if before is not None and not self._is_open(folder, before):
                return None
            number += 1
            try:
                descriptor = os.open(
                    _file(folder, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
                )
            except FileExistsError:
                continue  # somebody was faster, or the list of names was an old one
            break
        try:
            text = f'{_PREFIX}held", "worker": {self._presence.number}}}\n'
            os.write(descriptor, text.encode())
            sync_opened(descriptor)
        finally:
            os.close(descriptor)
        taken_over = before is not None and not before.is_free
        return Claim(folder, number, self._presence, before if taken_over else None)

    def is_held(self, folder: Path) -> bool:
        """Returns whether another worker has the task of a folder."""
        holder = read_holder(folder)
        return holder is not None and not self._is_open(folder, holder)

    def _is_open(self, folder: Path, holder: Holder) -> bool:
        if holder.is_free:
            return True
        if holder.worker == self._presence.number:
            return True  # of an attempt whose end could not be written
        if holder.worker is not None:
            return self._workers.is_gone(holder.worker)
        # Its worker was killed before the file had content, or is about to write it.
        content = _content(folder, holder.number)
        silence = self._workers.watch.unchanged(f"{folder}/{holder.number}", content)
        return silence >= SILENT_SECONDS
