"""`qrdali data index`: a data set made of whatever ROOT is: class folders or tar shards, on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from qrdali.data import minival, shards, storage
from qrdali.data import provenance as source
from qrdali.data.index import SPLITS, RowWriter, read_batches
from qrdali.data.scan import Indexer, Progress, Reading, Summary, index_tree, new_folder, silent, splits_of
from qrdali.data.tree import LISTINGS, Tree, open_tree
from qrdali.errors import InputError, RunError, printable

_FIELDS: list[Any] = [("url", pa.string()), ("text", pa.string())]
_FOUND = pa.schema(_FIELDS)  # of a split's samples, before it is known which classes there are


def index_root(
    root: str | Tree,
    out: Path,
    reading: Reading,
    *,
    val_share: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Summary:
    """Indexes a root, a path, a URL or what is open, into the new folder `out`. `val_share` moves that share of each
    class of train into a new val.

    Raises InputError for a root without splits, a split of images without class folders, a val where one is to be cut, or an `out` that
    exists; RunError for an unusable content. Nothing is left behind on an error.
    """
    tree = open_tree(root) if isinstance(root, str) else root
    found = shards_of(tree)
    splits = list(found) or splits_of(tree)
    if val_share is not None:
        if not 0 < val_share < 1:
            raise InputError(f"--val-share is {val_share}: give a share between 0 and 1, such as 0.05")
        if "val" in splits:
            raise InputError(f"{printable(tree.root)} has a val already: leave --val-share out")
        if "train" not in splits:
            raise InputError(f"{printable(tree.root)} has no train that --val-share could be cut from")
    if reading.threads is None and storage.is_remote(tree.root):  # they wait for answers, not for processors
        reading = replace(reading, threads=max(LISTINGS, os.cpu_count() or 1))
    with new_folder(out) as folder:
        summary = (
            _index_shards(tree, found, folder, reading, progress)
            if found
            else index_tree(tree, folder, reading, progress)
        )
        source.write(
            folder / source.FILE,
            {"made_by": "index", "root": tree.root, "found": "tar shards" if found else "class folders"},
        )
        if val_share is not None:
            done = minival.cut(folder, None, seed, val_share)
            counts = {**summary.images, "train": done.train, "val": done.val}
            summary.images = {split: counts[split] for split in SPLITS if split in counts}
    return summary


def files_of(tree: Tree) -> int:
    """Images below ROOT/SPLIT/CLASS, for a progress bar; 0 where there is nothing, or where only reading all shards would tell."""
    if shards_of(tree):
        return 0
    return sum(
        1
        for split in tree.among(SPLITS)
        for files in tree.images((split,), tree.folders(split))
        for _ in files
    )


def shards_of(tree: Tree) -> dict[str, list[str]]:
    """Names of the shards by split: ROOT/SPLIT/*.tar, else ROOT/SPLIT-*.tar; {} for a root of class folders.

    Raises InputError where a split holds class folders beside shards, or shards say no split.
    """
    there = set(tree.among(SPLITS))
    found = {split: names for split in SPLITS if split in there and (names := tree.shards(split))}
    beside = tree.shards()
    if not found:
        named = {split: [name for name in beside if name.startswith(f"{split}-")] for split in SPLITS}
        if beside and not any(named.values()) and not there:
            raise InputError(
                f"{printable(tree.root)} holds {len(beside)} shards, none of them named train-*.tar, val-*.tar or test-*.tar: "
                "rename them, or put them into train/, val/ and test/"
            )
        return {split: [tree.name(name) for name in names] for split, names in named.items() if names}
    for split in found:
        if folders := tree.folders(split):
            raise InputError(
                f"{printable(tree.name(split))} holds {len(found[split])} shards and {len(folders)} folders beside them: "
                "give one of the two"
            )
    return {split: [tree.name(split, name) for name in names] for split, names in found.items()}


def _index_shards(
    tree: Tree, found: dict[str, list[str]], folder: Path, reading: Reading, progress: Progress
) -> Summary:
    """The shards are read first, into a file: only then it is known which classes there are."""
    threads = reading.threads or os.cpu_count() or 1
    rejected: list[tuple[str, str]] = []
    texts: dict[str, set[str]] = {}
    for split, names in found.items():
        absolute = names if storage.is_remote(tree.root) else [str(Path(name).absolute()) for name in names]
        texts[split] = _spool(absolute, folder / f"{split}.found.arrow", threads, rejected)
    first = next(iter(found))
    classes = shards.listed_classes(tree) or shards.found_classes(texts[first])
    if len(classes.names) < 2:
        raise RunError(
            f"the shards of {first} have {len(classes.names)} class(es): a classifier needs at least two"
            + (f"; {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else "")
        )
    with Indexer(folder, list(classes.names), list(found), reading, progress) as indexer:
        for path, why in rejected:
            indexer.reject(path, why)
        for split in found:
            added, reason = indexer.add_labelled(
                split, _labelled(folder / f"{split}.found.arrow", classes, indexer)
            )
            if not added:
                raise RunError(f"the shards of {split} hold no readable image{reason}")
            (folder / f"{split}.found.arrow").unlink()
    return indexer.summary


def _spool(names: list[str], file: Path, threads: int, rejected: list[tuple[str, str]]) -> set[str]:
    """Writes the samples of shards into an Arrow file; returns the classes met."""
    writer, texts = RowWriter(file, _FOUND), set[str]()
    for sample in shards.samples(names, threads):
        if sample.reason:
            rejected.append((sample.url, sample.reason))
        else:
            texts.add(sample.text)
            writer.row(sample.url, sample.text)
    writer.close()
    return texts


def _labelled(file: Path, classes: shards.Classes, indexer: Indexer) -> Iterator[tuple[str, int]]:
    for batch in read_batches(file, _FOUND):
        columns: list[list[Any]] = [batch.column(i).to_pylist() for i in range(2)]
        for url, text in zip(*columns, strict=True):
            label = classes.label(text)
            if label is None:
                indexer.reject(url, f"its class {text!r} is none of the {len(classes.names)}")
            else:
                yield url, label
