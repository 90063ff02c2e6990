"""What a matrix leaves on disk: runs/, mepi/, report/, generated data, and the notes from which a later call
goes on.

`done.json` holds what was evaluated, built and reported, each with the weights it was made of;
`failures.json` holds why a task failed, until it succeeds. A run's own folder tells whether it has ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import write_whole
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder

LOCK, DONE, FAILURES = ".lock", "done.json", "failures.json"
LEVELS = "levels"  # the key of the note on what a folder was begun with


class ExperimentFolder:
    """Reads and writes a matrix' folder and its notes. done, failures: the notes by the key of their task."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder of something else, RunError for damaged notes.

        Nothing is written.
        """
        if folder.exists() and not _may_hold_matrix(folder):
            raise InputError(f"{printable(folder)} exists and is not a matrix' folder: choose another out")
        self.folder = folder
        self.reload()

    def reload(self) -> None:
        """Reads the notes again."""
        self.done, self.failures = _read_notes(self.folder / DONE), _read_notes(self.folder / FAILURES)

    def lock(self, warn: Callable[[str], None]) -> TextIO:
        """Makes the folder and holds it for this process. Raises RunError if another one works in it.

        warn: is called where the file system has no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(
            self.folder / LOCK,
            lambda who: (
                f"{printable(self.folder)} is being worked on by {who}: wait for it, or choose another --out"
            ),
            warn,
        )
        self.reload()  # the notes may be newer than the ones read before the lock was free
        return lock

    def run(self, name: str) -> Path:
        """Returns the folder of a run."""
        return self.folder / "runs" / name

    def mepi(self, name: str) -> Path:
        """Returns the folder of a run's MEPI set."""
        return self.folder / "mepi" / name

    @property
    def report(self) -> Path:
        return self.folder / "report"

    def ended(self, name: str) -> bool:
        """Returns whether a run is finished.

        One whose last/ cannot be read is not: training says what is wrong with it. An adopted one is finished
        when it is there.
        """
        try:
            if run_folder.is_adopted(self.run(name)):
                run_folder.describe_best(self.run(name))
                return True
            state = checkpoint.load(self.run(name) / "last")[0].get("schedule")
            return isinstance(state, dict) and bool(state.get("ended"))
        except (InputError, RunError):
            return False

    def weights(self, name: str) -> list[int] | None:
        """Returns size and time of the file of a run's best weights, which tells them from others: it is
        never changed in place.
        """
        try:
            status = (checkpoint.current(self.run(name) / "best") / "model.safetensors").stat()
            return [status.st_size, status.st_mtime_ns]
        except OSError:
            return None

    @property
    def tail(self) -> str | None:
        """Returns the tail that the folder was begun with; None of a new folder.

        Without the note, which version 0.1 did not write and somebody may have removed, it is that of a MEPI
        set, or "none".
        """
        if isinstance(noted := self.done.get(LEVELS, {}).get("tail"), str):
            return noted
        for options in sorted((self.folder / "mepi").rglob("options.json")):
            with suppress(RunError):  # whoever builds the set says what is wrong with it
                return str(read_object(options).get("tail", "none"))
        return "none" if self.done or (self.folder / "runs").exists() else None

    def begin(self, tail: str) -> None:
        """Notes what a new folder is begun with. Raises InputError if it was begun with another tail."""
        if self.tail is None:
            self.note(LEVELS, {"tail": tail})
        elif self.tail != tail:
            raise InputError(
                f"{printable(self.folder)} was begun with mepi.tail = {printable(self.tail)[:20]!r}, not "
                f"{tail!r}: give that, or choose another out"
            )

    def note(self, key: str, note: dict[str, Any]) -> None:
        """Writes down something else that a later call must know."""
        self.done[key] = note
        _write_notes(self.folder / DONE, self.done)

    def succeeded(self, task: str, note: dict[str, Any] | None = None) -> None:
        """Writes down what a task was made of, and forgets why it failed before."""
        if note is not None:
            self.done[task] = note
            _write_notes(self.folder / DONE, self.done)
        if self.failures.pop(task, None) is not None:
            _write_notes(self.folder / FAILURES, self.failures)

    def failed(self, task: str, reason: str, trace: str = "") -> None:
        """Writes down why a task failed; trace: where, of an error that nobody foresaw."""
        self.failures[task] = {"reason": printable(reason), **({"trace": trace} if trace else {})}
        _write_notes(self.folder / FAILURES, self.failures)


def _may_hold_matrix(folder: Path) -> bool:
    """Returns whether an existing folder is empty or has been a matrix' before: a MEPI set and a run have a
    lock too.
    """
    other_kind = any((folder / name).exists() for name in ("options.json", "config.toml"))
    if (folder / LOCK).exists() and not other_kind:
        return True
    return folder.is_dir() and not any(folder.iterdir())


def _read_notes(file: Path) -> dict[str, Any]:
    """Raises RunError for a damaged file."""
    advice = ": remove it, and what it notes is found out again"
    notes = read_object(file, advice) if file.exists() else {}
    if not all(isinstance(note, dict) for note in notes.values()):
        raise RunError(f"{printable(file)} cannot be read: it holds no object of notes{advice}")
    return notes


def _write_notes(file: Path, notes: dict[str, Any]) -> None:
    write_whole(file, f"{json.dumps(notes, indent=1)}\n".encode())
