"""Replays what was in flight when a file failed: the one mechanism of all loaders.

DALI reads several batches ahead, names no file when one fails, and its pipeline does not survive the error.
So a source remembers what is in flight; after an error the culprits are looked for among that, the pipeline
is built anew, and what was in flight comes once more without them, then the rest: every other image comes
once, in its batch and in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from qrdali.errors import Unreadable
from qrdali.pipelines.diagnose import InFlight, diagnose
from qrdali.pipelines.file_reader import AHEAD, FileReader, Files, Item, PendingRead, read_ahead
from qrdali.pipelines.graph_inputs import DecodeInputs
from qrdali.pipelines.undecodable import Decode


class ReplaySource(Generic[Item]):
    """Feeds a DALI graph with the inputs of items, and remembers items whose outputs have not come yet.

    to_inputs: makes the structure that the graph takes (`graph_inputs`, with `files` and `window`) of an
    item's files and the item.
    decode: decodes such files and windows once more, as the graph does.
    select: returns an item with only those samples where the mask, bool [N], is true; None for items that are
    never replayed. images_ahead: how many images' reading has begun before they are wanted, where reading is
    not DALI's.
    """

    def __init__(
        self,
        reader: FileReader,
        to_inputs: Callable[[Files, Item], Any],
        decode: Decode,
        select: Callable[[Item, npt.NDArray[np.bool_]], Item] | None = None,
        images_ahead: Callable[[], int] = lambda: AHEAD,
    ) -> None:
        self._reader, self._images_ahead = reader, images_ahead
        self._to_inputs, self._decode, self._select = to_inputs, decode, select
        self._in_flight: deque[Item] = deque()
        self._pending_reads: deque[PendingRead[Item]] = deque()
        self._items: Iterator[Item] = iter(())
        self._with_files: Iterator[tuple[Item, Files]] = iter(())

    def start(self, items: Iterator[Item]) -> None:
        """Begins anew with `items`."""
        self._in_flight.clear()
        self._pending_reads.clear()
        self._items = items
        self._with_files = read_ahead(self._reader, items, self._pending_reads, self._images_ahead)

    def stop(self) -> None:
        """Ends the items here: the graph gets no more of them."""
        self._with_files = iter(())

    def __call__(self) -> Any:
        """Returns the graph's next inputs. Raises StopIteration at the end."""
        item, files = next(self._with_files)
        self._in_flight.append(item)
        return self._to_inputs(files, item)

    def landed(self) -> Item:
        """Returns the item whose outputs have just come: a graph keeps the order."""
        return self._in_flight.popleft()

    def diagnose(self, error: Exception) -> dict[int, str]:
        """Returns which images in flight cannot be read, and why. Raises RunError for any other cause."""
        return diagnose(self._reader, error, map(self._read_again, self._in_flight), self._decode)

    def _read_again(self, item: Item) -> InFlight:
        inputs = self._to_inputs(self._reader(item.samples), item)
        return InFlight(item.samples, DecodeInputs(inputs.files, inputs.window))

    def replay_without(self, unreadable: dict[int, str]) -> None:
        """Begins anew with what was in flight, less `unreadable`, then what was being read, then the rest."""
        replayed = [*self._without(unreadable), *(item for item, _ in self._pending_reads)]
        self.start(chain(replayed, self._items))

    def _without(self, unreadable: dict[int, str]) -> Iterator[Item]:
        assert self._select is not None
        for item in self._in_flight:
            readable = ~np.isin(item.samples, list(unreadable))
            if readable.any():
                yield self._select(item, readable)


class RestartablePipeline:
    """A DALI pipeline that is built where it is first needed, and again after an error."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build
        self._pipe: Any = None
        self._at_end = True

    def start(self) -> None:
        """Begins a pass. The source must have begun before: the pipeline reads ahead from here."""
        if self._pipe is None:
            self._pipe = self._build()
        self._pipe.reset()
        self._at_end = False

    def run(self) -> tuple[Any, ...]:
        """Returns the next outputs, which last until the next call.

        Raises StopIteration at the end, and RuntimeError or MemoryError as DALI does.
        """
        try:
            outputs: tuple[Any, ...] = self._pipe.run()
        except StopIteration:
            self._at_end = True
            raise
        except (RuntimeError, MemoryError):
            self._pipe, self._at_end = None, True
            raise
        return outputs

    def drain(self) -> None:
        """Runs out what is in flight: DALI resets only a pipeline that has reached its end."""
        while not self._at_end:
            try:
                self.run()
            except (StopIteration, RuntimeError, MemoryError):
                return


def run_with_replay(
    pipeline: RestartablePipeline,
    source: ReplaySource[Item],
    on_unreadable: Callable[[dict[int, str]], None] | None = None,
) -> Iterator[tuple[Item, tuple[Any, ...]]]:
    """Yields each item of a started pass with the graph's outputs, which last until the next is asked for.

    `on_unreadable` is called with the images that cannot be read, by sample number with the reason, and the
    pass goes on without them; if it is None they raise Unreadable. Raises RunError for an error that no file
    has caused.
    """
    while True:
        try:
            outputs = pipeline.run()
        except StopIteration:
            return
        except (RuntimeError, MemoryError) as error:
            unreadable = source.diagnose(error)
            if on_unreadable is None:
                raise Unreadable(unreadable) from None
            on_unreadable(unreadable)
            source.replay_without(unreadable)
            pipeline.start()
            continue
        yield source.landed(), outputs
