"""Says what to give where a run folder is wanted and the path is none, by what lies there."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from qrdali.errors import printable

CONFIG = "config.toml"  # what makes a folder a run folder
_MOST_ENTRIES = 1000  # of a folder that are looked into: it may hold a million images
_SHOWN_RUNS = 3
_SPLITS = ("train", "val", "test")
_MAKERS = "`qrdali train … --run FOLDER` or `qrdali adopt … --run FOLDER` makes one, `qrdali runs` lists them"


def what_to_give(folder: Path) -> str:
    """Returns what to do about a path that is no run folder, to stand behind a colon. It never raises."""
    try:
        return _what_to_give(folder)
    except (OSError, ValueError):  # ValueError: a path with a NUL character
        return f"it cannot be read; {_MAKERS}"


def _what_to_give(folder: Path) -> str:
    if not folder.exists():
        return f"there is no such folder; {_MAKERS}"
    if not folder.is_dir():
        if (folder.parent / CONFIG).exists():
            return f"it is a file of the run {printable(folder.parent)}: give that folder"
        return f"it is a file; {_MAKERS}"
    if (folder.parent / CONFIG).exists():
        return f"it is a part of the run {printable(folder.parent)}: give that folder"
    if (folder / "classes.tsv").exists():
        return "it is a data set, which --data takes; give the folder that `qrdali train … --run` made"
    if (folder / "options.json").exists():
        return "it is a MEPI set, which --mepi of `qrdali report` takes; give the run that it was built with"
    if runs := _runs_in(folder):
        names = ", ".join(printable(run) for run in runs[:_SHOWN_RUNS])
        return f"it holds runs: give one of them, such as {names}"
    if any((folder / split).is_dir() for split in _SPLITS):
        return f"it looks like a folder of images; {_MAKERS}"
    return _MAKERS


def _runs_in(folder: Path) -> list[Path]:
    """Returns the run folders directly in `folder`, sorted, among its first entries."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in islice(entries, _MOST_ENTRIES))
    return [folder / name for name in names if (folder / name / CONFIG).exists()]
