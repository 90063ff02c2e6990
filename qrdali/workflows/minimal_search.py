"""Looks for the minimal images of files or of pixels with an opened network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qrdali.data import storage
from qrdali.data.index import Index, Writer
from qrdali.data.inspect import inspect_file, quiet_pillow
from qrdali.errors import InputError, Interrupted, printable
from qrdali.mepi.folder import SEARCHED
from qrdali.mepi.minimal import Way, find_ways
from qrdali.mepi.search import Search, SearchLimits, SearchRule
from qrdali.mepi.search_path import FULL_STATE, ReductionState, SearchPath, params_of_states
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.reduction.names import DISTORTIONS, why_not_searched
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import DIMENSIONS, REDUCTIONS, LevelScale, scale_of
from qrdali.system.device import probe_batch_size
from qrdali.workflows.images import Pixels
from qrdali.workflows.minimal_image import MinimalImage, MinimalStep, StepLevels, StepQualities, Window
from qrdali.workflows.minimal_network import Network, require_finite


@dataclass(frozen=True)
class MinimalOptions:
    """Says how a minimal image is looked for.

    reduction: "color", "crop", "resolution" or "combination". step, tail: the levels, as in `build_mepi`.
    windows: candidate windows of a crop, 5 or 9. prefer: "confidence" or "entropy". search_batch_size:
    candidates of a forward pass, None for what `build_mepi` takes. memory: MiB of decoded originals.
    """

    reduction: str = "combination"
    step: float = 0.05
    tail: str = "full"
    windows: int = 5
    prefer: str = "confidence"
    search_batch_size: int | None = None
    memory: int = 1024

    @property
    def scale(self) -> LevelScale:
        """Returns the levels. Raises InputError for a step or a tail that there is not."""
        return scale_of(self.step, self.tail)

    def rule(self) -> SearchRule:
        """Returns the rule of the search. Raises InputError for a value that is none of its choices."""
        if self.reduction in DISTORTIONS:
            raise InputError(f"reduction {self.reduction} {why_not_searched(self.reduction)}")
        choices = {"reduction": SEARCHED, "windows": (5, 9), "prefer": ("confidence", "entropy")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(map(str, allowed))
                raise InputError(f"{name} is {printable(getattr(self, name))!r}: give one of {shown}")
        return SearchRule(DescentRule(REDUCTIONS[self.reduction], self.scale, self.windows, self.prefer))


@dataclass(frozen=True)
class Misjudged:
    """Says what the network takes an image for that it gets wrong: there is no minimal image of it."""

    name: str
    reduction: str
    class_name: str
    answer: str
    confidence: float

    def __str__(self) -> str:
        return (
            f"{printable(self.name) or 'the image'} is {printable(self.answer)!r} to the network "
            f"({self.confidence:.1%}) and not {printable(self.class_name)!r}: it has no minimal image"
        )


@dataclass(frozen=True)
class Finder:
    """Looks for minimal images by one rule, for one class or for each image's own answer (label None)."""

    network: Network
    options: MinimalOptions
    label: int | None

    def of_pixels(self, pixels: Pixels, name: str) -> MinimalImage | Misjudged:
        """Returns what is found for an image in memory."""
        search = self._search(None)
        path = SearchPath(0, self.label, search.reducer.load(pixels), pixels.shape[:2])
        (result,) = self._results(search, iter([path]), [name], lambda: 1)
        return result[1]

    def of_files(
        self, index: Index, names: Sequence[str], on_unreadable: Callable[[int, str], None]
    ) -> Iterator[tuple[int, MinimalImage | Misjudged]]:
        """Yields (sample, what is found) of each image of an index, in the order in which they end."""
        search, unreadable = self._search(index), list[int]()

        def leave_out(sample: int, reason: str) -> None:
            unreadable.append(sample)
            on_unreadable(sample, reason)

        originals = search.reducer.decode(iter(range(len(index))), leave_out)
        paths = (
            SearchPath(sample, self.label, pixels, (int(pixels.shape[0]), int(pixels.shape[1])))
            for sample, pixels in originals
        )
        yield from self._results(search, paths, names, lambda: len(index) - len(unreadable))

    def _search(self, index: Index | None) -> Search:
        network, options = self.network, self.options
        at_once = options.search_batch_size or probe_batch_size(network.context.device, 128)
        limits = SearchLimits(at_once, options.memory << 20, network.engine.threads)
        reducer = open_image_reducer(index, network.preprocessing, network.engine)
        return Search(network.model, reducer, options.rule(), limits, network.context)

    def _results(
        self,
        search: Search,
        arriving: Iterator[SearchPath],
        names: Sequence[str],
        expected: Callable[[], int],
    ) -> Iterator[tuple[int, MinimalImage | Misjudged]]:
        """Yields (sample, result) of each path. expected: returns how many there will be, as far as is known.

        The progress ends before the last result, so that whoever prints it prints below.
        """
        context, under_way = self.network.context, list[SearchPath]()
        shown = yielded = 0
        is_shown = True

        def remember(paths: Iterator[SearchPath]) -> Iterator[SearchPath]:
            for path in paths:
                under_way.append(path)
                yield path

        def check() -> None:
            nonlocal shown
            if signum := context.stop():
                raise Interrupted("stopped: what is written is complete", signum)
            evaluations = sum(path.evaluations for path in under_way)
            if is_shown:
                context.listener.advance(evaluations - shown, str)
            shown = evaluations

        context.listener.begin(f"minimal, {self.options.reduction}", 0, "candidates")
        try:
            for way in find_ways(search, remember(arriving), check):
                result = self._result(way, names[way.path.sample])
                yielded += 1
                if is_shown and yielded >= expected():
                    is_shown = False
                    context.listener.end()
                yield way.path.sample, result
                way.path.pixels = None
        finally:
            if is_shown:
                context.listener.end()

    def _result(self, way: Way, name: str) -> MinimalImage | Misjudged:
        path, classes, reduction = way.path, self.network.shown, self.options.reduction
        assert path.label is not None
        failed = path.failed_step
        if not path.is_correct:
            assert failed is not None
            require_finite(failed.confidence, name or "the image")
            return Misjudged(name, reduction, classes[path.label], classes[failed.answer], failed.confidence)
        require_finite(path.confidence[0], name or "the image")
        own_class, full = classes[path.label], len(way.pngs[0])
        answers = [(confidence, own_class, confidence) for confidence in path.confidence]
        if failed is not None:
            answers.append((failed.probability, classes[failed.answer], failed.confidence))
        states = [FULL_STATE, *path.states, *([failed.state] if failed else [])]
        scale = self.options.scale
        windows = params_of_states(states, np.array([path.size] * len(states)), scale).window.tolist()
        steps = [
            MinimalStep(
                png,
                StepLevels(*state[:3]),
                StepQualities(*(scale.quality_of(level) for level in state[:3])),
                Window(*window),
                _reduced_dimension(before, state),
                *answer,
                len(png) / full,
            )
            for png, before, state, window, answer in zip(
                way.pngs, [FULL_STATE, *states], states, windows, answers, strict=False
            )
        ]
        last = len(path.states) + 1
        return MinimalImage(
            tuple(steps[:last]),
            steps[last] if failed is not None else None,
            reduction,
            own_class,
            path.label,
            name,
            self.network.name,
            path.evaluations,
        )


