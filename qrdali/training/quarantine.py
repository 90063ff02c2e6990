"""Training images that went bad after they were indexed: named once, left out from then on; too many end the
run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from qrdali.data.index import Index
from qrdali.data.inspect import tsv_field
from qrdali.errors import RunError, Unreadable, printable
from qrdali.files import text_lines
from qrdali.files.atomic import write_whole
from qrdali.interfaces import RunContext

FILE = "quarantine.tsv"
_HEAD = "epoch\tsample\tpath\treason"
T = TypeVar("T")


class Quarantine:
    """Holds the images that a run does without. samples: their numbers, sorted.

    The file in the run's folder is read where there is one, so that a resumed run does without the same
    images. Rank 0 reads and writes it; every rank constructs a Quarantine (collective)."""

    samples: tuple[int, ...]

    def __init__(self, run: Path, index: Index, max_share: float, context: RunContext) -> None:
        """Reads the file. Raises RunError for a damaged one.

        max_share: how many of the training images may be bad; at least one may, unless it is 0.
        """
        self._group, self._warn = context.group, context.listener.warn
        self._unshared: dict[int, str] = {}  # what this rank could not read and the others do not know yet
        self._file, self._index, self._max_share = run / FILE, index, max_share
        self._max_count = max(1, int(max_share * len(index))) if max_share else 0
        known = sorted(set(self._read())) if self._group.is_main and self._file.exists() else []
        known = self._group.broadcast_object(known)
        self.samples = tuple(known)

    def check(self) -> None:
        """Raises RunError if more images are bad than may be."""
        if len(self.samples) > self._max_count:
            raise RunError(
                f"{len(self.samples)} of {len(self._index)} training images cannot be read, "
                f"{self._max_count} may "
                f"(--max-bad {self._max_share:.4g}), {printable(self._file)} names them: restore them "
                "and remove that file, or allow more"
            )

    def record(self, epoch: int, reasons: dict[int, str]) -> None:
        """Adds images that this rank could not read, by sample number. Other ranks learn of them by
        `share`."""
        if self._group.is_single:
            self.add(epoch, reasons)
        else:
            self._unshared |= reasons

    def share(self, epoch: int) -> None:
        """Adds on all ranks what any of them has recorded. Collective."""
        if self._group.is_single:
            return
        reasons_by_rank = self._group.all_gather_object(self._unshared)
        self._unshared = {}
        self.add(epoch, {int(sample): reason for part in reasons_by_rank for sample, reason in part.items()})

    def replay_without(self, epoch: int, work: Callable[[tuple[int, ...]], T]) -> T:
        """Returns the result of `work`, called with the samples to leave out, and called again after each bad
        file.

        `work` raises Unreadable, the same on all ranks, with nothing done; those images are then added.
        """
        while True:
            try:
                return work(self.samples)
            except Unreadable as error:
                self.add(epoch, error.reasons)

    def add(self, epoch: int, reasons: dict[int, str]) -> None:
        """Warns of each new image and writes it down, the same on all ranks.

        Raises RunError if there are now more than may be; where none may, the error is the first image's
        reason."""
        new = {sample: reason for sample, reason in reasons.items() if sample not in self.samples}
        if not new:
            return
        if not self._max_count:
            raise RunError(next(iter(new.values())))
        if self._group.is_main:
            self._append(epoch, new)
        for reason in new.values():
            self._warn(f"{reason}; training goes on without it")
        self.samples = tuple(sorted({*self.samples, *new}))
        self.check()

    def _append(self, epoch: int, new: dict[int, str]) -> None:
        exists = self._file.exists()
        with open(self._file, "a", encoding="utf-8") as file:
            if not exists:
                file.write(_HEAD + "\n")
            for sample, reason in new.items():
                path = self._index.paths(np.array([sample]))[0]
                why = reason.removeprefix(f"sample {sample}, {printable(path)}, ")
                file.write(f"{epoch}\t{sample}\t{tsv_field(path)}\t{tsv_field(why)}\n")

    def _read(self) -> list[int]:
        """Returns the sample numbers in the file. Raises RunError for a line that is none of the file's."""
        self._drop_partial_line()
        samples = []
        for where, text in text_lines.read_lines(self._file):
            if text == _HEAD:
                continue
            cells = text.split("\t")
            if len(cells) != 4 or not self._is_sample(cells[1]):
                raise RunError(f"{where} names no training image: restore or remove the file")
            samples.append(int(cells[1]))
        return samples

    def _is_sample(self, text: str) -> bool:
        # Python converts no number of thousands of digits.
        return text.isdecimal() and len(text) <= 18 and int(text) < len(self._index)

    def _drop_partial_line(self) -> None:
        """Drops a line that a kill has cut: it is written again when its image is met again."""
        content = self._file.read_bytes() if self._file.is_file() else b""
        if content and not content.endswith(b"\n"):
            write_whole(self._file, content[: content.rfind(b"\n") + 1])
