"""Stops work that does not look for signals itself."""

from __future__ import annotations

from collections.abc import Callable

from qrdali.errors import Interrupted
from qrdali.interfaces import JobControl, ProgressListener


class _StoppingListener:
    """Passes everything on, and raises Interrupted at the next sign of progress after a signal."""

    def __init__(self, listener: ProgressListener, stop: Callable[[], int]) -> None:
        self._listener, self._stop = listener, stop

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        self._listener.begin(what, total, unit)

    def advance(self, count: int, note: Callable[[], str]) -> None:
        self._listener.advance(count, note)
        raise_if_stopped(self._stop)

    def end(self) -> None:
        self._listener.end()

    def line(self, text: str) -> None:
        self._listener.line(text)

    def warn(self, text: str) -> None:
        self._listener.warn(text)


def stopping_at_progress(control: JobControl) -> JobControl:
    """Returns a control whose listener raises Interrupted once a signal has come.

    It is for work that leaves nothing half done when an exception ends it, such as an evaluation or a report,
    and that would otherwise run to its end first: schedulers of clusters kill a job some thirty seconds after
    the signal.
    """
    return JobControl(_StoppingListener(control.listener, control.stop), control.stop, control.group)


def raise_if_stopped(stop: Callable[[], int]) -> None:
    """Raises Interrupted if a signal asked to stop."""
    if signum := stop():
        raise Interrupted("stopped", signum)
