"""Signals that ask to stop, remembered until the work can."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Remembers a signal for whoever works to see at the next step; a second one acts as if this were not here.

    repeats: seconds in which the same signal may come again without being a second one: where a group of processes is signalled, torchrun
    hands it on as well.
    """

    def __init__(self, repeats: float = 0.0) -> None:
        self.signum = 0
        self._repeats = repeats
        self._heard = 0.0

    def __call__(self) -> int:
        return self.signum

    def __enter__(self) -> StopSignal:
        self._before = {
            number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, signum: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signum:
            self.signum, self._heard = signum, now
            if self._repeats:
                return
        elif now - self._heard < self._repeats:
            return
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._repeats:
            os.kill(os.getpid(), signum)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """SIGTERM ends the program by SystemExit(143), so that what is under way is closed, unless a `Stop` listens within."""

    def leave(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
