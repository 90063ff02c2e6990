"""Names of evaluated sets: which are allowed, and how NAME=FOLDER options are read."""

from __future__ import annotations

import re

from qrdali.data.index import SPLITS
from qrdali.errors import InputError, printable
from qrdali.reduction.names import TRAINED

_MAPPED = "-mapped-(argmax|sum)"
MAPPED = re.compile(rf"{_MAPPED}$")  # ends the names of rows whose classes were mapped by this rule

# The names of splits: at full quality, reduced, and mapped to other classes.
RESERVED = re.compile(rf"({'|'.join(SPLITS)})(-({'|'.join(TRAINED)})-0\.[0-9]{{1,12}})?({_MAPPED})?")


def check_set_name(name: str, option: str) -> None:
    """Raises InputError if the name cannot be a file's, or is a split's."""
    if (
        not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name)
        or RESERVED.fullmatch(name)
        or MAPPED.search(name)
    ):
        raise InputError(
            f"{option} has the name {printable(name)!r}: give NAME=FOLDER, NAME of letters, digits, '.', '_' "
            f"and '-', and not {', '.join(SPLITS)} nor one of them reduced, such as test-crop-0.5"
        )


def parse_named_sets(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Returns the folders, paths or URLs, of NAME=FOLDER texts by name.

    Raises InputError for a name that is given twice or not allowed.
    """
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise InputError(f"{option} is {printable(text)!r}: give NAME=FOLDER")
        check_set_name(name, option)
        folders[name] = folder
    if len(folders) < len(texts):
        raise InputError(f"{option} gives one NAME twice: every set needs a name of its own")
    return folders
