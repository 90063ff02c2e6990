"""The image files that a person names: files, folders with all that lies below them, places in stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from qrdali.data import storage
from qrdali.data.file_names import is_image
from qrdali.data.left_out import LeftOut
from qrdali.data.tree import open_tree
from qrdali.errors import InputError, printable


def given_images(
    places: Sequence[str], on_closed: Callable[[str, str], None], note: Callable[[str], None]
) -> list[str]:
    """Returns the names of the images at `places`, in the order given and below a folder by their paths.

    A place is a file of any name, a folder, an object or a prefix of s3:// or gs://, or the URL of a shard's
    member; files in folders are taken by the endings that an index takes. on_closed: is called with a folder
    that cannot be listed, and why. note: is called with lines on what is left out of folders. Raises
    InputError for a place that does not exist or a folder without an image, Unreachable for a store that
    cannot be read.
    """
    left_out = LeftOut()
    names: list[str] = []
    for place in places:
        if not _is_folder(place):
            if not storage.exists(place):
                raise InputError(f"{printable(place)} does not exist: give image files, folders or s3:// …")
            names.append(place)
            continue
        before = len(names)
        names += open_tree(place).images_below(left_out, on_closed)
        if len(names) == before:
            found = "; ".join(left_out.lines())
            raise InputError(f"{printable(place)} holds no image{found and f' ({found})'}")
    for line in left_out.lines():
        note(line)
    return names


def _is_folder(place: str) -> bool:
    """Returns whether a place is listed; in a store by its name, because prefixes do not exist there."""
    if storage.is_remote(place):
        return not is_image(place.rpartition("/")[2])
    return not storage.is_url(place) and Path(place).is_dir()
