"""Values shared by all ranks: a lagged all-reduce of flags, and an atomic counter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from qrdali.distributed.error_translation import translate_errors
from qrdali.distributed.store import default_store, next_key

if TYPE_CHECKING:
    from qrdali.distributed.process_group import ProcessGroup


class LaggedMax:
    """All-reduces the maxima of a few integers, such as flags of a signal, without making any rank wait.

    Each `update` starts an asynchronous all-reduce and returns the result of the one before.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._in_flight: tuple[torch.Tensor, Any] | None = None

    def update(self, *values: int) -> tuple[int, ...]:
        """Returns the maxima of the *previous* call (zeros on the first), so that no rank waits. Collective.

        A single process gets `values` themselves.
        """
        if self._group.is_single:
            return values
        previous = self.flush() or (0,) * len(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        with translate_errors(self._group):
            work = distributed.all_reduce(tensor, distributed.ReduceOp.MAX, async_op=True)
        self._in_flight = tensor, work
        return previous

    def flush(self) -> tuple[int, ...]:
        """Waits for the all-reduce in flight and returns its maxima; () if there is none.

        Collective: all ranks call it where no `update` follows.
        """
        if self._in_flight is None:
            return ()
        tensor, work = self._in_flight
        self._in_flight = None
        with translate_errors(self._group):
            work.wait()
        return tuple(tensor.tolist())


class SharedCounter:
    """A sum to which every rank adds, atomically and whenever it likes.

    All ranks construct their counters in the same order; `add` is not collective.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._sum = 0
        self._key = next_key("counter")

    def add(self, amount: int) -> int:
        """Adds `amount` and returns the sum of what all ranks have added so far."""
        if self._group.is_single:
            self._sum += amount
            return self._sum
        with translate_errors(self._group):
            return int(default_store().add(self._key, amount))
