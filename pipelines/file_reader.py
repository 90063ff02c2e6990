"""Gives graphs the name of an image's file on the disk, and of any other its bytes, which are read here.

DALI reads files by name with as many threads as it decodes with. An object store needs many more requests at
a time than that, and a member of a tar has no name that DALI knows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from qrdali.data import storage
from qrdali.data.index import Index
from qrdali.data.inspect import MAX_BYTES

Files = list[npt.NDArray[np.uint8]]

REQUESTS = 32  # reads under way at once
AHEAD = 64  # images whose reading has begun before their batch is asked for, in whole batches
_UNDECODABLE = bytes(1)  # no decoder takes it: the diagnosis then finds out what is wrong with the file


class HasSamples(Protocol):
    """A batch, a chunk or a request: whatever a graph is given at once."""

    @property
    def samples(self) -> npt.NDArray[np.int64]: ...


Item = TypeVar("Item", bound=HasSamples)
PendingRead = tuple[Item, Callable[[], Files]]  # an item, and what waits for its files


class FileReader:
    """Reads the files of one index.

    needs_bytes: whether graphs get the files' bytes instead of their names.
    """

    def __init__(self, index: Index) -> None:
        self.index, self.needs_bytes = index, index.needs_bytes
        self._pool = ThreadPoolExecutor(REQUESTS, "read") if self.needs_bytes else None

    def __call__(self, samples: npt.NDArray[np.int64]) -> Files:
        """Returns the names or bytes of `samples` [N], N times uint8 [length]. Raises Unreachable."""
        return self.start_reading(samples)()

    def start_reading(self, samples: npt.NDArray[np.int64]) -> Callable[[], Files]:
        """Begins to read `samples` and returns a function that waits for their names or bytes."""
        if self._pool is None:
            return lambda: self.index.path_bytes(samples)
        futures = [self._pool.submit(_bytes, path.tobytes()) for path in self.index.path_bytes(samples)]
        return lambda: [future.result() for future in futures]


def read_ahead(
    reader: FileReader,
    items: Iterator[Item],
    pending_reads: deque[PendingRead[Item]],
    images: Callable[[], int],
) -> Iterator[tuple[Item, Files]]:
    """Yields each of `items` with its files.

    Where bytes are read, the reading of the next items has begun meanwhile, of `images()` images or a few
    more; these items stand in `pending_reads`.
    """
    while True:
        while not pending_reads or (
            reader.needs_bytes and sum(len(item.samples) for item, _ in pending_reads) < images()
        ):
            item = next(items, None)
            if item is None:
                break
            pending_reads.append((item, reader.start_reading(item.samples)))
        if not pending_reads:
            return
        item, wait_for_files = pending_reads.popleft()
        yield item, wait_for_files()


def _bytes(path: bytes) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(storage.whole(path.decode(), MAX_BYTES) or _UNDECODABLE, np.uint8)
    except (OSError, ValueError):  # Unreachable is neither
        return np.frombuffer(_UNDECODABLE, np.uint8)
