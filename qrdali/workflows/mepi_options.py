"""Reads the options of a MEPI set: those given, and those that a set was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qrdali.errors import InputError, RunError, printable
from qrdali.files.json_objects import read_object
from qrdali.mepi.folder import OPTIONS, SEARCHED
from qrdali.mepi.search import SearchRule
from qrdali.reduction import quality
from qrdali.reduction.names import DISTORTIONS, why_not_searched
from qrdali.reduction.neighbors import DescentRule

_CHOICES: dict[str, tuple[object, ...]] = {
    "reduction": (*SEARCHED, "all"),
    "windows": (5, 9),
    "prefer": ("confidence", "entropy"),
    "search": ("descend", "exhaustive"),
}


def make_rules(
    reduction: str, scale: quality.LevelScale, windows: int, prefer: str, search: str
) -> dict[str, SearchRule]:
    """Returns a rule per reduction to build.

    Raises InputError, naming the option, for a value that is none of its choices.
    """
    if reduction in DISTORTIONS:
        raise InputError(f"--reduction {reduction} {why_not_searched(reduction)}")
    given = {"reduction": reduction, "windows": windows, "prefer": prefer, "search": search}
    for option, value in given.items():
        if value not in _CHOICES[option]:
            choices = ", ".join(map(str, _CHOICES[option]))
            raise InputError(f"--{option} is {printable(value)!r}: give one of {choices}")
    names = SEARCHED if reduction == "all" else (reduction,)
    dimensions = quality.REDUCTIONS
    return {
        name: SearchRule(DescentRule(dimensions[name], scale, windows, prefer), search == "exhaustive")
        for name in names
    }


def recorded_options(out: Path) -> dict[str, Any]:
    """Returns the options that a set in `out` was begun with; {} where there is none."""
    try:
        return read_object(out / OPTIONS)
    except RunError:
        return {}  # whoever opens the set says what is wrong with it


def tail_of(given: str | None, recorded: dict[str, Any]) -> str:
    """Returns the tail of a set: as given, or else as it was begun with; sets of version 0.1 had none.

    It is "full", "none" or a number in its shortest form.
    """
    tail = given if given is not None else recorded.get("tail", "none") if recorded else "full"
    levels = quality.tail_levels(str(tail))
    return {0: "none", quality.MAX_TAIL: "full"}.get(levels, str(levels))
