"""Lists folders of images, on a disk or in an object store: the classes and the files of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from qrdali.data import storage
from qrdali.data.file_names import is_hidden, is_image, is_shard, unpacker
from qrdali.data.left_out import LeftOut, Where
from qrdali.errors import InputError, printable

Place = tuple[str, ...]  # parts of a path below the root, which is ()

LISTINGS = 32  # requests for listings that are in flight at once


class Entries(NamedTuple):
    """The names at a place, each list sorted. hidden: folders that are never classes; files: all others."""

    folders: list[str]
    hidden: list[str]
    files: list[str]

    @classmethod
    def of(cls, folders: list[str], files: list[str]) -> Entries:
        """Returns the entries of a place with these folders and files, in any order."""
        folders.sort()
        visible = [name for name in folders if not is_hidden(name)]
        return cls(visible, [name for name in folders if is_hidden(name)], sorted(files))

    @property
    def shards(self) -> list[str]:
        """Returns the names of the tar files."""
        return list(filter(is_shard, self.files))

    @property
    def compressed_shards(self) -> list[str]:
        """Returns the names of the compressed tar files."""
        return list(filter(unpacker, self.files))

    @property
    def images(self) -> list[str]:
        """Returns the names of the files with an image's ending."""
        return list(filter(is_image, self.files))


class Tree(Protocol):
    """A root folder and what lies below it."""

    root: str

    def name(self, *place: str) -> str:
        """Returns the path or URL of a place."""
        ...

    def entries(self, *place: str) -> Entries:
        """Returns the names at a place; an absent place has none."""
        ...

    def root_entries(self) -> Entries:
        """Returns the names in the root, of folders perhaps not all, without listing what lies below it."""
        ...

    def among(self, names: Sequence[str]) -> list[str]:
        """Returns those of `names` that are folders of the root."""
        ...

    def images(
        self, place: Place, classes: Sequence[str], left_out: LeftOut | None = None
    ) -> Iterator[Iterator[str]]:
        """Yields for each class folder at a place the paths of its images, in order of their names.

        An absent folder has none. What else lies there is counted in `left_out` on the way.
        """
        ...

    def images_below(self, left_out: LeftOut, on_closed: Callable[[str, str], None]) -> Iterator[str]:
        """Yields the paths of all images in the root and below it, at any depth, in order.

        Hidden folders and links to folders are passed over; they and other files are counted in `left_out`.
        on_closed: is called with a folder that cannot be listed, and why.
        """
        ...


def open_tree(root: str) -> Tree:
    """Returns the tree of a path or URL.

    Raises InputError for a root that is not a folder, Unreachable for a store that cannot be read.
    """
    if storage.is_remote(root):
        from qrdali.data.store_tree import GoogleTree, RemoteTree  # they are trees of this module

        return GoogleTree(root) if root.startswith("gs://") else RemoteTree(root)
    scheme, separator, _ = root.partition("://")
    if separator and scheme.isascii() and scheme.isalpha():
        raise InputError(f"{printable(root)}: only s3:// and gs:// are read; give one of those or a folder")
    return LocalTree(Path(root))


class LocalTree:
    """A folder on the disk."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{printable(root)} is not a folder: give the one that holds the images")
        self._root = root
        self.root = str(root.absolute())

    def name(self, *place: str) -> str:
        return str(self._root.joinpath(*place))

    def entries(self, *place: str) -> Entries:
        return folder_entries(self._root.joinpath(*place))

    def root_entries(self) -> Entries:
        return self.entries()

    def among(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if (self._root / name).is_dir()]

    def images(
        self, place: Place, classes: Sequence[str], left_out: LeftOut | None = None
    ) -> Iterator[Iterator[str]]:
        return (image_files(self._root.joinpath(*place, name).absolute(), left_out) for name in classes)

    def images_below(self, left_out: LeftOut, on_closed: Callable[[str, str], None]) -> Iterator[str]:
        return _local_images_below(str(self._root), left_out, on_closed)


def _local_images_below(
    folder: str, left_out: LeftOut, on_closed: Callable[[str, str], None]
) -> Iterator[str]:
    pending = [(folder, True)]  # the next one last; no recursion: folders may be nested a thousand deep
    while pending:
        path, is_folder = pending.pop()
        if not is_folder:
            yield from image_or_none(path, left_out)
        elif path != folder and (is_hidden(os.path.basename(path)) or os.path.islink(path)):
            left_out.pass_over(path + "/")  # links may form loops
        else:
            try:
                entries = sorted((entry.path, _is_folder(entry)) for entry in os.scandir(path))
            except OSError as error:
                on_closed(path, f"the folder cannot be read: {error.strerror}")
            else:
                pending += reversed(entries)


def image_or_none(path: str, left_out: LeftOut) -> list[str]:
    """Returns [path] if its name has an image's ending; otherwise [], and counts it in `left_out`."""
    if is_image(path.rpartition("/")[2]):
        return [path]
    left_out.add_file(path, Where.BELOW)
    return []


def folder_entries(folder: Path) -> Entries:
    """Returns the names in a folder on the disk, which may be absent."""
    folders: list[str] = []
    files: list[str] = []
    if folder.is_dir():
        for entry in os.scandir(folder):
            (folders if _is_folder(entry) else files).append(entry.name)
    return Entries.of(folders, files)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def leave_out_entries(entries: Entries, where: str, left_out: LeftOut) -> None:
    """Counts the files and the hidden folders of a place that should hold class folders alone."""
    for name in entries.files:
        left_out.add_file(f"{where}/{name}", Where.BESIDE)
    for name in entries.hidden:
        left_out.pass_over("/".join([*where.split("/")[-1:], name]) + "/")


def image_files(folder: Path, left_out: LeftOut | None = None) -> Iterator[str]:
    """Yields the paths with an image's ending, in order of their names; an absent folder has none.

    What else lies in the folder and below it is counted in `left_out` on the way.
    """
    if not folder.is_dir():
        return
    if left_out is None:
        yield from (os.path.join(folder, name) for name in sorted(filter(is_image, os.listdir(folder))))
        return
    # A name with an image's ending is yielded whatever it is: inspecting it says what is wrong.
    entries = sorted((e.name, not is_image(e.name) and _is_folder(e)) for e in os.scandir(folder))
    for name, is_folder in entries:
        path = os.path.join(folder, name)
        if is_image(name):
            yield path
        elif is_folder:
            _leave_out_below(path, left_out)
        else:
            left_out.add_file(path, Where.BELOW)


def _leave_out_below(folder: str, left_out: LeftOut) -> None:
    """Counts what lies in and below a folder of a class folder. Links may form loops: they are passed by."""
    if is_hidden(os.path.basename(folder)):
        left_out.pass_over("/".join(folder.split("/")[-3:]) + "/")
    elif os.path.islink(folder):
        left_out.add_closed_folder(folder, "a link to a folder below a class folder is not followed")
    else:
        _leave_out_files_below(folder, left_out)


def _leave_out_files_below(folder: str, left_out: LeftOut) -> None:
    try:
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except OSError as error:
        left_out.add_closed_folder(folder, f"the folder cannot be read: {error.strerror}")
        return
    for name, is_folder in entries:
        path = os.path.join(folder, name)
        if is_folder:
            _leave_out_below(path, left_out)
        else:
            left_out.add_file(path, Where.BELOW)
