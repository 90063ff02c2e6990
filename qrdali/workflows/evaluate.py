"""Evaluates a run on splits and folders: accuracy, per-image rows, and accuracy at lower qualities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.data import provenance, storage
from qrdali.data.class_matching import ClassList, match_classes
from qrdali.data.index import Dataset, Index
from qrdali.data.scan import Reading, index_folder
from qrdali.data.set_names import check_set_name
from qrdali.data.suite_names import require_suite_name, suite_of_rows
from qrdali.errors import InputError, Interrupted, printable
from qrdali.evaluation.chance import chance_of_rows
from qrdali.evaluation.class_map import ClassMap, MapRule, read_class_map
from qrdali.evaluation.predict import predict
from qrdali.evaluation.prediction_rows import DEFINITIONS, TOP, PredictionRows, write_rows
from qrdali.evaluation.suite_answers import SuiteAnswers
from qrdali.interfaces import JobControl
from qrdali.pipelines.engine import engine_of
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, Levels, reduced_split_levels
from qrdali.reduction.names import SEARCHED, chosen
from qrdali.reduction.quality import LevelScale, scale_of
from qrdali.runs import folder as run_folder
from qrdali.runs.same_weights import start_note
from qrdali.runs.unfinished import unfinished_note
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.deterministic import deterministic
from qrdali.workflows.context import open_context
from qrdali.workflows.evaluate_suites import SuiteEvaluator
from qrdali.workflows.quality_curve import write_curve

_NAMED_FILES = 5  # unreadable files that are named one by one; `--json` has all


@dataclass(frozen=True)
class EvaluateOptions:
    """Says how a run is evaluated.

    batch_size: images of a forward pass. device: "auto", "cpu" or "cuda". amp: "auto", "bf16", "fp16" or
    "off". threads: that decode, None for all that the process may use. curve: the levels of an accuracy curve
    over the qualities, None for no curve. reduced: a quality below 1 of the step 1/reduced_grid at which
    splits are evaluated too. reductions: those of both. class_map: for data of other classes than the run's.
    """

    batch_size: int = 32
    device: str = "auto"
    amp: str = "auto"
    threads: int | None = None
    curve: LevelScale | None = None
    reduced: float | None = None
    reduced_grid: int = 4
    class_map: ClassMap | None = None
    reductions: tuple[str, ...] = SEARCHED

    @property
    def reduced_scale(self) -> LevelScale:
        """Returns the levels of which `reduced` is one."""
        return LevelScale(self.reduced_grid)


DEFAULT_OPTIONS = EvaluateOptions()


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "test",
    sets: Mapping[str, str | Path] | None = None,
    suites: Mapping[str, str | Path] | None = None,
    curve: bool = False,
    reduced: float | None = None,
    reductions: Sequence[str] | None = None,
    step: float = 0.25,
    tail: str = "full",
    class_map: str | Path | None = None,
    map_rule: MapRule | None = None,
    batch_size: int = 32,
    device: str = "auto",
    amp: str = "auto",
    threads: int | None = None,
    root: str | None = None,
    control: JobControl = JobControl(),
) -> list[dict[str, Any]]:
    """Evaluates `best/` of a run on a split and on named folders; writes RUN/predictions/NAME.parquet.

    data: a data set's folder, of which `split` is evaluated. sets: folders of class folders, paths or s3://
    and gs:// URLs, by name. suites: folders of published suites by their names, such as "imagenet-c"; a suite
    is evaluated set by set, and sets whose rows are of the same files and weights are kept. curve: also
    measures accuracy at every level of `step` and of its `tail` ("full", "none" or a number of levels) in
    each reduction, into RUN/curves/. reduced: also evaluates the split at this quality in each reduction.
    reductions: those of `curve` and `reduced`, as `names.chosen` takes them. class_map: a TSV file of run
    class and data class, by the rule "argmax" or "sum". root: where the images of `data` are now, or OLD=NEW.

    Returns a result for the split, then one per set: {"set", "images", "correct", "accuracy",
    "top5_accuracy", "negative_log_likelihood", "expected_calibration_error" (both None for a network of NaN),
    "most_frequent" (images of the most frequent class), "p_above_chance" (of the test against answering that
    class always), "notes", "unreadable", "rows"}, with "curve", "reduced", "unreadable_files", "map_rule" and
    "unmapped" where they apply; then one per suite, of which `SuiteEvaluator.evaluate` says more: {"suite",
    "images", "accuracy", …, "sets"}. No figure is rounded. Raises InputError for what cannot be evaluated,
    RunError for a damaged run or images that are gone, and Interrupted once `control.stop` returns a signal.
    Collective.
    """
    scale, sets, suites, folder = scale_of(step, tail), sets or {}, suites or {}, Path(run)

    def check() -> None:
        for name in sets:
            check_set_name(name, "--set")
        for suite in suites:
            require_suite_name(suite)
            if clash := [name for name in sets if suite_of_rows(name) == suite]:
                raise InputError(
                    f"--set {clash[0]} would have the name of rows of --suite {suite}: rename it"
                )
        if data is None and not sets and not suites:
            raise InputError(
                "nothing to evaluate: give --data, --set NAME=FOLDER, --suite NAME=ROOT or several"
            )
        if curve and data is None and not sets:
            raise InputError("--curve is of a split or of a --set: give one of them too")
        if root and data is None:
            raise InputError("--root is of --data: give that too")
        if reduced is not None and data is None:
            raise InputError("--reduced is of a split: give --data too")
        if reductions is not None and not curve and reduced is None:
            raise InputError("--reduction is of --curve and --reduced: give one of them too")
        chosen(reductions)

    control.group.run_on_all(check)
    with deterministic(run_folder.is_deterministic(folder), device):
        mapping = control.group.run_on_all(lambda: read_map(class_map, map_rule, folder, data))
        options = EvaluateOptions(
            batch_size,
            device,
            amp,
            threads,
            scale if curve else None,
            reduced,
            scale.grid,
            mapping,
            chosen(reductions),
        )
        evaluator = Evaluator(folder, options, control)
        if evaluator.answers <= TOP:
            evaluator.context.listener.line(
                f"the network may answer {evaluator.answers} classes: top-5 accuracy is 1 whatever it answers"
            )
        evaluator.say_start()
        of_suites = SuiteEvaluator(evaluator)
        # All are found before any is evaluated: a wrong folder must not show after hours.
        found = [of_suites.find(name, suite_root) for name, suite_root in suites.items()]
        results = [] if data is None else [evaluator.split(Path(data), split, root)]
        for name, set_folder in sets.items():
            results.append(evaluator.folder(name, set_folder))
        return results + [of_suites.evaluate(suite) for suite in found]


def read_map(
    file: str | Path | None, rule: MapRule | None, run: Path, data: str | Path | None
) -> ClassMap | None:
    """Returns the map of --class-map `file` by --map-rule, None without a file. Raises InputError."""
    if file is None:
        if rule:
            raise InputError("--map-rule is of a --class-map: give that too")
        return None
    run_classes = run_folder.describe_best(run).classes
    data_classes = None if data is None else Dataset.open(Path(data)).classes
    return read_class_map(Path(file), run_classes, data_classes, rule or "argmax")


class Evaluator:
    """Classifies with `best/` of a run.

    Results are dicts as `evaluate` returns them.

    The processes of `control.group` evaluate together: all must call the same methods in the same order, and
    get the same results; rank 0 writes. Every method is collective, and raises Interrupted once
    `control.stop` returns a signal.
    """

    def __init__(
        self,
        run: Path,
        options: EvaluateOptions = DEFAULT_OPTIONS,
        control: JobControl = JobControl(),
    ) -> None:
        self.run, self.options, self.group = run, options, control.group
        if options.reduced is not None:
            quality, scale = options.reduced, options.reduced_scale
            # An impossible quality is refused before a network is loaded for nothing.
            self.group.run_on_all(lambda: reduced_split_levels("", quality, scale, options.reductions))
        model, self.trained = self.group.run_on_all(lambda: run_folder.load_best(run))
        if not self.group.is_single:
            digest = self.group.run_on_all(lambda: run_folder.weights_digest(run))
            self.group.require_equal(f"the weights of {run}", digest)
        self.class_map = options.class_map
        # What the rows' labels and predictions count.
        self.class_list = (
            ClassList(self.class_map.classes)
            if self.class_map
            else ClassList(self.trained.classes, self.trained.readable)
        )
        self.classes = self.class_list.names
        self.context = open_context(options.device, options.amp, control)
        self.model: nn.Module = model.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.engine = engine_of(self.context.device, options.threads, self.group)

    @property
    def answers(self) -> int:
        """Returns how many answers are possible, which ranks are counted among."""
        unmapped = 0 if self.class_map is None else self.class_map.unmapped
        return len(self.classes) + unmapped

    def split(self, data: Path, split: str, root: str | None = None) -> dict[str, Any]:
        """Evaluates a split, at the reduced quality too if the options have one, and writes the rows."""
        index = self.group.run_on_all(lambda: self.open_split(data, split, root))
        if index.classes < len(self.classes):
            self.context.listener.line(
                f"{printable(data)} holds {index.classes:,} of the run's {len(self.classes):,} classes, "
                f"matched by name"
            )
        if not self.group.is_single:
            self.group.require_equal(f"the images of {data}", index.fingerprint)
        result = self._evaluate(split, index, 0)
        quality = self.options.reduced
        if quality is None:
            return result
        options = self.options
        of_reductions = reduced_split_levels(split, quality, options.reduced_scale, options.reductions)
        result["reduced"] = {}
        for reduction, (name, levels) in of_reductions.items():
            rows = self.rows(name, index, levels=levels)
            result["reduced"][reduction] = self.write(name, index, rows, 0) | {"quality": quality}
        return result

    def open_split(self, data: Path, split: str, root: str | None = None) -> Index:
        """Returns a split's index, labelled as the rows are.

        Raises InputError unless the data set's classes are among those that are evaluated. Not collective.
        """
        dataset = Dataset.open(data, root)
        labels, index = self.labels_of(dataset), dataset.index(split)
        return index if dataset.classes == self.classes else index.with_network_labels(labels)

    def labels_of(self, dataset: Dataset) -> npt.NDArray[np.int64]:
        """Returns the label that each class of a data set has in the rows, int64 [classes of the data set].

        They are matched by name. Raises InputError for one that has none; not collective.
        """
        whose = "the --class-map" if self.class_map else f"the run {self.run}"

        def refuse() -> None:
            if not self.class_list.readable:
                dataset.require_classes(self.classes, whose)

        where = f"the data set {printable(dataset.folder)}"
        return match_classes(dataset.class_list, self.class_list, where, whose, refuse)

    def folder(self, name: str, folder: Path | str) -> dict[str, Any]:
        """Evaluates a folder of class folders, on the disk or in a store, and writes its rows.

        Files that cannot be read are left out, counted and reported.
        """
        listener = self.context.listener
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "set.arrow"
            rejected = index_folder(
                folder,
                self.class_list,
                file,
                Reading(threads=None if self.group.is_single else self.engine.threads),
                self.group,
                whose="the --class-map" if self.class_map else "the run",
            )
            provenance.write(file.parent, {"root": storage.absolute(str(folder))})
            for path, reason in rejected[:_NAMED_FILES]:
                listener.warn(f"left out: {path}: {reason}")
            if more := len(rejected[_NAMED_FILES:]):
                listener.warn(f"left out: {more} more files that cannot be read; --json names all")
            index = Index(file, len(self.classes))
            names = [[printable(path), printable(reason)] for path, reason in rejected]
            return self._evaluate(name, index, len(rejected)) | {"unreadable_files": names}

    def rows(
        self,
        name: str,
        index: Index,
        check: Callable[[], None] = lambda: None,
        levels: Levels | None = None,
        answers: SuiteAnswers | None = None,
    ) -> PredictionRows:
        """Returns a row per image of an index, at `levels` of the options' reduced_scale where given.

        check: is called at every batch and may raise. answers: what counts as one on a suite, in place of the
        class map.
        """
        listener, batch_size = self.context.listener, self.options.batch_size
        source = open_loader(index, self.trained.preprocessing, batch_size, self.engine)
        scale = self.options.reduced_scale
        plan = EpochPlan(len(index), batch_size, levels or FULL_QUALITY, scale)

        def on_batch(images: int) -> None:
            listener.advance(images, str)
            check()
            self.exit_if_signalled(name)

        listener.begin(f"evaluate {name}", len(index))
        try:
            return predict(
                self.model, source, plan, self.context, on_batch=on_batch, class_map=answers or self.class_map
            )
        finally:
            listener.end()

    def exit_if_signalled(self, name: str) -> None:
        """Raises Interrupted after a signal.

        Called at every batch of this process; `predict` ends the pass on the others.
        """
        if signum := self.context.stop():
            raise Interrupted(f"stopped in the evaluation of {name}: the same command begins it anew", signum)

    def _evaluate(self, name: str, index: Index, unreadable: int) -> dict[str, Any]:
        result = self.write(name, index, self.rows(name, index), unreadable)
        if self.options.curve is not None:
            result["curve"] = write_curve(self, self.name_of_rows(name), index, self.options.curve)
        return result

    def name_of_rows(self, name: str) -> str:
        """Returns the name of a set's rows.

        Mapped ones have other labels, and must not replace the run's own.
        """
        return f"{name}-mapped-{self.class_map.rule}" if self.class_map else name

    def write(
        self,
        name: str,
        index: Index,
        rows: PredictionRows,
        unreadable: int,
        of_suite: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Writes the rows of a set, and returns its result. of_suite: goes into the rows' metadata."""
        file = self._file_of_rows(name)
        metadata = {**self.metadata, **(of_suite or {})}
        self.group.run_on_main(lambda: write_rows(file, rows, index, metadata))
        return self.result(name, rows, unreadable)

    def _file_of_rows(self, name: str) -> Path:
        return self.run / "predictions" / f"{self.name_of_rows(name)}.parquet"

    def result(self, name: str, rows: PredictionRows, unreadable: int) -> dict[str, Any]:
        """Returns the figures of the rows of a set."""
        of_chance = chance_of_rows(rows.labels, rows.labels == rows.predictions)
        note = of_chance.sentence(printable(self.run), self.name_of_rows(name))
        result = {
            "set": self.name_of_rows(name),
            "images": len(rows.labels),
            "correct": int((rows.labels == rows.predictions).sum()),
            "accuracy": rows.accuracy,
            "top5_accuracy": rows.top5_accuracy,
            "negative_log_likelihood": rows.negative_log_likelihood,
            "expected_calibration_error": rows.expected_calibration_error,
            "most_frequent": of_chance.most_frequent,
            "p_above_chance": of_chance.p_value,
            "notes": [note] if note else [],
            "unreadable": unreadable,
            "rows": str(self._file_of_rows(name)),
        }
        if self.class_map is not None:
            result |= {"map_rule": self.class_map.rule, "unmapped": int((rows.predictions < 0).sum())}
        return result

    def say_start(self) -> None:
        """Says that a run has not ended, and that nothing it trained is evaluated where its best epoch is its
        start. Collective.
        """
        for says in (unfinished_note, start_note):
            if note := self.group.run_on_all(partial(says, self.run)):
                self.context.listener.line(note)

    @property
    def metadata(self) -> dict[str, Any]:
        """Returns what is written beside rows.

        It is the epoch of the weights and the number of the definitions; for mapped classes also their names
        and the rule.
        """
        mapped = {"classes": list(self.classes), "map_rule": self.class_map.rule} if self.class_map else {}
        return {"epoch": self.trained.epoch, "definitions": DEFINITIONS, **mapped}
