"""Fills a MEPI set: searches, encodes and writes, reads back what was written, and sends on what is then wrong."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch

from qrdali.entropy import entropy, png_bytes
from qrdali.errors import Interrupted, RunError, printable
from qrdali.mepi import FULL, Journey, Search, State, reduction_of
from qrdali.mepi_set import READ_BACK, Entry, MepiSet, entry_of
from qrdali.quality import CENTER, placed, shrunk
from qrdali.watcher import Watcher

_VOIDS = 64  # near-void images classified for the summary


class Builder:
    """One reduction of a set. `read_back` classifies the written files as `qrdali evaluate` does and gives the samples that
    are wrong; it calls what it is given now and then. `stop` gives the number of a signal that asked to stop, or 0."""

    def __init__(self, mepis: MepiSet, reduction: str, search: Search, threads: int, read_back: Callable[[Callable[[], None]], list[int]],
                 watcher: Watcher, stop: Callable[[], int]) -> None:
        self.mepis, self.reduction, self.search = mepis, reduction, search
        self.read_back, self.watcher, self.stop = read_back, watcher, stop
        self.journal = mepis.journal(reduction)
        self._pool, self._threads = ThreadPoolExecutor(threads, "encode"), threads
        self._writing: deque[tuple[Journey, Future[tuple[bytes, int]]]] = deque()
        self._full = np.zeros(0, np.int64)
        self._begun = time.perf_counter()
        self._sum, self._count = 0.0, 0  # of quotients so far

    def build(self, samples: list[int]) -> dict[str, Any]:
        """Searches those of `samples` that have no entry yet and returns the reduction's row of the summary.

        Raises Interrupted after a signal and RunError where files cannot be written; what is complete is kept.
        """
        self._full = self.mepis.entropies()
        todo = list(self.mepis.missing(self.reduction, samples))
        self._count = len(self.journal.with_mepi())
        self._sum = (self.journal.mean_quotient() or 0.0) * self._count
        self.journal.begin()
        try:
            self.watcher.begin(self.reduction, len(todo))
            self._run(self._arriving(todo), lambda: self.watcher.advance(1, self._note))
            self.watcher.end()
            while wrong := self.read_back(self._check):
                self.watcher.begin(f"{self.reduction}, wrong when read back", len(wrong))
                self._run(self._again(wrong), lambda: self.watcher.advance(1, self._note))
                self.watcher.end()
            void = self._void(samples)
            self.journal.session = self._seconds
            if not self.mepis.complete(self.reduction, samples):
                raise RunError(f"{self.reduction}: not every image was searched; the same command with --resume goes on")
            return self.mepis.finish(self.reduction, void)
        except torch.OutOfMemoryError:
            raise RunError("the GPU's memory does not suffice: lower --search-batch-size or --memory, then the same command with "
                           "--resume goes on") from None
        except OSError as error:
            raise RunError(f"{printable(error)}: stopped. The {self.journal.complete} images that are complete are kept: once the "
                           "cause is removed, the same command with --resume goes on") from None
        finally:
            self.watcher.end()
            self.journal.close()

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _note(self) -> str:
        return f"quotient {self._sum / self._count:.4f}" if self._count else ""

    def _arriving(self, todo: list[int]) -> Iterator[Journey]:
        for sample, pixels in self.search.maker.originals(iter(todo), self._unreadable):
            yield Journey(sample, self._label(sample), pixels, (int(pixels.shape[0]), int(pixels.shape[1])))

    def _label(self, sample: int) -> int:
        return int(self.mepis.index.labels(np.array([sample]))[0])

    def _again(self, wrong: list[int]) -> Iterator[Journey]:
        """Journeys from the parents of states that were wrong when read back, those states struck out."""
        journeys: dict[int, Journey] = {}
        for sample in wrong:
            e = self.journal.entry(sample)
            journey = Journey(sample, self._label(sample), None, (0, 0), list(e.path), list(e.confidence), set(e.struck), e.evaluations)
            if journey.retreat():
                journeys[sample] = journey
            else:
                gone = Entry(sample, "wrong", evaluations=e.evaluations, full=e.full, why=READ_BACK)
                self.mepis.drop(self.reduction, gone, self._seconds)
        for sample, pixels in self.search.maker.originals(iter(list(journeys)), self._unreadable):
            journey = journeys[sample]
            journey.pixels, journey.size = pixels, (int(pixels.shape[0]), int(pixels.shape[1]))
            yield journey

    def _unreadable(self, sample: int, reason: str) -> None:
        self.watcher.warn(f"left out: {reason}")
        self.mepis.drop(self.reduction, Entry(sample, "unreadable", why=printable(reason)), self._seconds)
        self._check()

    def _check(self) -> None:
        """Raises Interrupted after a signal, once what is encoded is written."""
        if signum := self.stop():
            self._write(0)
            self.watcher.end()
            raise Interrupted(f"stopped in {self.reduction} with {self.journal.complete} images complete: the same command with "
                              "--resume continues", signum)

    def _run(self, arriving: Iterator[Journey], done: Callable[[], None]) -> None:
        for journey in self.search.finished(arriving, self._check):
            if journey.right:
                self._writing.append((journey, self._pool.submit(self._encoded, journey)))
                self._write(2 * self._threads)
            else:
                self.mepis.drop(self.reduction, Entry(journey.sample, "wrong", evaluations=journey.evaluations), self._seconds)
            done()
        self._write(0)

    def _encoded(self, journey: Journey) -> tuple[bytes, int]:
        sizes = np.array([journey.size] * 2, np.int32)
        n = self.search.rule.descent.n
        here, whole = self.search.maker.pictures([journey.pixels] * 2, reduction_of([journey.state, FULL], sizes, n))
        png = png_bytes(here)
        return png, int(self._full[journey.sample]) or (len(png) if journey.state == FULL else entropy(whole))

    def _write(self, most: int) -> None:
        """Writes what is encoded, in order, until at most `most` are under way."""
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            journey, future = self._writing.popleft()
            png, full = future.result()
            entry = entry_of(journey, full, len(png))
            self.mepis.keep(self.reduction, entry, png, self._seconds)
            self._sum += entry.mepi / entry.full
            self._count += 1

    def _void(self, samples: list[int]) -> dict[str, Any]:
        """How many MEPIs stand at the lowest state, and the class that images at that state fall into: those say nothing
        about their object."""
        lowest, rule = self.mepis.lowest(self.reduction), self.search.rule.descent
        level = [rule.n - 1 if moves else 0 for moves in rule.moving]
        some = [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, min(_VOIDS, len(samples))).astype(int))]
        predictions: Counter[int] = Counter()
        originals = self.search.maker.originals(iter(some), lambda sample, reason: None)
        while part := [pixels for _, pixels in islice(originals, 8)]:
            self._check()
            sizes = np.array([pixels.shape[:2] for pixels in part], np.int32)
            inner = shrunk(sizes, np.full(len(part), level[1]), rule.n)
            states: list[State] = [(level[0], level[1], level[2], top, left)
                                   for top, left in placed(sizes, inner, np.array([CENTER] * len(part))).tolist()]
            with torch.inference_mode(), self.search.autocast():
                logits = self.search.model(self.search.maker.inputs(part, reduction_of(states, sizes, rule.n)))
            predictions.update(logits.argmax(1).tolist())
        mepis = len(self.journal.with_mepi())
        result: dict[str, Any] = {"lowest_state": lowest, "lowest_state_share": lowest / mepis if mepis else None}
        if predictions:
            label, count = predictions.most_common(1)[0]
            result |= {"near_void_class": self.mepis.classes[label], "near_void_class_share": count / predictions.total()}
        return result
