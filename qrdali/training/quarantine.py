"""Training images that went bad after they were indexed: named once, left out from then on; too many of them end the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from qrdali.data.index import Index
from qrdali.data.inspect import tsv_field
from qrdali.distributed import SINGLE_PROCESS, ProcessGroup
from qrdali.errors import RunError, printable
from qrdali.files import text_lines

FILE = "quarantine.tsv"
_HEAD = "epoch\tsample\tpath\treason"


class Quarantine:
    """The images that a run does without. `samples`: their numbers, sorted. The file in the run's folder is read where there is one, so
    that a run that goes on does without the same."""

    def __init__(
        self,
        run: Path,
        index: Index,
        share: float,
        warn: Callable[[str], None],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        """share: of the training images, how many may be bad; at least one may, unless it is 0. Of several `ranks`, all of which make one,
        the first reads and writes the file. Raises RunError for a damaged one."""
        self._group = group
        self._unshared: dict[int, str] = {}  # found by this rank, not yet told to the others
        self._file, self._index, self._warn, self._share = run / FILE, index, warn, share
        self._most = max(1, int(share * len(index))) if share else 0
        known = sorted(set(self._read())) if group.is_main and self._file.exists() else []
        self.samples: tuple[int, ...] = tuple(group.broadcast_object(known))

    def check(self) -> None:
        """Raises RunError if there are more than may be."""
        if len(self.samples) > self._most:
            raise RunError(
                f"{len(self.samples)} of {len(self._index)} training images cannot be read, {self._most} may (--max-bad "
                f"{self._share:.4g}), {printable(self._file)} names them: restore them and remove that file, or allow more"
            )

    def record(self, epoch: int, reasons: dict[int, str]) -> None:
        """This rank could not read these: of several, each leaves out its own until all are told."""
        if self._group.is_single:
            self.add(epoch, reasons)
        else:
            self._unshared |= reasons

    def share(self, epoch: int) -> None:
        """Tells what was `found` by any to all."""
        if not self._group.is_single:
            found, self._unshared = self._group.all_gather_object(self._unshared), {}
            self.add(epoch, {int(sample): reason for part in found for sample, reason in part.items()})

    def add(self, epoch: int, reasons: dict[int, str]) -> None:
        """Warns of each new one and writes it down. Raises RunError, naming the first, if there are now more than may be."""
        new = {sample: reason for sample, reason in reasons.items() if sample not in self.samples}
        if not new:
            return
        if not self._most:
            raise RunError(next(iter(new.values())))
        if self._group.is_main:
            self._append(epoch, new)
        for reason in new.values():
            self._warn(f"{reason}; training goes on without it")
        self.samples = tuple(sorted({*self.samples, *new}))
        self.check()

    def _append(self, epoch: int, new: dict[int, str]) -> None:
        began = self._file.exists()
        with open(self._file, "a", encoding="utf-8") as file:
            if not began:
                file.write(_HEAD + "\n")
            for sample, reason in new.items():
                path = self._index.paths(np.array([sample]))[0]
                why = reason.removeprefix(f"sample {sample}, {printable(path)}, ")
                file.write(f"{epoch}\t{sample}\t{tsv_field(path)}\t{tsv_field(why)}\n")

    def _read(self) -> list[int]:
        content = self._file.read_bytes() if self._file.is_file() else b""
        if content and not content.endswith(
            b"\n"
        ):  # killed while writing: that line is written again when the image is met again
            partial = self._file.with_suffix(".partial")
            partial.write_bytes(content[: content.rfind(b"\n") + 1])
            partial.rename(self._file)
        samples = []
        for where, text in text_lines.read_lines(self._file):
            if text == _HEAD:
                continue
            cells = text.split("\t")
            if (
                len(cells) != 4
                or not cells[1].isdecimal()
                or len(cells[1]) > 18
                or int(cells[1]) >= len(self._index)
            ):
                raise RunError(f"{where} names no training image: restore or remove the file")
            samples.append(int(cells[1]))
        return samples
