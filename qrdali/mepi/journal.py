"""What a search has found so far: a line for every image, from which everything else of a MEPI set follows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qrdali.data.index import Samples
from qrdali.errors import RunError, printable
from qrdali.files.atomic import sync
from qrdali.mepi.search import FULL_STATE, ReductionState, SearchPath


@dataclass(frozen=True)
class Entry:
    """What became of one image. outcome: "mepi", "wrong" (at full quality, or read back from disk) or "unreadable", with the
    reason in `why`. path, confidence, struck, evaluations: as of a `Journey`. full, mepi: PNG bytes."""

    sample: int
    outcome: str
    path: tuple[ReductionState, ...] = ()
    confidence: tuple[float, ...] = ()
    struck: tuple[ReductionState, ...] = ()
    evaluations: int = 0
    full: int = 0
    mepi: int = 0
    why: str = ""

    @property
    def state(self) -> ReductionState:
        return self.path[-1] if self.path else FULL_STATE


def entry_of_path(journey: SearchPath, full: int, mepi: int) -> Entry:
    return Entry(
        journey.sample,
        "mepi",
        tuple(journey.path),
        tuple(journey.confidence),
        tuple(sorted(journey.forbidden)),
        journey.evaluations,
        full,
        mepi,
    )


def _entry(data: dict[str, Any], count: int, num_levels: int) -> Entry:
    """Raises ValueError, KeyError or TypeError for anything `asdict` of an Entry cannot have given."""

    def states(key: str) -> tuple[ReductionState, ...]:
        found = tuple(ReductionState(*map(_whole, state)) for state in data[key])
        if any(max(s[:3]) >= num_levels or max(s) >= 1 << 31 for s in found):
            raise ValueError(f"{key} has states outside the step's levels")
        return found

    entry = Entry(
        _whole(data["sample"]),
        str(data["outcome"]),
        states("path"),
        tuple(map(float, data["confidence"])),
        states("struck"),
        _whole(data["evaluations"]),
        _whole(data["full"]),
        _whole(data["mepi"]),
        str(data["why"]),
    )
    if entry.sample >= count or entry.outcome not in ("mepi", "wrong", "unreadable"):
        raise ValueError(f"sample {entry.sample} of {count}, outcome {printable(entry.outcome)[:20]!r}")
    if entry.outcome == "mepi" and (len(entry.confidence) != len(entry.path) + 1 or entry.full < 1):
        raise ValueError(
            f"sample {entry.sample} has {len(entry.path)} steps and {len(entry.confidence)} confidences"
        )
    return entry


def _whole_lines(file: Path, start: int, number: int, read: Callable[[bytes], None]) -> Iterator[bytes]:
    """The lines of a journal from byte `start`, its line `number` (from 0), each after `read` has taken it; not a last one cut
    short. Raises RunError for a damaged one."""
    if not file.is_file():
        raise RunError(f"{printable(file)} is no file")
    with open(file, "rb") as lines:
        lines.seek(start)
        for count, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), number + 1):
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                return
            try:
                read(line)
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError) as error:
                raise RunError(
                    f"{printable(file)} line {count} is damaged ({printable(error)[:120]}): remove the file to "
                    "search this reduction anew"
                ) from None
            yield line


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{printable(value)[:20]} is no count")
    return value


READ_BACK = "wrong when read back"
OUTCOMES = ("", "mepi", "wrong", "unreadable")  # by number in `Journal.rows`
_LONGEST = 1 << 20  # bytes of a line; a step takes about 30
ROW = np.dtype(
    [
        ("outcome", np.uint8),
        ("state", np.int32, 5),
        ("confidence", np.float64),
        ("evaluations", np.int64),
        ("full", np.int64),
        ("mepi", np.int64),
        ("sent_on", np.bool_),
        ("place", np.int64),
    ]
)


class Journal:
    """One reduction's entries, a line of JSON each; the newest of a sample counts.

    rows: `ROW` [images], what the manifest needs of each, so that memory is 62 bytes an image; the rest is read from the file
    again. sent_on: the image was wrong when read back. session: seconds of the one in hand.

    Of several ranks, the first writes the file; each of the others writes a part beside it, which the first takes in between
    passes, and all read the file on.
    """

    def __init__(self, file: Path, count: int, num_levels: int, rank: int = 0) -> None:
        """Reads what is there; a last line cut short is dropped. Raises RunError for a damaged one."""
        self.file, self.rows, self.session = file, np.zeros(count, ROW), 0.0
        self._num_levels, self._before, self._end, self._lines = (
            num_levels,
            0.0,
            0,
            0,
        )  # seconds of the sessions before; what is read: bytes, lines
        self._part = file.with_suffix(f".{rank}.jsonl") if rank else None
        self._out: BinaryIO | None = None
        self.reload()
        self._before, self.session = self._before + self.session, 0.0

    def reload(self) -> None:
        """Reads what has come to the file. Raises RunError as the beginning does."""
        if self.file.exists():
            for line in _whole_lines(self.file, self._end, self._lines, self._read):
                self._end, self._lines = self._end + len(line), self._lines + 1

    def merge_rank_parts(self) -> None:
        """The entries of all parts come to the file, and the parts go. Raises RunError for a damaged one."""
        parts = sorted(
            p for p in self.file.parent.glob(f"{self.file.stem}.*.jsonl") if p.name.split(".")[-2].isdecimal()
        )
        if not parts:
            return
        self._open()
        try:
            for part in parts:
                for line in _whole_lines(part, 0, 0, self._read):
                    self._put(line)
            sync(self.file)
        finally:
            self.close()
        for part in parts:
            part.unlink()

    def _read(self, line: bytes) -> None:
        values = json.loads(line)
        if "begin" in values:
            self._before, self.session = self._before + self.session, 0.0
            return
        seconds = float(values.pop("seconds"))
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError("seconds")
        self._add(_entry(values, len(self.rows), self._num_levels), self._end)
        self.session = max(self.session, seconds)

    @property
    def seconds(self) -> float:
        """Of all sessions, up to the last entry or to what the builder said."""
        return self._before + self.session

    @property
    def complete(self) -> int:
        """Images that have an entry."""
        return int((self.rows["outcome"] > 0).sum())

    def _add(self, entry: Entry, place: int) -> None:
        self.rows[entry.sample] = (
            OUTCOMES.index(entry.outcome),
            entry.state,
            entry.confidence[-1] if entry.confidence else 0.0,
            entry.evaluations,
            entry.full,
            entry.mepi,
            bool(entry.struck) or entry.why == READ_BACK,
            place,
        )

    def entry(self, sample: int) -> Entry:
        """A sample's newest entry, from the file. Raises KeyError if it has none."""
        if not self.rows[sample]["outcome"]:
            raise KeyError(sample)
        with open(self.file, "rb") as lines:
            lines.seek(int(self.rows[sample]["place"]))
            values = json.loads(lines.readline())
        values.pop("seconds")
        return _entry(values, len(self.rows), self._num_levels)

    def begin(self) -> None:
        """Opens the journal for a session."""
        if self._part is None:
            self._open()
            self._put(b'{"begin": true}\n')

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._out = open(self.file, "ab")  # noqa: SIM115
        self._out.truncate(self._end)

    def reopen(self) -> None:
        """Opens the journal again in the same session."""
        if self._part is None:
            self._open()

    def append(self, entry: Entry, seconds: float) -> None:
        """Adds an entry; `seconds` of this session."""
        place = self._end
        self._put(json.dumps({**asdict(entry), "seconds": round(seconds, 3)}).encode() + b"\n")
        self._add(entry, place)
        self.session = seconds

    def _put(self, line: bytes) -> None:
        if self._out is None and self._part is not None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(self._part, "wb")  # noqa: SIM115  one that was left over has been taken in
        assert self._out is not None
        self._out.write(line)
        self._out.flush()
        if self._part is None:
            self._end, self._lines = self._end + len(line), self._lines + 1

    def close(self) -> None:
        if self._out is not None:
            # On a full disk the last line may not fit; it is cut off at the next start.
            with suppress(OSError):
                self._out.close()
            self._out = None

    def with_mepi(self) -> Samples:
        """Samples with a MEPI, ascending, int64."""
        return np.flatnonzero(self.rows["outcome"] == OUTCOMES.index("mepi"))

    def unreadable(self) -> Samples:
        """Samples that could not be read, ascending, int64."""
        return np.flatnonzero(self.rows["outcome"] == OUTCOMES.index("unreadable"))

    def count(self, outcome: str) -> int:
        return int((self.rows["outcome"] == OUTCOMES.index(outcome)).sum())

    def mean_quotient(self) -> float | None:
        """Of all MEPIs so far; None where there is none."""
        rows = self.rows[self.with_mepi()]
        return float((rows["mepi"] / rows["full"]).mean()) if len(rows) else None
