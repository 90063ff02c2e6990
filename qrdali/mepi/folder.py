"""A MEPI set on disk: PNG files, a journal per reduction from which everything else follows, the manifest and the summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from qrdali.data.index import Index, Samples
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import sync
from qrdali.files.json_objects import read_object
from qrdali.files.lock import acquire
from qrdali.mepi.journal import OUTCOMES, Entry, Journal
from qrdali.mepi.search import params_of_states
from qrdali.reduction import neighbors
from qrdali.reduction.levels import CHUNK
from qrdali.reduction.png_entropy import encoder_name
from qrdali.reduction.quality import REDUCTIONS

SEARCHED = ("color", "crop", "resolution", "combination")
OPTIONS, PROGRESS, MANIFEST, SUMMARY, LOCK = (
    "options.json",
    ".progress",
    "manifest.parquet",
    "summary.json",
    ".lock",
)

_FIELDS: list[Any] = [
    ("sample", pa.int64()),
    ("path", pa.string()),
    ("label", pa.int32()),
    ("reduction", pa.string()),
    ("step", pa.float64()),
    ("color_level", pa.int32()),
    ("crop_level", pa.int32()),
    ("resolution_level", pa.int32()),
    ("top", pa.int32()),
    ("left", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("entropy_full", pa.int64()),
    ("entropy_mepi", pa.int64()),
    ("quotient", pa.float64()),
    ("evaluations", pa.int64()),
    ("confidence", pa.float64()),
]
SCHEMA = pa.schema(_FIELDS)


@dataclass
class MepiSet:
    """A folder for the MEPIs of one split by one run. n: of the step 1/n."""

    folder: Path
    index: Index
    classes: tuple[str, ...]
    num_levels: int
    _lock: TextIO | None
    _rank: int = 0
    _journals: dict[str, Journal] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        folder: Path,
        index: Index,
        classes: tuple[str, ...],
        num_levels: int,
        options: dict[str, Any],
        resume: bool,
    ) -> MepiSet:
        """Makes or continues a set. Raises InputError for a folder of other options or, without `resume`, one in use."""
        for name in classes:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise InputError(f"the class name {printable(name)!r} cannot be a folder's")
        lock, file = _locked(folder), folder / OPTIONS
        if file.exists():
            if not resume:
                raise InputError(
                    f"{printable(folder)} already holds MEPIs: continue them with --resume, or choose another --out"
                )
            before = read_object(file)
            changed = [
                f"{key} {printable(before.get(key))} → {printable(options.get(key))}"
                for key in sorted({*before, *options} - {"run"})
                if before.get(key) != options.get(key)
            ]
            if changed:
                raise InputError(
                    f"{printable(folder)} was begun with other options: {'; '.join(changed)[:600]}. Give the same, or "
                    "another --out"
                )
        else:
            _write(file, (json.dumps(options, indent=1) + "\n").encode())
        return cls(folder, index, classes, num_levels, lock)

    @classmethod
    def open_on_other_rank(
        cls, folder: Path, index: Index, classes: tuple[str, ...], num_levels: int, rank: int
    ) -> MepiSet:
        """The set that rank 0 has opened and loaded, for another rank."""
        return cls(folder, index, classes, num_levels, None, rank)

    def load(self) -> None:
        """Reads all journals, so that what ranks of a job that ended have left is taken in. Raises RunError for a damaged one."""
        for reduction in SEARCHED:
            self.journal(reduction)

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._lock is not None:
            self._lock.close()

    def journal(self, reduction: str) -> Journal:
        """Raises RunError for a damaged one."""
        if reduction not in self._journals:
            journal = Journal(
                self.folder / PROGRESS / f"{reduction}.jsonl", len(self.index), self.num_levels, self._rank
            )
            if not self._rank:
                journal.merge_rank_parts()
            samples = journal.with_mepi()
            sizes, states = self.index.sizes(samples), journal.rows[samples]["state"]
            window = params_of_states(states, sizes, self.num_levels).window.astype(np.int64)
            still = np.flatnonzero(~np.array(REDUCTIONS[reduction]))
            if (window[:, :2] + window[:, 2:] > sizes).any() or states[:, still].any():
                raise RunError(
                    f"{printable(journal.file)} holds states that its images cannot have: remove the file to search this "
                    "reduction anew"
                )
            self._journals[reduction] = journal
        return self._journals[reduction]

    def finished(self, reduction: str, samples: Iterable[int]) -> bool:
        """Whether the summary has the reduction and every one of `samples` what its entry says."""
        return (
            self._summed(reduction, self.summaries()) and next(self.missing(reduction, samples), None) is None
        )

    def _summed(self, reduction: str, summaries: dict[str, Any]) -> bool:
        return reduction in summaries and summaries[reduction]["images"] == self.journal(reduction).complete

    def png(self, reduction: str, sample: int) -> Path:
        label = int(self.index.labels(np.array([sample]))[0])
        return self.folder / reduction / self.classes[label] / f"{sample}.png"

    def add_mepi(self, reduction: str, entry: Entry, png: bytes, seconds: float) -> None:
        """Writes a MEPI's file, then its entry: an entry promises that the file is there."""
        file = self.png(reduction, entry.sample)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, png)
        self.journal(reduction).append(entry, seconds)

    def add_without_mepi(self, reduction: str, entry: Entry, seconds: float) -> None:
        """An image turned out to have no MEPI."""
        self.png(reduction, entry.sample).unlink(missing_ok=True)
        self.journal(reduction).append(entry, seconds)

    def missing(self, reduction: str, samples: Iterable[int]) -> Iterator[int]:
        """Those of `samples` still to be searched: without an entry, unreadable so far, or whose file is not what the entry says."""
        rows, mepi, unreadable = (
            self.journal(reduction).rows,
            OUTCOMES.index("mepi"),
            OUTCOMES.index("unreadable"),
        )
        for sample in samples:
            row = rows[sample]
            searched = row["outcome"] not in (0, unreadable)
            if not searched or (
                row["outcome"] == mepi and not _has_size(self.png(reduction, sample), int(row["mepi"]))
            ):
                yield sample

    def complete(self, reduction: str, samples: list[int]) -> bool:
        """Whether every one of `samples` has an entry."""
        return bool((self.journal(reduction).rows["outcome"][samples] > 0).all())

    def entropies(self) -> npt.NDArray[np.int64]:
        """PNG bytes of originals that any reduction has measured, [images]; 0 where none has."""
        found: npt.NDArray[np.int64] = np.max([self.journal(r).rows["full"] for r in SEARCHED], axis=0)
        return found

    def finish(self, reduction: str, extra: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest of all finished reductions, this one among them, and its row of the summary, which it returns."""
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
            "returned": int(journal.rows["sent_on"].sum()),
            "encoder": encoder_name(),
            **extra,
        }
        summaries[reduction] = row
        # One whose journal has been removed is not finished any more.
        ordered = {r: summaries[r] for r in SEARCHED if self._summed(r, summaries)}
        self._write_manifest(list(ordered))
        _write(self.folder / SUMMARY, (json.dumps(ordered, indent=1) + "\n").encode())
        return row

    def summaries(self) -> dict[str, Any]:
        """The summary of each finished reduction. Raises RunError if the file is damaged."""
        file = self.folder / SUMMARY
        found = read_object(file) if file.exists() else {}
        if not set(found) <= set(SEARCHED) or not all(map(_is_summary, found.values())):
            raise RunError(f"{printable(file)} cannot be read: not a summary of reductions: remove the file")
        return found

    def _write_manifest(self, reductions: list[str]) -> None:
        partial = self.folder / f".{MANIFEST}.partial"
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for reduction in reductions:
                samples = self.journal(reduction).with_mepi()
                for start in range(0, len(samples), CHUNK):
                    writer.write_table(self._rows(reduction, samples[start : start + CHUNK]))
        sync(partial)
        partial.rename(self.folder / MANIFEST)

    def _rows(self, reduction: str, samples: Samples) -> pa.Table:
        rows = self.journal(reduction).rows[samples]
        window = params_of_states(rows["state"], self.index.sizes(samples), self.num_levels).window
        columns = [
            samples,
            self.index.paths(samples),
            self.index.labels(samples),
            [reduction] * len(rows),
            [1 / self.num_levels] * len(rows),
            *rows["state"][:, :3].T,
            *window.T,
            rows["full"],
            rows["mepi"],
            rows["mepi"] / rows["full"],
            rows["evaluations"],
            rows["confidence"],
        ]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)

    def lowest(self, reduction: str) -> int:
        """How many MEPIs stand at the lowest state: nothing that moves has a level left."""
        dimensions, samples, total = (
            np.flatnonzero(REDUCTIONS[reduction]),
            self.journal(reduction).with_mepi(),
            0,
        )
        for start in range(0, len(samples), CHUNK):
            part = samples[start : start + CHUNK]
            states, sizes = self.journal(reduction).rows[part]["state"], self.index.sizes(part)
            window = params_of_states(states, sizes, self.num_levels).window
            total += int(
                (
                    neighbors.next_levels(states[:, :3].astype(np.uint8), window, sizes, self.num_levels)[
                        :, dimensions
                    ]
                    < 0
                )
                .all(axis=1)
                .sum()
            )
        return total


def _is_summary(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and all(type(row.get(key)) is int for key in ("images", "without_mepi", "unreadable", "returned"))
        and all(
            key in row and (row[key] is None or type(row[key]) is float)
            for key in ("mean_quotient", "images_per_second", "lowest_state_share")
        )
    )


def _locked(folder: Path) -> TextIO:
    """A lock that the process holds until it ends. Raises RunError if another process builds in `folder`."""
    file = folder / LOCK
    if (
        folder.exists()
        and not (folder / OPTIONS).exists()
        and (
            not folder.is_dir()
            or any(entry.name not in (LOCK, f".{OPTIONS}.partial") for entry in folder.iterdir())
        )
    ):
        raise InputError(f"{printable(folder)} exists and is no MEPI set: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return acquire(
        file, lambda who: f"{printable(folder)} is being built by {who}: wait for it, or choose another --out"
    )


def _has_size(file: Path, size: int) -> bool:
    try:
        return os.stat(file).st_size == size
    except OSError:
        return False


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(data)
        partial.rename(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
