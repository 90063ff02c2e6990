"""Numbers that all ranks have together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from qrdali.distributed import speech
from qrdali.distributed.speech import spoken

if TYPE_CHECKING:
    from qrdali.distributed.process_group import Ranks


class Agreement:
    """Numbers of which all ranks get the largest, one call later, so that nobody waits for it: flags such as a signal to stop."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._flying: tuple[torch.Tensor, Any] | None = None

    def largest(self, *values: int) -> tuple[int, ...]:
        """Of the call before; zeros at the first. Alone: `values` themselves."""
        if self._ranks.alone:
            return values
        found = self.settled() or (0,) * len(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        with spoken(self._ranks):
            self._flying = tensor, distributed.all_reduce(tensor, distributed.ReduceOp.MAX, async_op=True)
        return found

    def settled(self) -> tuple[int, ...]:
        """What is under way, waited for: to be called by all ranks when no call of `largest` follows. Empty if there is nothing."""
        if self._flying is None:
            return ()
        tensor, work = self._flying
        self._flying = None
        with spoken(self._ranks):
            work.wait()
        return tuple(tensor.tolist())


class Counter:
    """A number that all ranks share; to be made by all, in the same order as others."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._sum = ranks, 0
        self._key = f"counter-{next(speech.numbers)}"

    def add(self, amount: int) -> int:
        """The sum of what all ranks have added, with this."""
        if self._ranks.alone:
            self._sum += amount
            return self._sum
        with spoken(self._ranks):
            return int(speech.store().add(self._key, amount))
