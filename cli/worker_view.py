"""Shows several workers of a matrix: a line for each and for the whole on a terminal, else plain lines."""

from __future__ import annotations

import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from qrdali.cli.terminal import TerminalListener, fitted, say
from qrdali.errors import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.live import Live

    from qrdali.workflows.matrix_launch import LaunchedMatrix, WorkerPlan, WorkersView
    from qrdali.workflows.matrix_status import WorkerStatus

_LOOK_SECONDS = 1.0  # between looks at what workers do
_WHOLE_SECONDS = 30.0  # between looks at the time that is left, which reads every run


class LiveLines:
    """Keeps a line per worker and one for the whole below what workers say. Implements `WorkersView`."""

    def __init__(self, plans: Sequence[WorkerPlan]) -> None:
        self._names = [plan.name for plan in plans]
        self._how: dict[str, str] = {}
        self._looked = self._summed = 0.0
        self._left = ""
        self._seen: set[str] = set()
        self._live: Live | None = None

    def begin(self, matrix: LaunchedMatrix) -> None:
        from rich.console import Console
        from rich.live import Live

        self._matrix = matrix
        console = Console(stderr=True, markup=False, highlight=False)
        self._live = Live("", console=console, auto_refresh=False, transient=True)
        self._live.start()

    def line(self, name: str, text: str) -> None:
        self._print(f"[{name}] {text}")

    def ended(self, name: str, how: str) -> None:
        self._how[name] = how
        self._print(f"warning: {name} {how}: its task goes back, and the others go on")

    def tick(self) -> None:
        now = time.monotonic()
        if self._live is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if not self._summed or now - self._summed >= _WHOLE_SECONDS:
            self._summed = now
            self._left = left_text(self._matrix)
        doing = self._doing()
        self._seen |= doing.keys()
        gone = dict.fromkeys(self._seen - doing.keys(), "has ended") | self._how
        lines = [worker_line(name, doing.get(name), gone.get(name, "")) for name in self._names]
        whole = f"{self._matrix.done()} of {len(self._matrix.keys)} tasks are done{self._left}"
        self._live.update("\n".join(map(fitted, [*lines, whole])), refresh=True)

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        if self._live is None:
            say(text)
        else:
            self._live.console.print(printable(text), soft_wrap=True)

    def _doing(self) -> dict[str, WorkerStatus]:
        """Returns what this host's workers of these names do, by name; of two the later one."""
        from qrdali.experiment.workers import Workers
        from qrdali.workflows.matrix_status import known_workers

        own = known_workers(Workers(self._matrix.out))
        return {worker.name: worker for worker in own if worker.host == printable(platform.node())}


def view_for(plans: Sequence[WorkerPlan]) -> WorkersView:
    """Returns the view of these workers that standard error can show."""
    from qrdali.workflows.matrix_launch import ListenerView

    return LiveLines(plans) if sys.stderr.isatty() else ListenerView(TerminalListener())


def worker_line(name: str, worker: WorkerStatus | None, how: str = "") -> str:
    """Returns what a worker does in a line: task, pass, rate and the time that the pass still takes."""
    if how or worker is None:
        return f"{name}: {how or 'begins'}"
    if not worker.task:
        return f"{name}: waits"
    return f"{name}: {worker.task}{pass_text(worker.activity)}"


def pass_text(activity: dict[str, Any]) -> str:
    """Returns a pass as text: what it is, how far, its rate and its time left; "" for none."""
    from qrdali.experiment.estimate import duration_text

    done, total, rate = (activity.get(key) for key in ("done", "total", "rate"))
    numbers = all(isinstance(value, int | float) for value in (done, total, rate))
    if not activity or not numbers:
        return ""
    assert isinstance(done, int | float)
    assert isinstance(total, int | float)
    assert isinstance(rate, int | float)
    unit = activity.get("unit", "")
    left = f", {duration_text(max(0.0, total - done) / rate)} left" if total and rate > 0 else ""
    of_total = f"/{total:,}" if total else ""
    return f", {activity.get('what', '')}: {done:,}{of_total} {unit}, {rate:,.1f} {unit}/s{left}"


def left_text(matrix: LaunchedMatrix) -> str:
    """Returns the time that a matrix still takes, for the end of a line; "" where it is not known."""
    from qrdali.experiment.estimate import span_text

    left = matrix.left()
    return "" if left.low is None else f", {span_text(left)} left"
