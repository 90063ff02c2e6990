"""How often a run is saved within an epoch: --save-every, parsed once."""

from __future__ import annotations

import time
from dataclasses import dataclass

from qrdali.errors import InputError


@dataclass(frozen=True)
class SaveInterval:
    """Says when `last/` is due within an epoch: every `steps` steps, or every `seconds`; never if both are
    None."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> SaveInterval:
        """Returns the interval that `text` means: "500" steps, "10m" minutes, "" never. Raises InputError for
        others."""
        if not text:
            return cls()
        number = text.removesuffix("m")
        if not number.isdecimal() or not int(number):
            raise InputError(
                f"--save-every is {text!r}: give a number of steps such as 500, or minutes such as 10m"
            )
        return cls(seconds=60.0 * int(number)) if text.endswith("m") else cls(steps=int(number))


class SaveTimer:
    """Tells at each step of one epoch whether a save is due by `interval`.

    keeps_time: whether this process counts the seconds. One process does for all: their clocks would
    disagree."""

    def __init__(self, interval: SaveInterval, keeps_time: bool) -> None:
        self._interval, self._keeps_time, self._last = interval, keeps_time, time.monotonic()

    def due(self, step: int) -> bool:
        """Returns whether a save is due after `step` steps of the epoch. A due minute begins the next one."""
        if self._interval.seconds and self._keeps_time:
            now = time.monotonic()
            if now - self._last >= self._interval.seconds:
                self._last = now
                return True
        return bool(self._interval.steps and step % self._interval.steps == 0)
