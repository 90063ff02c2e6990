"""Walks class folders and indexes their images: every file decoded once, failures listed.

`inspect` looks at one file, this module at folders of files, `build` makes a data set of any kind of root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qrdali.data import provenance, storage
from qrdali.data.class_matching import ClassList, require_different
from qrdali.data.duplicates import shared_images
from qrdali.data.file_check import check_files
from qrdali.data.index import FILES_SCHEMA, RowWriter, Writer, write_classes
from qrdali.data.inspect import MAX_PIXELS, quiet_pillow, tsv_field
from qrdali.data.left_out import LeftOut, Where
from qrdali.data.splits import Layout, class_folders, find_layout, leave_out_loose
from qrdali.data.tree import LISTINGS, LocalTree, Tree, open_tree
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically

if TYPE_CHECKING:
    from qrdali.distributed import ProcessGroup

_CHUNK = 1024  # files that are inspected between two reports of progress
_Inspected = tuple[int, int, str]  # upright width and height; why the file is rejected, or ""


@dataclass
class Summary:
    """Holds what indexing made: images per split, rejected files, class names in label order.

    damaged: images that are listed in warnings.tsv. left_out: other files, which are not read. notes: lines
    that say what was left out. warnings: lines that say what may be wrong with the data set.
    """

    images: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    damaged: int = 0
    classes: list[str] = field(default_factory=list)
    left_out: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


Progress = Callable[[str, int], None]  # is called after each chunk with its split and its number of files


def silent(split: str, files: int) -> None:
    """Reports nothing: the default Progress."""


@dataclass(frozen=True)
class Reading:
    """Says how files are read while they are indexed.

    verify: whether each is decoded, by Pillow and by the decoder of training, and rejected where they
    disagree. hashed: whether its SHA-256 is kept. threads: None for all cores. max_pixels: larger images are
    rejected by their header.
    """

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
    progress: Progress = silent,
) -> Summary:
    """Indexes ROOT/SPLIT/CLASS/FILE into the new folder `out`; the options are those of `Reading`.

    Raises InputError for a root without splits, a split of images without class folders, or an `out` that
    exists, and RunError for unusable content: a class without images, a single class, or a class that the
    first split lacks. Nothing is left behind on an error.
    """
    tree = LocalTree(root)
    layout = find_layout(tree)
    if layout.shards:
        raise InputError(f"{printable(root)} holds tar shards: index them with `qrdali data index`")
    with new_folder(out) as folder:
        summary = index_tree(tree, layout, folder, Reading(verify, hashed, threads), progress)
        # Without its root a data set would be another one wherever its images are moved to.
        provenance.write(folder, {"made_by": "index", "root": tree.root, "found": "class folders"})
        summary.warnings += shared_images(folder)
        return summary


def index_tree(tree: Tree, layout: Layout, folder: Path, reading: Reading, progress: Progress) -> Summary:
    """Indexes SPLIT/CLASS/FILE of a tree into `folder`; raises as `build_dataset` does."""
    classes, look_alikes = class_folders(tree, layout)
    first = layout.splits[0]
    with Indexer(folder, classes, layout.splits, reading, progress) as indexer:
        leave_out_loose(tree, layout, indexer.left_out)
        for split in layout.splits:
            place = layout.place(split)
            present = set(tree.entries(*place).folders)
            listing = tree.images(place, classes, indexer.left_out)
            for label, (name, files) in enumerate(zip(classes, listing, strict=True)):
                indexer.left_out.example = ""
                added, reason = indexer.add(split, label, files)
                # Splits after the first may lack a class, but not hold an empty folder for it.
                if not added and (split == first or name in present):
                    reason = reason or (indexer.left_out.example and f"; {indexer.left_out.example}")
                    raise RunError(
                        f"class folder {printable(tree.name(*place, name))} holds no readable image{reason}"
                    )
    indexer.summary.warnings += filter(None, [look_alikes])
    return indexer.summary


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `out` when the block ends and is removed if the block fails.

    All that is in it is on the disk before it gets its name. Raises InputError if `out` holds anything.
    """
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
    """Writes a data set's files into a folder: indexes, sizes of files, classes, and what was rejected.

    It is a context manager; `summary` is complete after the `with`. left_out: counts what is not read, for
    whoever lists files.
    """

    def __init__(
        self, folder: Path, classes: list[str], splits: Sequence[str], reading: Reading, progress: Progress
    ) -> None:
        self.summary = Summary(classes=classes)
        self.left_out = LeftOut(self._list)
        self._folder = folder
        self._reading = reading
        self._progress = progress
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
        self._warnings = open(self._folder / "warnings.tsv", "w", encoding="utf-8")
        self._warnings.write("path\twhat\n")
        write_classes(self._folder, self.summary.classes)
        return self

    def add(
        self, split: str, label: int, files: Iterator[str], max_images: int | None = None
    ) -> tuple[int, str]:
        """Adds the readable ones of `files`: all, or `max_images`, taking no more from the iterator.

        Returns how many, and the first rejected file with its reason as the end of a message, or "".
        """
        return self.add_labelled(split, ((path, label) for path in files), max_images)

    def add_labelled(
        self, split: str, files: Iterator[tuple[str, int]], max_images: int | None = None
    ) -> tuple[int, str]:
        """Does as `add` for files that each come with their label."""
        index, file_facts = self._writers[split]
        before = index.count
        first_rejected = ""

        def next_chunk() -> list[tuple[str, int]]:
            wanted = _CHUNK if max_images is None else min(_CHUNK, max_images - (index.count - before))
            return list(islice(files, wanted))

        while chunk := next_chunk():
            reports = check_files([path for path, _ in chunk], self._reading, self._pool)
            for report, (_, label) in zip(reports, chunk, strict=True):
                if report.reason:
                    first_rejected = first_rejected or f"; {printable(report.path)}: {report.reason}"
                    self.reject(report.path, report.reason)
                else:
                    index.add(report.path, label, report.width, report.height)
                    file_facts.row(report.file_bytes, report.sha256)
                    if report.warning:
                        self._warn_of(report.path, report.warning)
            self._progress(split, len(chunk))
        return index.count - before, first_rejected

    def reject(self, path: str, reason: str) -> None:
        """Lists a file in rejected.tsv and counts it."""
        self._list(path, reason)
        self.summary.rejected += 1

    def _list(self, path: str, reason: str) -> None:
        self._rejected.write(f"{tsv_field(path)}\t{tsv_field(reason)}\n")

    def _warn_of(self, path: str, warning: str) -> None:
        """Lists a damaged image in warnings.tsv."""
        self._warnings.write(f"{tsv_field(path)}\t{tsv_field(warning)}\n")
        self.summary.damaged += 1

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._rejected.close()
        self._warnings.close()
        self.summary.left_out = self.left_out.files
        self.summary.notes += self.left_out.lines()
        for split, (index, file_facts) in self._writers.items():
            self.summary.images[split] = index.count
            index.close()
            file_facts.close()


