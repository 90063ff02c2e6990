"""What a graph is given of an image's file: its name, for files on the disk; its bytes, read here, for all others.

DALI reads files by name with as many threads as it decodes with. An object store needs many more requests at a time than that, and a member
of a tar has no name that DALI knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from qrdali.data import storage
from qrdali.data.index import Index
from qrdali.data.inspect import MAX_BYTES

Files = list[npt.NDArray[np.uint8]]

Item = TypeVar("Item")

REQUESTS = 32  # reads under way at once
PendingRead = tuple[
    Item, "npt.NDArray[np.int64]", Callable[[], Files]
]  # an item, its samples, and what waits for their files
AHEAD = 64  # images whose reading has begun before their batch is asked for, in whole batches
_NOTHING = bytes(1)  # no decoder takes it: the loader then finds out what is wrong with the file


class FileReader:
    """Of one index. apart: whether graphs get bytes instead of names."""

    def __init__(self, index: Index) -> None:
        self._index, self.needs_bytes = index, index.needs_bytes
        self._pool = ThreadPoolExecutor(REQUESTS, "read") if self.needs_bytes else None

    def __call__(self, samples: npt.NDArray[np.int64]) -> Files:
        """Raises Unreachable."""
        return self.start_reading(samples)()

    def start_reading(self, samples: npt.NDArray[np.int64]) -> Callable[[], Files]:
        """Begins to read; the result waits for the end."""
        if self._pool is None:
            return lambda: self._index.path_bytes(samples)
        futures = [self._pool.submit(_bytes, path.tobytes()) for path in self._index.path_bytes(samples)]
        return lambda: [future.result() for future in futures]


def read_ahead(
    reader: FileReader,
    items: Iterator[Item],
    samples: Callable[[Item], npt.NDArray[np.int64]],
    pending_reads: deque[PendingRead[Item]],
    images: Callable[[], int] = lambda: AHEAD,
) -> Iterator[tuple[Item, Files]]:
    """Each of `items` with its files. Where bytes are read, that of the next ones has `begun` meanwhile, of `images` or a few more."""
    while True:
        while not pending_reads or (
            reader.needs_bytes and sum(len(numbers) for _, numbers, _ in pending_reads) < images()
        ):
            following = next(items, None)
            if following is None:
                break
            numbers = samples(following)
            pending_reads.append((following, numbers, reader.start_reading(numbers)))
        if not pending_reads:
            return
        item, _, files = pending_reads.popleft()
        yield item, files()


def _bytes(path: bytes) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(storage.whole(path.decode(), MAX_BYTES) or _NOTHING, np.uint8)
    except (OSError, ValueError):  # Unreachable is neither
        return np.frombuffer(_NOTHING, np.uint8)
