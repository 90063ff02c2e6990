"""Classifies a person's own images with a run: the most probable classes of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from qrdali.data import storage
from qrdali.data.file_check import check_files
from qrdali.data.given_images import given_images
from qrdali.data.index import Index, Writer
from qrdali.data.inspect import FileReport, quiet_pillow
from qrdali.data.scan import Reading
from qrdali.data.tree import LISTINGS
from qrdali.errors import InputError, Interrupted, RunError, printable
from qrdali.evaluation.predict import top_answers
from qrdali.files.atomic import write_whole
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.runs import folder as run_folder
from qrdali.runs.folder import BestModel
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.deterministic import deterministic
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator

_CHUNK = 1024  # files that are checked between two looks at a signal
_NAMED_FILES = 20  # images passed over that are named one by one; `--json` has all
_NOT_A_NUMBER = "the network's answer is not a number (NaN)"

_ANSWER: list[Any] = [
    ("prediction", pa.int32()),
    ("class", pa.string()),
    ("name", pa.string()),
]
_TOP = pa.list_(pa.struct([*_ANSWER, ("probability", pa.float32())]))
_ROW: list[Any] = [("path", pa.string()), *_ANSWER, ("confidence", pa.float32()), ("top", _TOP)]
SCHEMA = pa.schema(_ROW)


@dataclass(frozen=True)
class ImagePredictions:
    """Holds what a run says of images.

    rows: a table with a row per image, in the order in which they were given. Columns: path; prediction,
    class, name and confidence of the most probable class: its number, its name in the run, a readable name
    (null where the run has none) and its probability; top, a list of structs of prediction, class, name and
    probability, the most probable first. unreadable: by path, why an image is passed over.
    """

    rows: pa.Table
    unreadable: dict[str, str]


@dataclass(frozen=True)
class _Answers:
    """Holds the answers to the images at `positions` of those given, int64 [N].

    classes: int64 [N, K]. probability: float32 [N, K].
    """

    positions: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]


def predict(
    run: str | Path,
    images: Sequence[str],
    *,
    top: int = 5,
    out: str | Path | None = None,
    batch_size: int = 32,
    device: str = "auto",
    amp: str = "auto",
    threads: int | None = None,
    control: JobControl = JobControl(),
) -> ImagePredictions:
    """Returns the most probable classes of images by `best/` of a run, shown as `evaluate` shows them.

    images: files, folders (with all below them), s3:// and gs:// places, URLs of shard members. top: classes
    per image, as many as there are at most. out: a Parquet file for the rows, which is replaced. Others: as
    in `evaluate`.

    Images that cannot be decoded are passed over with a warning each. Raises InputError for places that do
    not exist, folders without images and an `out` that cannot be written, RunError for a damaged run,
    or if no image is left, and Interrupted once `control.stop` returns a signal; nothing is written then.
    """
    folder, listener = Path(run), control.listener
    if top < 1:
        raise InputError(f"top = {top} is below 1: give the number of classes that are wanted")
    if out is not None:
        _require_writable(Path(out))
    unreadable: dict[str, str] = {}
    pass_over = unreadable.__setitem__
    run_folder.describe_best(folder)  # a run that is none is said before images are looked at
    names = given_images(images, pass_over, listener.line)
    with deterministic(run_folder.is_deterministic(folder), device):
        evaluator = Evaluator(folder, EvaluateOptions(batch_size, device, amp, threads), control)
        reports = _checked(names, evaluator, control)
        for name, report in zip(names, reports, strict=True):
            if report.reason:
                pass_over(name, report.reason)
        kept = min(top, len(evaluator.trained.classes))
        answers = _Classifier(evaluator, names, reports, pass_over).classify(kept)
    _warn(unreadable, listener)
    if not len(answers.positions):
        raise RunError(f"none of {len(names)} images could be classified{_first(unreadable)}")
    rows = _table(names, answers, evaluator.trained)
    if out is not None:
        write_whole(Path(out), lambda partial: pq.write_table(rows, partial))
    return ImagePredictions(rows, unreadable)


def _warn(unreadable: dict[str, str], listener: ProgressListener) -> None:
    for path, reason in islice(unreadable.items(), _NAMED_FILES):
        listener.warn(f"passed over: {path}: {reason}")
    if (more := len(unreadable) - _NAMED_FILES) > 0:
        listener.warn(f"passed over: {more} more; --json names all")


def _require_writable(out: Path) -> None:
    if out.is_dir():
        raise InputError(f"--out is {printable(out)}, a folder: give a file, such as predictions.parquet")
    if not out.parent.is_dir():
        raise InputError(f"--out is {printable(out)}: {printable(out.parent)} is not a folder")


def _first(unreadable: dict[str, str]) -> str:
    return next((f"; {printable(path)}: {printable(reason)}" for path, reason in unreadable.items()), "")


def _checked(names: list[str], evaluator: Evaluator, control: JobControl) -> list[FileReport]:
    """Returns what each file is, decoded by Pillow and by the decoder of training, as an index does."""
    quiet_pillow()
    reports: list[FileReport] = []
    threads = evaluator.engine.threads
    reading = Reading(threads=threads)
    control.listener.begin("check", len(names))
    try:
        with ThreadPoolExecutor(LISTINGS if any(map(storage.is_url, names)) else threads) as pool:
            for start in range(0, len(names), _CHUNK):
                paths = [_path_of(name) for name in names[start : start + _CHUNK]]
                for report in check_files(paths, reading, pool):
                    reports.append(report)
                    control.listener.advance(1, str)
                    _exit_if_signalled(control.stop)
    finally:
        control.listener.end()
    return reports


def _path_of(name: str) -> str:
    return name if storage.is_url(name) else storage.absolute(name)


def _exit_if_signalled(stop: Callable[[], int]) -> None:
    if signum := stop():
        raise Interrupted("stopped while images were classified: nothing was written", signum)


class _Classifier:
    """Shows images to a network, those on the disk and those elsewhere in batches of their own."""

    def __init__(
        self,
        evaluator: Evaluator,
        names: list[str],
        reports: list[FileReport],
        pass_over: Callable[[str, str], None],
    ) -> None:
        self._evaluator, self._names, self._reports = evaluator, names, reports
        self._pass_over = pass_over
        evaluator.model.eval()

    def classify(self, top: int) -> _Answers:
        """Returns the answers to all images that can be read, in the order of their positions."""
        good = [i for i, report in enumerate(self._reports) if not report.reason]
        listener = self._evaluator.context.listener
        parts = []
        listener.begin("predict", len(good))
        try:
            # Decoders take paths of files on the disk and bytes of all others, of one kind in a pass.
            for elsewhere in (False, True):
                group = [i for i in good if storage.is_url(self._names[i]) is elsewhere]
                if group:
                    parts.append(self._classify(np.array(group), top))
        finally:
            listener.end()
        if not parts:
            return _no_answers(top)
        positions = np.concatenate([part.positions for part in parts])
        order = np.argsort(positions, kind="stable")
        classes = np.concatenate([part.classes for part in parts])
        probability = np.concatenate([part.probability for part in parts])
        return self._without_nan(_Answers(positions[order], classes[order], probability[order]))

    def _classify(self, group: npt.NDArray[np.int64], top: int) -> _Answers:
        evaluator, batch_size = self._evaluator, self._evaluator.options.batch_size
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "images.arrow"
            writer = Writer(file)
            for i in group.tolist():
                report = self._reports[i]
                writer.add(report.path, 0, report.width, report.height)
            writer.close()
            index = Index(file, 1)
            source = open_loader(index, evaluator.trained.preprocessing, batch_size, evaluator.engine)
            plan = EpochPlan(len(index), batch_size, FULL_QUALITY)

            def on_unreadable(reasons: dict[int, str]) -> None:
                for sample, reason in reasons.items():  # changed since it was checked
                    self._pass_over(self._names[group[sample]], reason)

            columns = [self._answer(batch, top) for batch in source.epoch(plan, on_unreadable)]
        if not columns:
            return _no_answers(top)
        samples, classes, probability = (
            torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)
        )
        return _Answers(group[samples], classes, probability)

    def _answer(self, batch: Any, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns sample numbers, classes and probabilities of a batch, still on the device."""
        context = self._evaluator.context
        with torch.inference_mode(), context.autocast():
            logits = self._evaluator.model(batch.images)
        with torch.inference_mode():
            answers = top_answers(logits, top)
        context.listener.advance(len(batch.samples), str)
        _exit_if_signalled(context.stop)
        return batch.samples, *answers

    def _without_nan(self, answers: _Answers) -> _Answers:
        finite = np.isfinite(answers.probability).all(axis=1)
        for position in answers.positions[~finite].tolist():
            self._pass_over(self._names[position], _NOT_A_NUMBER)
        return _Answers(answers.positions[finite], answers.classes[finite], answers.probability[finite])


