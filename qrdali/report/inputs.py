"""Reads the runs and MEPI sets of a report: what is damaged is left out, unless nothing remains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qrdali.errors import InputError, RunError, printable
from qrdali.interfaces import ProgressListener
from qrdali.report.read import Run, named, read_run
from qrdali.report.read_mepis import Mepis, read_mepis
from qrdali.report.set_rows import Warn

T = TypeVar("T")


def read_inputs(
    run_folders: list[Path], mepi_folders: list[Path], listener: ProgressListener
) -> tuple[list[Run], list[Mepis]]:
    """Returns the runs, and the MEPI sets with the runs that they were made with.

    Raises InputError without a run and for folders of another kind, RunError where all are damaged.
    """
    if not run_folders:
        raise InputError("no run is given: give at least one run folder")
    runs = _readable(run_folders, lambda folder, name: read_run(folder, name, listener.warn), listener.warn)
    sets = _readable(mepi_folders, lambda folder, name: read_mepis(folder, name, runs), listener.warn)
    for mepis in sets:
        if mepis.run is None:
            listener.warn(
                f"{printable(mepis.folder)} was made with other weights than those of the runs given: "
                "it is shown by its folder's name"
            )
    return runs, sets


def _readable(folders: list[Path], read: Callable[[Path, str], T], warn: Warn) -> list[T]:
    """Returns what can be read; the rest is left out with a warning, unless nothing remains.

    Raises InputError for a folder of another kind, RunError where all are damaged.
    """
    readable: list[T] = []
    damage: RunError | None = None
    for folder, name in zip(folders, named(folders), strict=True):
        try:
            readable.append(read(folder, name))
        except RunError as error:
            damage = error
            warn(f"{error}: left out of the report")
    if damage is not None and not readable:
        raise damage
    return readable
