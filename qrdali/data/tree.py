"""Lists folders of images, on a disk or in an object store: the classes and the files of each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qrdali.data import object_store, storage
from qrdali.errors import InputError, printable

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
Place = tuple[str, ...]  # parts of a path below the root, which is ()

LISTINGS = 32  # requests for listings that are in flight at once


class Tree(Protocol):
    """A root folder and what lies below it."""

    root: str

    def name(self, *place: str) -> str:
        """Returns the path or URL of a place."""
        ...

    def folders(self, *place: str) -> list[str]:
        """Returns the names of the folders at a place, sorted; an absent place has none."""
        ...

    def among(self, names: Sequence[str]) -> list[str]:
        """Returns those of `names` that are folders of the root."""
        ...

    def shards(self, *place: str) -> list[str]:
        """Returns the names of the tar files at a place, sorted."""
        ...

    def loose(self, split: str) -> int:
        """Returns how many images lie in a split itself, in no class folder."""
        ...

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        """Yields for each class folder at a place the paths of its images, in order of their names.

        An absent folder has none.
        """
        ...


def open_tree(root: str) -> Tree:
    """Returns the tree of a path or URL.

    Raises InputError for a root that is not a folder, Unreachable for a store that cannot be read.
    """
    if storage.is_remote(root):
        return GoogleTree(root) if root.startswith("gs://") else RemoteTree(root)
    scheme, separator, _ = root.partition("://")
    if separator and scheme.isascii() and scheme.isalpha():
        raise InputError(f"{printable(root)}: only s3:// and gs:// are read; give one of those or a folder")
    return LocalTree(Path(root))


class LocalTree:
    """A folder on the disk."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{printable(root)} is not a folder")
        self._root = root
        self.root = str(root.absolute())

    def name(self, *place: str) -> str:
        return str(self._root.joinpath(*place))

    def folders(self, *place: str) -> list[str]:
        folder = self._root.joinpath(*place)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())

    def among(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if (self._root / name).is_dir()]

    def shards(self, *place: str) -> list[str]:
        folder = self._root.joinpath(*place)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(folder) if _is_shard(entry.name))

    def loose(self, split: str) -> int:
        return sum(1 for _ in image_files(self._root / split))

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        return (image_files(self._root.joinpath(*place, name).absolute()) for name in classes)


class RemoteTree:
    """A prefix in an object store. Folders are listed in parallel, a thousand objects a request."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root[5:].partition("/")
        parts = prefix.strip("/").split("/") if prefix.strip("/") else []
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise InputError(
                f"{printable(root)} is not a place in a store: give {root[:5]}BUCKET or "
                f"{root[:5]}BUCKET/PREFIX"
            )
        self.root = root[:5] + "/".join([bucket, *parts])
        self._store = object_store.filesystem(self.root)
        self._require_bucket()

    def _require_bucket(self) -> None:
        with object_store.translate_errors(self.root):
            info = self._store.get_file_info(self.root[5:].partition("/")[0])
        if info.type.name == "NotFound":
            raise object_store.no_bucket(self.root)

    def name(self, *place: str) -> str:
        return "/".join([self.root, *place])

    def folders(self, *place: str) -> list[str]:
        return sorted(info.base_name for info in self._listed(place) if info.type.name == "Directory")

    def among(self, names: Sequence[str]) -> list[str]:
        folders = set(self.folders())
        return [name for name in names if name in folders]

    def shards(self, *place: str) -> list[str]:
        return sorted(
            info.base_name
            for info in self._listed(place)
            if info.type.name == "File" and _is_shard(info.base_name)
        )

    def loose(self, split: str) -> int:
        return len(self._images(split))

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        names = iter(classes)
        pending = deque[Future[list[str]]]()
        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            try:
                pending.extend(pool.submit(self._images, *place, name) for name in islice(names, LISTINGS))
                while pending:
                    yield iter(pending.popleft().result())
                    pending.extend(pool.submit(self._images, *place, name) for name in islice(names, 1))
            finally:
                pool.shutdown(cancel_futures=True)

    def _images(self, *place: str) -> list[str]:
        return [
            f"{self.root[:5]}{info.path}"
            for info in sorted(self._listed(place), key=lambda info: str(info.base_name))
            if info.type.name == "File" and _is_image(info.base_name)
        ]

    def _listed(self, place: Place) -> list[Any]:
        from pyarrow import fs

        url = self.name(*place)
        with object_store.translate_errors(url):
            infos: list[Any] = self._store.get_file_info(fs.FileSelector(url[5:], allow_not_found=True))
        return infos


class GoogleTree(RemoteTree):
    """A prefix in Google's store, where everything below a place is listed at once.

    pyarrow finds only those folders there that have an object of their own. A listing takes a request per
    thousand objects, one after another; places are listed in parallel, once, and the names are kept.
    """

    def __init__(self, root: str) -> None:
        self._listings: dict[Place, dict[str, list[str]]] = {}
        super().__init__(root)

    def _require_bucket(self) -> None:
        """Leaves it to the first listing: who may list a bucket may often not ask about it."""

    def folders(self, *place: str) -> list[str]:
        return sorted(name for name in self._below(place) if name)

    def among(self, names: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            listings = pool.map(lambda name: self._below((name,)), names)
            return [name for name, listing in zip(names, listings, strict=True) if listing]

    def shards(self, *place: str) -> list[str]:
        if place in self._listings:
            return sorted(filter(_is_shard, self._listings[place].get("", [])))
        return super().shards(*place)

    def loose(self, split: str) -> int:
        return sum(map(_is_image, self._below((split,)).get("", [])))

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        below = self._below(place)
        return (
            iter([self.name(*place, name, file) for file in sorted(below.get(name, [])) if _is_image(file)])
            for name in classes
        )

    def _below(self, place: Place) -> dict[str, list[str]]:
        """Returns the names of the files by folder at a place; those at the place itself under "".

        Of a file that lies deeper only the first folder's name is kept.
        """
        if place not in self._listings:
            files: dict[str, list[str]] = {}
            start = len(self.name(*place)) - 5 + 1
            for info in self._list_all(place):
                parts = info.path[start:].split("/")
                if info.type.name != "File":
                    files.setdefault(parts[0], [])
                elif len(parts) == 1:
                    files.setdefault("", []).append(parts[0])
                elif parts[0]:
                    in_folder = files.setdefault(parts[0], [])
                    if len(parts) == 2:
                        in_folder.append(parts[1])
            self._listings[place] = files
        return self._listings[place]

    def _list_all(self, place: Place) -> list[Any]:
        """Returns what lies below a place, [] for an absent one. Raises Unreachable for an absent bucket.

        Without allow_not_found pyarrow raises for both, but with different texts.
        """
        from pyarrow import fs

        url = self.name(*place)
        with object_store.translate_errors(url):
            try:
                infos: list[Any] = self._store.get_file_info(fs.FileSelector(url[5:], recursive=True))
            except OSError as error:
                if str(error).startswith("No such file or directory"):
                    return []
                if isinstance(
                    error, FileNotFoundError
                ):  # the server's answer to a listing: only a bucket can be missing
                    raise object_store.no_bucket(self.root) from None
                raise
        return infos


def image_files(folder: Path) -> Iterator[str]:
    """Yields the paths with an image's extension, in order of their names; an absent folder has none."""
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if _is_image(name):
                yield os.path.join(folder, name)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar") and not name.startswith(".")