def _no_answers(top: int) -> _Answers:
    return _Answers(np.empty(0, np.int64), np.empty((0, top), np.int64), np.empty((0, top), np.float32))


def _table(names: list[str], answers: _Answers, trained: BestModel) -> pa.Table:
    """Returns the rows of `ImagePredictions`."""
    classes = pa.array(trained.classes, pa.string())
    readable = trained.readable
    shown = pa.array(readable or [None] * len(classes), pa.string())

    def described(numbers: npt.NDArray[np.int64]) -> list[Any]:
        which: Any = pa.array(numbers)
        return [pa.array(numbers.astype(np.int32)), classes.take(which), shown.take(which)]

    count, top = answers.classes.shape
    probability = pa.array(answers.probability.ravel())
    of_top = pa.StructArray.from_arrays(
        [*described(answers.classes.ravel()), probability], fields=list(_TOP.value_type)
    )
    offsets: Any = pa.array(np.arange(0, (count + 1) * top, top, dtype=np.int32))
    columns = [
        pa.array([names[i] for i in answers.positions.tolist()], pa.string()),
        *described(answers.classes[:, 0]),
        pa.array(answers.probability[:, 0]),
        pa.ListArray.from_arrays(offsets, of_top, type=_TOP),
    ]
    return pa.table(columns, schema=SCHEMA)
