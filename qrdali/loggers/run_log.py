"""Feeds the loggers of one run, none of which can end it."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qrdali.errors import RunError, printable
from qrdali.files.atomic import write_whole
from qrdali.files.json_objects import read_object
from qrdali.loggers.choice import create_logger
from qrdali.loggers.interface import LoggedRun, RunLogger
from qrdali.loggers.values import FACTS, STAGED_METHODS, EpochReader, in_order, sheets_by_epoch
from qrdali.runs import folder as run_folder
from qrdali.runs.configuration import applicable
from qrdali.runs.settings import Settings

KEY_FILE = "log.json"
PREVIEWS = "previews"
_KEY = re.compile("[0-9a-f]{16}")


class RunLog:
    """Hands the epochs of the run in `folder` to the loggers `names`.

    on_failure: is called with a logger's name and its error, once for each that fails; that logger gets
    nothing more. What it raises goes on to the caller. Used by one process alone."""

    def __init__(
        self, folder: Path, names: Sequence[str], on_failure: Callable[[str, Exception], None]
    ) -> None:
        self._folder, self._names, self._on_failure = folder, names, on_failure
        self._loggers: dict[str, RunLogger] = {}
        self._reader = EpochReader(False)

    def begin(self, settings: Settings) -> int:
        """Opens the logs, makes each hold what metrics.jsonl holds, and returns how many epochs that are,
        the start included."""
        if not self._names:
            return 0
        try:
            run = self._read_run(settings)
        except Exception as error:
            for name in self._names:
                self._on_failure(name, error)
            return 0
        for name in self._names:
            try:
                self._loggers[name] = create_logger(name, self._folder)
            except Exception as error:
                self._on_failure(name, error)
        self._each(lambda logger: logger.begin(run))
        return len(run.epochs)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Logs the row of an epoch that metrics.jsonl holds by now."""
        if not self._loggers:
            return
        sheet = sheets_by_epoch(self._folder / PREVIEWS).get(row["epoch"])
        epoch = self._reader.read(row, sheet, time.time())
        self._each(lambda logger: logger.epoch(epoch))

    def end(self, finished: bool) -> None:
        """Closes the logs that are still open. finished: whether the run has ended."""
        self._each(lambda logger: logger.end(finished))
        self._loggers = {}

    def places(self) -> dict[str, str]:
        """Returns by logger where its log is."""
        return {name: logger.place() for name, logger in self._loggers.items()}

    def _each(self, work: Callable[[RunLogger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                work(logger)
            except Exception as error:  # a full disk, no network, or whatever a library raises
                del self._loggers[name]
                with suppress(Exception):
                    logger.end(False)
                self._on_failure(name, error)

    def _read_run(self, settings: Settings) -> LoggedRun:
        self._reader = EpochReader(settings.method in STAGED_METHODS)
        rows = in_order(run_folder.metrics_rows(self._folder))
        sheets = sheets_by_epoch(self._folder / PREVIEWS)
        written = (self._folder / "metrics.jsonl").stat().st_mtime
        epochs = tuple(self._reader.read(row, sheets.get(row["epoch"]), written) for row in rows)
        facts = {name: rows[0][name] for name in FACTS if rows and name in rows[0]}
        return LoggedRun(self._folder, run_key(self._folder), applicable(settings) | facts, epochs)


def describe_failure(name: str, error: Exception, folder: Path) -> str:
    """Returns the line that reports a logger which has failed in training."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    reason = printable(f"{type(error).__name__}: {first_line}".removesuffix(": "))[:200]
    return (
        f"the log {name} has failed and gets nothing more ({reason}); training goes on, and "
        f"`qrdali log {printable(folder)} --to {name}` makes it whole from metrics.jsonl"
    )


def run_key(folder: Path) -> str:
    """Returns the key in RUN/log.json, which names a run in its logs; a new one where there is none.

    A folder that is a copy of another, which still has the key, gets its own."""
    file, here = folder / KEY_FILE, str(folder.absolute())
    recorded = _recorded(file)
    key, place = recorded.get("key"), recorded.get("folder")
    if isinstance(key, str) and _KEY.fullmatch(key) and isinstance(place, str):
        if place == here:
            return key
        if _recorded(Path(place) / KEY_FILE).get("key") != key:  # moved
            write_whole(file, _encoded(key, here))
            return key
    key = secrets.token_hex(8)
    write_whole(file, _encoded(key, here))
    return key


def _recorded(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except RunError:
        return {}


def _encoded(key: str, folder: str) -> bytes:
    return (json.dumps({"key": key, "folder": folder}) + "\n").encode("utf-8", "surrogateescape")
