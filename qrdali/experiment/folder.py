"""A matrix's folder: runs/, mepi/, report/, generated data, and the notes from which a later call goes on.

`done.json` holds what was evaluated, built and reported, each with the weights it was made of; `failures.json` holds why a task
failed, until it succeeds. A run's own folder says whether it has ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire
from qrdali.runs import checkpoint

LOCK, DONE, FAILURES = ".lock", "done.json", "failures.json"


class ExperimentFolder:
    """done, failures: what the notes say, by task."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder of something else, RunError for damaged notes. Nothing is written."""
        other = any((folder / name).exists() for name in ("options.json", "config.toml"))  # a MEPI set, a run
        if (
            folder.exists()
            and (other or not (folder / LOCK).exists())
            and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise InputError(f"{printable(folder)} exists and is not a matrix' folder: choose another out")
        self.folder = folder
        self.read()

    def read(self) -> None:
        self.done, self.failures = _notes(self.folder / DONE), _notes(self.folder / FAILURES)

    def lock(self) -> TextIO:
        """Makes the folder and holds it for this process. Raises RunError if another one works in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(
            self.folder / LOCK,
            lambda who: (
                f"{printable(self.folder)} is being worked on by {who}: wait for it, or choose another --out"
            ),
        )
        self.read()
        return lock

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def mepi(self, name: str) -> Path:
        return self.folder / "mepi" / name

    @property
    def report(self) -> Path:
        return self.folder / "report"

    def ended(self, name: str) -> bool:
        """Whether a run is finished. One whose last/ cannot be read is not: training says what is wrong with it."""
        try:
            state = checkpoint.load(self.run(name) / "last")[0].get("schedule")
            return isinstance(state, dict) and bool(state.get("ended"))
        except RunError:
            return False

    def weights(self, name: str) -> list[int] | None:
        """What tells the weights of a run's best/ from others: size and time of the file, which is never changed in place."""
        try:
            seen = (checkpoint.current(self.run(name) / "best") / "model.safetensors").stat()
            return [seen.st_size, seen.st_mtime_ns]
        except OSError:
            return None

    def note(self, key: str, note: dict[str, Any]) -> None:
        """Writes down something else that a later call must know."""
        self.done[key] = note
        _write(self.folder / DONE, self.done)

    def succeeded(self, task: str, note: dict[str, Any] | None = None) -> None:
        """Writes down what a task was made of, and forgets why it failed before."""
        if note is not None:
            self.done[task] = note
            _write(self.folder / DONE, self.done)
        if self.failures.pop(task, None) is not None:
            _write(self.folder / FAILURES, self.failures)

    def failed(self, task: str, reason: str, trace: str = "") -> None:
        """Writes down why; `trace`, of an error that nobody foresaw, says where."""
        self.failures[task] = {"reason": printable(reason), **({"trace": trace} if trace else {})}
        _write(self.folder / FAILURES, self.failures)


def _notes(file: Path) -> dict[str, Any]:
    """Raises RunError for a damaged file."""
    advice = ": remove it, and what it notes is found out again"
    found = read_object(file, advice) if file.exists() else {}
    if not all(isinstance(note, dict) for note in found.values()):
        raise RunError(f"{printable(file)} cannot be read: it holds no object of notes{advice}")
    return found


def _write(file: Path, notes: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(notes, indent=1) + "\n", "utf-8")
    replace_atomically(partial, file)
