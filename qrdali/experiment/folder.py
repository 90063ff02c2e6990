"""What a matrix leaves on disk: runs/, mepi/, report/, generated data, and the notes from which a later call
goes on.

Each task has a folder of its own in tasks/: `done.json` holds what was evaluated, built and reported, with
the weights it was made of; `failed.json` holds why it failed, each time, until it succeeds; `log.txt` what
was printed about it; the claims say who has it. A run's own folder tells whether it has ended. Any number of
workers write there at once, each in the folders of tasks that it has. Versions before had one done.json and
one failures.json of all tasks, which count where a task has no note of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import write_whole_among_writers
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder

LOCK, DONE, FAILED, FAILURES = ".lock", "done.json", "failed.json", "failures.json"
TASKS, ORIGIN, BEGUN, LOG = "tasks", "origin.json", "begun.json", "log.txt"
LEVELS = "levels"  # the key of the note on what a folder was begun with, and that of its tail
_ADVICE = ": remove it, and what it notes is found out again"
_Stamp = tuple[int, int, int] | None


class ExperimentFolder:
    """Reads and writes a matrix' folder and its notes.

    done, failures: the notes by the key of their task. A failure has `reason` and `attempts`, a list of all
    reasons since the task was last done. origins: what each run is trained from, by its name.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError for a folder of something else, RunError for damaged notes.

        Nothing is written.
        """
        if folder.exists() and not _may_hold_matrix(folder):
            raise InputError(f"{printable(folder)} exists and is not a matrix' folder: choose another out")
        self.folder = folder
        self.reload()

    def reload(self) -> None:
        """Reads all notes again."""
        before = _read_notes(self.folder / DONE)
        self.origins = {
            key.removeprefix("from "): note for key, note in before.items() if key.startswith("from ")
        }
        self._begun: dict[str, Any] = before.get(LEVELS, {})
        self.done = {
            key: note for key, note in before.items() if not key.startswith("from ") and key != LEVELS
        }
        self.failures = _read_notes(self.folder / FAILURES)
        self._stamps: dict[str, tuple[_Stamp, _Stamp]] = {}
        if (self.folder / BEGUN).exists():
            self._begun = read_object(self.folder / BEGUN, _ADVICE)
        tasks = self.folder / TASKS
        for folder in sorted(tasks.iterdir()) if tasks.is_dir() else ():
            task = folder.name.replace("+", " ", 1).replace("+", "/")
            self.refresh(task)
            if (folder / ORIGIN).exists():
                self.origins[task.partition(" ")[2]] = read_object(folder / ORIGIN, _ADVICE)

    def refresh(self, task: str) -> bool:
        """Reads a task's notes again if they have changed since they were read; returns whether they have."""
        folder = self.task(task)
        stamps = _stamp(folder / DONE), _stamp(folder / FAILED)
        if stamps == self._stamps.get(task, (None, None)):
            return False
        self._stamps[task] = stamps
        if stamps[0] is not None:
            self.done[task] = read_object(folder / DONE, _ADVICE)
            self.failures.pop(task, None)
        if stamps[1] is not None:
            self.failures[task] = read_object(folder / FAILED, _ADVICE)
        return True

    def lock(self, warn: Callable[[str], None]) -> TextIO:
        """Makes the folder and keeps versions before, which have it alone, out of it.

        Raises RunError if one of them works in it. warn: is called where the file system has no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = acquire(
            self.folder / LOCK,
            lambda who: (
                f"{printable(self.folder)} is being worked on by {who}: wait for it, or choose another --out"
            ),
            warn,
            shared=True,
        )
        self.reload()  # the notes may be newer than the ones read before the lock was free
        return lock

    def task(self, key: str) -> Path:
        """Returns the folder of a task's notes, claims and log; "train+NETWORK+RUN" for "train NETWORK/RUN".

        No name in a matrix holds a "+", so that no two tasks share a folder.
        """
        return self.folder / TASKS / key.replace(" ", "+").replace("/", "+")

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
        if isinstance(noted := self._begun.get("tail"), str):
            return noted
        for options in sorted((self.folder / "mepi").rglob("options.json")):
            with suppress(RunError):  # whoever builds the set says what is wrong with it
                return str(read_object(options).get("tail", "none"))
        return "none" if self.done or (self.folder / "runs").exists() else None

    def begin(self, tail: str) -> None:
        """Notes what a new folder is begun with. Raises InputError if it was begun with another tail."""
        if self.tail is None:
            self._begun = {"tail": tail}
            _write_note(self.folder / BEGUN, self._begun)
        elif self.tail != tail:
            raise InputError(
                f"{printable(self.folder)} was begun with mepi.tail = {printable(self.tail)[:20]!r}, not "
                f"{tail!r}: give that, or choose another out"
            )

    def begins(self, run: str, origin: dict[str, Any]) -> None:
        """Writes down what a run is trained from."""
        self.origins[run] = origin
        folder = self.task(f"train {run}")
        folder.mkdir(parents=True, exist_ok=True)
        _write_note(folder / ORIGIN, origin)

    def succeeded(self, task: str, note: dict[str, Any] | None = None) -> None:
        """Writes down what a task was made of, with the reasons why it failed before, which are no failures
        any more.
        """
        note = note or {}
        if attempts := self.attempts(task):
            note = {**note, "failed_before": [attempt.get("reason", "") for attempt in attempts]}
        folder = self.task(task)
        folder.mkdir(parents=True, exist_ok=True)
        _write_note(folder / DONE, note)
        (folder / FAILED).unlink(missing_ok=True)
        self.done[task] = note
        self.failures.pop(task, None)
        self._stamps[task] = _stamp(folder / DONE), None

    def attempts(self, task: str) -> list[dict[str, Any]]:
        """Returns how a task failed, each time since it was last done: reason, worker, final and trace."""
        note = self.failures.get(task)
        if note is None:
            return []
        attempts = note.get("attempts", [note])  # versions before noted the last one only
        return [one for one in attempts if isinstance(one, dict)] if isinstance(attempts, list) else []

    def failed(
        self, task: str, reason: str, trace: str = "", *, worker: str = "", final: bool = False
    ) -> None:
        """Writes down why a task failed; trace: where, of an error that nobody foresaw.

        worker: who did it. final: whether it would fail again for the same reason, so that nobody tries.
        """
        attempt: dict[str, Any] = {"reason": printable(reason), "worker": worker, "final": final}
        if trace:
            attempt["trace"] = trace
        note = {**attempt, "attempts": [*self.attempts(task), attempt]}
        folder = self.task(task)
        folder.mkdir(parents=True, exist_ok=True)
        _write_note(folder / FAILED, note)
        self.failures[task] = note
        self._stamps[task] = _stamp(folder / DONE), _stamp(folder / FAILED)


def _stamp(file: Path) -> _Stamp:
    """Returns what changes when a file is replaced; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


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
    notes = read_object(file, _ADVICE) if file.exists() else {}
    if not all(isinstance(note, dict) for note in notes.values()):
        raise RunError(f"{printable(file)} cannot be read: it holds no object of notes{_ADVICE}")
    return notes


def _write_note(file: Path, note: dict[str, Any]) -> None:
    write_whole_among_writers(file, f"{json.dumps(note, indent=1)}\n".encode())
