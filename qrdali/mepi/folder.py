"""A MEPI set on disk: PNG files, a journal per reduction, and the manifest and summary made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from qrdali.data.index import Index
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import write_whole
from qrdali.files.changes import describe_changes
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire, silent
from qrdali.mepi.journal import OUTCOMES, Entry, Journal
from qrdali.mepi.manifest import WRITTEN_SCHEMA, manifest_rows
from qrdali.mepi.search_path import params_of_states
from qrdali.reduction import names, neighbors
from qrdali.reduction.levels import CHUNK
from qrdali.reduction.png_entropy import encoder_name
from qrdali.reduction.quality import REDUCTIONS, LevelScale
from qrdali.runs.settings import DEFINITIONS

SEARCHED = names.SEARCHED
OPTIONS, MANIFEST, SUMMARY = "options.json", "manifest.parquet", "summary.json"
CONTINUED_UNDER = "continued_under"  # the definitions of the rest of a set, if other than those it began with
PROGRESS = ".progress"  # the folder of the journals
LOCK = ".lock"


@dataclass(frozen=True)
class MepiSource:
    """Names what a set's numbers refer to.

    Samples are those of `index`, labels those of `classes`, levels those of `scale`. network_classes: the
    names of the classes that the network answers, and network_labels: int64 [classes], which of them each of
    `classes` is; None where the two are the same. shown: names of `classes` that people read, None for
    themselves.
    """

    index: Index
    classes: tuple[str, ...]
    scale: LevelScale
    network_classes: tuple[str, ...] | None = None
    network_labels: npt.NDArray[np.int64] | None = None
    shown: tuple[str, ...] | None = None

    def network_label(self, label: int) -> int:
        """Returns the label of a class as the network counts them."""
        return label if self.network_labels is None else int(self.network_labels[label])

    def answer(self, network_label: int) -> str:
        """Returns the name of a class that the network answers."""
        return (self.network_classes or self.classes)[network_label]

    def shown_name(self, label: int) -> str:
        """Returns the name of a class that people read."""
        return (self.shown or self.classes)[label]


@dataclass
class MepiSet:
    """Holds a folder of the MEPIs of one split by one run."""

    folder: Path
    source: MepiSource
    _lock: TextIO | None
    _rank: int = 0
    _journals: dict[str, Journal] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        folder: Path,
        source: MepiSource,
        options: dict[str, Any],
        new: Sequence[str] | None,
        warn: Callable[[str], None] = silent,
    ) -> MepiSet:
        """Makes a set, continues it or joins it. warn: is called where the file system has no locks.

        new: the reductions that join a set which does not hold them yet; None continues it. Raises InputError
        for a folder of other options, for one that holds all of `new`, and for one in which a search of any
        of them was stopped.
        """
        for name in source.classes:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise InputError(f"the class name {printable(name)!r} cannot be a folder's")
        lock, file = _locked(folder, warn), folder / OPTIONS
        if not file.exists():
            write_whole(file, (json.dumps(options, indent=1) + "\n").encode())
            return cls(folder, source, lock)
        mepis = cls(folder, source, lock)
        if new is not None:
            mepis._require_room_for(new)
        # A run may have moved: its weights tell whether it is the same.
        ignored = {"run", "class_map_file", "definitions", CONTINUED_UNDER}
        before = _with_defaults(read_object(file))
        if before.get("amp") == "auto":  # older versions did not note what it chose: on a GPU one of two
            before["amp"] = "off" if before.get("device") == "cpu" else options.get("amp")
        if changes := describe_changes(before, options, ignored):
            raise InputError(
                f"{printable(folder)} was begun with other options: {'; '.join(changes)[:600]}. Give the "
                "same, or another --out"
            )
        return mepis

    def _require_room_for(self, reductions: Sequence[str]) -> None:
        """Raises InputError unless at least one of `reductions` is new here and none is unfinished."""
        finished = set(self.summaries())
        begun = [name for name in reductions if self._journal_file(name).exists()]
        stopped = [name for name in begun if name not in finished]
        if not stopped and len(begun) < len(reductions):
            return
        what = f"an unfinished search of {stopped[0]}" if stopped else "MEPIs"
        raise InputError(
            f"{printable(self.folder)} already holds {what}: continue with --resume, or choose another --out"
        )

    def _journal_file(self, reduction: str) -> Path:
        return self.folder / PROGRESS / f"{reduction}.jsonl"

    @classmethod
    def open_on_other_rank(cls, folder: Path, source: MepiSource, rank: int) -> MepiSet:
        """Returns, on another rank, the set that rank 0 has opened and loaded."""
        return cls(folder, source, None, rank)

    def load(self) -> None:
        """Reads all journals and merges the parts that the ranks of an ended job have left.

        Raises RunError for a damaged one.
        """
        for reduction in SEARCHED:
            self.journal(reduction)

    def close(self) -> None:
        """Gives up the lock, so that another process can build in the folder."""
        if self._lock is not None:
            self._lock.close()

    def mark_definitions(self) -> bool:
        """Notes that what follows is searched under today's definitions, in a set begun under others.

        Returns whether it was not noted before. Raises RunError if the options cannot be read.
        """
        file = self.folder / OPTIONS
        options = read_object(file)
        if DEFINITIONS in (options.get("definitions", 1), options.get(CONTINUED_UNDER)):
            return False
        marked = {**options, CONTINUED_UNDER: DEFINITIONS}
        write_whole(file, (json.dumps(marked, indent=1) + "\n").encode())
        return True

    def journal(self, reduction: str) -> Journal:
        """Returns a reduction's journal. Raises RunError for a damaged one."""
        if reduction not in self._journals:
            journal = Journal(
                self._journal_file(reduction), len(self.source.index), self.source.scale, self._rank
            )
            if not self._rank:
                journal.merge_rank_parts()
            if not self._can_be(reduction, journal):
                raise RunError(
                    f"{printable(journal.file)} holds states that its images cannot have: remove the file to "
                    "search this reduction anew"
                )
            self._journals[reduction] = journal
        return self._journals[reduction]

    def _can_be(self, reduction: str, journal: Journal) -> bool:
        """Returns whether a journal's states lie in their images, and its answers are the network's."""
        samples = journal.with_mepi()
        rows, sizes = journal.rows[samples], self.source.index.sizes(samples)
        fixed = np.flatnonzero(~np.array(REDUCTIONS[reduction]))
        answers = len(self.source.network_classes or self.source.classes)
        for states in (rows["state"], rows["failed_state"]):
            window = params_of_states(states, sizes, self.source.scale).window.astype(np.int64)
            if (window[:, :2] + window[:, 2:] > sizes).any() or states[:, fixed].any():
                return False
        return not (rows["failed_answer"] >= answers).any()

    def finished(self, reduction: str, samples: Iterable[int]) -> bool:
        """Returns whether the summary has the reduction and nothing of `samples` is missing."""
        if not self._is_summed(reduction, self.summaries()):
            return False
        return next(self.missing(reduction, samples), None) is None

    def _is_summed(self, reduction: str, summaries: dict[str, Any]) -> bool:
        return reduction in summaries and summaries[reduction]["images"] == self.journal(reduction).complete

    def png(self, reduction: str, sample: int) -> Path:
        """Returns where the file of a sample's MEPI is, or would be."""
        label = int(self.source.index.labels(np.array([sample]))[0])
        return self.folder / reduction / self.source.classes[label] / f"{sample}.png"

    def add_mepi(self, reduction: str, entry: Entry, png: bytes, seconds: float) -> None:
        """Writes a MEPI's file, then its entry: an entry promises that the file is there."""
        file = self.png(reduction, entry.sample)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_png(file, png)
        self.journal(reduction).append(entry, seconds)

    def add_without_mepi(self, reduction: str, entry: Entry, seconds: float) -> None:
        """Records that an image has no MEPI, and removes the file of one that it had."""
        self.png(reduction, entry.sample).unlink(missing_ok=True)
        self.journal(reduction).append(entry, seconds)

    def missing(self, reduction: str, samples: Iterable[int]) -> Iterator[int]:
        """Yields those of `samples` still to be searched.

        They have no entry, were unreadable so far, or their file is not of the size in the entry.
        """
        rows = self.journal(reduction).rows
        mepi, unreadable = OUTCOMES.index("mepi"), OUTCOMES.index("unreadable")
        for sample in samples:
            row = rows[sample]
            searched = row["outcome"] not in (0, unreadable)
            if not searched or (
                row["outcome"] == mepi and not _has_size(self.png(reduction, sample), int(row["mepi"]))
            ):
                yield sample

    def complete(self, reduction: str, samples: list[int]) -> bool:
        """Returns whether every one of `samples` has an entry."""
        return bool((self.journal(reduction).rows["outcome"][samples] > 0).all())

    def entropies(self) -> npt.NDArray[np.int64]:
        """Returns PNG bytes of the originals, int64 [images]; 0 where no reduction has measured them."""
        result: npt.NDArray[np.int64] = np.max([self.journal(name).rows["full"] for name in SEARCHED], axis=0)
        return result

    def finish(self, reduction: str, extra: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest of the finished reductions and this one's row of the summary; returns it."""
        journal = self.journal(reduction)
        journal.close()
        summaries = self.summaries()
        row: dict[str, Any] = {
            "images": journal.complete,
            "without_mepi": journal.count("wrong"),
            "unreadable": journal.count("unreadable"),
            "mean_quotient": journal.mean_quotient(),
            "seconds": round(journal.seconds, 3),
            "images_per_second": round(journal.complete / journal.seconds, 3) if journal.seconds else None,
            "evaluations": int(journal.rows["evaluations"].sum()),
            "returned": int(journal.rows["backtracked"].sum()),
            "encoder": encoder_name(),
            **extra,
        }
        summaries[reduction] = row
        # One whose journal has been removed is not finished any more.
        ordered = {name: summaries[name] for name in SEARCHED if self._is_summed(name, summaries)}
        self._write_manifest(list(ordered))
        write_whole(self.folder / SUMMARY, (json.dumps(ordered, indent=1) + "\n").encode())
        return row

    def summaries(self) -> dict[str, Any]:
        """Reads the summary of each finished reduction. Raises RunError if the file is damaged."""
        file = self.folder / SUMMARY
        summaries = read_object(file) if file.exists() else {}
        if not set(summaries) <= set(SEARCHED) or not all(map(_is_summary, summaries.values())):
            raise RunError(f"{printable(file)} cannot be read: not a summary of reductions: remove the file")
        return summaries

    def _write_manifest(self, reductions: list[str]) -> None:
        def write(partial: Path) -> None:
            with pq.ParquetWriter(partial, WRITTEN_SCHEMA) as writer:
                for reduction in reductions:
                    samples = self.journal(reduction).with_mepi()
                    for start in range(0, len(samples), CHUNK):
                        part = samples[start : start + CHUNK]
                        rows = self.journal(reduction).rows[part]
                        writer.write_table(manifest_rows(self.source, reduction, part, rows))

        write_whole(self.folder / MANIFEST, write)

    def at_lowest_state(self, reduction: str) -> npt.NDArray[np.bool_]:
        """Returns of each MEPI whether it is at the lowest state: no level is left that changes anything.

        bool [MEPIs], in the order of `Journal.with_mepi`.
        """
        dimensions = np.flatnonzero(REDUCTIONS[reduction])
        samples, scale = self.journal(reduction).with_mepi(), self.source.scale
        result = np.zeros(len(samples), np.bool_)
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            states, sizes = self.journal(reduction).rows[part]["state"], self.source.index.sizes(part)
            window = params_of_states(states, sizes, scale).window
            levels = states[:, :3].astype(np.uint8)
            following = neighbors.next_levels(levels, window, sizes, scale)[:, dimensions]
            result[start : start + CHUNK] = (following < 0).all(axis=1)
        return result


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Returns recorded options with those that version 0.1 did not know."""
    options = {"tail": "none", **options}
    preprocessing = options.get("preprocessing")
    if not isinstance(preprocessing, dict):
        return options
    return {**options, "preprocessing": {"crop_mode": "center", **preprocessing}}


def _is_summary(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(type(row.get(key)) is int for key in ("images", "without_mepi", "unreadable", "returned"))
        and all(
            key in row and (row[key] is None or type(row[key]) is float)
            for key in ("mean_quotient", "images_per_second", "lowest_state_share")
        )
    )


def _locked(folder: Path, warn: Callable[[str], None]) -> TextIO:
    """Returns a lock that the process holds until it ends.

    Raises RunError if another process builds in `folder`.
    """
    file = folder / LOCK
    if (
        folder.exists()
        and not (folder / OPTIONS).exists()
        and (
            not folder.is_dir()
            or any(entry.name not in (LOCK, f".{OPTIONS}.partial") for entry in folder.iterdir())
        )
    ):
        raise InputError(f"{printable(folder)} exists and is not a MEPI set: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return acquire(
        file,
        lambda who: f"{printable(folder)} is being built by {who}: wait for it, or choose another --out",
        warn,
    )


def _has_size(file: Path, size: int) -> bool:
    try:
        return os.stat(file).st_size == size
    except OSError:
        return False


def _write_png(file: Path, png: bytes) -> None:
    """Writes a MEPI whole or not at all, without fsync.

    An fsync for each of many thousand small files would take longer than the search. After a loss of power a
    file may be empty although its entry is there: `missing` compares sizes, and the image is searched again.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(png)
        partial.rename(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
