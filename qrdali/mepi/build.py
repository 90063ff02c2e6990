"""Fills a MEPI set: searches, encodes, writes, reads back, and searches on where a file is wrong."""

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
from qrdali.distributed.work_queue import WorkQueue
from qrdali.errors import Interrupted, OtherRankFailed, OutOfMemory, RunError, printable
from qrdali.interfaces import RunContext
from qrdali.mepi.folder import MepiSet
from qrdali.mepi.journal import READ_BACK, Entry, entry_of_path
from qrdali.mepi.search import Search
from qrdali.mepi.search_path import FULL_STATE, ReductionState, SearchPath, params_of_states
from qrdali.reduction.png_entropy import entropy, png_bytes
from qrdali.reduction.quality import CENTER, scaled_size, window_offset
from qrdali.runs.settings import DEFINITIONS

_VOIDS, _VOIDS_AT_ONCE = 64, 8  # near-void images classified for the summary; those of a forward pass


class Builder:
    """Fills one reduction of a set.

    read_back: classifies the written files as `qrdali evaluate` does and returns the samples that are wrong;
    it calls the function that it is given at every batch, which may raise. context: the search's.

    Of several ranks, each with its own object of one set, every one searches what it takes from a common
    queue; the first merges their entries after each pass and writes the files of the whole set. All methods
    that are not private are collective.
    """

    def __init__(
        self,
        mepis: MepiSet,
        reduction: str,
        search: Search,
        read_back: Callable[[Callable[[], None]], list[int]],
        context: RunContext,
    ) -> None:
        self.mepis, self.reduction, self.search, self.read_back = mepis, reduction, search, read_back
        self.listener, self.stop, self.group = context.listener, context.stop, context.group
        self.journal = mepis.journal(reduction)
        self._threads = search.limits.threads
        self._pool = ThreadPoolExecutor(self._threads, "encode")
        self._writing: deque[tuple[SearchPath, Future[tuple[bytes, int]]]] = deque()
        self._full_entropies = np.zeros(0, np.int64)
        self._reported: set[int] = set()  # unreadable samples
        self._check_other_ranks: Callable[[], None] = lambda: None  # raises if another rank has failed
        self._begun, self._waited = time.perf_counter(), self.group.seconds_waited
        self._quotient_sum, self._quotient_count = 0.0, 0  # of quotients so far

    def build(self, samples: list[int]) -> dict[str, Any]:
        """Searches those of `samples` that have no entry yet and returns the reduction's row of the summary.

        Raises Interrupted after a signal, RunError where files cannot be written; what is complete is kept.
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
                    own = wrong[self.group.rank :: self.group.world_size]
                    what = f"{self.reduction}, wrong when read back"
                    self._pass(what, len(wrong), self._resume_from_parents(own))
                extra = self._near_void_summary(samples) | self._rank_shares()
                row = self.group.run_on_main(lambda: self._finish(samples, extra))
                return self.group.broadcast_object(row or {})
        except Interrupted as interruption:
            raise Interrupted(
                f"stopped in {self.reduction} with {self.journal.complete} images complete: the same command "
                "with --resume continues",
                interruption.signum,
            ) from None
        finally:
            self.journal.close()

    @contextmanager
    def _with_resume_advice(self) -> Iterator[None]:
        """Adds resume instructions to out-of-memory and disk errors."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise RunError(
                "the GPU's memory does not suffice: lower --search-batch-size or --memory, then the same "
                "command with --resume continues"
            ) from None
        except OutOfMemory as error:
            raise RunError(f"{error}, then the same command with --resume continues") from None
        except OSError as error:
            complete = (
                f"The {self.journal.complete} images that are complete are"
                if self.group.is_single
                else "What is complete is"
            )
            raise RunError(
                f"{printable(error)}: stopped. {complete} kept: once the cause is removed, the same command "
                "with --resume continues"
            ) from None

    def _missing(self, samples: list[int]) -> list[int]:
        """Returns those of `samples` that are to be searched, in their order.

        Each rank looks at some of the files.
        """
        own = list(self.mepis.missing(self.reduction, samples[self.group.rank :: self.group.world_size]))
        of_all_ranks = self.group.all_gather(np.array(own, np.int64))
        missing: list[int] = np.sort(np.concatenate(of_all_ranks)).tolist()
        return missing

    def _pass(self, what: str, images: int, arriving: Iterator[SearchPath]) -> None:
        """Searches `images` images, of which this rank's arrive, and merges the ranks' journals.

        Collective.
        """
        if images and self.group.run_on_main(self.mepis.mark_definitions):
            self.listener.warn(
                f"{printable(self.mepis.folder)} was begun under other definitions: what is searched from "
                f"now on goes by definitions {DEFINITIONS} (docs/explanation/definitions.md); "
                "reports call the set mixed"
            )
        try:
            with self._progress(what, images):
                ended, shown = distributed.SharedCounter(self.group), 0

                def on_ended() -> None:
                    nonlocal shown
                    before, shown = shown, ended.add(1)
                    self.listener.advance(shown - before, self._note)

                def search(check_other_ranks: Callable[[], None]) -> None:
                    self._check_other_ranks = check_other_ranks
                    with self._with_resume_advice():
                        self._search(arriving, on_ended)

                self.group.run_interruptible(search)
        except Interrupted:
            self._merge_journals()
            raise
        finally:
            self._check_other_ranks = lambda: None
        self._merge_journals()

    @contextmanager
    def _progress(self, what: str, images: int) -> Iterator[None]:
        self.listener.begin(what, images)
        try:
            yield
        finally:
            self.listener.end()

    def _merge_journals(self) -> None:
        """Makes all entries of all ranks stand in the one journal that every rank has read. Collective."""
        if self.group.is_single:
            return
        self.group.run_on_all(self.journal.close)
        self.group.run_on_main(self.journal.merge_rank_parts)
        self.group.run_on_all(lambda: None if self.group.is_main else self.journal.reload())
        self.group.run_on_all(self.journal.reopen)
        found_by_others = set(self.journal.unreadable().tolist()) - self._reported
        for sample in sorted(found_by_others):
            self._report_unreadable(sample, self.journal.entry(sample).why)

    def _finish(self, samples: list[int], extra: dict[str, Any]) -> dict[str, Any]:
        self.journal.session = self._seconds
        if not self.mepis.complete(self.reduction, samples):
            raise RunError(
                f"{self.reduction}: not every image was searched; the same command with --resume continues"
            )
        return self.mepis.finish(self.reduction, extra)

    def _rank_shares(self) -> dict[str, Any]:
        """Returns how many ranks there are and the share of their time that they waited; {} of one process.

        Collective.
        """
        if self.group.is_single:
            return {}
        own = np.array([[self.group.seconds_waited - self._waited, self._seconds]])
        of_all_ranks = self.group.all_gather(own)
        waited, taken = np.concatenate(of_all_ranks).sum(axis=0)
        return {"ranks": self.group.world_size, "idle_share": round(float(waited / taken), 4)}

    @property
    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def _note(self) -> str:
        return f"quotient {self._quotient_sum / self._quotient_count:.4f}" if self._quotient_count else ""

    def _new_paths(self, todo: list[int]) -> Iterator[SearchPath]:
        queue = WorkQueue(self.group, len(todo))
        originals = self.search.reducer.decode(
            (todo[i] for i in queue), self._on_unreadable, queue.chunk_size
        )
        for sample, pixels in originals:
            yield SearchPath(sample, self._label(sample), pixels, _size(pixels))

    def _label(self, sample: int) -> int:
        """Returns the label of an image as the network counts its classes."""
        source = self.mepis.source
        return source.network_label(int(source.index.labels(np.array([sample]))[0]))

    def _resume_from_parents(self, wrong: list[int]) -> Iterator[SearchPath]:
        """Yields paths from the parents of states that were wrong when read back, which are forbidden."""
        paths: dict[int, SearchPath] = {}
        for sample in wrong:
            entry = self.journal.entry(sample)
            path = SearchPath(
                sample,
                self._label(sample),
                None,
                (0, 0),
                list(entry.states),
                list(entry.confidence),
                set(entry.forbidden),
                entry.evaluations,
            )
            if path.backtrack():
                paths[sample] = path
            else:
                outcome = Entry(
                    sample, "wrong", evaluations=entry.evaluations, full=entry.full, why=READ_BACK
                )
                self.mepis.add_without_mepi(self.reduction, outcome, self._seconds)
        for sample, pixels in self.search.reducer.decode(iter(list(paths)), self._on_unreadable):
            path = paths[sample]
            path.pixels, path.size = pixels, _size(pixels)
            yield path

    def _on_unreadable(self, sample: int, reason: str) -> None:
        self._report_unreadable(sample, reason)
        outcome = Entry(sample, "unreadable", why=printable(reason))
        self.mepis.add_without_mepi(self.reduction, outcome, self._seconds)
        self._check()

    def _report_unreadable(self, sample: int, reason: str) -> None:
        self.listener.warn(f"left out: {reason}")
        self._reported.add(sample)

    def _check(self) -> None:
        """Raises Interrupted after a signal, or OtherRankFailed, once what is encoded is written."""
        try:
            if signum := self.stop():
                raise Interrupted("stopped", signum)
            self._check_other_ranks()
        except (Interrupted, OtherRankFailed):
            self._write(0)
            raise

    def _search(self, arriving: Iterator[SearchPath], on_ended: Callable[[], None]) -> None:
        for path in self.search.finished(arriving, self._check):
            if path.is_correct:
                self._writing.append((path, self._pool.submit(self._encode, path)))
                # A bounded lead: encoding keeps all threads busy, and few originals wait in memory.
                self._write(2 * self._threads)
            else:
                outcome = Entry(path.sample, "wrong", evaluations=path.evaluations)
                self.mepis.add_without_mepi(self.reduction, outcome, self._seconds)
            on_ended()
        self._write(0)

    def _encode(self, path: SearchPath) -> tuple[bytes, int]:
        """Returns the PNG file of a path's state, and the PNG bytes of its original."""
        sizes = np.array([path.size] * 2, np.int32)
        params = params_of_states([path.state, FULL_STATE], sizes, self.search.rule.descent.scale)
        mepi, original = self.search.reducer.reduced_images([path.pixels] * 2, params)
        png = png_bytes(mepi)
        if known := int(self._full_entropies[path.sample]):
            return png, known
        return png, len(png) if path.state == FULL_STATE else entropy(original)

    def _write(self, max_pending: int) -> None:
        """Writes what is encoded, in order, until at most `max_pending` encodings are under way."""
        while self._writing and (len(self._writing) > max_pending or self._writing[0][1].done()):
            path, future = self._writing.popleft()
            png, full = future.result()
            entry = entry_of_path(path, full, len(png))
            self.mepis.add_mepi(self.reduction, entry, png, self._seconds)
            self._quotient_sum += entry.mepi / entry.full
            self._quotient_count += 1

    def _near_void_summary(self, samples: list[int]) -> dict[str, Any]:
        """Returns how many MEPIs are at the lowest state, the mean quotient of the others, and the class that
        any image there is taken for.

        MEPIs at the lowest state show nothing of their object: with all of the tail, the network answers
        that class for any image. Collective.
        """
        lowest = self.mepis.at_lowest_state(self.reduction)
        rows = self.journal.rows[self.journal.with_mepi()[~lowest]]
        quotients = rows["mepi"] / rows["full"]
        positions = np.unique(np.linspace(0, len(samples) - 1, min(_VOIDS, len(samples))).astype(int))
        own = [
            samples[position]
            for i, position in enumerate(positions)
            if i // _VOIDS_AT_ONCE % self.group.world_size == self.group.rank
        ]
        predictions = self.group.run_interruptible(lambda _: self._predict_at_lowest_state(own))
        of_all_ranks = self.group.all_gather_object(predictions)
        # Sorted by sample: of equally frequent classes `most_common` takes the first, whatever rank had it.
        every = sorted(pair for pairs in of_all_ranks for pair in pairs)
        counts = Counter(label for _, label in every)
        result: dict[str, Any] = {
            "lowest_state": int(lowest.sum()),
            "lowest_state_share": float(lowest.mean()) if len(lowest) else None,
            "mean_quotient_above_void": float(quotients.mean()) if len(quotients) else None,
        }
        if counts:
            label, count = counts.most_common(1)[0]
            result |= {
                "near_void_class": self.mepis.source.answer(label),
                "near_void_class_share": count / counts.total(),
            }
        return result

    def _predict_at_lowest_state(self, samples: list[int]) -> list[tuple[int, int]]:
        """Returns (sample, predicted class) of images at the lowest state, their windows centred."""
        descent, reducer = self.search.rule.descent, self.search.reducer
        color, crop, resolution = (descent.scale.count - 1 if moves else 0 for moves in descent.dimensions)
        predictions: list[tuple[int, int]] = []
        originals = reducer.decode(iter(samples), lambda sample, reason: None)
        while batch := list(islice(originals, _VOIDS_AT_ONCE)):
            self._check()
            pixels = [image for _, image in batch]
            sizes = np.array([_size(image) for image in pixels], np.int32)
            windows = scaled_size(sizes, np.full(len(batch), crop), descent.scale)
            corners = window_offset(sizes, windows, np.array([CENTER] * len(batch))).tolist()
            states = [ReductionState(color, crop, resolution, top, left) for top, left in corners]
            params = params_of_states(states, sizes, descent.scale)
            answers = self.search.judge(reducer.network_inputs(pixels, params)).answer.tolist()
            predictions += zip([sample for sample, _ in batch], answers, strict=True)
        return predictions


def _size(pixels: Any) -> tuple[int, int]:
    """Returns the height and width of an original."""
    return int(pixels.shape[0]), int(pixels.shape[1])
