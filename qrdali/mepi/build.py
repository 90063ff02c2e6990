"""Fills a MEPI set: searches, encodes and writes, reads back what was written, and sends on what is then wrong."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch

from qrdali import distributed
from qrdali.distributed import SINGLE_PROCESS, ProcessGroup
from qrdali.distributed.work_queue import WorkQueue
from qrdali.errors import Interrupted, OtherRankFailed, RunError, printable
from qrdali.interfaces import ProgressListener
from qrdali.mepi.folder import MepiSet
from qrdali.mepi.journal import READ_BACK, Entry, entry_of_path
from qrdali.mepi.search import FULL_STATE, ReductionState, Search, SearchPath, params_of_states
from qrdali.reduction.png_entropy import entropy, png_bytes
from qrdali.reduction.quality import CENTER, scaled_size, window_offset

_VOIDS = 64  # near-void images classified for the summary


class Builder:
    """One reduction of a set. `read_back` classifies the written files as `qrdali evaluate` does and gives the samples that
    are wrong; it calls what it is given now and then. `stop` gives the number of a signal that asked to stop, or 0.

    Of several `ranks`, each with its own object of one set, every one searches what it is dealt; the first brings their entries
    together after each pass and writes what is of the whole set.
    """

    def __init__(
        self,
        mepis: MepiSet,
        reduction: str,
        search: Search,
        threads: int,
        read_back: Callable[[Callable[[], None]], list[int]],
        listener: ProgressListener,
        stop: Callable[[], int],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.mepis, self.reduction, self.search = mepis, reduction, search
        self.read_back, self.listener, self.stop, self.group = read_back, listener, stop, group
        self.journal = mepis.journal(reduction)
        self._pool, self._threads = ThreadPoolExecutor(threads, "encode"), threads
        self._writing: deque[tuple[SearchPath, Future[tuple[bytes, int]]]] = deque()
        self._full_entropies = np.zeros(0, np.int64)
        self._reported: set[int] = set()  # unreadable samples
        self._check_other_ranks: Callable[[], None] = lambda: None  # raises if another rank has failed
        self._begun, self._waited = time.perf_counter(), group.seconds_waited
        self._quotient_sum, self._quotient_count = 0.0, 0  # of quotients so far

    def build(self, samples: list[int]) -> dict[str, Any]:
        """Searches those of `samples` that have no entry yet and returns the reduction's row of the summary.

        Raises Interrupted after a signal and RunError where files cannot be written; what is complete is kept.
        """
        self._full_entropies = self.mepis.entropies()
        todo = self._missing(samples)
        self._quotient_count = len(self.journal.with_mepi())
        self._quotient_sum = (self.journal.mean_quotient() or 0.0) * self._quotient_count
        with self._with_resume_advice():
            self.group.run_on_all(self.journal.begin)
        try:
            with self._with_resume_advice():
                self._pass(self.reduction, len(todo), self._new_paths(todo))
                while wrong := self.read_back(self._check):
                    mine = wrong[self.group.rank :: self.group.world_size]
                    self._pass(
                        f"{self.reduction}, wrong when read back", len(wrong), self._resume_from_parents(mine)
                    )
                void = self._near_void_summary(samples) | self._shares()
                return self.group.broadcast_object(
                    self.group.run_on_all(lambda: self._finished(samples, void) if self.group.is_main else {})
                )
        except Interrupted as interruption:
            raise Interrupted(
                f"stopped in {self.reduction} with {self.journal.complete} images complete: the same command with "
                "--resume continues",
                interruption.signum,
            ) from None
        finally:
            self.listener.end()
            self.journal.close()

    @contextmanager
    def _with_resume_advice(self) -> Iterator[None]:
        """Says of what may end a search how it goes on."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise RunError(
                "the GPU's memory does not suffice: lower --search-batch-size or --memory, then the same command with "
                "--resume goes on"
            ) from None
        except OSError as error:
            complete = (
                f"The {self.journal.complete} images that are complete are"
                if self.group.is_single
                else "What is complete is"
            )
            raise RunError(
                f"{printable(error)}: stopped. {complete} kept: once the cause is removed, the same command with --resume "
                "goes on"
            ) from None

    def _missing(self, samples: list[int]) -> list[int]:
        """Those of `samples` that are to be searched, in their order. Each rank looks at some of the files."""
        mine = list(self.mepis.missing(self.reduction, samples[self.group.rank :: self.group.world_size]))
        every: list[int] = np.sort(np.concatenate(self.group.all_gather(np.array(mine, np.int64)))).tolist()
        return every

    def _pass(self, what: str, images: int, arriving: Iterator[SearchPath]) -> None:
        """One search of `images`, of which this rank's arrive. Then all have one journal."""
        ended, shown = distributed.SharedCounter(self.group), 0

        def done() -> None:
            nonlocal shown
            before, shown = shown, ended.add(1)
            self.listener.advance(shown - before, self._note)

        def searched(others: Callable[[], None]) -> None:
            self._check_other_ranks = others
            with self._with_resume_advice():
                self._run(arriving, done)

        self.listener.begin(what, images)
        try:
            self.group.run_interruptible(searched)
        except Interrupted:
            self._gather()
            raise
        finally:
            self._check_other_ranks = lambda: None
        self.listener.end()
        self._gather()

    def _gather(self) -> None:
        if self.group.is_single:
            return
        self.group.run_on_all(self.journal.close)
        self.group.run_on_all(lambda: self.journal.merge_rank_parts() if self.group.is_main else None)
        self.group.run_on_all(lambda: None if self.group.is_main else self.journal.reload())
        self.group.run_on_all(self.journal.reopen)
        for sample in sorted(
            set(self.journal.unreadable().tolist()) - self._reported
        ):  # found by other ranks
            self._say_unreadable(sample, self.journal.entry(sample).why)

    def _finished(self, samples: list[int], extra: dict[str, Any]) -> dict[str, Any]:
        self.journal.session = self._seconds
        if not self.mepis.complete(self.reduction, samples):
            raise RunError(
                f"{self.reduction}: not every image was searched; the same command with --resume goes on"
            )
        return self.mepis.finish(self.reduction, extra)

    def _shares(self) -> dict[str, Any]:
        """Of several ranks, how many, and what share of their time they had nothing to do."""
        if self.group.is_single:
            return {}
        taken = np.concatenate(
            self.group.all_gather(np.array([[self.group.seconds_waited - self._waited, self._seconds]]))
        )
        return {
            "ranks": self.group.world_size,
            "idle_share": round(float(taken[:, 0].sum() / taken[:, 1].sum()), 4),
        }

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _note(self) -> str:
        return f"quotient {self._quotient_sum / self._quotient_count:.4f}" if self._quotient_count else ""

    def _new_paths(self, todo: list[int]) -> Iterator[SearchPath]:
        deal = WorkQueue(self.group, len(todo))
        for sample, pixels in self.search.reducer.decode(
            (todo[i] for i in deal), self._unreadable, deal.chunk_size
        ):
            yield SearchPath(
                sample, self._label(sample), pixels, (int(pixels.shape[0]), int(pixels.shape[1]))
            )

    def _label(self, sample: int) -> int:
        return int(self.mepis.index.labels(np.array([sample]))[0])

    def _resume_from_parents(self, wrong: list[int]) -> Iterator[SearchPath]:
        """Journeys from the parents of states that were wrong when read back, those states struck out."""
        journeys: dict[int, SearchPath] = {}
        for sample in wrong:
            e = self.journal.entry(sample)
            journey = SearchPath(
                sample,
                self._label(sample),
                None,
                (0, 0),
                list(e.path),
                list(e.confidence),
                set(e.struck),
                e.evaluations,
            )
            if journey.backtrack():
                journeys[sample] = journey
            else:
                gone = Entry(sample, "wrong", evaluations=e.evaluations, full=e.full, why=READ_BACK)
                self.mepis.add_without_mepi(self.reduction, gone, self._seconds)
        for sample, pixels in self.search.reducer.decode(iter(list(journeys)), self._unreadable):
            journey = journeys[sample]
            journey.pixels, journey.size = pixels, (int(pixels.shape[0]), int(pixels.shape[1]))
            yield journey

    def _unreadable(self, sample: int, reason: str) -> None:
        self._say_unreadable(sample, reason)
        self.mepis.add_without_mepi(
            self.reduction, Entry(sample, "unreadable", why=printable(reason)), self._seconds
        )
        self._check()

    def _say_unreadable(self, sample: int, reason: str) -> None:
        self.listener.warn(f"left out: {reason}")
        self._reported.add(sample)

    def _check(self) -> None:
        """Raises Interrupted after a signal, or Elsewhere if another rank has failed, once what is encoded is written."""
        try:
            if signum := self.stop():
                raise Interrupted("stopped", signum)
            self._check_other_ranks()
        except (Interrupted, OtherRankFailed):
            self._write(0)
            self.listener.end()
            raise

    def _run(self, arriving: Iterator[SearchPath], done: Callable[[], None]) -> None:
        for journey in self.search.finished(arriving, self._check):
            if journey.is_correct:
                self._writing.append((journey, self._pool.submit(self._encode, journey)))
                self._write(2 * self._threads)
            else:
                self.mepis.add_without_mepi(
                    self.reduction,
                    Entry(journey.sample, "wrong", evaluations=journey.evaluations),
                    self._seconds,
                )
            done()
        self._write(0)

    def _encode(self, journey: SearchPath) -> tuple[bytes, int]:
        sizes = np.array([journey.size] * 2, np.int32)
        num_levels = self.search.rule.descent.num_levels
        here, whole = self.search.reducer.reduced_images(
            [journey.pixels] * 2, params_of_states([journey.state, FULL_STATE], sizes, num_levels)
        )
        png = png_bytes(here)
        return png, int(self._full_entropies[journey.sample]) or (
            len(png) if journey.state == FULL_STATE else entropy(whole)
        )

    def _write(self, most: int) -> None:
        """Writes what is encoded, in order, until at most `most` are under way."""
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            journey, future = self._writing.popleft()
            png, full = future.result()
            entry = entry_of_path(journey, full, len(png))
            self.mepis.add_mepi(self.reduction, entry, png, self._seconds)
            self._quotient_sum += entry.mepi / entry.full
            self._quotient_count += 1

    def _near_void_summary(self, samples: list[int]) -> dict[str, Any]:
        """How many MEPIs stand at the lowest state, and the class that images at that state fall into: those say nothing
        about their object."""
        lowest, rule = self.mepis.lowest(self.reduction), self.search.rule.descent
        level = [rule.num_levels - 1 if moves else 0 for moves in rule.dimensions]
        some = [
            samples[i]
            for i in np.unique(np.linspace(0, len(samples) - 1, min(_VOIDS, len(samples))).astype(int))
        ]
        mine = [sample for i, sample in enumerate(some) if i // 8 % self.group.world_size == self.group.rank]

        def predicted(_: Callable[[], None]) -> list[tuple[int, int]]:
            found: list[tuple[int, int]] = []
            originals = self.search.reducer.decode(iter(mine), lambda sample, reason: None)
            while shown := list(islice(originals, 8)):
                self._check()
                part = [pixels for _, pixels in shown]
                sizes = np.array([pixels.shape[:2] for pixels in part], np.int32)
                inner = scaled_size(sizes, np.full(len(part), level[1]), rule.num_levels)
                states = [
                    ReductionState(level[0], level[1], level[2], top, left)
                    for top, left in window_offset(sizes, inner, np.array([CENTER] * len(part))).tolist()
                ]
                with torch.inference_mode(), self.search.autocast():
                    logits = self.search.model(
                        self.search.reducer.network_inputs(
                            part, params_of_states(states, sizes, rule.num_levels)
                        )
                    )
                found += zip([sample for sample, _ in shown], logits.argmax(1).tolist(), strict=True)
            return found

        every = sorted(
            pair
            for found in self.group.all_gather_object(self.group.run_interruptible(predicted))
            for pair in found
        )
        predictions = Counter(label for _, label in every)
        mepis = len(self.journal.with_mepi())
        result: dict[str, Any] = {
            "lowest_state": lowest,
            "lowest_state_share": lowest / mepis if mepis else None,
        }
        if predictions:
            label, count = predictions.most_common(1)[0]
            result |= {
                "near_void_class": self.mepis.classes[label],
                "near_void_class_share": count / predictions.total(),
            }
        return result
