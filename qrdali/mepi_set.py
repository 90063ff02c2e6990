"""A MEPI set on disk: PNG files, a journal per reduction from which everything else follows, the manifest and the summary."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qrdali import descent
from qrdali.checkpoint import sync
from qrdali.data.index import Index
from qrdali.entropy import encoder
from qrdali.errors import InputError, RunError, printable
from qrdali.mepi import FULL, Journey, State, reduction_of
from qrdali.quality import REDUCTIONS

SEARCHED = ("color", "crop", "resolution", "combination")
OPTIONS, PROGRESS, MANIFEST, SUMMARY = "options.json", ".progress", "manifest.parquet", "summary.json"

_FIELDS: list[Any] = [
    ("sample", pa.int64()), ("path", pa.string()), ("label", pa.int32()), ("reduction", pa.string()), ("step", pa.float64()),
    ("color_level", pa.int32()), ("crop_level", pa.int32()), ("resolution_level", pa.int32()), ("top", pa.int32()), ("left", pa.int32()),
    ("height", pa.int32()), ("width", pa.int32()), ("entropy_full", pa.int64()), ("entropy_mepi", pa.int64()), ("quotient", pa.float64()),
    ("evaluations", pa.int64()), ("confidence", pa.float64())]
SCHEMA = pa.schema(_FIELDS)


@dataclass(frozen=True)
class Entry:
    """What became of one image. outcome: "mepi", "wrong" (at full quality, or read back from disk) or "unreadable", with the
    reason in `why`. path, confidence, struck, evaluations: as of a `Journey`. full, mepi: PNG bytes."""

    sample: int
    outcome: str
    path: tuple[State, ...] = ()
    confidence: tuple[float, ...] = ()
    struck: tuple[State, ...] = ()
    evaluations: int = 0
    full: int = 0
    mepi: int = 0
    why: str = ""

    @property
    def state(self) -> State:
        return self.path[-1] if self.path else FULL


def entry_of(journey: Journey, full: int, mepi: int) -> Entry:
    return Entry(journey.sample, "mepi", tuple(journey.path), tuple(journey.confidence), tuple(sorted(journey.struck)),
                 journey.evaluations, full, mepi)


def _entry(data: dict[str, Any], count: int, n: int) -> Entry:
    """Raises ValueError, KeyError or TypeError for anything `asdict` of an Entry cannot have given."""
    def states(key: str) -> tuple[State, ...]:
        found = tuple(tuple(map(_whole, state)) for state in data[key])
        if any(len(s) != 5 or max(s[:3]) >= n for s in found):
            raise ValueError(f"{key} has states outside the step's levels")
        return found  # type: ignore[return-value]

    entry = Entry(_whole(data["sample"]), str(data["outcome"]), states("path"), tuple(map(float, data["confidence"])), states("struck"),
                  _whole(data["evaluations"]), _whole(data["full"]), _whole(data["mepi"]), str(data["why"]))
    if entry.sample >= count or entry.outcome not in ("mepi", "wrong", "unreadable"):
        raise ValueError(f"sample {entry.sample} of {count}, outcome {printable(entry.outcome)[:20]!r}")
    if entry.outcome == "mepi" and (len(entry.confidence) != len(entry.path) + 1 or entry.full < 1):
        raise ValueError(f"sample {entry.sample} has {len(entry.path)} steps and {len(entry.confidence)} confidences")
    return entry


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{printable(value)[:20]} is no count")
    return value


class Journal:
    """One reduction's entries, a line of JSON each; the newest of a sample counts. session: seconds of the one in hand."""

    def __init__(self, file: Path, count: int, n: int) -> None:
        """Reads what is there; a last line cut short is dropped. Raises RunError for a damaged one."""
        self.file, self.entries, self.returned, self.session = file, dict[int, Entry](), 0, 0.0
        self._before = 0.0  # seconds of the sessions before
        self._out: TextIO | None = None
        data = file.read_bytes() if file.exists() else b""
        whole = data.rfind(b"\n") + 1
        self._whole = whole
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                values = json.loads(line)
                if "begin" in values:
                    self._before, self.session = self._before + self.session, 0.0
                    continue
                self.session = float(values.pop("seconds"))
                if not math.isfinite(self.session) or self.session < 0:
                    raise ValueError("seconds")
                self._add(_entry(values, count, n))
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
                raise RunError(f"{printable(file)} line {number} is damaged ({printable(error)[:120]}): remove the file to search "
                               "this reduction anew") from None
        self._before, self.session = self._before + self.session, 0.0

    @property
    def seconds(self) -> float:
        """Of all sessions, up to the last entry or to what the builder said."""
        return self._before + self.session

    def _add(self, entry: Entry) -> None:
        before = self.entries.get(entry.sample)
        self.returned += before is not None
        self.entries[entry.sample] = entry

    def begin(self) -> None:
        """Opens the journal for a session."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._out = open(self.file, "a", encoding="utf-8")  # noqa: SIM115
        self._out.truncate(self._whole)
        self._out.write('{"begin": true}\n')

    def append(self, entry: Entry, seconds: float) -> None:
        """Adds an entry; `seconds` of this session."""
        assert self._out is not None
        self._add(entry)
        self.session = seconds
        self._out.write(json.dumps({**asdict(entry), "seconds": round(seconds, 3)}) + "\n")
        self._out.flush()

    def close(self) -> None:
        if self._out is not None:
            # On a full disk the last line may not fit; it is cut off at the next start.
            with suppress(OSError):
                self._out.close()
            self._out = None

    def mepis(self) -> Iterator[Entry]:
        """Entries with a MEPI, by sample."""
        return (self.entries[s] for s in sorted(self.entries) if self.entries[s].outcome == "mepi")


@dataclass
class MepiSet:
    """A folder for the MEPIs of one split by one run. n: of the step 1/n. `limit` samples at most have been searched."""

    folder: Path
    index: Index
    classes: tuple[str, ...]
    n: int
    _journals: dict[str, Journal] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, index: Index, classes: tuple[str, ...], n: int, options: dict[str, Any], resume: bool) -> MepiSet:
        """Makes or continues a set. Raises InputError for a folder of other options or, without `resume`, one in use."""
        for name in classes:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise InputError(f"the class name {printable(name)!r} cannot be a folder's")
        file = folder / OPTIONS
        if file.exists():
            if not resume:
                raise InputError(f"{printable(folder)} already holds MEPIs: continue them with --resume, or choose another --out")
            try:
                before = json.loads(file.read_text("utf-8"))
                changed = [f"{key} {printable(before.get(key))} → {printable(options.get(key))}"
                           for key in sorted({*before, *options}) if before.get(key) != options.get(key)]
            except (OSError, ValueError, RecursionError, AttributeError) as error:
                raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None
            if changed:
                raise InputError(f"{printable(folder)} was begun with other options: {'; '.join(changed)[:600]}. Give the same, or "
                                 "another --out")
        else:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise InputError(f"{printable(folder)} exists and is no MEPI set: choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            _write(file, (json.dumps(options, indent=1) + "\n").encode())
        return cls(folder, index, classes, n)

    def journal(self, reduction: str) -> Journal:
        if reduction not in self._journals:
            self._journals[reduction] = Journal(self.folder / PROGRESS / f"{reduction}.jsonl", len(self.index), self.n)
        return self._journals[reduction]

    def png(self, reduction: str, sample: int) -> Path:
        label = int(self.index.labels(np.array([sample]))[0])
        return self.folder / reduction / self.classes[label] / f"{sample}.png"

    def keep(self, reduction: str, entry: Entry, png: bytes, seconds: float) -> None:
        """Writes a MEPI's file, then its entry: an entry promises that the file is there."""
        file = self.png(reduction, entry.sample)
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, png)
        self.journal(reduction).append(entry, seconds)

    def drop(self, reduction: str, entry: Entry, seconds: float) -> None:
        """An image turned out to have no MEPI."""
        self.png(reduction, entry.sample).unlink(missing_ok=True)
        self.journal(reduction).append(entry, seconds)

    def missing(self, reduction: str, samples: Iterator[int]) -> Iterator[int]:
        """Those of `samples` still to be searched: without an entry, or whose file is not what the entry says."""
        entries = self.journal(reduction).entries
        for sample in samples:
            entry = entries.get(sample)
            if entry is None or (entry.outcome == "mepi" and not _has_size(self.png(reduction, sample), entry.mepi)):
                yield sample

    def entropies(self) -> dict[int, int]:
        """PNG bytes of originals that any reduction has measured."""
        return {e.sample: e.full for r in SEARCHED for e in self.journal(r).entries.values() if e.full}

    def finish(self, reduction: str, extra: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest of all finished reductions, this one among them, and its row of the summary, which it returns."""
        journal = self.journal(reduction)
        journal.close()
        summaries = self.summaries()
        outcomes = [e.outcome for e in journal.entries.values()]
        quotients = [e.mepi / e.full for e in journal.mepis()]
        row: dict[str, Any] = {
            "images": len(outcomes), "without_mepi": outcomes.count("wrong"), "unreadable": outcomes.count("unreadable"),
            "mean_quotient": math.fsum(quotients) / len(quotients) if quotients else None, "seconds": round(journal.seconds, 3),
            "images_per_second": round(len(outcomes) / journal.seconds, 3) if journal.seconds else None,
            "evaluations": sum(e.evaluations for e in journal.entries.values()), "returned": journal.returned,
            "encoder": encoder(), **extra}
        summaries[reduction] = row
        ordered = {r: summaries[r] for r in SEARCHED if r in summaries}
        self._write_manifest(list(ordered))
        _write(self.folder / SUMMARY, (json.dumps(ordered, indent=1) + "\n").encode())
        return row

    def summaries(self) -> dict[str, Any]:
        """The summary of each finished reduction. Raises RunError if the file is damaged."""
        file = self.folder / SUMMARY
        try:
            found = json.loads(file.read_text("utf-8")) if file.exists() else {}
            if not isinstance(found, dict) or not set(found) <= set(SEARCHED):
                raise ValueError("not a summary of reductions")
            return found
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None

    def _write_manifest(self, reductions: list[str]) -> None:
        partial = self.folder / f".{MANIFEST}.partial"
        with pq.ParquetWriter(partial, SCHEMA) as writer:
            for reduction in reductions:
                entries = list(self.journal(reduction).mepis())
                for start in range(0, len(entries), 65_536):
                    writer.write_table(self._rows(reduction, entries[start:start + 65_536]))
        sync(partial)
        partial.rename(self.folder / MANIFEST)

    def _rows(self, reduction: str, entries: list[Entry]) -> pa.Table:
        samples = np.array([e.sample for e in entries], np.int64)
        states = np.array([e.state for e in entries], np.int64).reshape(-1, 5)
        window = reduction_of((e.state for e in entries), self.index.sizes(samples), self.n).window
        columns = [samples, self.index.paths(samples), self.index.labels(samples), [reduction] * len(entries), [1 / self.n] * len(entries),
                   *states[:, :3].T, *window.T, [e.full for e in entries], [e.mepi for e in entries], [e.mepi / e.full for e in entries],
                   [e.evaluations for e in entries], [e.confidence[-1] for e in entries]]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)

    def lowest(self, reduction: str) -> int:
        """How many MEPIs stand at the lowest state: nothing that moves has a level left."""
        moving = np.flatnonzero(REDUCTIONS[reduction])
        total, entries = 0, list(self.journal(reduction).mepis())
        for start in range(0, len(entries), 65_536):
            part = entries[start:start + 65_536]
            sizes = self.index.sizes(np.array([e.sample for e in part], np.int64))
            levels = np.array([e.state[:3] for e in part], np.uint8).reshape(-1, 3)
            window = reduction_of((e.state for e in part), sizes, self.n).window
            total += int((descent.next_levels(levels, window, sizes, self.n)[:, moving] < 0).all(axis=1).sum())
        return total


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
