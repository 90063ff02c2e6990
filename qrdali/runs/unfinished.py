"""Says of a run that it has not ended, so that nobody takes what it has reached for what it reaches."""

from __future__ import annotations

import shlex
from pathlib import Path

from qrdali.errors import InputError, RunError, printable
from qrdali.files.lock import is_held
from qrdali.runs import folder as run_folder


def has_not_ended(run: Path) -> bool:
    """Returns whether a run was stopped before its end, or is still being trained.

    False where nothing says so: of an adopted run, of a folder that is no run, and of one whose checkpoint is
    gone or damaged, of which whoever continues it says what is wrong.
    """
    try:
        is_run = run_folder.holds_run(run) and run_folder.has_checkpoint(run)
        return is_run and not run_folder.has_ended(run)
    except (InputError, RunError):
        return False


def unfinished_note(run: Path, name: str = "") -> str:
    """Returns the sentence that a run has not ended; "" where it has, or nothing says so.

    name: what the run is called in the sentence, its folder unless given.
    """
    if not has_not_ended(run):
        return ""
    what = name or printable(run)
    if is_held(run / run_folder.LOCK):
        return f"{what} is still being trained: its best/ is of the epochs so far"
    return (
        f"{what} was stopped before its end: its best/ is of the epochs so far, and "
        f"`qrdali train --resume --run {shlex.quote(printable(run))}` continues it"
    )
