"""Numbers that all ranks have together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from qrdali.distributed import speech
from qrdali.distributed.speech import translate_errors

if TYPE_CHECKING:
    from qrdali.distributed.process_group import ProcessGroup


class LaggedMax:
    """Numbers of which all ranks get the largest, one call later, so that nobody waits for it: flags such as a signal to stop."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._in_flight: tuple[torch.Tensor, Any] | None = None

    def update(self, *values: int) -> tuple[int, ...]:
        """Of the call before; zeros at the first. Alone: `values` themselves."""
        if self._group.is_single:
            return values
        found = self.flush() or (0,) * len(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        with translate_errors(self._group):
            self._in_flight = tensor, distributed.all_reduce(tensor, distributed.ReduceOp.MAX, async_op=True)
        return found

    def flush(self) -> tuple[int, ...]:
        """What is under way, waited for: to be called by all ranks when no call of `largest` follows. Empty if there is nothing."""
        if self._in_flight is None:
            return ()
        tensor, work = self._in_flight
        self._in_flight = None
        with translate_errors(self._group):
            work.wait()
        return tuple(tensor.tolist())


class SharedCounter:
    """A number that all ranks share; to be made by all, in the same order as others."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group, self._sum = group, 0
        self._key = f"counter-{next(speech.store_key_numbers)}"

    def add(self, amount: int) -> int:
        """The sum of what all ranks have added, with this."""
        if self._group.is_single:
            self._sum += amount
            return self._sum
        with translate_errors(self._group):
            return int(speech.default_store().add(self._key, amount))
