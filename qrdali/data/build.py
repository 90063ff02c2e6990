"""Makes a data set of any root, for `qrdali data index`.

A root has class folders or tar shards, and is on a disk or in an object store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from qrdali.data import provenance, storage, tar_shards
from qrdali.data.duplicates import shared_images
from qrdali.data.held_out import Shares, hold_out
from qrdali.data.index import SPLITS, RowWriter, read_batches
from qrdali.data.scan import Indexer, Progress, Reading, Summary, index_tree, new_folder, silent
from qrdali.data.shard_classes import Classes, found_classes, listed_classes
from qrdali.data.splits import Layout, find_layout, leave_out_loose
from qrdali.data.tree import LISTINGS, Tree, open_tree
from qrdali.errors import InputError, RunError, printable

NO_SHARES = Shares()
_SPOOL_FIELDS: list[Any] = [("url", pa.string()), ("class_text", pa.string())]
_SPOOL_SCHEMA = pa.schema(_SPOOL_FIELDS)  # a split's samples, before it is known which classes there are


def index_root(
    root: str | Tree,
    out: Path,
    reading: Reading,
    *,
    shares: Shares = NO_SHARES,
    progress: Progress = silent,
) -> Summary:
    """Indexes a root, given as a path, a URL or an open tree, into the new folder `out`.

    `shares` of each class of train move into a new val and test; the root may then hold class folders alone.
    Raises InputError for a root without splits, a split of images without class folders, a split where one is
    to be made, or an `out` that exists; RunError for unusable content. Nothing is left behind on an error.
    """
    tree = open_tree(root) if isinstance(root, str) else root
    layout = find_layout(tree, may_be_flat=bool(shares.of_splits))
    _check_shares(tree, layout, shares)
    if layout.is_flat and out.absolute().parent == Path(tree.root):
        raise InputError(f"{printable(out)} would be taken for a class folder: choose an --out outside ROOT")
    if reading.threads is None and storage.is_remote(tree.root):
        # These threads wait for a server, not for a processor.
        reading = replace(reading, threads=max(LISTINGS, os.cpu_count() or 1))
    with new_folder(out) as folder:
        if layout.shards:
            summary = _index_shards(tree, layout, folder, reading, progress)
        else:
            summary = index_tree(tree, layout, folder, reading, progress)
        kind = "tar shards" if layout.shards else "class folders"
        provenance.write(folder, {"made_by": "index", "root": tree.root, "found": kind})
        if shares.of_splits:
            counts = {**summary.images, **hold_out(folder, shares)}
            summary.images = {split: counts[split] for split in SPLITS if split in counts}
        summary.warnings += shared_images(folder)
    return summary


def _check_shares(tree: Tree, layout: Layout, shares: Shares) -> None:
    for split in shares.of_splits:
        if split in layout.splits:
            raise InputError(f"{printable(tree.root)} has a {split} already: leave --{split}-share out")
        if "train" not in layout.splits:
            raise InputError(f"{printable(tree.root)} has no train that --{split}-share could be cut from")


def files_of(tree: Tree, shares: Shares = NO_SHARES) -> int:
    """Returns the number of images below ROOT/SPLIT/CLASS, for a progress bar.

    0 where there is nothing, or where only reading all shards would tell. Raises as `index_root` does.
    """
    layout = find_layout(tree, may_be_flat=bool(shares.of_splits))
    if layout.shards:
        return 0
    places = [layout.place(split) for split in layout.splits]
    return sum(
        1 for place in places for files in tree.images(place, tree.entries(*place).folders) for _ in files
    )


def _index_shards(tree: Tree, layout: Layout, folder: Path, reading: Reading, progress: Progress) -> Summary:
    """Indexes shards in two passes: only after the first is it known which classes there are."""
    shards_by_split = layout.shards
    threads = reading.threads or os.cpu_count() or 1
    rejected: list[tuple[str, str]] = []
    class_texts: dict[str, dict[str, str]] = {}  # of each split, with the URL of a sample
    for split, names in shards_by_split.items():
        absolute = names if storage.is_remote(tree.root) else [str(Path(name).absolute()) for name in names]
        class_texts[split] = _spool(absolute, folder / f"{split}.found.arrow", threads, rejected)
    first = next(iter(shards_by_split))
    classes = listed_classes(tree) or found_classes(class_texts[first])
    if len(classes.names) < 2:
        raise RunError(
            f"the shards of {first} have {len(classes.names)} class(es): a classifier needs at least two"
            + (f"; {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else "")
        )
    warnings = [line for split, texts in class_texts.items() for line in classes.check(split, texts)]
    with Indexer(folder, list(classes.names), list(shards_by_split), reading, progress) as indexer:
        leave_out_loose(tree, layout, indexer.left_out)
        for path, why in rejected:
            indexer.reject(path, why)
        for split in shards_by_split:
            spool = folder / f"{split}.found.arrow"
            added, reason = indexer.add_labelled(split, _labelled(spool, classes, indexer))
            if not added:
                raise RunError(f"the shards of {split} hold no readable image{reason}")
            spool.unlink()
    indexer.summary.warnings += warnings
    return indexer.summary


def _spool(names: list[str], file: Path, threads: int, rejected: list[tuple[str, str]]) -> dict[str, str]:
    """Writes the samples of shards into an Arrow file and appends bad ones to `rejected`.

    Returns the class texts, each with the URL of its first sample.
    """
    writer = RowWriter(file, _SPOOL_SCHEMA)
    class_texts = dict[str, str]()
    for sample in tar_shards.samples(names, threads):
        if sample.reason:
            rejected.append((sample.url, sample.reason))
        else:
            class_texts.setdefault(sample.class_text, sample.url)
            writer.row(sample.url, sample.class_text)
    writer.close()
    return class_texts


def _labelled(spool: Path, classes: Classes, indexer: Indexer) -> Iterator[tuple[str, int]]:
    """Yields (URL, label) of the spooled samples; those of an unknown class are rejected."""
    for batch in read_batches(spool, _SPOOL_SCHEMA):
        columns: list[list[Any]] = [batch.column(i).to_pylist() for i in range(2)]
        for url, class_text in zip(*columns, strict=True):
            label = classes.label(class_text)
            if label is None:
                indexer.reject(url, classes.why_unknown(class_text))
            else:
                yield url, label
