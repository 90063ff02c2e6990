"""Progress of a job as rich's bars, on a terminal and in a notebook, for callers of the Python API."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qrdali.errors import printable
from qrdali.interfaces import ProgressListener, SilentListener
from qrdali.workflows.python_words import PythonListener

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_NOTE_SECONDS = 0.5


def listener_for(progress: bool | ProgressListener) -> ProgressListener:
    """Returns the listener that an option `progress` means: bars, silence, or the caller's own."""
    if isinstance(progress, bool):
        return PythonListener(RichListener()) if progress else SilentListener()
    return PythonListener(progress)


class RichListener:
    """Shows a bar per pass, and a line for what has happened, where rich finds a terminal or a notebook."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(markup=False, highlight=False)
        self._bar: tuple[Progress, TaskID] | None = None
        self._noted = 0.0

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        """Opens a bar of `total` units; 0: how many is not known."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.end()
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:,.0f}" + ("/{task.total:,.0f} " if total else " ") + unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
        )
        task = bar.add_task(printable(what), total=total or None, note="")
        bar.start()
        self._bar, self._noted = (bar, task), time.monotonic()

    def advance(self, count: int, note: Callable[[], str]) -> None:
        """Moves the bar; `note` is called now and then only, since it may read figures off a GPU."""
        if self._bar is None:
            return
        bar, task = self._bar
        bar.advance(task, count)
        if time.monotonic() - self._noted >= _NOTE_SECONDS:
            bar.update(task, note=printable(note()))
            self._noted = time.monotonic()

    def end(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Prints what has happened."""
        self._console.print(printable(text))

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self.line(f"warning: {text}")
