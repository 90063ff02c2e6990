"""Lists the tasks of a matrix in their order, and reads the state of each off the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qrdali.data import storage
from qrdali.data.class_matching import ClassList
from qrdali.data.index import Dataset, Index
from qrdali.data.shapes import class_names
from qrdali.data.suite_names import suite_of_rows
from qrdali.errors import InputError, RunError, printable
from qrdali.experiment.adopted import knows_classes
from qrdali.experiment.config import ALL_REDUCTIONS, Matrix, Shapes
from qrdali.experiment.expand import PlannedRun, matches, select
from qrdali.experiment.folder import ExperimentFolder
from qrdali.files.changes import describe_changes
from qrdali.files.json_objects import read_object
from qrdali.runs import folder as run_folders

GPU_KINDS = ("train", "evaluate", "mepi")  # kinds of tasks that use a GPU
SPEC = "shapes.json"  # a file beside generated pictures that says what they are


@dataclass(frozen=True)
class Task:
    """Names one thing to do. kind: data, train, adopt, evaluate, mepi or report. name: the run's, if it is of
    one.

    needs: keys of the tasks that must be done before.
    """

    kind: str
    name: str = ""
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


def _task_of(key: str) -> Task:
    kind, _, name = key.partition(" ")
    return Task(kind, name)


class Tasks:
    """Knows what a call has to do, and what is done.

    runs: every run of the matrix by name. wanted: those of this call. all: the tasks in the order in which
    they are done. data: the data set's folder. foreign: names of adopted runs that do not know the data's
    classes: they are neither evaluated nor searched.
    """

    def __init__(
        self,
        matrix: Matrix,
        folder: ExperimentFolder,
        data: Path,
        runs: list[PlannedRun],
        only: Iterable[str],
    ) -> None:
        """Raises InputError for a pattern that names no run."""
        self.matrix, self.folder, self.data = matrix, folder, data
        self.runs = {run.name: run for run in runs}
        self.wanted = select(runs, only, "--only")
        self._indexes: dict[str, Index] = {}
        self._digests: dict[str, str] = {}
        if matrix.mepi.runs:
            select(runs, matrix.mepi.runs, "mepi.runs")
        select(runs, matrix.report.runs, "report.runs")
        first = () if matrix.data.shapes is None else ("data",)
        self.all = [Task("data")] if first else []
        self.all += [self.run_task(run.name) for run in self.wanted]
        self.foreign = [run.name for run in self.wanted if self._is_of_other_classes(run)]
        evaluated = [run for run in self.wanted if run.name not in self.foreign]
        self.all += [Task("evaluate", run.name, (*first, self.run_task(run.name).key)) for run in evaluated]
        self.all += [
            Task("mepi", run.name, (*first, self.run_task(run.name).key))
            for run in evaluated
            if self._has_mepi(run.name)
        ]
        self.all += [Task("report")] if matrix.report.make else []

    def run_task(self, name: str) -> Task:
        """Returns the task that makes a run: it is trained, or adopted."""
        run = self.runs[name]
        if run.adopt is not None:
            return Task("adopt", name)
        first = () if self.matrix.data.shapes is None else ("data",)
        return Task("train", name, (*first, *(self.run_task(need).key for need in run.needs)))

    def gpus(self, task: Task) -> int:
        """Returns how many GPUs a task uses where there are any: 0 for a task that needs none."""
        if task.kind not in GPU_KINDS:
            return 0
        network = self.runs[task.name].network
        return next(one.gpus for one in self.matrix.network if one.folder == network)

    def _is_of_other_classes(self, run: PlannedRun) -> bool:
        """Returns whether a run is an adopted network that does not know the data's classes."""
        if run.adopt is None:
            return False
        try:
            shapes = self.matrix.data.shapes
            data = Dataset.open(self.data).class_list if shapes is None else _shape_classes(shapes)
        except (InputError, RunError, OSError):
            return False  # whoever uses the data says what is wrong
        return not knows_classes(run.adopt, self.folder.run(run.name), data)

    @property
    def tail(self) -> str:
        """Returns the tail of the levels that MEPI sets are searched on: "none", "full" or their number."""
        return self.matrix.mepi.tail or self.folder.tail or "full"

    @property
    def curve_tail(self) -> str:
        """Returns the tail of the levels that curves go down."""
        return self.matrix.evaluate.curve_tail or self.tail

    def _has_mepi(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.matrix.mepi.runs)

    def state(self, task: Task) -> tuple[str, str]:
        """Returns ("done" | "failed" | "begun" | "waiting", why or for what)."""
        if self.done(task):
            return "done", ""
        if task.key in self.folder.failures:
            return "failed", printable(self.folder.failures[task.key].get("reason", ""))
        hindrance = self._hindrance(task)
        begun = {
            "train": self.folder.run(task.name) / "config.toml",
            "mepi": self.folder.mepi(task.name) / "options.json",
        }
        if task.kind in begun and begun[task.kind].exists():
            return "begun", ""
        return "waiting", f"for {hindrance}" if hindrance else ""

    def _hindrance(self, task: Task) -> str:
        """Returns the key of the failed task for which this one waits, "" if it is only queued."""
        for key in task.needs:
            if not self.done(_task_of(key)):
                need = next((other for other in self.all if other.key == key), None)
                if key in self.folder.failures:
                    return key
                if need is not None and (hindrance := self._hindrance(need)):
                    return hindrance
        return ""

    def blocked(self, task: Task) -> str:
        """Returns the key of a task that must be done before this one and is not, or ""."""
        return next((key for key in task.needs if not self.done(_task_of(key))), "")

    def done(self, task: Task) -> bool:
        """Returns whether a task is done by what is on disk now, whatever the notes say."""
        if task.kind == "data":
            return self._has_data()
        if task.kind in ("train", "adopt"):
            return self.folder.ended(task.name)
        note = self.folder.done.get(task.key)
        if note is None:
            return False
        if task.kind == "report":
            inputs = self.report_inputs()
            return (
                bool(inputs)
                and note.get("inputs") == inputs
                and (self.folder.report / str(note.get("file"))).is_file()
            )
        if (
            not self.folder.ended(task.name)
            or note.get("weights") != self.folder.weights(task.name)
            or note.get("asked") != self.request(task, note.get("asked"))
        ):
            return False
        if task.kind == "mepi":
            return (self.folder.mepi(task.name) / "summary.json").is_file()
        rows = self.row_files(task.name)
        return rows is not None and bool(note.get("files") == rows)

    def row_files(self, name: str) -> dict[str, list[int]] | None:
        """Returns size and time of each file of rows of a run's evaluation; None if one is missing.

        Rows that somebody else has written differ in them.
        """
        files = {}
        for set_name in self.row_names():
            try:
                status = (self.folder.run(name) / "predictions" / f"{set_name}.parquet").stat()
            except OSError:
                return None
            files[set_name] = [status.st_size, status.st_mtime_ns]
        for suite in self.matrix.evaluate.suites:
            of_suite = self._suite_rows(name, suite)
            if not of_suite:
                return None
            files |= of_suite
        return files

    def _suite_rows(self, name: str, suite: str) -> dict[str, list[int]]:
        """Returns size and time of each file of rows of a suite, which has a file for each of its sets."""
        found = {}
        for file in sorted((self.folder.run(name) / "predictions").glob(f"{suite}*.parquet")):
            if suite_of_rows(file.stem) == suite:
                status = file.stat()
                found[file.stem] = [status.st_size, status.st_mtime_ns]
        return found

    def origin(self, run: PlannedRun, noted: object = None) -> dict[str, Any]:
        """Returns digests of what a run is trained from: the images, and the weights of the runs it needs.

        noted: what was noted of the images before, which says whose form of fingerprint is meant.
        """
        return {
            "images": self._fingerprint("train", noted),
            "weights": {name: self._digest(name) for name in run.needs},
        }

    def _digest(self, name: str) -> str:
        """Returns the digest of a run's best weights, which a copy of the folder shares whatever its times
        are.
        """
        if not self.folder.ended(name):
            return ""
        if name not in self._digests:
            self._digests[name] = run_folders.weights_digest(self.folder.run(name))
        return self._digests[name]

    def replaced(self, run: PlannedRun) -> str:
        """Returns what a run was trained from and has changed since, or ""."""
        noted = self.folder.origins.get(run.name)
        if noted is None or not (self.folder.run(run.name) / "config.toml").exists():
            return ""
        now = self.origin(run, noted.get("images"))
        if noted.get("images") != now["images"] and now["images"]:
            return "the training images"
        weights = noted.get("weights")
        changed = [
            name
            for name, digest in now["weights"].items()
            if (not isinstance(weights, dict) or weights.get(name) != digest)
            # One that is to be adopted again will be the same, or a later call says that it is not.
            and (digest or self.runs[name].adopt is None)
        ]
        return f"the weights of {changed[0]}" if changed else ""

    def row_names(self) -> list[str]:
        """Returns the names of the files of rows that an evaluation leaves."""
        evaluate = self.matrix.evaluate
        reduced = [
            f"{split}-{reduction}-{evaluate.reduced:g}"
            for split in evaluate.splits
            if evaluate.reduced is not None
            for reduction in ALL_REDUCTIONS
        ]
        return [*evaluate.splits, *reduced, *evaluate.sets]

    def request(self, task: Task, noted: object = None) -> dict[str, Any]:
        """Returns what an evaluation or a MEPI set is made by: plain data that changes when the
        result may.

        noted: what was asked before, which says whose form of fingerprint is meant.
        """
        images = noted.get("data") if isinstance(noted, dict) else None
        if task.kind == "mepi":
            return {
                **self.matrix.mepi.model_dump(exclude={"runs", "tail"}),
                # Notes of version 0.1 have no tail.
                **({} if self.tail == "none" else {"tail": self.tail}),
                "data": self._fingerprint(self.matrix.mepi.split, images),
            }
        evaluate = self.matrix.evaluate
        by_split = images if isinstance(images, dict) else {}
        return {
            "data": {split: self._fingerprint(split, by_split.get(split)) for split in evaluate.splits},
            "reduced": evaluate.reduced,
            "curve": evaluate.curve_step if evaluate.curve else None,
            **({"curve_tail": self.curve_tail} if evaluate.curve and self.curve_tail != "none" else {}),
            "sets": _places(evaluate.sets),
            **({"suites": _places(evaluate.suites)} if evaluate.suites else {}),
        }

    def fingerprint(self, split: str) -> str:
        """Returns the fingerprint of a split's images, "" where there are none."""
        return self._fingerprint(split, None)

    def fingerprints(self, *splits: str) -> dict[str, dict[str, str]]:
        """Returns the fingerprints of splits' images, in both forms, by split; without those that are not
        there.
        """
        there = [split for split in splits if self._fingerprint(split, None)]
        return {split: self._indexes[split].fingerprints for split in there}

    def _fingerprint(self, split: str, noted: object) -> str:
        try:
            if split not in self._indexes:
                self._indexes[split] = Dataset.open(self.data).index(split)
            return self._indexes[split].fingerprint_like(noted)
        except (InputError, RunError, OSError):
            return ""

    def reported(self) -> tuple[list[str], list[str]]:
        """Returns the names of the runs that a report can show now, and of those with a MEPI set."""
        names = [
            name for name in self.runs if any(matches(name, pattern) for pattern in self.matrix.report.runs)
        ]
        return (
            [name for name in names if self.done(Task("evaluate", name))],
            [name for name in names if self._has_mepi(name) and self.done(Task("mepi", name))],
        )

    def report_inputs(self) -> str:
        """Returns a digest of what a report would be made of; empty where there is nothing."""
        runs, mepis = self.reported()
        if not runs:
            return ""
        keys = [*(f"evaluate {name}" for name in runs), *(f"mepi {name}" for name in mepis)]
        # The same results are the same report, however long they took and whoever made them.
        left_out = ("seconds", "worker", "failed_before")
        notes = [
            [key, {name: value for name, value in self.folder.done[key].items() if name not in left_out}]
            for key in keys
        ]
        return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()

    def _has_data(self) -> bool:
        return (self.data / "classes.tsv").is_file() and self.pictures() is not None

    def pictures(self) -> dict[str, Any] | None:
        """Returns what the generated pictures on disk are, None if there are none.

        Raises RunError if that cannot be read.
        """
        file = self.folder.folder / "images" / SPEC
        return read_object(file, ": choose another out") if file.exists() else None

    def changed_pictures(self) -> list[str]:
        """Returns how the pictures on disk differ from those that the matrix wants; nothing if there are
        none.
        """
        before = self.pictures()
        return [] if before is None else describe_changes(before, self.pictures_wanted())

    def pictures_wanted(self) -> dict[str, Any]:
        """Returns what the pictures that the matrix generates are to be, as JSON holds it."""
        assert self.matrix.data.shapes is not None
        spec = asdict(self.matrix.data.shapes.spec())
        return {**spec, "size": list(spec["size"])}


def _shape_classes(shapes: Shapes) -> ClassList:
    """Returns the classes of pictures that are generated, as their data set will have them."""
    return ClassList(tuple(sorted(class_names(shapes.spec().classes))))


def _places(folders: dict[str, str]) -> dict[str, list[Any]]:
    """Returns of each folder where it is and when it changed last, by its name."""
    return {
        name: [storage.absolute(folder), 0 if storage.is_remote(folder) else _newest(Path(folder))]
        for name, folder in folders.items()
    }


def _newest(folder: Path) -> int:
    """Returns the newest change of a folder and its class folders, in ns; 0 if there is no such folder."""
    try:
        return max(path.stat().st_mtime_ns for path in (folder, *(p for p in folder.iterdir() if p.is_dir())))
    except OSError:
        return 0
