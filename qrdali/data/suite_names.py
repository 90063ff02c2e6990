"""Names of evaluation suites and of their rows, and how NAME=ROOT options are read."""

from __future__ import annotations

from qrdali.errors import InputError, printable

SUITES = ("imagenet-c", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", "real", "human")


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


def suite_of_rows(name: str) -> str | None:
    """Returns the suite that rows of this name are of, or None: its own, or followed by - and a part's."""
    return next((suite for suite in SUITES if name == suite or name.startswith(f"{suite}-")), None)
