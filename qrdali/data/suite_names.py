"""Names of evaluation suites and of their rows, and how NAME=ROOT options are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qrdali.errors import InputError, printable
from qrdali.reduction.quality import REDUCTIONS

SUITES = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "real", "human")


_SET = re.compile(rf"(?P<suite>imagenet-c)-[a-z_]+-[1-5]|(?P<other>human)-({'|'.join(REDUCTIONS)})", re.ASCII)


def require_suite_name(name: str) -> None:
    """Raises InputError for a name that is none of SUITES."""
    if name not in SUITES:
        raise InputError(
            f"--suite has the name {printable(name)!r}: give NAME=ROOT, NAME of {', '.join(SUITES)}"
        )


def parse_suites(texts: tuple[str, ...]) -> dict[str, str]:
    """Returns the folders of NAME=ROOT texts by name. Raises InputError for an unknown or a repeated name."""
    roots: dict[str, str] = {}
    for text in texts:
        name, equals, root = text.partition("=")
        require_suite_name(name)
        if not equals or not root:
            raise InputError(f"--suite is {printable(text)!r}: give NAME=ROOT, the folder of {name}")
        if name in roots:
            raise InputError(f"--suite gives {name} twice: evaluate one folder of it, then the other")
        roots[name] = root
    return roots


def check_suites(suites: Mapping[str, str], sets: Iterable[str]) -> None:
    """Raises InputError for an experiment's `evaluate.suites` that are none, have no folder, or whose rows
    would have the name of those of a set.
    """
    for name, root in suites.items():
        if name not in SUITES:
            raise InputError(
                f"evaluate.suites.{printable(name)} is no suite: give some of {', '.join(SUITES)}"
            )
        if not root:
            raise InputError(f"evaluate.suites.{name} is empty: give the folder of the suite")
    if clash := [name for name in sets if suite_of_rows(name) in suites]:
        raise InputError(f"evaluate.sets.{clash[0]} would have the name of rows of a suite: rename it")


def suite_of_rows(name: str) -> str | None:
    """Returns the suite whose rows have this name, its own or that of one of its sets; None if there is none.

    Sets are of a corruption and a severity, or of a reduction.
    """
    if name in SUITES:
        return name
    match = _SET.fullmatch(name)
    return match["suite"] or match["other"] if match else None
