"""Replays runs into loggers, as `qrdali log` does it, from metrics.jsonl, config.toml and previews/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qrdali.errors import InputError, RunError, printable
from qrdali.files.lock import acquire
from qrdali.interfaces import NO_CONTROL, JobControl
from qrdali.loggers.choice import require_installed, require_writable
from qrdali.loggers.run_log import RunLog
from qrdali.runs import configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.logger_names import normalize_logger_names, split_logger_names


@dataclass(frozen=True)
class LoggedTo:
    """Holds what was logged of a run.

    run: the folder as given. epochs: how many its logs hold, the start included. places: where to look, by
    logger."""

    run: str
    epochs: int
    places: dict[str, str]


def log_runs(
    runs: Sequence[str], to: str | Sequence[str], control: JobControl = NO_CONTROL
) -> list[LoggedTo]:
    """Logs each run to each logger. A log that is there is completed: no epoch is in it twice.

    to: names of loggers. Everything that can be refused is refused before the first run is logged. Raises
    InputError for unknown or missing loggers and for folders that hold no run with a metrics.jsonl, RunError
    for a run that is being trained and for a logger that fails."""
    names = _logger_names(to)
    require_installed(names)
    folders = [Path(run) for run in runs]
    for folder in folders:
        _require_rows(folder)
        require_writable(names, folder)
    control.listener.begin("log", len(folders), "runs")
    results = []
    try:
        for folder in folders:
            results.append(_log(folder, names, control))
            control.listener.advance(1, folder.name.__str__)
    finally:
        control.listener.end()
    return results


def _logger_names(to: str | Sequence[str]) -> tuple[str, ...]:
    try:
        names = split_logger_names(normalize_logger_names(to if isinstance(to, str) else list(to)))
    except ValueError as error:
        raise InputError(f"--to {printable(to)[:80]}: {error}") from None
    if not names:
        raise InputError(f"--to {printable(to)[:80]!r} names no logger: give tensorboard, for example")
    return names


def _require_rows(folder: Path) -> None:
    run_folder.require_run(folder)
    try:
        first = next(run_folder.metrics_rows(folder), None)
    except RunError as error:
        raise InputError(f"{printable(folder)} has nothing to log: {error}") from None
    if first is None:
        raise InputError(f"{printable(folder)} has nothing to log: its metrics.jsonl holds no row")


def _log(folder: Path, names: tuple[str, ...], control: JobControl) -> LoggedTo:
    def fail(name: str, error: Exception) -> NoReturn:
        if isinstance(error, InputError):
            raise error
        first_line = (str(error).strip().splitlines() or [""])[0]
        reason = printable(f"{type(error).__name__}: {first_line}".removesuffix(": "))[:200]
        raise RunError(f"{printable(folder)} could not be logged to {name}: {reason}") from None

    settings = configuration.read_settings(folder)
    try:
        lock = acquire(
            folder / run_folder.LOCK,
            lambda who: (
                f"{printable(folder)} is being trained by {who}: it can be logged when that has ended"
            ),
            control.listener.warn,
        )
    except OSError as error:
        raise RunError(
            f"{printable(folder)} cannot be written: {printable(error.strerror or error)}"
        ) from None
    with lock:
        log = RunLog(folder, names, fail)
        try:
            epochs = log.begin(settings)
            places = log.places()
        finally:
            log.end(_has_ended(folder))
    return LoggedTo(str(folder), epochs, places)


def _has_ended(folder: Path) -> bool:
    try:
        return run_folder.has_ended(folder)
    except RunError:  # a damaged checkpoint has nothing to do with the log
        return False
