"""Simulates the runs of a matrix on several numbers of GPUs, and compares with the least time possible.

    python benchmarks/matrix_simulation.py > benchmarks/results/matrix-simulation.json

Nothing is trained. Times are the estimate's own, from what the file states (seconds of an epoch and of a
probe on an RTX 3090), once the least and once the most; an evaluation or a MEPI set, of which nothing is
stated, takes as long as one epoch. Workers take tasks by `experiment/order.py`, which orders by the most. No
schedule can be shorter than the work divided by the number of GPUs, nor than the longest chain of tasks that
wait for each other: the larger of the two is the lower bound. idle_share is of the GPU time until the last
task ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import qrdali
from qrdali.experiment.config import read
from qrdali.experiment.estimate import Estimate
from qrdali.experiment.expand import expand
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.makespan import timetable
from qrdali.experiment.order import chains, in_order, task_seconds
from qrdali.experiment.tasks import Tasks
from qrdali.workflows.bench_loader import machine

CONFIG = Path(qrdali.__file__).parent / "configs" / "humanet.toml"
GPUS = (1, 4, 8, 16)
HOUR = 3600


def simulate(tasks: Tasks, *, longest: bool) -> dict[str, Any]:
    """Returns the simulated times on each number of GPUs, all tasks as long as at most, or as at least."""
    estimate = Estimate(tasks)
    order = [task.key for task in in_order(tasks, chains(tasks, task_seconds(tasks, estimate)))]
    seconds = task_seconds(tasks, estimate, longest=longest)
    total, chain = sum(seconds.values()), max(chains(tasks, seconds).values())
    by_gpus = {}
    for gpus in GPUS:
        table = timetable(tasks, seconds, order, [1] * gpus)
        bound = max(total / gpus, chain)
        by_gpus[str(gpus)] = {
            "hours": round(table.makespan / HOUR, 3),
            "lower_bound_hours": round(bound / HOUR, 3),
            "over_lower_bound": round(max(0.0, table.makespan / bound - 1), 4),
            "idle_share": round(table.idle_share, 4),
            "longest_chain_binds": chain >= total / gpus,
        }
    return {
        "total_hours": round(total / HOUR, 3),
        "longest_chain_hours": round(chain / HOUR, 3),
        "gpus": by_gpus,
    }


def main() -> None:
    with TemporaryDirectory() as folder:  # where nothing is done
        matrix = read(CONFIG, out=folder)
        data = Path(matrix.data.folder)
        tasks = Tasks(matrix, ExperimentFolder(Path(folder)), data, expand(matrix, data), ())
        result = {
            "command": f"python {' '.join(['benchmarks/matrix_simulation.py', *sys.argv[1:]])}",
            "qrdali": qrdali.__version__,
            **machine(),
            "matrix": CONFIG.name,
            "runs": len(tasks.wanted),
            "tasks": len(tasks.all),
            "most": simulate(tasks, longest=True),
            "least": simulate(tasks, longest=False),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
