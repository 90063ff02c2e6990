"""Does the tasks of a matrix, one kind after the other, in this process or in several ranks."""

from __future__ import annotations

import json
import shutil
import time
from typing import Any

from qrdali.errors import RunError
from qrdali.experiment.expand import PlannedRun
from qrdali.experiment.tasks import SPEC, Task, Tasks
from qrdali.files.atomic import replace_atomically, write_whole
from qrdali.interfaces import JobControl
from qrdali.reduction.quality import scale_of
from qrdali.system.deterministic import deterministic
from qrdali.workflows.adopt import adopt
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.evaluate_suites import SuiteEvaluator
from qrdali.workflows.generated_data import generate_pictures, index_pictures
from qrdali.workflows.rank_job import perform_in_ranks
from qrdali.workflows.report import write_report
from qrdali.workflows.stop_requests import stopping_at_progress
from qrdali.workflows.train import run_training


def perform(tasks: Tasks, task: Task, control: JobControl) -> dict[str, Any] | None:
    """Does a task and returns what is to be noted; that of a network with several `gpus` in as many
    processes.

    Raises whatever hinders it, and Interrupted after a signal.
    """
    if task.kind == "train" and not (tasks.folder.run(task.name) / "config.toml").exists():
        # Before it trains: whatever is replaced from here on makes the run one of other origins.
        tasks.folder.begins(task.name, tasks.origin(tasks.runs[task.name]))
    if tasks.gpus(task) > 1:
        return perform_in_ranks(tasks, task, control)
    return perform_as_group(tasks, task, control)


def perform_as_group(tasks: Tasks, task: Task, control: JobControl) -> dict[str, Any] | None:
    """Does a task in the processes of `control.group`. Collective; the first returns what is to be noted."""
    if task.kind == "data":
        _make_data(tasks, stopping_at_progress(control))
        return None
    if task.kind == "report":
        return _report(tasks, stopping_at_progress(control))
    run = tasks.runs[task.name]
    if task.kind == "adopt":
        assert run.adopt is not None
        adopt(run.adopt, tasks.folder.run(run.name), control)
        return None
    if task.kind == "train":
        run_training(run.settings, tasks.folder.run(run.name), True, control)
        return None
    begun = time.monotonic()
    note: dict[str, Any] = {"weights": tasks.folder.weights(run.name), "asked": tasks.request(task)}
    with deterministic(run.settings.deterministic, run.settings.device):
        if task.kind == "evaluate":
            note["accuracy"] = _evaluate(tasks, run, stopping_at_progress(control))
            note["files"] = tasks.row_files(run.name)
        else:
            note["quotient"] = _build_mepis(tasks, run, control)
    return {**note, "seconds": round(time.monotonic() - begun, 3)}


def _make_data(tasks: Tasks, control: JobControl) -> None:
    """Generates the pictures and their index, each whole or not at all."""
    assert tasks.matrix.data.shapes is not None
    spec, images = tasks.matrix.data.shapes.spec(), tasks.folder.folder / "images"
    if tasks.pictures() is None:
        if images.exists():
            raise RunError(f"{images} exists and is not of this matrix: remove it, or choose another out")
        partial = images.with_name("images.partial")
        if partial.exists():
            shutil.rmtree(partial)
        generate_pictures(partial, spec, control.listener)
        write_whole(partial / SPEC, f"{json.dumps(tasks.pictures_wanted())}\n".encode())
        replace_atomically(partial, images)
    index_pictures(images, tasks.data, spec.total, control.listener)


def _evaluate(tasks: Tasks, run: PlannedRun, control: JobControl) -> dict[str, float]:
    """Evaluates a run on all splits, sets and suites; returns the accuracy by name of the rows."""
    wanted, settings = tasks.matrix.evaluate, run.settings
    options = EvaluateOptions(
        settings.batch_size,
        settings.device,
        settings.amp,
        settings.threads or None,
        scale_of(wanted.curve_step, tasks.curve_tail) if wanted.curve else None,
        wanted.reduced,
    )
    evaluator = Evaluator(tasks.folder.run(run.name), options, control)
    of_suites = SuiteEvaluator(evaluator)
    # All are found before anything is evaluated: a wrong folder must not show after hours.
    suites = [of_suites.find(name, root) for name, root in wanted.suites.items()]
    results = [evaluator.split(tasks.data, split, settings.root) for split in wanted.splits]
    results += [evaluator.folder(name, folder) for name, folder in wanted.sets.items()]
    accuracies = {
        row["set"]: row["accuracy"]
        for result in results
        for row in (result, *result.get("reduced", {}).values())
    }
    accuracies |= {one["suite"]: one["accuracy"] for one in map(of_suites.evaluate, suites)}
    control.listener.line("  " + ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items()))
    return accuracies


def _build_mepis(tasks: Tasks, run: PlannedRun, control: JobControl) -> dict[str, float | None]:
    """Builds a run's MEPI set; returns the mean entropy quotient by reduction."""
    wanted, settings = tasks.matrix.mepi, run.settings
    quotients: dict[str, float | None] = {}
    for reduction in ("all",) if len(wanted.reductions) == 4 else wanted.reductions:
        summaries = build_mepi(
            tasks.folder.run(run.name),
            tasks.data,
            out=tasks.folder.mepi(run.name),
            root=settings.root,
            split=wanted.split,
            reduction=reduction,
            step=wanted.step,
            tail=tasks.tail,
            windows=wanted.windows,
            prefer=wanted.prefer,
            limit=wanted.limit,
            batch_size=settings.batch_size,
            device=settings.device,
            amp=settings.amp,
            threads=settings.threads or None,
            resume=True,
            control=control,
        )
        quotients |= {name: summary["mean_quotient"] for name, summary in summaries.items()}
    return quotients


def _report(tasks: Tasks, control: JobControl) -> dict[str, Any]:
    runs, mepis = tasks.reported()
    if not runs:
        raise RunError("no run is evaluated yet: there is nothing to report")
    folder = tasks.folder
    page = write_report(
        [folder.run(name) for name in runs],
        folder.report,
        mepi=[folder.mepi(name) for name in mepis],
        control=control,
    ).page
    if not page.is_file():
        raise RunError(f"the report did not come to be in {folder.report}")
    control.listener.line(f"report: {page}")
    return {"inputs": tasks.report_inputs(), "file": str(page.relative_to(folder.report))}
