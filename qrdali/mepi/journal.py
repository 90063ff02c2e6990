"""The journal of a MEPI search: a line of JSON per image, from which all else of a set follows."""

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
from qrdali.mepi.search_path import FULL_STATE, FailedStep, ReductionState, SearchPath
from qrdali.reduction.quality import LevelScale

READ_BACK = "wrong when read back"
OUTCOMES = ("", "mepi", "wrong", "unreadable")  # by number in `Journal.rows`
_LONGEST = 1 << 20  # bytes of a line; a state takes about 30
_KEY_ON_DISK = {"states": "path", "forbidden": "struck"}  # where a key differs from the field's name
ROW = np.dtype(
    [
        ("outcome", np.uint8),
        ("state", np.int32, 5),
        ("confidence", np.float64),
        ("evaluations", np.int64),
        ("full", np.int64),
        ("mepi", np.int64),
        ("backtracked", np.bool_),
        ("offset", np.int64),
        # What is one step further: its state, the answer there, -1 where there is none, and its confidence.
        ("failed_state", np.int32, 5),
        ("failed_answer", np.int32),
        ("failed_confidence", np.float32),
    ]
)


@dataclass(frozen=True)
class Entry:
    """Says what became of one image.

    outcome: "mepi", "wrong" (at full quality, or read back from disk) or "unreadable"; `why` holds the reason
    of the last two. states, confidence, forbidden, evaluations, failed_step: as of a `SearchPath`; journals
    begun by earlier versions have no failed step. full, mepi: PNG bytes of the original and of the MEPI.
    """

    sample: int
    outcome: str
    states: tuple[ReductionState, ...] = ()
    confidence: tuple[float, ...] = ()
    forbidden: tuple[ReductionState, ...] = ()
    evaluations: int = 0
    full: int = 0
    mepi: int = 0
    why: str = ""
    failed_step: FailedStep | None = None

    @property
    def state(self) -> ReductionState:
        """Returns the state where the search ended."""
        return self.states[-1] if self.states else FULL_STATE


def entry_of_path(path: SearchPath, full: int, mepi: int) -> Entry:
    """Returns the entry of a path that ended at a MEPI; `full` and `mepi` are PNG bytes."""
    return Entry(
        path.sample,
        "mepi",
        tuple(path.states),
        tuple(path.confidence),
        tuple(sorted(path.forbidden)),
        path.evaluations,
        full,
        mepi,
        failed_step=path.failed_step,
    )


def _to_line(entry: Entry, seconds: float) -> bytes:
    values = {_KEY_ON_DISK.get(key, key): value for key, value in asdict(entry).items()}
    return json.dumps({**values, "seconds": round(seconds, 3)}).encode() + b"\n"


def _from_values(values: dict[str, Any], count: int, scale: LevelScale) -> Entry:
    """Returns the entry of a line's values.

    Raises ValueError, KeyError or TypeError for values that `_to_line` cannot have written.
    """

    def states(key: str) -> tuple[ReductionState, ...]:
        return tuple(_to_state(state, key, scale) for state in values[key])

    entry = Entry(
        _to_count(values["sample"]),
        str(values["outcome"]),
        states("path"),
        tuple(map(float, values["confidence"])),
        states("struck"),
        _to_count(values["evaluations"]),
        _to_count(values["full"]),
        _to_count(values["mepi"]),
        str(values["why"]),
        _to_failed_step(values.get("failed_step"), scale),
    )
    if entry.sample >= count or entry.outcome not in OUTCOMES[1:]:
        raise ValueError(f"sample {entry.sample} of {count}, outcome {printable(entry.outcome)[:20]!r}")
    if entry.outcome == "mepi" and (len(entry.confidence) != len(entry.states) + 1 or entry.full < 1):
        raise ValueError(
            f"sample {entry.sample} has {len(entry.states)} steps and {len(entry.confidence)} confidences"
        )
    return entry


def _to_state(value: Any, key: str, scale: LevelScale) -> ReductionState:
    state = ReductionState(*map(_to_count, value))
    if max(state[:3]) >= scale.count or max(state) >= 1 << 31:
        raise ValueError(f"{key} has states outside the step's levels")
    return state


def _to_failed_step(value: Any, scale: LevelScale) -> FailedStep | None:
    if value is None:
        return None
    state, answer, *shares = value
    confidence, probability = map(float, shares)
    if not 0 <= confidence <= 1 or not 0 <= probability <= 1 or _to_count(answer) >= 1 << 31:
        raise ValueError("failed_step is not an answer with its probabilities")
    return FailedStep(_to_state(state, "failed_step", scale), answer, confidence, probability)


def _to_count(value: Any) -> int:
    # type() and not isinstance(): JSON's true is an int to Python.
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{printable(value)[:20]} is not a count")
    return value


def _complete_lines(file: Path, start: int, number: int, read: Callable[[bytes], None]) -> Iterator[bytes]:
    """Yields a journal's lines from byte `start`, its line `number` (from 0), once `read` accepts them.

    A last line that is cut short ends them. Raises RunError for a damaged one.
    """
    if not file.is_file():
        raise RunError(f"{printable(file)} is not a file")
    with open(file, "rb") as lines:
        lines.seek(start)
        for count, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), number + 1):
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                return
            try:
                read(line)
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError, OverflowError) as error:
                raise RunError(
                    f"{printable(file)} line {count} is damaged ({printable(error)[:120]}): remove the file "
                    "to search this reduction anew"
                ) from None
            yield line


