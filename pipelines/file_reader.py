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
from qrdali.data.scan import MAX_BYTES

Files = list[npt.NDArray[np.uint8]]

Item = TypeVar("Item")

REQUESTS = 32  # reads under way at once
Begun = tuple[Item, "npt.NDArray[np.int64]", Callable[[], Files]]  # an item, its samples, and what waits for their files
AHEAD = 64  # images whose reading has begun before their batch is asked for, in whole batches
_NOTHING = bytes(1)  # no decoder takes it: the loader then finds out what is wrong with the file


class Reader:
    """Of one index. apart: whether graphs get bytes instead of names."""

    def __init__(self, index: Index) -> None:
        self._index, self.apart = index, index.apart
        self._pool = ThreadPoolExecutor(REQUESTS, "read") if self.apart else None

    def __call__(self, samples: npt.NDArray[np.int64]) -> Files:
        """Raises Unreachable."""
        return self.begun(samples)()

    def begun(self, samples: npt.NDArray[np.int64]) -> Callable[[], Files]:
        """Begins to read; the result waits for the end."""
        if self._pool is None:
            return lambda: self._index.path_bytes(samples)
        futures = [self._pool.submit(_bytes, path.tobytes()) for path in self._index.path_bytes(samples)]
        return lambda: [future.result() for future in futures]


def read_ahead(reader: Reader, items: Iterator[Item], samples: Callable[[Item], npt.NDArray[np.int64]], begun: deque[Begun[Item]],
               images: Callable[[], int] = lambda: AHEAD) -> Iterator[tuple[Item, Files]]:
    """Each of `items` with its files. Where bytes are read, that of the next ones has `begun` meanwhile, of `images` or a few more."""
    while True:
        while not begun or (reader.apart and sum(len(numbers) for _, numbers, _ in begun) < images()):
            following = next(items, None)
            if following is None:
                break
            numbers = samples(following)
            begun.append((following, numbers, reader.begun(numbers)))
        if not begun:
            return
        item, _, files = begun.popleft()
        yield item, files()


def _bytes(path: bytes) -> npt.NDArray[np.uint8]:
    try:
        return np.frombuffer(storage.whole(path.decode(), MAX_BYTES) or _NOTHING, np.uint8)
    except (OSError, ValueError):  # Unreachable is neither
        return np.frombuffer(_NOTHING, np.uint8)
