"""Folders of images, on a disk or in an object store: which classes there are, and the files of each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qrdali.data import storage
from qrdali.errors import InputError, printable

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
Place = tuple[str, ...]

LISTINGS = 32  # requests for listings that are under way at once


class Tree(Protocol):
    """Places are parts of a path below the root, which is ()."""

    root: str

    def name(self, *place: str) -> str:
        """Path or URL."""
        ...

    def folders(self, *place: str) -> list[str]:
        """Names of the folders at a place, sorted; an absent place has none."""
        ...

    def among(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are folders of the root."""
        ...

    def shards(self, *place: str) -> list[str]:
        """Names of the tar files at a place, sorted."""
        ...

    def loose(self, split: str) -> int:
        """How many images lie in a split itself, in no class folder."""
        ...

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        """Of each class folder at a place in turn the paths of its images, in order of their names; an absent one has none."""
        ...


def open_tree(root: str) -> Tree:
    """Raises InputError for a root that is no folder, Unreachable for a store that cannot be read."""
    if storage.is_remote(root):
        return GoogleTree(root) if root.startswith("gs://") else RemoteTree(root)
    scheme, found, _ = root.partition("://")
    if found and scheme.isascii() and scheme.isalpha():
        raise InputError(f"{printable(root)}: only s3:// and gs:// are read; give one of those or a folder")
    return LocalTree(Path(root))


class LocalTree:
    """A folder on the disk."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"{printable(root)} is not a folder")
        self._root, self.root = root, str(root.absolute())

    def name(self, *place: str) -> str:
        return str(self._root.joinpath(*place))

    def folders(self, *place: str) -> list[str]:
        folder = self._root.joinpath(*place)
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if folder.is_dir() else []

    def among(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if (self._root / name).is_dir()]

    def shards(self, *place: str) -> list[str]:
        folder = self._root.joinpath(*place)
        return (
            sorted(entry.name for entry in os.scandir(folder) if _is_shard(entry.name))
            if folder.is_dir()
            else []
        )

    def loose(self, split: str) -> int:
        return sum(1 for _ in image_files(self._root / split))

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        return (image_files(self._root.joinpath(*place, name).absolute()) for name in classes)


class RemoteTree:
    """A prefix in an object store. Folders are listed side by side, a thousand objects a request."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root[5:].partition("/")
        parts = prefix.strip("/").split("/") if prefix.strip("/") else []
        if not bucket or any(part in ("", ".", "..") for part in parts):
            raise InputError(
                f"{printable(root)} is no place in a store: give {root[:5]}BUCKET or {root[:5]}BUCKET/PREFIX"
            )
        self.root = root[:5] + "/".join([bucket, *parts])
        self._store = storage.filesystem(self.root)
        self._look()

    def _look(self) -> None:
        with storage.reasons(self.root):
            there = self._store.get_file_info(self.root[5:].partition("/")[0]).type.name != "NotFound"
        if not there:
            raise storage.no_bucket(self.root)

    def name(self, *place: str) -> str:
        return "/".join([self.root, *place])

    def folders(self, *place: str) -> list[str]:
        return sorted(info.base_name for info in self._listed(place) if info.type.name == "Directory")

    def among(self, names: Sequence[str]) -> list[str]:
        there = set(self.folders())
        return [name for name in names if name in there]

    def shards(self, *place: str) -> list[str]:
        return sorted(
            info.base_name
            for info in self._listed(place)
            if info.type.name == "File" and _is_shard(info.base_name)
        )

    def loose(self, split: str) -> int:
        return len(self._images(split))

    def images(self, place: Place, classes: Sequence[str]) -> Iterator[Iterator[str]]:
        names, ahead = iter(classes), deque[Future[list[str]]]()
        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            try:
                ahead.extend(pool.submit(self._images, *place, name) for name in islice(names, LISTINGS))
                while ahead:
                    yield iter(ahead.popleft().result())
                    ahead.extend(pool.submit(self._images, *place, name) for name in islice(names, 1))
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
        with storage.reasons(url):
            found: list[Any] = self._store.get_file_info(fs.FileSelector(url[5:], allow_not_found=True))
        return found


class GoogleTree(RemoteTree):
    """The same in Google's store. pyarrow finds no folder there but one that has an object of its own, so that everything below a place is
    listed, a thousand objects a request, one request after another. Places are listed side by side, once; names are kept."""

    def __init__(self, root: str) -> None:
        self._known: dict[Place, dict[str, list[str]]] = {}
        super().__init__(root)

    def _look(self) -> None:
        """The first listing tells whether there is such a bucket: who may list one may often not ask about it."""

    def folders(self, *place: str) -> list[str]:
        return sorted(name for name in self._below(place) if name)

    def among(self, names: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            return [
                name
                for name, found in zip(names, pool.map(lambda name: self._below((name,)), names), strict=True)
                if found
            ]

    def shards(self, *place: str) -> list[str]:
        if place in self._known:
            return sorted(filter(_is_shard, self._known[place].get("", [])))
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
        """The files of each folder at a place, those at the place itself under ""; of deeper ones only the first folder's name."""
        if place not in self._known:
            found: dict[str, list[str]] = {}
            start = len(self.name(*place)) - 5 + 1
            for info in self._every(place):
                parts = info.path[start:].split("/")
                if info.type.name != "File":
                    found.setdefault(parts[0], [])
                elif len(parts) == 1:
                    found.setdefault("", []).append(parts[0])
                elif parts[0]:
                    own = found.setdefault(parts[0], [])
                    if len(parts) == 2:
                        own.append(parts[1])
            self._known[place] = found
        return self._known[place]

    def _every(self, place: Place) -> list[Any]:
        """All below a place. Asked so that an absent bucket is told from one with nothing there, which is an error too."""
        from pyarrow import fs

        url = self.name(*place)
        with storage.reasons(url):
            try:
                found: list[Any] = self._store.get_file_info(fs.FileSelector(url[5:], recursive=True))
            except OSError as error:
                if str(error).startswith("No such file or directory"):
                    return []
                if isinstance(
                    error, FileNotFoundError
                ):  # the store's own word for a listing: only a bucket can be missing
                    raise storage.no_bucket(self.root) from None
                raise
        return found


def image_files(folder: Path) -> Iterator[str]:
    """Paths with an image's extension, in order of their names; an absent folder has none."""
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if _is_image(name):
                yield os.path.join(folder, name)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_shard(name: str) -> bool:
    return name.lower().endswith(".tar") and not name.startswith(".")
