"""What `qrdali reproduce` does for each kind of task, in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrdali.experiment.expand import PlannedRun
    from qrdali.experiment.tasks import Task, Tasks


def perform(tasks: Tasks, task: Task) -> dict[str, Any] | None:
    """Does it and returns what is to be noted. Raises whatever hinders it, and SystemExit after a signal."""
    from qrdali.system.deterministic import deterministic

    if task.kind == "data":
        _data(tasks)
        return None
    if task.kind == "report":
        return _report(tasks)
    run = tasks.runs[task.name]
    if task.kind == "train":
        from qrdali.cli.signals import terminal_control
        from qrdali.workflows.train import run_training

        if not (tasks.folder.run(run.name) / "config.toml").exists():
            tasks.folder.note(f"from {run.name}", tasks.origin(run))
        with terminal_control() as control:
            run_training(run.settings, tasks.folder.run(run.name), True, control)
        return None
    begun = time.monotonic()
    note: dict[str, Any] = {"weights": tasks.folder.weights(run.name), "asked": tasks.asked(task)}
    with deterministic(run.settings.deterministic, run.settings.device):
        if task.kind == "evaluate":
            note |= {"accuracy": _evaluate(tasks, run), "files": tasks.rows_seen(run.name)}
        else:
            note["quotient"] = _mepi(tasks, run)
    return {**note, "seconds": round(time.monotonic() - begun, 3)}


def _data(tasks: Tasks) -> None:
    """Pictures and their index, each whole or not at all."""
    import json
    import shutil

    from qrdali.cli.terminal import Bar
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import generate
    from qrdali.errors import RunError
    from qrdali.experiment.tasks import SPEC

    assert tasks.matrix.data.shapes is not None
    spec, images = tasks.matrix.data.shapes.spec(), tasks.folder.folder / "images"
    if tasks.pictures() is None:
        if images.exists():
            raise RunError(f"{images} exists and is not of this matrix: remove it, or choose another out")
        partial = images.with_name("images.partial")
        if partial.exists():
            shutil.rmtree(partial)
        with Bar("generate", spec.total, "files") as bar:
            generate(partial, spec, progress=bar.advance)
        (partial / SPEC).write_text(json.dumps(tasks.spec()) + "\n", "utf-8")
        partial.rename(images)
    with Bar("index", spec.total, "files") as bar:
        build_dataset(images, tasks.data, progress=lambda split, files: bar.advance(files, split))


def _evaluate(tasks: Tasks, run: PlannedRun) -> dict[str, float]:
    """Accuracy by name of the rows."""
    from qrdali.cli.evaluate import Evaluator
    from qrdali.cli.terminal import say
    from qrdali.reduction.quality import num_levels_of

    asked, settings = tasks.matrix.evaluate, run.settings
    extra: dict[str, Any] = {} if asked.reduced is None else {"reduced": asked.reduced}
    evaluator = Evaluator(
        tasks.folder.run(run.name),
        settings.batch_size,
        settings.device,
        settings.amp,
        settings.threads or None,
        num_levels_of(asked.curve_step) if asked.curve else None,
        **extra,
    )
    results = [evaluator.split(tasks.data, split) for split in asked.splits]
    results += [evaluator.folder(name, folder) for name, folder in asked.sets.items()]
    found = {
        r["set"]: r["accuracy"] for result in results for r in (result, *result.get("reduced", {}).values())
    }
    say("  " + ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in found.items()))
    return found


def _mepi(tasks: Tasks, run: PlannedRun) -> dict[str, float | None]:
    """Mean entropy quotient by reduction."""
    from qrdali.cli.build_mepi import build

    asked, settings = tasks.matrix.mepi, run.settings
    every = len(asked.reductions) == 4
    found: dict[str, float | None] = {}
    for reduction in ("all",) if every else asked.reductions:
        summaries = build(
            run=str(tasks.folder.run(run.name)),
            data=str(tasks.data),
            out=str(tasks.folder.mepi(run.name)),
            split=asked.split,
            reduction=reduction,
            step=asked.step,
            windows=str(asked.windows),
            prefer=asked.prefer,
            limit=asked.limit,
            batch_size=settings.batch_size,
            device=settings.device,
            amp=settings.amp,
            threads=settings.threads or None,
            resume=True,
        )
        found |= {name: summary["mean_quotient"] for name, summary in summaries.items()}
    return found


def _report(tasks: Tasks) -> dict[str, Any]:
    from qrdali.cli.report import make
    from qrdali.cli.terminal import say
    from qrdali.errors import RunError

    runs, mepis = tasks.reported()
    if not runs:
        raise RunError("no run is evaluated yet: there is nothing to report")
    folder = tasks.folder
    file = make([folder.run(name) for name in runs], [folder.mepi(name) for name in mepis], folder.report)
    if not file.is_relative_to(folder.report) or not file.is_file():
        raise RunError(f"the report did not come to be in {folder.report}")
    say(f"report: {file}")
    return {"inputs": tasks.report_inputs(), "file": str(file.relative_to(folder.report))}
