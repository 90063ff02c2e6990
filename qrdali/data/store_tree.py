"""Lists prefixes of object stores as `tree` lists folders on a disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from qrdali.data import object_store
from qrdali.data.file_names import is_hidden, is_image
from qrdali.data.left_out import LeftOut, Where
from qrdali.data.tree import LISTINGS, Entries, Place, image_or_none
from qrdali.errors import InputError, printable


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
        self._entries: dict[Place, Entries] = {}
        self._require_bucket()

    def _require_bucket(self) -> None:
        with object_store.translate_errors(self.root):
            info = self._store.get_file_info(self.root[5:].partition("/")[0])
        if info.type.name == "NotFound":
            raise object_store.no_bucket(self.root)

    def name(self, *place: str) -> str:
        return "/".join([self.root, *place])

    def entries(self, *place: str) -> Entries:
        if place not in self._entries:
            infos = self._listed(place)
            self._entries[place] = Entries.of(
                [info.base_name for info in infos if info.type.name == "Directory"],
                [info.base_name for info in infos if info.type.name == "File"],
            )
        return self._entries[place]

    def root_entries(self) -> Entries:
        return self.entries()

    def among(self, names: Sequence[str]) -> list[str]:
        folders = set(self.entries().folders)
        return [name for name in names if name in folders]

    def images(
        self, place: Place, classes: Sequence[str], left_out: LeftOut | None = None
    ) -> Iterator[Iterator[str]]:
        names = iter(classes)
        pending = deque[tuple[str, Future[list[str]]]]()

        def submit(name: str) -> None:
            pending.append((name, pool.submit(self._class_names, (*place, name), left_out is not None)))

        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            try:
                for name in islice(names, LISTINGS):
                    submit(name)
                while pending:
                    name, listing = pending.popleft()
                    yield iter(_images_of(self.name(*place, name), listing.result(), left_out))
                    for following in islice(names, 1):
                        submit(following)
            finally:
                pool.shutdown(cancel_futures=True)

    def images_below(self, left_out: LeftOut, on_closed: Callable[[str, str], None]) -> Iterator[str]:
        start = len(self.root) - 5 + 1
        names = (info.path[start:] for info in self._all_below() if info.type.name == "File")
        hidden: set[str] = set()
        for *parents, own_name in sorted(name.split("/") for name in names):
            if not own_name or "" in parents:  # what stands for a folder, or lies in one without a name
                continue
            if first := next(filter(is_hidden, parents), None):
                if first not in hidden:
                    left_out.pass_over(self.name(first) + "/")
                hidden.add(first)
            else:
                yield from image_or_none(self.name(*parents, own_name), left_out)

    def _all_below(self) -> list[Any]:
        return self._listed((), recursive=True)

    def _class_names(self, place: Place, with_folders: bool) -> list[str]:
        """Returns the names of the objects in a class folder and, `with_folders`, also in those below it."""
        names: list[str] = []
        start = len(self.name(*place)) - 5 + 1
        for info in self._listed(place):
            if info.type.name == "File":
                names.append(info.base_name)
            elif with_folders and info.base_name not in ("", ".", ".."):
                below = self._listed((*place, info.base_name), recursive=True)
                names += [found.path[start:] for found in below if found.type.name == "File"]
        return sorted(names)

    def _listed(self, place: Place, recursive: bool = False) -> list[Any]:
        from pyarrow import fs

        url = self.name(*place)
        selector = fs.FileSelector(url[5:], allow_not_found=True, recursive=recursive)
        with object_store.translate_errors(url):
            infos: list[Any] = self._store.get_file_info(selector)
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

    def entries(self, *place: str) -> Entries:
        below = self._below(place)
        return Entries.of([name for name in below if name], list(below.get("", [])))

    def root_entries(self) -> Entries:
        return super().entries()  # everything below the root would be the whole data set

    def among(self, names: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(LISTINGS, "list") as pool:
            listings = pool.map(lambda name: self._below((name,)), names)
            return [name for name, listing in zip(names, listings, strict=True) if listing]

    def images(
        self, place: Place, classes: Sequence[str], left_out: LeftOut | None = None
    ) -> Iterator[Iterator[str]]:
        below = self._below(place)
        return (
            iter(_images_of(self.name(*place, name), sorted(below.get(name, [])), left_out))
            for name in classes
        )

    def _all_below(self) -> list[Any]:
        return self._list_all(())

    def _below(self, place: Place) -> dict[str, list[str]]:
        """Returns the names of the files by folder at a place; those at the place itself under "".

        The name of a file that lies deeper begins with the folders below the first.
        """
        if place not in self._listings:
            files: dict[str, list[str]] = {}
            start = len(self.name(*place)) - 5 + 1
            for info in self._list_all(place):
                folder, slash, name = info.path[start:].partition("/")
                if info.type.name != "File":
                    files.setdefault(folder, [])
                elif not slash:
                    files.setdefault("", []).append(folder)
                elif folder:
                    in_folder = files.setdefault(folder, [])
                    if name:
                        in_folder.append(name)
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


def _images_of(folder: str, names: list[str], left_out: LeftOut | None) -> list[str]:
    """Returns the URLs of the images that lie in a class folder itself; the other names are left out."""
    images = []
    hidden = dict[str, None]()
    for name in names:
        *parents, own_name = name.split("/")
        if not parents and is_image(own_name):
            images.append(f"{folder}/{name}")
        elif left_out is not None and own_name and "" not in parents:
            if first_hidden := next(filter(is_hidden, parents), None):
                hidden[first_hidden] = None
            else:
                left_out.add_file(f"{folder}/{name}", Where.BELOW)
    if left_out is not None:
        for name in hidden:
            left_out.pass_over("/".join([*folder.split("/")[-2:], name]) + "/")
    return images
