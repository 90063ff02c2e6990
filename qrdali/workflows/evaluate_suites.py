"""Evaluates a run on published suites: ImageNet-C, -A, -R, -Sketch, V2, ReaL, and human minimal images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qrdali.data import provenance
from qrdali.data.class_matching import ClassList, match_classes
from qrdali.data.index import Index
from qrdali.data.left_out import LeftOut
from qrdali.data.real_labels import RealImages, find_real
from qrdali.data.scan import Reading, index_files
from qrdali.data.suite_definitions import SuiteDefinition, suite_definition
from qrdali.data.suite_trees import FoundSuite, SuitePart, find_suite, listing_digest
from qrdali.errors import InputError, RunError, printable
from qrdali.evaluation.prediction_rows import DEFINITIONS, PredictionRows, read_metadata, read_rows
from qrdali.evaluation.suite_answers import SuiteAnswers
from qrdali.evaluation.suite_figures import CLEAN_SETS, SuiteFigures, SuiteRows, names_digest, read_suites
from qrdali.runs import folder as run_folder

if TYPE_CHECKING:
    from qrdali.workflows.evaluate import Evaluator

_NAMED_FILES = 5  # unreadable files that are named one by one; `--json` has all
Files = Callable[[LeftOut | None], Iterator[tuple[int, str]]]


@dataclass(frozen=True)
class _Suite:
    """Holds a suite on its way through a network.

    root: its folder. target: int64, the network's number of each of the suite's classes; None where files are
    labelled as the network is. answers: among which classes the network answers.
    """

    definition: SuiteDefinition
    root: Path
    target: npt.NDArray[np.int64] | None
    answers: SuiteAnswers
    real: RealImages | None = None


class SuiteEvaluator:
    """Evaluates suites with the network of an `Evaluator`.

    Every set of a suite has rows of its own. One whose rows are of the same files, weights and device is
    kept, so that an evaluation that was interrupted goes on where it was. Every method is collective.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.group = evaluator, evaluator.group
        self.listener = evaluator.context.listener

    def evaluate(self, name: str, root: str | Path) -> dict[str, Any]:
        """Evaluates a suite below `root`, writes its rows, and returns its figures.

        Returns {"suite", "images", "accuracy", …} as `SuiteFigures.to_json` has it, with "root", "notes" and
        "sets", the result of each set by the name of its rows. Raises InputError where `root` does not hold
        the suite, or the run lacks its classes.
        """
        definition = suite_definition(name)
        if self.evaluator.class_map is not None and definition.layout != "minimal images":
            raise InputError(
                f"--class-map does not go with --suite {name}, whose classes are ImageNet's: leave it out, "
                "or evaluate the suite by itself"
            )
        sets: dict[str, dict[str, Any]] = {}
        if definition.layout == "validation images":
            found, suite = FoundSuite(()), self.group.run_on_all(lambda: self._real(definition, str(root)))
            assert suite.real is not None
            images = suite.real.images
            self._require_equal(root, [suite.real.digest, len(images)])
            described = SuiteRows(name, right=suite.real.digest, classes=len(definition.classes))
            sets[name] = self._set(suite, name, described, _files_of(images))
        else:
            found = self.group.run_on_all(
                lambda: find_suite(definition, str(root), self.evaluator.class_list)
            )
            suite = self.group.run_on_all(lambda: self._suite(definition, found, Path(root)))
            self._require_equal(root, [[part.name, dict(part.labels)] for part in found.parts])
            for part in found.parts:
                sets[part.name] = self._set(suite, part.name, _described(definition, part), part.files)
        figures = self.group.run_on_all(lambda: self._figures(list(sets.values())))
        notes = [*found.notes, *_notes(figures, found, suite, self.evaluator.run)]
        for note in notes:
            self.listener.line(f"{name}: {note}")
        return figures.to_json() | {"root": str(root), "notes": notes, "sets": sets}

    def _require_equal(self, root: str | Path, value: object) -> None:
        if not self.group.is_single:
            self.group.require_equal(f"the images of {root}", repr(value))

    def _figures(self, results: Sequence[dict[str, Any]]) -> SuiteFigures:
        """Returns the figures of the sets that were just evaluated, from their rows."""
        names = [Path(result["rows"]).stem for result in results]
        epoch = self.evaluator.trained.epoch
        found = read_suites(self.evaluator.run, epoch, self.listener.warn, names)
        figures = next(iter(found.values()), None)
        if figures is None or len(figures.sets) != len(names):
            raise RunError(f"the rows of {names[0]} cannot be read back: evaluate the suite again")
        return figures

    def _real(self, definition: SuiteDefinition, root: str) -> _Suite:
        target, answers = self._classes_of(definition)
        real = find_real(definition, root, LeftOut())
        return _Suite(definition, Path(root), target, answers, real)

    def _suite(self, definition: SuiteDefinition, found: FoundSuite, root: Path) -> _Suite:
        if definition.classes:
            return _Suite(definition, root, *self._classes_of(definition))
        kept = None
        if len(self.evaluator.classes) > definition.class_count and self.evaluator.class_map is None:
            # A network of many more classes is asked among those that it shares with the suite.
            kept = np.array(
                sorted({label for part in found.parts for label in part.labels.values()}), np.int64
            )
        return _Suite(definition, root, None, SuiteAnswers(kept))

    def _classes_of(self, definition: SuiteDefinition) -> tuple[npt.NDArray[np.int64], SuiteAnswers]:
        """Returns the network's numbers of the suite's classes, and the answers among them.

        Raises InputError for a network that does not know all of them.
        """
        from qrdali.data.class_lists import imagenet_readable

        known, run = self.evaluator.class_list, printable(self.evaluator.run)

        def refuse() -> None:
            shared = len({*definition.classes} & {*known.names})
            raise InputError(
                f"--suite {definition.name} is of {definition.class_count:,} classes of ImageNet, of which "
                f"the run {run} knows {shared:,}: its {len(known):,} classes are {known.describe(0)} and so on. "
                "Evaluate a network that knows all of them, such as one of `qrdali adopt`"
            )

        classes = ClassList(definition.classes, imagenet_readable(definition.classes))
        target = match_classes(classes, known, definition.title, f"the run {run}", refuse)
        return target, SuiteAnswers(np.sort(target) if len(target) < len(known) else None)

    def _set(self, suite: _Suite, name: str, described: SuiteRows, files: Files) -> dict[str, Any]:
        """Evaluates a set of a suite, or keeps its rows, and returns its result."""
        kept = suite.answers.kept
        described = replace(
            described,
            answers=len(self.evaluator.classes) if kept is None else len(kept),
            restricted=kept is not None,
            weights=self._weights,
            computed=self._computed,
        )
        digest = self.group.run_on_main(lambda: listing_digest(files(None), suite.root))
        described = replace(described, files=self.group.broadcast_object(digest or ""))
        if (rows := self._kept_rows(name, described)) is not None:
            self.listener.line(f"{name}: its rows are of these files and weights, and are kept")
            return self.evaluator.result(name, rows, 0) | {"kept": True, "unreadable_files": []}
        with TemporaryDirectory() as scratch:
            index, rejected = self._index(suite, files, Path(scratch) / "set.arrow")
            every = np.arange(len(index))
            described = replace(
                described, names=names_digest(index.indexed_paths(every)), unreadable=len(rejected)
            )
            rows = self.evaluator.rows(name, index, answers=self._answers(suite, index))
            result = self.evaluator.write(name, index, rows, len(rejected), described.to_metadata())
        names = [[printable(path), printable(reason)] for path, reason in rejected]
        return result | {"kept": False, "unreadable_files": names}

    def _index(self, suite: _Suite, files: Files, file: Path) -> tuple[Index, list[tuple[str, str]]]:
        """Returns the index of a set's images with the network's labels, and the files that were left out."""
        not_read: list[tuple[str, str]] = []
        left_out = LeftOut(lambda path, reason: not_read.append((path, reason)))
        threads = None if self.group.is_single else self.evaluator.engine.threads
        rejected = index_files(
            suite.root, lambda: files(left_out), not_read, file, Reading(threads=threads), self.group
        )
        provenance.write(file.parent, {"root": str(suite.root.absolute())})
        for path, reason in rejected[:_NAMED_FILES]:
            self.listener.warn(f"left out: {path}: {reason}")
        if more := len(rejected[_NAMED_FILES:]):
            self.listener.warn(f"left out: {more} more files that cannot be read; --json names all")
        index = Index(file, len(self.evaluator.classes if suite.target is None else suite.target))
        return index if suite.target is None else index.with_network_labels(suite.target), rejected

    def _answers(self, suite: _Suite, index: Index) -> SuiteAnswers | None:
        """Returns how a set's answers are judged, None where a class map says it."""
        if self.evaluator.class_map is not None:
            return None
        if suite.real is None:
            return suite.answers
        assert suite.target is not None
        of_imagenet = suite.real.right_answers(index.indexed_paths(np.arange(len(index))))
        right = np.where(of_imagenet < 0, -1, suite.target[np.maximum(of_imagenet, 0)])
        return replace(suite.answers, right=right.astype(np.int32))

    def _kept_rows(self, name: str, described: SuiteRows) -> PredictionRows | None:
        """Returns the rows of a set that was evaluated as `described`, None where it must be evaluated."""

        def matching() -> bool:
            metadata = read_metadata(self.evaluator.run, self.evaluator.name_of_rows(name))
            recorded = SuiteRows.from_metadata(metadata)
            return (
                recorded is not None
                and replace(recorded, names="") == described
                and metadata.get("epoch") == self.evaluator.trained.epoch
                and metadata.get("definitions") == DEFINITIONS
            )

        if not self.group.broadcast_object(bool(self.group.run_on_main(matching))):
            return None

        def read() -> PredictionRows | None:
            try:
                rows = read_rows(self.evaluator.run, self.evaluator.name_of_rows(name), with_paths=False)
                fields = ("sample", "label", "prediction", "confidence", "rank", "true_probability")
                return PredictionRows(*(rows[field] for field in fields))
            except (InputError, RunError, ValueError):  # damaged: they are made again
                return None

        rows = self.group.run_on_all(read)
        readable = self.group.all_gather_object(rows is not None)
        return rows if all(readable) else None

    @cached_property
    def _weights(self) -> str:
        return self.group.run_on_all(lambda: run_folder.weights_digest(self.evaluator.run))

    @property
    def _computed(self) -> str:
        """Returns what a network's answers depend on besides its weights, in words."""
        options, device = self.evaluator.options, self.evaluator.context.device.type
        mapped = f", map {options.class_map.rule} {options.class_map.digest}" if options.class_map else ""
        return f"{device}, amp {options.amp}{mapped}"