def _reduced_dimension(before: ReductionState, after: ReductionState) -> str:
    """Returns the dimension whose level differs between two states; "" for one state."""
    return next((name for i, name in enumerate(DIMENSIONS) if before[i] != after[i]), "")


@dataclass(frozen=True)
class Files:
    """Holds files that are read in one way. numbers: of each among all that were given."""

    index: Index
    numbers: tuple[int, ...]


def index_files(files: Sequence[str], scratch: Path) -> list[Files]:
    """Indexes image files into `scratch`, those on the disk apart from those in stores and shards.

    Raises InputError naming one that there is not or that cannot be decoded.
    """
    quiet_pillow()
    groups = []
    for is_url in (False, True):
        numbers = tuple(i for i, file in enumerate(files) if storage.is_url(file) == is_url)
        if not numbers:
            continue
        index_file = scratch / f"{'urls' if is_url else 'files'}.arrow"
        writer = Writer(index_file)
        for number in numbers:
            path = files[number] if is_url else os.path.abspath(files[number])
            if not is_url and os.path.isdir(path):
                raise InputError(f"{printable(files[number])} is a folder: give images, such as FOLDER/*.jpg")
            report = inspect_file(path, verify=True)
            if report.reason:
                raise InputError(f"{printable(files[number])} cannot be decoded: {report.reason}")
            writer.add(path, 0, report.width, report.height)
        writer.close()
        groups.append(Files(Index(index_file, 1), numbers))
    return groups
