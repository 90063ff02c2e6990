"""Work of unequal size, dealt to the processes of a job as each asks."""

from __future__ import annotations

from qrdali.distributed import ProcessGroup, SharedCounter

MAX_CHUNK = 8  # numbers that a rank takes at once, while many are left


class WorkQueue:
    """An iterator over 0 to count - 1 of which every rank gets some, each when it asks, so that all end at the same time whatever
    each takes. To be made by all ranks."""

    def __init__(self, group: ProcessGroup, count: int) -> None:
        self._group, self._count, self._given = group, count, SharedCounter(group)
        self._own, self._seen = range(0), 0

    def chunk_size(self) -> int:
        """How many numbers should be asked for together: fewer towards the end, where the others would wait for them."""
        return (
            MAX_CHUNK
            if self._group.is_single
            else max(1, min(MAX_CHUNK, (self._count - self._seen) // (4 * self._group.world_size)))
        )

    def __iter__(self) -> WorkQueue:
        return self

    def __next__(self) -> int:
        if not self._own:
            if self._seen >= self._count:
                raise StopIteration
            most = self.chunk_size()
            self._seen = self._given.add(most)
            self._own = range(self._seen - most, min(self._seen, self._count))
            if not self._own:
                raise StopIteration
        first, self._own = self._own[0], self._own[1:]
        return first