def _described(definition: SuiteDefinition, part: SuitePart) -> SuiteRows:
    classes = len(set(part.labels.values()))
    return SuiteRows(definition.name, part.corruption, part.severity, classes)


def _files_of(images: tuple[tuple[int, str], ...]) -> Files:
    def files(left_out: LeftOut | None = None) -> Iterator[tuple[int, str]]:
        return iter(images)

    return files


def _notes(figures: SuiteFigures, found: FoundSuite, suite: _Suite, run: Path) -> list[str]:
    """Returns sentences on what was evaluated that a reader of the figures must know."""
    notes = []
    first = next(iter(figures.sets.values()))
    if first.rows.restricted:
        notes.append(f"The network answered among {first.rows.answers:,} of its classes.")
    if suite.real is not None and suite.real.skipped:
        notes.append(f"{suite.real.skipped:,} validation images have no right answer and were skipped.")
    if found.parts and suite.definition.classes and found.class_count < suite.definition.class_count:
        notes.append(
            f"{found.class_count:,} of the {suite.definition.class_count:,} classes have a folder: the "
            "figures are of these images."
        )
    if figures.images_published is not None and not figures.is_whole:
        per_set = " in each set" if len(figures.sets) > 1 else ""
        smallest = min(one.images for one in figures.sets.values())
        notes.append(
            f"The published suite has {figures.images_published:,} images{per_set}, here are {smallest:,}"
            f"{' in the smallest' if per_set else ''}."
        )
    if figures.corruption_errors is not None and figures.clean_set is None:
        notes.append(
            "Relative mCE needs the same images without corruption: evaluate ImageNet's validation images "
            "too, as a data set of `qrdali data imagenet` with --data DATASET --split test, or with `qrdali "
            f"evaluate --run {printable(run)} --set {CLEAN_SETS[-1]}=FOLDER`."
        )
    return notes
