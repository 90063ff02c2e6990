"""The terminal: lines and bars on stderr, JSON on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

from qrdali.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

_PLAIN_SECONDS = 10.0  # between the lines of a bar where there is no terminal
_NOTE_SECONDS = 0.5  # between notes, which read figures off the device
_INDENT = 4  # of the lines that continue one that is too long for the terminal
_prints = True
who = ""  # begins the errors of one process of several


def hush(rank: int) -> None:
    """Makes this process print nothing but errors, which then name `rank`: the first process prints for
    all."""
    global _prints, who
    _prints, who = False, f"rank {rank}: "


def say(text: str, *, is_whole: bool = False) -> None:
    """Prints one line on stderr, control characters replaced; a terminal gets it in lines that fit.

    is_whole: it is not broken, because it is to be copied, such as a command.
    """
    if _prints:
        print(wrapped(printable(text), None if is_whole else width()), file=sys.stderr, flush=True)


def wrapped(text: str, columns: int | None) -> str:
    """Returns one line as lines of at most `columns`, broken between words, the later ones indented.

    A word that is longer, such as a path, stays whole, so that it can be copied. None: nothing is broken.
    """
    if columns is None or len(text) <= columns:
        return text
    indent = " " * (len(text) - len(text.lstrip(" ")) + _INDENT)
    return textwrap.fill(
        text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def width() -> int | None:
    """Returns the columns of the terminal that stderr is, None where it is none."""
    return shutil.get_terminal_size().columns if sys.stderr.isatty() else None


def fitted(text: str, columns: int | None = None) -> str:
    """Returns one line of at most `columns`, by default the terminal's, cut with "…" if it is longer.

    Control characters are replaced. Where there is no terminal, nothing is cut by default.
    """
    limit, shown = columns or width(), printable(text)
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def warn(text: str) -> None:
    """Prints one line on stderr that is marked as a warning."""
    say(f"warning: {text}")


def emit(value: dict[str, Any]) -> None:
    """Prints one JSON object on stdout."""
    if _prints:
        print(json.dumps(value), flush=True)


class Bar:
    """Shows progress with rate and, if `total` is known (not 0), time left: a bar on a terminal, elsewhere a
    line every ten seconds and one at the end.

    Work that takes less than ten seconds prints nothing there.
    """

    def __init__(self, description: str, total: int, unit: str = "images") -> None:
        self._description, self._total, self._unit = printable(description), total, unit
        self._done, self._note = 0, ""
        self._progress: Progress | None = None
        self._begun = self._printed = time.monotonic()

    def __enter__(self) -> Bar:
        if _prints and sys.stderr.isatty():
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

    def advance(self, count: int, note: str = "") -> None:
        """Counts `count` more units as done; a `note` stays until the next one."""
        self._done += count
        self._note = printable(note) or self._note
        if self._progress is not None:
            self._progress.update(self._task, advance=count, rate=self._rate(), note=self._note)
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            say(self._line())

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
        elif self._printed != self._begun:
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
    """Shows a bar per pass, and lines for what has happened. Implements `ProgressListener`."""

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        self._bar = Bar(what, total, unit).__enter__()
        self._noted = time.monotonic()

    def advance(self, images: int, note: Callable[[], str]) -> None:
        if self._bar is not None:
            # Reading figures off the device waits for it: only now and then.
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
