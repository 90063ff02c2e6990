"""Evaluates a run on published suites: ImageNet-C, -A, -R, -Sketch, V2, ReaL, and human minimal images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
class FoundSets:
    """Holds a suite that was found on the disk, and how a network answers on it.

    root: its folder. sets: those that have rows of their own, each with what is known of it and its files.
    target: int64, the network's number of each of the suite's classes; None where files are labelled as the
    network is. answers: among which classes the network answers. real: the right answers of ReaL. notes:
    sentences on what the suite lacks.
    """

    definition: SuiteDefinition
    root: Path
    sets: Mapping[str, tuple[SuiteRows, Files]]
    target: npt.NDArray[np.int64] | None
    answers: SuiteAnswers
    real: RealImages | None = None
    notes: tuple[str, ...] = ()


class SuiteEvaluator:
    """Evaluates suites with the network of an `Evaluator`.

    Every set of a suite has rows of its own. One whose rows are of the same files, weights and device is
    kept, so that an evaluation that was interrupted goes on where it was. Every method is collective.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator, self.group = evaluator, evaluator.group
        self.listener = evaluator.context.listener

    def find(self, name: str, root: str | Path) -> FoundSets:
        """Returns the sets of a suite below `root`.

        Raises InputError where `root` does not hold the suite, or the run lacks its classes.
        """
        found = self.group.run_on_all(lambda: self._find(suite_definition(name), str(root)))
        if not self.group.is_single:
            self.group.require_equal(f"the folders of {root}", repr(sorted(found.sets)))
        return found

    def evaluate(self, found: FoundSets) -> dict[str, Any]:
        """Evaluates the sets of a suite, writes their rows, and returns the figures of the suite.

        Returns {"suite", "images", "accuracy", …} as `SuiteFigures.to_json` has it, with "root", "notes" and
        "sets", the result of each set by the name of its rows.
        """
        sets = {part: self._set(found, part) for part in found.sets}
        if kept := sum(one["kept"] for one in sets.values()):
            self.listener.line(
                f"{found.definition.name}: {kept} of {len(sets)} sets have rows of these files and weights, "
                "which are kept"
            )
        figures = self.group.run_on_all(lambda: self._figures(list(sets.values())))
        notes = [*found.notes, *_notes(figures, found, self.evaluator.run)]
        return figures.to_json() | {"root": str(found.root), "notes": notes, "sets": sets}

    def _figures(self, results: Sequence[dict[str, Any]]) -> SuiteFigures:
        """Returns the figures of the sets that were just evaluated, from their rows."""
        names = [Path(result["rows"]).stem for result in results]
        epoch = self.evaluator.trained.epoch
        found = read_suites(self.evaluator.run, epoch, self.listener.warn, names)
        figures = next(iter(found.values()), None)
        if figures is None or len(figures.sets) != len(names):
            raise RunError(f"the rows of {names[0]} cannot be read back: evaluate the suite again")
        return figures

    def _find(self, definition: SuiteDefinition, root: str) -> FoundSets:
        if self.evaluator.class_map is not None and definition.layout != "minimal images":
            raise InputError(
                f"--class-map does not go with --suite {definition.name}, whose classes are ImageNet's: "
                "leave it out, or evaluate the suite by itself"
            )
        if definition.layout == "validation images":
            return self._validation_images(definition, root)
        return self._class_folders(definition, root)

    def _validation_images(self, definition: SuiteDefinition, root: str) -> FoundSets:
        target, answers = self._classes_of(definition)
        real = find_real(definition, root, LeftOut())
        described = SuiteRows(definition.name, classes=len(definition.classes), right=real.digest)
        sets = {definition.name: (described, _files_of(real.images))}
        return FoundSets(definition, Path(root), sets, target, answers, real)

    def _class_folders(self, definition: SuiteDefinition, root: str) -> FoundSets:
        if definition.classes:
            target, answers = self._classes_of(definition)
            found = find_suite(definition, root, self.evaluator.class_list)
        else:
            target, found = None, find_suite(definition, root, self.evaluator.class_list)
            answers = SuiteAnswers(self._shared(definition, found))
        sets = {part.name: (_described(definition, part), part.files) for part in found.parts}
        return FoundSets(definition, Path(root), sets, target, answers, notes=found.notes)

    def _shared(self, definition: SuiteDefinition, found: FoundSuite) -> npt.NDArray[np.int64] | None:
        """Returns the classes that a network of more classes than the suite shares with it, else None."""
        if len(self.evaluator.classes) <= definition.class_count or self.evaluator.class_map is not None:
            return None
        return np.array(sorted({label for part in found.parts for label in part.labels.values()}), np.int64)

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
                f"the run {run} knows {shared:,}: its {len(known):,} classes are {known.describe(0)} and so "
                "on. Evaluate a network that knows all of them, such as one of `qrdali adopt`"
            )

        classes = ClassList(definition.classes, imagenet_readable(definition.classes))
        target = match_classes(classes, known, definition.title, f"the run {run}", refuse)
        return target, SuiteAnswers(np.sort(target) if len(target) < len(known) else None)

    def _set(self, suite: FoundSets, name: str) -> dict[str, Any]:
        """Evaluates a set of a suite, or keeps its rows, and returns its result."""
        described, files = suite.sets[name]
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

    def _index(self, suite: FoundSets, files: Files, file: Path) -> tuple[Index, list[tuple[str, str]]]:
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

    def _answers(self, suite: FoundSets, index: Index) -> SuiteAnswers | None:
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


def _notes(figures: SuiteFigures, suite: FoundSets, run: Path) -> list[str]:
    """Returns sentences on what was evaluated that a reader of the figures must know."""
    notes = []
    first = next(iter(figures.sets.values()))
    if first.rows.restricted:
        notes.append(f"The network answered among {first.rows.answers:,} of its classes.")
    if suite.real is not None and suite.real.skipped:
        notes.append(f"Validation images without a right answer, which were skipped: {suite.real.skipped:,}.")
    classes = max(one.rows.classes for one in figures.sets.values())
    if suite.definition.classes and classes < suite.definition.class_count:
        notes.append(
            f"Classes that have a folder: {classes:,} of {suite.definition.class_count:,}. The figures are "
            "of their images."
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
    if note := figures.not_above_chance(printable(run)):
        notes.append(f"{note}.")
    return notes
