"""What a person sees: lines and bars on stderr, JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from qrdali.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

_PLAIN_SECONDS, _NOTE_SECONDS = 10.0, 0.5
_speaks = True
who = ""  # begins errors of one process of several


def hush(rank: int) -> None:
    """From now on this process says nothing but errors: of several, the first speaks for all."""
    global _speaks, who
    _speaks, who = False, f"rank {rank}: "


def say(text: str) -> None:
    """One line on stderr, control characters replaced."""
    if _speaks:
        print(printable(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line on stderr that says it is a warning."""
    say(f"warning: {text}")


def emit(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    if _speaks:
        print(json.dumps(value), flush=True)


class Bar:
    """Progress with rate and time left, if a total is known (0: it is not): a bar on a terminal, elsewhere a line every ten seconds and
    one at the end.

    Work that takes less than ten seconds says nothing there.
    """

    def __init__(self, description: str, total: int, unit: str = "images") -> None:
        self._description, self._total, self._unit = printable(description), total, unit
        self._done, self._note = 0, ""
        self._progress: Progress | None = None
        self._begun = self._told = time.monotonic()

    def __enter__(self) -> Bar:
        if _speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(None),
                TextColumn("{task.completed:,.0f}" + ("/{task.total:,.0f}" if self._total else "")),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self._description, total=self._total or None, rate="", note=""
            )
        return self

    def advance(self, n: int, note: str = "") -> None:
        """`n` more units are done; a `note` stays until the next."""
        self._done += n
        self._note = printable(note) or self._note
        if self._progress is not None:
            self._progress.update(self._task, advance=n, rate=self._rate(), note=self._note)
        elif time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._told = time.monotonic()
            say(self._line())

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        elif self._told != self._begun:
            say(self._line())

    def _rate(self) -> str:
        rate = self._done / max(time.monotonic() - self._begun, 1e-9)
        return f"{rate:,.{0 if rate >= 10 else 1 if rate >= 1 else 2}f} {self._unit}/s"

    def _line(self) -> str:
        total = f"/{self._total:,}" if self._total else ""
        return (
            f"{self._description}: {self._done:,}{total} {self._unit}, {self._rate()} {self._note}".rstrip()
        )


class TerminalListener:
    """Shows long work: a bar per pass, lines for what has happened."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        self._bar = Bar(what, total, unit).__enter__()
        self._noted = time.monotonic()

    def advance(self, images: int, note: Callable[[], str]) -> None:
        if self._bar is not None:
            # The note reads figures off the device: now and then only.
            due = time.monotonic() - self._noted >= _NOTE_SECONDS
            self._noted = time.monotonic() if due else self._noted
            self._bar.advance(images, note() if due else "")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def line(self, text: str) -> None:
        say(text)

    def warn(self, text: str) -> None:
        warn(text)
