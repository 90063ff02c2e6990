"""One rank of a task of a matrix, started by torchrun from a worker (`workflows/rank_job.py`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path())
def rank_task(folder: str) -> None:
    """Does the task that FOLDER/task.json describes with the other ranks, and writes its result."""
    from qrdali.cli.signals import terminal_control
    from qrdali.cli.torchrun import job
    from qrdali.errors import InputError, OtherRankFailed, RanksLost, RunError
    from qrdali.experiment.config import Matrix
    from qrdali.experiment.expand import expand
    from qrdali.experiment.folder import ExperimentFolder
    from qrdali.experiment.tasks import Tasks
    from qrdali.files.atomic import write_whole_among_writers
    from qrdali.files.json_objects import read_object
    from qrdali.system.deterministic import deterministic
    from qrdali.workflows.matrix_commands import task_of
    from qrdali.workflows.rank_agent import end_with_parent
    from qrdali.workflows.rank_job import RESULT, TASK
    from qrdali.workflows.tasks import perform_as_group

    end_with_parent(os.getppid())
    values, result = read_object(Path(folder, TASK)), Path(folder, RESULT)
    matrix, data = Matrix(**values["matrix"]), Path(values["data"])
    tasks = Tasks(matrix, ExperimentFolder(Path(matrix.out)), data, expand(matrix, data), ())
    task = task_of(tasks, values["task"])
    settings = tasks.runs[task.name].settings

    def write(what: dict[str, object]) -> None:
        write_whole_among_writers(result, f"{json.dumps(what)}\n".encode())

    try:
        # Deterministic algorithms come before the processes meet, which begins CUDA.
        with (
            deterministic(settings.deterministic, settings.device),
            job(settings.device) as group,
            terminal_control(group) as control,
        ):
            note = perform_as_group(tasks, task, control)
            if group.is_main:
                write({"note": note})
    except (OtherRankFailed, RanksLost):
        raise  # the one that failed says why
    except (RunError, OSError, InputError) as error:
        write({"error": str(error), "final": isinstance(error, InputError)})
        raise


if __name__ == "__main__":
    from qrdali.cli.exit_status import run_and_exit

    run_and_exit(rank_task)
