"""Items of unequal cost, taken from a common queue by the ranks of a job."""

from __future__ import annotations

from qrdali.distributed.counters import SharedCounter
from qrdali.distributed.process_group import ProcessGroup

MAX_CHUNK = 8  # items that a rank takes at once, while many remain


class WorkQueue:
    """An iterator over 0 to count - 1 that gives each number to one rank, when that rank asks for it.

    So all ranks end at about the same time, whatever each item costs. All ranks construct it in the same
    order (it makes a SharedCounter); iterating is not collective.
    """

    def __init__(self, group: ProcessGroup, count: int) -> None:
        self._group = group
        self._count = count
        self._taken = SharedCounter(group)
        self._taken_seen = 0
        self._chunk = range(0)

    def chunk_size(self) -> int:
        """Returns how many items to take at once; fewer towards the end, so that no rank waits long."""
        if self._group.is_single:
            return MAX_CHUNK
        remaining = self._count - self._taken_seen
        return max(1, min(MAX_CHUNK, remaining // (4 * self._group.world_size)))

    def __iter__(self) -> WorkQueue:
        return self

    def __next__(self) -> int:
        if not self._chunk:
            if self._taken_seen >= self._count:
                raise StopIteration
            size = self.chunk_size()
            self._taken_seen = self._taken.add(size)
            self._chunk = range(self._taken_seen - size, min(self._taken_seen, self._count))
            if not self._chunk:
                raise StopIteration
        item = self._chunk[0]
        self._chunk = self._chunk[1:]
        return item
