"""Work of unequal size, dealt to the processes of a job as each asks."""

from __future__ import annotations

from qrdali.distributed import Counter, Ranks

AT_ONCE = 8  # numbers that a rank takes at once, while many are left


class Deal:
    """An iterator over 0 to count - 1 of which every rank gets some, each when it asks, so that all end at the same time whatever
    each takes. To be made by all ranks."""

    def __init__(self, ranks: Ranks, count: int) -> None:
        self._ranks, self._count, self._given = ranks, count, Counter(ranks)
        self._own, self._seen = range(0), 0

    def at_once(self) -> int:
        """How many numbers should be asked for together: fewer towards the end, where the others would wait for them."""
        return AT_ONCE if self._ranks.alone else max(1, min(AT_ONCE, (self._count - self._seen) // (4 * self._ranks.world)))

    def __iter__(self) -> Deal:
        return self

    def __next__(self) -> int:
        if not self._own:
            if self._seen >= self._count:
                raise StopIteration
            most = self.at_once()
            self._seen = self._given.add(most)
            self._own = range(self._seen - most, min(self._seen, self._count))
            if not self._own:
                raise StopIteration
        first, self._own = self._own[0], self._own[1:]
        return first
