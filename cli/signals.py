"""Signals that ask to stop, remembered until the work can; and what they make of the exit status."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from qrdali.cli import terminal
from qrdali.errors import Interrupted

if TYPE_CHECKING:
    from qrdali.distributed import ProcessGroup
    from qrdali.interfaces import JobControl

# What asks a job to save and end. Slurm and submitit send SIGUSR1 or SIGUSR2 before a job's time is over.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Seconds in which torchrun hands a signal on that the whole group of processes has already got.
_TORCHRUN_REPEATS = 5.0


class StopSignal:
    """Remembers a signal of `STOPPING` until the work looks; a second one acts as if this were not here.

    Calling it returns the signal's number, or 0. repeats: seconds in which the same signal may come again
    without being a second one."""

    def __init__(self, repeats: float = 0.0) -> None:
        self.signum = 0
        self._repeats = repeats
        self._received = 0.0

    def __call__(self) -> int:
        return self.signum

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._handle) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._received = signum, now
            # A single process acts on the second signal at once; with repeats it is decided when that comes.
            if self._repeats:
                return
        elif now - self._received < self._repeats:
            return
        for number in STOPPING:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
        if self._repeats:
            os.kill(os.getpid(), signum)


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Turns `Interrupted` within into its line on the terminal and the exit status 128 + number of the
    signal."""
    try:
        yield
    except Interrupted as interruption:
        terminal.say(str(interruption))
        raise SystemExit(128 + interruption.signum) from None


@contextmanager
def terminal_control(group: ProcessGroup | None = None, repeats: float = 0.0) -> Iterator[JobControl]:
    """Yields the control of a job that reports to the terminal and that the signals of `STOPPING` stop.

    `Interrupted` within becomes an exit status, as `exit_on_interrupt` does it. group: the processes that
    share the job. repeats: as of `StopSignal`, for a single process."""
    from qrdali.distributed import SINGLE_PROCESS
    from qrdali.interfaces import JobControl

    group = group or SINGLE_PROCESS
    with exit_on_interrupt(), StopSignal(repeats if group.is_single else _TORCHRUN_REPEATS) as stop:
        yield JobControl(terminal.TerminalListener(), stop, group)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Makes SIGTERM, SIGUSR1 and SIGUSR2 end the program by SystemExit(128 + number), so that what is open is
    closed; a `StopSignal` within comes first."""

    def leave(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = {number: signal.signal(number, leave) for number in STOPPING if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
