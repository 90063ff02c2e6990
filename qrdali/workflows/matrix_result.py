"""What a matrix has come to: its runs, what failed, what waits, and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qrdali.errors import RunError
from qrdali.experiment import estimate
from qrdali.experiment.tasks import Task, Tasks
from qrdali.runs import folder as run_folder


@dataclass(frozen=True)
class RunResult:
    """Holds a run of the matrix as it is now; None for what is not there yet.

    val: accuracy of its best weights by training. accuracy: on the first split that is evaluated. seconds: of
    training and probes.
    """

    name: str
    state: str
    val: float | None
    accuracy: float | None
    seconds: float | None


@dataclass(frozen=True)
class MatrixResult:
    """Holds what a call has left.

    tasks: how many there are. split: on which `RunResult.accuracy` was measured. failed: reasons by task.
    waiting: by task, the task that it waits for. page: of the report, if there is one.
    """

    tasks: int
    split: str
    runs: tuple[RunResult, ...]
    failed: dict[str, str]
    waiting: dict[str, str]
    page: Path | None


class TasksFailed(RunError):
    """Says that tasks of a matrix failed; the others are done, and `result` has both."""

    def __init__(self, result: MatrixResult) -> None:
        self.result = result
        if not result.failed:
            key, need = next(iter(result.waiting.items()))
            super().__init__(
                f"{len(result.waiting)} of {result.tasks} tasks are left, {key} among them, which waits for "
                f"{need}"
            )
            return
        behind = f" and {len(result.waiting)} wait for them" if result.waiting else ""
        super().__init__(
            f"{len(result.failed)} of {result.tasks} tasks failed{behind}: the same command tries them again"
        )


def result_of(tasks: Tasks, waiting: dict[str, str]) -> MatrixResult:
    """Returns what is there now. waiting: by task, the task that it waits for."""
    split = tasks.matrix.evaluate.splits[0]
    failures = tasks.folder.failures
    failed = {
        task.key: failures[task.key].get("reason", "")
        for task in tasks.all
        if task.key in failures and not tasks.done(task)
    }
    page = tasks.folder.report / "report.html"
    return MatrixResult(
        len(tasks.all),
        split,
        tuple(_run_result(tasks, run.name, split) for run in tasks.wanted),
        failed,
        waiting,
        page if page.exists() else None,
    )


def _run_result(tasks: Tasks, name: str, split: str) -> RunResult:
    accuracies = None
    if tasks.done(Task("evaluate", name)):
        accuracies = tasks.folder.done[f"evaluate {name}"].get("accuracy")
    accuracy = accuracies.get(split) if isinstance(accuracies, dict) else None
    try:
        val = run_folder.describe_best(tasks.folder.run(name)).val_accuracy
    except (RunError, ValueError):
        val = None
    rows = estimate.rows(tasks.folder.run(name))
    return RunResult(
        name,
        tasks.state(tasks.run_task(name))[0],
        val,
        accuracy if isinstance(accuracy, float) else None,
        rows[-1].get("total_seconds", 0) if rows else None,
    )
