"""Makes a data set from folders of images: sizes from headers, every file decoded once, what fails listed with a reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qrdali.data import storage
from qrdali.data.index import FILES_SCHEMA, SPLITS, RowWriter, Writer, write_classes
from qrdali.data.inspect import MAX_PIXELS, inspect_file, is_utf8, quiet_pillow, tsv_field
from qrdali.data.tree import LISTINGS, LocalTree, Tree, open_tree
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically

if TYPE_CHECKING:
    from qrdali.distributed import ProcessGroup

_CHUNK = 1024


@dataclass
class Summary:
    """What `build` did: images indexed per split, files rejected, class names in label order."""

    images: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    classes: list[str] = field(default_factory=list)


Progress = Callable[[str, int], None]  # hears of each finished chunk: its split and how many files


def silent(split: str, files: int) -> None:
    """A Progress that says nothing."""


@dataclass(frozen=True)
class Reading:
    """How files are read: whether each is decoded, whether their SHA-256 is kept, by how many threads (None: all cores), and
    from how many pixels on they are rejected."""

    verify: bool = True
    hashed: bool = False
    threads: int | None = None
    max_pixels: int = MAX_PIXELS


DECODED = Reading()  # every file decoded, no hashes


def build_dataset(
    root: Path,
    out: Path,
    *,
    verify: bool = True,
    threads: int | None = None,
    hashed: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = silent,
) -> Summary:
    """Indexes ROOT/SPLIT/CLASS/FILE into the new folder `out`; `hashed` also keeps each file's SHA-256.

    Raises InputError for a root without splits, a split of images without class folders, or an `out` that exists, RunError for an unusable
    content: a class without images, a single class, or a class that only another split has. Nothing is left behind on an error.
    """
    tree = LocalTree(root)
    with new_folder(out) as folder:
        return index_tree(tree, folder, Reading(verify, hashed, threads, max_pixels), progress)


def splits_of(tree: Tree) -> list[str]:
    """The splits that are folders. Raises InputError if none is."""
    splits = tree.among(SPLITS)
    if not splits:
        raise InputError(
            f"{printable(tree.root)} has none of train/, val/, test/: put class folders in at least one of them"
        )
    return splits


def index_tree(tree: Tree, folder: Path, reading: Reading, progress: Progress) -> Summary:
    """Indexes SPLIT/CLASS/FILE of a tree into `folder`; raises as `build` does."""
    splits = splits_of(tree)
    classes = _classes(tree, splits)
    with Indexer(folder, classes, splits, reading, progress) as indexer:
        for split in splits:
            there = set(tree.folders(split))
            for label, (name, files) in enumerate(zip(classes, tree.images((split,), classes), strict=True)):
                added, reason = indexer.add(split, label, files)
                if not added and (split == splits[0] or name in there):
                    raise RunError(
                        f"class folder {printable(tree.name(split, name))} holds no readable image{reason}"
                    )
    return indexer.summary


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill: it becomes `out` when the block ends and is removed if the block fails. Raises InputError if `out` holds
    anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{printable(out)} exists and is not empty: choose another --out or remove it")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if out.exists():
            out.rmdir()
        replace_atomically(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


class Indexer:
    """Writes a data set's files into a folder: per split the index and the sizes of the files, the classes, and what was rejected.

    To be used in a `with`; `summary` is complete after it.
    """

    def __init__(
        self, folder: Path, classes: list[str], splits: Sequence[str], reading: Reading, progress: Progress
    ) -> None:
        self.summary = Summary(classes=classes)
        self._folder, self._reading, self._progress = folder, reading, progress
        self._writers = {
            split: (
                Writer(folder / f"{split}.arrow"),
                RowWriter(folder / f"{split}.files.arrow", FILES_SCHEMA),
            )
            for split in splits
        }
        quiet_pillow()

    def __enter__(self) -> Indexer:
        self._pool = ThreadPoolExecutor(self._reading.threads or os.cpu_count() or 1)
        self._rejected = open(self._folder / "rejected.tsv", "w", encoding="utf-8", errors="backslashreplace")
        self._rejected.write("path\treason\n")
        write_classes(self._folder, self.summary.classes)
        return self

    def add(self, split: str, label: int, files: Iterator[str], most: int | None = None) -> tuple[int, str]:
        """Adds the readable ones of `files`, all or the first `most`, taking no more than those from the iterator. Returns how
        many, and the first rejected file with its reason as the end of a message, or ""."""
        return self.add_labelled(split, ((path, label) for path in files), most)

    def add_labelled(
        self, split: str, files: Iterator[tuple[str, int]], most: int | None = None
    ) -> tuple[int, str]:
        """The same for files that each come with their label."""
        index, facts = self._writers[split]
        how = self._reading
        before, reason = index.count, ""
        while chunk := list(
            islice(files, _CHUNK if most is None else min(_CHUNK, most - (index.count - before)))
        ):
            looked = self._pool.map(
                lambda file: inspect_file(file[0], how.verify, how.hashed, how.max_pixels), chunk
            )
            for found, (_, label) in zip(looked, chunk, strict=True):
                if found.reason:
                    reason = reason or f"; {printable(found.path)}: {found.reason}"
                    self.reject(found.path, found.reason)
                else:
                    index.add(found.path, label, found.width, found.height)
                    facts.row(found.file_bytes, found.sha256)
            self._progress(split, len(chunk))
        return index.count - before, reason

    def reject(self, path: str, reason: str) -> None:
        self._rejected.write(f"{tsv_field(path)}\t{tsv_field(reason)}\n")
        self.summary.rejected += 1

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._rejected.close()
        for split, (index, facts) in self._writers.items():
            self.summary.images[split] = index.count
            index.close()
            facts.close()


def index_folder(
    root: Path | str,
    classes: tuple[str, ...],
    file: Path,
    verify: bool,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda files: None,
    whose: str = "the run",
    group: ProcessGroup | None = None,
) -> list[tuple[str, str]]:
    """Indexes ROOT/CLASS/* for any subset of `classes` into the Arrow `file`; returns (path, reason) of files left out. ROOT is a folder
    or in a store.

    In the order of the classes, then of the names. Raises InputError for a folder that is no class or where nothing can be
    read. Of several `ranks` the first lists the files, each looks at some, and each writes the same `file` of its own.
    """
    files = (
        group.run_on_all(lambda: _set_files(root, classes, whose) if group.is_main else iter(()))
        if group
        else _set_files(root, classes, whose)
    )
    most = _CHUNK * (group.world_size if group else 1)
    rejected, writer = [], Writer(file)
    quiet_pillow()
    far = storage.is_remote(str(root))
    with ThreadPoolExecutor(LISTINGS if far else threads or os.cpu_count()) as pool:

        def looked(paths: list[str]) -> list[tuple[int, int, str]]:
            return [
                (found.width, found.height, found.reason)
                for found in pool.map(lambda path: inspect_file(path, verify), paths)
            ]

        while chunk := _same_for_all(lambda: list(islice(files, most)), group):
            paths = [path for _, path in chunk]
            for (label, path), (width, height, reason) in zip(
                chunk, _dealt(looked, paths, group), strict=True
            ):
                if reason:
                    rejected.append((path, reason))
                else:
                    writer.add(path, label, width, height)
            progress(len(chunk))
    writer.close()
    if not writer.count:
        first = f"; {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else ""

        def refuse() -> None:
            raise InputError(f"{printable(root)} holds no readable image in a class folder{first}")

        group.run_on_all(refuse) if group else refuse()
    return rejected


def _set_files(root: Path | str, classes: tuple[str, ...], whose: str) -> Iterator[tuple[int, str]]:
    """(label, path) of the files below ROOT/CLASS. Raises InputError as `index_folder` does."""
    if not storage.is_remote(str(root)) and not Path(root).is_dir():
        raise InputError(f"{printable(root)} is no folder: a set holds class folders of images")
    tree = open_tree(str(root))
    found = set(tree.folders())
    unknown = sorted(found - set(classes))
    if unknown:
        raise InputError(
            f"{printable(root)} has the folder {printable(unknown[0])!r}, which is no class of {whose} ({len(unknown)} such)"
        )
    names = [name for name in classes if name in found]  # a run's class names need not be a folder's
    if not names and tree.shards():
        raise InputError(
            f"{printable(root)} holds tar shards: a set holds class folders of images; index the shards as the test split of "
            "a data set and evaluate that"
        )
    labels = {name: label for label, name in enumerate(classes)}
    return (
        (labels[name], path)
        for name, files in zip(names, tree.images((), names), strict=True)
        for path in files
    )


def _same_for_all(
    make: Callable[[], list[tuple[int, str]]], group: ProcessGroup | None
) -> list[tuple[int, str]]:
    """What rank 0 makes."""
    if group is None or group.is_single:
        return make()
    found = group.run_on_all(lambda: make() if group.is_main else [])
    return [(label, path) for label, path in group.broadcast_object(found)]


def _dealt(
    looked: Callable[[list[str]], list[tuple[int, int, str]]], paths: list[str], group: ProcessGroup | None
) -> list[tuple[int, int, str]]:
    """What the ranks find of `paths`, each looking at every world-th, in the order of the paths."""
    if group is None or group.is_single:
        return looked(paths)
    parts = group.all_gather_object(group.run_on_all(lambda: looked(paths[group.rank :: group.world_size])))
    return [tuple(parts[i % group.world_size][i // group.world_size]) for i in range(len(paths))]


def _classes(tree: Tree, splits: list[str]) -> list[str]:
    listed = {split: tree.folders(split) for split in splits}
    for split in (split for split in splits if not listed[split]):
        if loose := tree.loose(split):
            raise InputError(
                f"{printable(tree.name(split))} holds {loose} image file(s) and no class folder: put them into class folders, "
                "or have ImageNet's labelled from its lists by `qrdali data imagenet`"
            )
    classes = listed[splits[0]]
    for name in classes:
        if "\t" in name or "\n" in name or "\r" in name or not is_utf8(name):
            raise RunError(
                f"class folder {printable(name)!r} has a tab, a line break or bytes that are not UTF-8: rename it"
            )
        if name in (".", ".."):  # an object store's may be called so
            raise RunError(
                f"class folder {tree.name(splits[0], name)!r} would lead out of its split: rename it"
            )
    for split in splits[1:]:
        unknown = sorted(set(listed[split]) - set(classes))
        if unknown:
            raise RunError(
                f"{split}/ has the class {printable(unknown[0])!r}, which {splits[0]}/ lacks "
                f"({len(unknown)} such): every split uses the classes of {splits[0]}/"
            )
    if len(classes) < 2:
        raise RunError(
            f"{printable(tree.name(splits[0]))} has {len(classes)} class folder(s): a classifier needs at least two"
        )
    return classes
