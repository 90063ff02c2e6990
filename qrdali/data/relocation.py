"""Images that have moved: `--root NEW`, or OLD=NEW, says where those below the root of a data set are now."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.data import storage
from qrdali.errors import InputError, RunError, printable

# The = between OLD and NEW, which are both absolute; a folder's name may hold a = too.
_SEPARATOR = re.compile(r"=(?=/|s3://|gs://)")


@dataclass(frozen=True)
class Relocation:
    """The root below which images were indexed and the one below which they are now.

    Both are absolute paths or URLs without a slash at the end.
    """

    old: str
    new: str

    def path(self, name: str) -> str:
        """Returns where a file, or a shard's member, that lay below the old root is now.

        Raises RunError for another.
        """
        for before, after in (
            (self.old, self.new),
            (storage.shard_prefix(self.old), storage.shard_prefix(self.new)),
        ):
            if name.startswith(before + "/"):
                return after + name[len(before) :]
        raise RunError(
            f"{printable(name)} does not lie below {printable(self.old)}, the root that --root "
            f"{printable(self.new)} is for: give --root OLD=NEW with a folder that all images lie below"
        )


def relocation_of(text: str | None, source: dict[str, Any], folder: Path) -> Relocation | None:
    """Returns what --root says of the data set in `folder`, None if it is empty.

    NEW alone replaces the root that `source`, its source.json, names; InputError is raised where that names
    none, and for a NEW that is not a folder.
    """
    if not text:
        return None
    is_absolute = text.startswith(("/", *storage.REMOTE))
    separators = list(_SEPARATOR.finditer(text)) if is_absolute else []
    if len(separators) > 1:
        raise InputError(f"--root {printable(text)!r} has several =: use folders without =/ in a name")
    if separators:
        old, new = text[: separators[0].start()], text[separators[0].end() :]
    else:
        known = source.get("root")
        if not isinstance(known, str) or not known.startswith(("/", *storage.REMOTE)):
            raise InputError(
                f"{printable(folder)} does not say where its images were: give --root OLD=NEW, both absolute"
            )
        old, new = known, text
    if not storage.is_remote(new):
        if not os.path.isdir(new):
            raise InputError(
                f"--root {printable(new)} is not a folder: give the one that holds the images now"
            )
        new = os.path.abspath(new)
    return Relocation(old.rstrip("/"), new.rstrip("/"))