class Journal:
    """Holds one reduction's entries, a line of JSON each, of which the newest of a sample counts.

    rows: `ROW` [images], what the manifest needs of each, so that memory is 90 bytes an image; the rest is
    read from the file again. backtracked: the image was wrong when read back. session: seconds of the current
    session.

    Of several ranks, the first writes the file; each of the others writes a part beside it. Between passes
    the first merges the parts into the file, and all read what has come to it.
    """

    def __init__(self, file: Path, count: int, scale: LevelScale, rank: int = 0) -> None:
        """Reads what is there; a last line cut short is dropped. Raises RunError for a damaged one."""
        self.file, self.rows, self.session = file, np.zeros(count, ROW), 0.0
        self._scale = scale
        self._seconds_before = 0.0  # of the sessions before
        self._end, self._lines = 0, 0  # bytes and lines that are read
        self._part = file.with_suffix(f".{rank}.jsonl") if rank else None
        self._out: BinaryIO | None = None
        self.reload()
        self._seconds_before, self.session = self._seconds_before + self.session, 0.0

    def reload(self) -> None:
        """Reads what has been appended to the file since. Raises RunError for a damaged line."""
        if self.file.exists():
            for line in _complete_lines(self.file, self._end, self._lines, self._read):
                self._end, self._lines = self._end + len(line), self._lines + 1

    def merge_rank_parts(self) -> None:
        """Appends the entries of all parts to the file and removes the parts.

        Raises RunError for a damaged one.
        """
        parts = sorted(
            p for p in self.file.parent.glob(f"{self.file.stem}.*.jsonl") if p.name.split(".")[-2].isdecimal()
        )
        if not parts:
            return
        self._open()
        try:
            for part in parts:
                for line in _complete_lines(part, 0, 0, self._read):
                    self._write_line(line)
            sync(self.file)
        finally:
            self.close()
        for part in parts:
            part.unlink()

    def _read(self, line: bytes) -> None:
        values = json.loads(line)
        if "begin" in values:
            self._seconds_before, self.session = self._seconds_before + self.session, 0.0
            return
        seconds = float(values.pop("seconds"))
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError("seconds")
        self._add(_from_values(values, len(self.rows), self._scale), self._end)
        self.session = max(self.session, seconds)

    @property
    def seconds(self) -> float:
        """Returns the seconds of all sessions, the current one up to its last entry or `session`."""
        return self._seconds_before + self.session

    @property
    def complete(self) -> int:
        """Returns how many images have an entry."""
        return int((self.rows["outcome"] > 0).sum())

    def _add(self, entry: Entry, offset: int) -> None:
        failed = entry.failed_step
        self.rows[entry.sample] = (
            OUTCOMES.index(entry.outcome),
            entry.state,
            entry.confidence[-1] if entry.confidence else 0.0,
            entry.evaluations,
            entry.full,
            entry.mepi,
            bool(entry.forbidden) or entry.why == READ_BACK,
            offset,
            *((failed.state, failed.answer, failed.confidence) if failed else (FULL_STATE, -1, 0.0)),
        )

    def entry(self, sample: int) -> Entry:
        """Reads a sample's newest entry from the file. Raises KeyError if it has none."""
        if not self.rows[sample]["outcome"]:
            raise KeyError(sample)
        with open(self.file, "rb") as lines:
            lines.seek(int(self.rows[sample]["offset"]))
            values = json.loads(lines.readline())
        values.pop("seconds")
        return _from_values(values, len(self.rows), self._scale)

    def begin(self) -> None:
        """Opens the journal for a session."""
        if self._part is None:
            self._open()
            self._write_line(b'{"begin": true}\n')

    def _open(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._out = open(self.file, "ab")  # noqa: SIM115
        self._out.truncate(self._end)

    def reopen(self) -> None:
        """Opens the journal again in the same session."""
        if self._part is None:
            self._open()

    def append(self, entry: Entry, seconds: float) -> None:
        """Adds an entry; `seconds` have passed in this session."""
        offset = self._end
        self._write_line(_to_line(entry, seconds))
        self._add(entry, offset)
        self.session = seconds

    def _write_line(self, line: bytes) -> None:
        if self._out is None and self._part is not None:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(self._part, "wb")  # noqa: SIM115  an older one has been merged
        assert self._out is not None
        self._out.write(line)
        self._out.flush()
        if self._part is None:
            self._end, self._lines = self._end + len(line), self._lines + 1

    def close(self) -> None:
        """Closes the file; `begin` or `reopen` opens it again."""
        if self._out is not None:
            # On a full disk the last line may not fit; it is cut off at the next start.
            with suppress(OSError):
                self._out.close()
            self._out = None

    def with_mepi(self) -> Samples:
        """Returns the samples with a MEPI, ascending, int64."""
        return np.flatnonzero(self.rows["outcome"] == OUTCOMES.index("mepi"))

    def unreadable(self) -> Samples:
        """Returns the samples that could not be read, ascending, int64."""
        return np.flatnonzero(self.rows["outcome"] == OUTCOMES.index("unreadable"))

    def count(self, outcome: str) -> int:
        """Returns how many images have this outcome, one of `OUTCOMES`."""
        return int((self.rows["outcome"] == OUTCOMES.index(outcome)).sum())

    def mean_quotient(self) -> float | None:
        """Returns the mean entropy quotient of all MEPIs so far; None where there is none."""
        rows = self.rows[self.with_mepi()]
        return float((rows["mepi"] / rows["full"]).mean()) if len(rows) else None
