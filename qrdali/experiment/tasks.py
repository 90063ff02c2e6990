"""The tasks of a matrix in their order, and the state of each by what is on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qrdali.data import storage
from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError, printable
from qrdali.experiment.config import Matrix
from qrdali.experiment.expand import PlannedRun, matches, select
from qrdali.experiment.folder import ExperimentFolder
from qrdali.files.json_objects import read_object
from qrdali.runs import folder as run_folders

SPEC = "shapes.json"  # beside generated pictures: what they are


@dataclass(frozen=True)
class Task:
    """kind: data, train, evaluate, mepi or report. name: of the run, but for data and report. needs: keys of the tasks that must be
    done before."""

    kind: str
    name: str = ""
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


def _task(key: str) -> Task:
    kind, _, name = key.partition(" ")
    return Task(kind, name)


class Tasks:
    """What a call has to do, and what is done. runs: every run of the matrix; wanted: those of this call."""

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
        self._fingerprints: dict[str, str] = {}
        self._digests: dict[str, str] = {}
        if matrix.mepi.runs:
            select(runs, matrix.mepi.runs, "mepi.runs")
        select(runs, matrix.report.runs, "report.runs")
        first = () if matrix.data.shapes is None else ("data",)
        self.all = [Task("data")] if first else []
        self.all += [
            Task("train", run.name, (*first, *(f"train {name}" for name in run.needs))) for run in self.wanted
        ]
        self.all += [Task("evaluate", run.name, (f"train {run.name}",)) for run in self.wanted]
        self.all += [
            Task("mepi", run.name, (f"train {run.name}",)) for run in self.wanted if self._has_mepi(run.name)
        ]
        self.all += [Task("report")] if matrix.report.make else []

    def _has_mepi(self, name: str) -> bool:
        return any(matches(name, pattern) for pattern in self.matrix.mepi.runs)

    def state(self, task: Task) -> tuple[str, str]:
        """("done" | "failed" | "begun" | "waiting", why or for what)."""
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
        """The failed task for which this one waits, or nothing: waiting for one's turn needs no word."""
        for key in task.needs:
            if not self.done(_task(key)):
                need = next((other for other in self.all if other.key == key), None)
                if key in self.folder.failures:
                    return key
                if need is not None and (found := self._hindrance(need)):
                    return found
        return ""

    def blocked(self, task: Task) -> str:
        """The task that must be done before this one and is not, or nothing."""
        return next((key for key in task.needs if not self.done(_task(key))), "")

    def done(self, task: Task) -> bool:
        """By what is on disk, not by what was once said."""
        if task.kind == "data":
            return self._has_data()
        if task.kind == "train":
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
            or note.get("asked") != self.asked(task)
        ):
            return False
        if task.kind == "mepi":
            return (self.folder.mepi(task.name) / "summary.json").is_file()
        seen = self.rows_seen(task.name)
        return seen is not None and bool(note.get("files") == seen)

    def rows_seen(self, name: str) -> dict[str, list[int]] | None:
        """Size and time of each file of rows of a run's evaluation, so that rows that somebody else has written are noticed; None if one
        is missing."""
        seen = {}
        for row in self.row_names():
            try:
                stat = (self.folder.run(name) / "predictions" / f"{row}.parquet").stat()
            except OSError:
                return None
            seen[row] = [stat.st_size, stat.st_mtime_ns]
        return seen

    def origin(self, run: PlannedRun) -> dict[str, Any]:
        """What a run is trained from: the images, and the weights of the runs it needs."""
        return {
            "images": self._fingerprint("train"),
            "weights": {name: self._digest(name) for name in run.needs},
        }

    def _digest(self, name: str) -> str:
        """Of a run's best weights; a copy of the folder has the same, whatever its times."""
        if not self.folder.ended(name):
            return ""
        if name not in self._digests:
            self._digests[name] = run_folders.weights_digest(self.folder.run(name))
        return self._digests[name]

    def replaced(self, run: PlannedRun) -> str:
        """What has changed since a run was begun that it was trained from, or nothing."""
        noted = self.folder.done.get(f"from {run.name}")
        if noted is None or not (self.folder.run(run.name) / "config.toml").exists():
            return ""
        now = self.origin(run)
        if noted.get("images") != now["images"] and now["images"]:
            return "the training images"
        weights = noted.get("weights")
        changed = [
            name
            for name, seen in now["weights"].items()
            if not isinstance(weights, dict) or weights.get(name) != seen
        ]
        return f"the weights of {changed[0]}" if changed else ""

    def row_names(self) -> list[str]:
        """Names of the files of rows that an evaluation leaves."""
        asked = self.matrix.evaluate
        reduced = [
            f"{split}-{reduction}-{asked.reduced:g}"
            for split in asked.splits
            if asked.reduced is not None
            for reduction in ("color", "crop", "resolution", "combination")
        ]
        return [*asked.splits, *reduced, *asked.sets]

    def asked(self, task: Task) -> dict[str, Any]:
        """What an evaluation or a MEPI set is asked for, as plain data that changes when the answer may."""
        if task.kind == "mepi":
            return {
                **self.matrix.mepi.model_dump(exclude={"runs"}),
                "data": self._fingerprint(self.matrix.mepi.split),
            }
        asked = self.matrix.evaluate
        return {
            "data": {split: self._fingerprint(split) for split in asked.splits},
            "reduced": asked.reduced,
            "curve": asked.curve_step if asked.curve else None,
            "sets": {
                name: [storage.absolute(folder), 0 if storage.is_remote(folder) else _newest(Path(folder))]
                for name, folder in asked.sets.items()
            },
        }

    def _fingerprint(self, split: str) -> str:
        if split not in self._fingerprints:
            try:
                self._fingerprints[split] = Dataset.open(self.data).index(split).fingerprint
            except (InputError, RunError, OSError):
                return ""
        return self._fingerprints[split]

    def reported(self) -> tuple[list[str], list[str]]:
        """Names of the runs that a report can show now, and of those with a MEPI set."""
        names = [
            name for name in self.runs if any(matches(name, pattern) for pattern in self.matrix.report.runs)
        ]
        return (
            [name for name in names if self.done(Task("evaluate", name))],
            [name for name in names if self._has_mepi(name) and self.done(Task("mepi", name))],
        )

    def report_inputs(self) -> str:
        """A digest of what a report would be made of; empty where there is nothing."""
        runs, mepis = self.reported()
        if not runs:
            return ""
        keys = [*(f"evaluate {name}" for name in runs), *(f"mepi {name}" for name in mepis)]
        notes = [
            [key, {name: value for name, value in self.folder.done[key].items() if name != "seconds"}]
            for key in keys
        ]
        return hashlib.sha256(json.dumps(notes, sort_keys=True).encode()).hexdigest()

    def _has_data(self) -> bool:
        return (self.data / "classes.tsv").is_file() and self.pictures() is not None

    def pictures(self) -> dict[str, Any] | None:
        """What the generated pictures that are there are, or None. Raises RunError if that cannot be read."""
        file = self.folder.folder / "images" / SPEC
        return read_object(file, ": choose another out") if file.exists() else None

    def changed_pictures(self) -> list[str]:
        """How the pictures that are there differ from those that the matrix asks for."""
        before, now = self.pictures(), self.spec()
        if before is None:
            return []
        return [
            f"{key} {printable(before.get(key))} → {printable(now.get(key))}"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]

    def spec(self) -> dict[str, Any]:
        assert self.matrix.data.shapes is not None
        made = asdict(self.matrix.data.shapes.spec())
        return {**made, "size": list(made["size"])}


def _newest(folder: Path) -> int:
    """The newest change of a folder and its class folders, in ns; 0 if there is none."""
    try:
        return max(path.stat().st_mtime_ns for path in (folder, *(p for p in folder.iterdir() if p.is_dir())))
    except OSError:
        return 0