def index_folder(
    root: Path | str,
    classes: tuple[str, ...] | ClassList,
    file: Path,
    reading: Reading = DECODED,
    group: ProcessGroup | None = None,
    whose: str = "the run",
) -> list[tuple[str, str]]:
    """Indexes ROOT/CLASS/* for any subset of `classes` into the Arrow `file`, labelled as `classes` are.

    classes: their names, or a ClassList: then a folder may have a class's readable name. Returns (path,
    reason) of the rejected, and of what is not read: other files and hidden folders.

    ROOT is a folder or in a store; rows are in the order of the classes, then of the names. Collective if
    there is a `group`: rank 0 lists the files, each rank inspects a part of them, and each writes a whole
    `file` of its own. Raises InputError for a folder that is not one of the classes, `whose` being whom they
    belong to, or is one of two; for two folders of one class; or where nothing can be read.
    """
    not_read: list[tuple[str, str]] = []  # of the process that lists the files
    left_out = LeftOut(lambda path, reason: not_read.append((path, reason)))
    known = classes if isinstance(classes, ClassList) else ClassList(classes)
    return index_files(root, lambda: _set_files(root, known, whose, left_out), not_read, file, reading, group)


def index_files(
    root: Path | str,
    list_files: Callable[[], Iterator[tuple[int, str]]],
    not_read: list[tuple[str, str]],
    file: Path,
    reading: Reading = DECODED,
    group: ProcessGroup | None = None,
) -> list[tuple[str, str]]:
    """Indexes the files (label, path) that `list_files` returns into the Arrow `file`, in their order.

    Collective if there is a `group`: `list_files` is called on rank 0 alone, and fills `not_read` there while
    its files are taken. Returns (path, reason) of the rejected files and of `not_read`. Raises InputError,
    naming `root`, where nothing can be read, and what `list_files` raises.
    """
    from qrdali.distributed import SINGLE_PROCESS  # it imports torch, which indexing a data set does without

    group = group or SINGLE_PROCESS
    listed = group.run_on_main(list_files)
    files = iter(()) if listed is None else listed
    rejected = []
    writer = Writer(file)
    quiet_pillow()
    threads = LISTINGS if storage.is_remote(str(root)) else reading.threads or os.cpu_count()
    with ThreadPoolExecutor(threads) as pool:

        def inspect_all(paths: list[str]) -> list[_Inspected]:
            return [(r.width, r.height, r.reason) for r in check_files(paths, reading, pool)]

        while True:
            next_files = group.run_on_main(lambda: list(islice(files, _CHUNK * group.world_size)))
            chunk = group.broadcast_object(next_files)  # a tuple becomes a list on the way
            if not chunk:
                break
            my_paths = [path for _, path in chunk[group.rank :: group.world_size]]
            my_part = group.run_on_all(partial(inspect_all, my_paths))
            parts = group.all_gather_object(my_part)
            for number, (label, path) in enumerate(chunk):
                width, height, reason = parts[number % group.world_size][number // group.world_size]
                if reason:
                    rejected.append((path, reason))
                else:
                    writer.add(path, label, width, height)
    writer.close()
    rejected += [(path, reason) for path, reason in group.broadcast_object(not_read)]
    if not writer.count:
        first = f"; {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else ""

        def refuse() -> None:
            raise InputError(f"{printable(root)} holds no readable image in a class folder{first}")

        group.run_on_all(refuse)  # all ranks have found the same: one of them prints it
    return rejected


def _set_files(
    root: Path | str, classes: ClassList, whose: str, left_out: LeftOut
) -> Iterator[tuple[int, str]]:
    """Returns (label, path) of the files below ROOT/CLASS. Raises InputError as `index_folder` does."""
    if not storage.is_remote(str(root)) and not Path(root).is_dir():
        raise InputError(f"{printable(root)} is not a folder: a set holds class folders of images")
    tree = open_tree(str(root))
    found = tree.entries()
    labels = _labels_of_folders(root, found.folders, classes, whose)
    # Only names that were listed: a class name of a run, such as "../x", need not be fit for a path.
    names = sorted(labels, key=labels.__getitem__)
    if not names and found.shards:
        raise InputError(
            f"{printable(root)} holds tar shards: a set holds class folders of images; index the shards as "
            "the test split of a data set and evaluate that"
        )
    for name in found.files:
        left_out.add_file(tree.name(name), Where.BESIDE)
    for name in found.hidden:
        left_out.add_closed_folder(tree.name(name), "a hidden folder is no class")
    return (
        (labels[name], path)
        for name, files in zip(names, tree.images((), names, left_out), strict=True)
        for path in files
    )


def _labels_of_folders(
    root: Path | str, folders: Sequence[str], classes: ClassList, whose: str
) -> dict[str, int]:
    """Returns the label of each class folder. Raises InputError as `index_folder` does."""
    where = f"{printable(root)}"
    labels: dict[str, int] = {}
    unknown = []
    for name in sorted(folders):
        try:
            label = classes.label_of(name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if label is None:
            unknown.append(name)
        else:
            labels[name] = label
    if unknown:
        raise InputError(
            f"{where} has the folder {printable(unknown[0])!r}, which is not a class of {whose} "
            f"({len(unknown)} such){classes.difference(unknown[0])}"
        )
    require_different(ClassList(tuple(labels)), list(labels.values()), classes, where)
    return labels
