"""Images that have moved: `--root NEW`, or OLD=NEW, says where those below the root of a data set are now."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.data import storage
from qrdali.errors import InputError, RunError, printable

_PAIR = re.compile(
    r"=(?=/|s3://|gs://)"
)  # between OLD and NEW, which are both absolute; a name may hold a = too


@dataclass(frozen=True)
class Moved:
    """Two roots, absolute paths or URLs without a slash at the end."""

    old: str
    new: str

    def path(self, name: str) -> str:
        """Where a file that lay below the old root is now. Raises RunError for one that did not."""
        for before, after in (
            (self.old, self.new),
            (storage.shard_prefix(self.old), storage.shard_prefix(self.new)),
        ):
            if name.startswith(before + "/"):
                return after + name[len(before) :]
        raise RunError(
            f"{printable(name)} does not lie below {printable(self.old)}, the root that --root {printable(self.new)} is for: "
            "give --root OLD=NEW with a folder that all images lie below"
        )


def moved(text: str | None, source: dict[str, Any], folder: Path) -> Moved | None:
    """What --root says of the data set in `folder`, None if nothing. NEW alone is for the root that `source`, its source.json, names.

    Raises InputError where that names none.
    """
    if not text:
        return None
    pair = [at for at in _PAIR.finditer(text) if text.startswith(("/", *storage.REMOTE))]
    if len(pair) > 1:
        raise InputError(f"--root {printable(text)!r} has several =: use folders without =/ in a name")
    if pair:
        old, new = text[: pair[0].start()], text[pair[0].end() :]
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
    return Moved(_trimmed(old), _trimmed(new))


def _trimmed(root: str) -> str:
    return root.rstrip("/")
