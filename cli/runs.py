"""`qrdali runs`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qrdali.runs.listing import ListedRun

_COLUMNS = ("run", "method", "network", "state", "best", "epoch", "seconds", "from")
_CUT = (7, 2, 0)  # columns that are cut where the terminal is too narrow, the first first
_CUT_IN_FRONT = (0, 7)  # of these, what ends a path tells more
_RIGHT = (4, 5, 6)
_GAP = "  "
_LEAST = 8  # characters that are left of a cut column


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(), metavar="[FOLDER]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def runs(folders: tuple[str, ...], as_json: bool) -> None:
    """List the runs in folders and below them: method, network, state, best accuracy, epochs, seconds.

    Without FOLDER those of runs/, or of the working directory if there is no such folder. A run is finished,
    stopped (--resume continues it), running, or adopted from published weights.

    \b
    Example: qrdali runs runs/humanet
    """
    from qrdali.cli.terminal import emit, fitted, say
    from qrdali.runs.listing import list_runs

    places = [Path(folder) for folder in folders] or [Path("runs") if Path("runs").is_dir() else Path()]
    found = list_runs(places)
    if as_json:
        emit({"runs": [_described(run) for run in found.runs], "notes": found.notes})
        return
    for line in _table(found.runs):
        say(line)
    for note in found.notes:
        say(note)
    if not found.runs:
        say(fitted(f"no run in {', '.join(map(str, places))}: `qrdali train` makes one"))
    elif any(not run.error for run in found.runs):
        say("best: validation accuracy; epoch: of the best/trained; seconds: of training")


def _described(run: ListedRun) -> dict[str, Any]:
    values = {**asdict(run), "folder": str(run.folder)}
    return {"from" if key == "origin" else key: value for key, value in values.items()}


def _table(listed: Sequence[ListedRun]) -> list[str]:
    """Returns a heading and a line per run, that of a damaged one ending with what is wrong."""
    from qrdali.cli.terminal import fitted, width

    if not listed:
        return []
    names = {str(run.folder.resolve()): run.name for run in listed}
    whole = [_COLUMNS, *(_cells(run, names) for run in listed if not run.error)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(_COLUMNS))]
    widths[0] = max([widths[0], *(len(_shown(run.name)) for run in listed)])
    if (columns := width()) is not None:
        _narrow(widths, columns)
    heading, *rows = (_line(row, widths) for row in whole)
    lines = iter(rows)
    return [
        heading,
        *(
            fitted(f"{_cell(0, _shown(run.name), widths[0])}{_GAP}{run.error}") if run.error else next(lines)
            for run in listed
        ),
    ]


def _cells(run: ListedRun, names: dict[str, str]) -> tuple[str, ...]:
    best = "" if run.best_epoch is None else str(run.best_epoch)
    epochs = "" if run.epochs is None else f"{best or '–'}/{run.epochs}"
    origin = run.origin or ""
    if run.init:
        origin = names.get(str(Path(run.init).resolve()), Path(run.init).name)
    return (
        _shown(run.name),
        _shown(run.method or ""),
        _shown(run.network or ""),
        run.state or "",
        "" if run.best is None else f"{run.best:.4f}",
        epochs,
        "" if run.seconds is None else f"{run.seconds:,.0f}",
        _shown(origin),
    )


def _shown(text: str) -> str:
    from qrdali.errors import printable

    return printable(text)


def _narrow(widths: list[int], columns: int) -> None:
    """Makes columns that may be cut narrower until a line fits, as far as possible."""
    for i in _CUT:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - columns
        widths[i] -= max(0, min(excess, widths[i] - _LEAST))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(_cell(i, text, widths[i]) for i, text in enumerate(cells)).rstrip()


def _cell(column: int, text: str, size: int) -> str:
    if len(text) > size:
        return "…" + text[len(text) - size + 1 :] if column in _CUT_IN_FRONT else text[: size - 1] + "…"
    return text.rjust(size) if column in _RIGHT else text.ljust(size)
