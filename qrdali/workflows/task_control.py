"""What a task of a matrix is watched and stopped by: its log, its worker's signs of life, and its claim."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from qrdali.errors import printable
from qrdali.experiment.claims import Claim
from qrdali.experiment.workers import Presence
from qrdali.interfaces import JobControl, ProgressListener

_CLAIM_SECONDS = 1.0  # between looks at the claim: each asks the file system
_LOG_SECONDS = 60.0  # between the lines of a pass in the log


class TaskListener:
    """Passes progress on, writes it to the task's log, and tells what the worker is doing.

    Implements `ProgressListener`. Raises ClaimLost at a sign of progress once another worker has the task.
    """

    def __init__(self, inner: ProgressListener, log: TextIO | None, check: Callable[[], None]) -> None:
        self._inner, self._log, self._check = inner, log, check
        self._what, self._unit, self._total, self._done = "", "images", 0, 0
        self._begun = self._logged = time.monotonic()

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        self._begun = self._logged = time.monotonic()
        self._inner.begin(what, total, unit)

    def advance(self, images: int, note: Callable[[], str]) -> None:
        self._done += images
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            self._write(self._progress())
        self._inner.advance(images, note)
        self._check()

    def end(self) -> None:
        if self._what:
            self._write(self._progress())
        self._what = ""
        self._inner.end()

    def line(self, text: str) -> None:
        self._write(text)
        self._inner.line(text)

    def warn(self, text: str) -> None:
        self._write(f"warning: {text}")
        self._inner.warn(text)

    def activity(self) -> dict[str, Any]:
        """Returns the pass under way as plain data: what, unit, done, total and rate; {} if none is."""
        if not self._what:
            return {}
        rate = self._done / max(time.monotonic() - self._begun, 1e-9)
        return {
            "what": printable(self._what),
            "unit": self._unit,
            "done": self._done,
            "total": self._total,
            "rate": round(rate, 3),
        }

    def _progress(self) -> str:
        now = self.activity()
        total = f"/{self._total:,}" if self._total else ""
        return f"{self._what}: {self._done:,}{total} {self._unit}, {now['rate']:,.1f} {self._unit}/s"

    def _write(self, text: str) -> None:
        if self._log is not None:
            with suppress(OSError, ValueError):  # a log that cannot be written ends no task
                print(printable(text), file=self._log, flush=True)


class _ClaimCheck:
    """Raises ClaimLost when another worker has the task; looks at most once a second."""

    def __init__(self, claim: Claim) -> None:
        self._claim, self._looked = claim, time.monotonic()

    def __call__(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _CLAIM_SECONDS:
            self._looked = now
            self._claim.require()


def open_log(file: Path, heading: str) -> TextIO | None:
    """Opens a task's log to append to it; None where that fails."""
    with suppress(OSError):
        log = open(file, "a", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        with suppress(OSError):
            print(f"# {printable(heading)}", file=log, flush=True)
        return log
    return None


def controlled(control: JobControl, claim: Claim, log: TextIO | None) -> tuple[JobControl, TaskListener]:
    """Returns the control of a task that a claim is held on, and its listener."""
    check = _ClaimCheck(claim)
    listener = TaskListener(control.listener, log, check)

    def stop() -> int:
        check()
        return control.stop()

    return JobControl(listener, stop, control.group), listener


def stop_of(control: JobControl, presence: Presence) -> Callable[[], int]:
    """Returns a `stop` that also ends a worker whose parent process has gone, as SIGTERM would."""
    import signal

    return lambda: control.stop() or (signal.SIGTERM if presence.orphaned else 0)
