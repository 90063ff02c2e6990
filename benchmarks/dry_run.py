"""Says what matrices that came with qrdali take, by `qrdali reproduce --dry-run`; JSON on stdout.

    python benchmarks/dry_run.py humanet.toml humanet-study.toml > benchmarks/results/dry-run.json

Nothing is trained: seconds of an epoch and of a probe are those that the files state, from the slides, which
were measured on an RTX 3090. The least is that of runs in which no epoch after the first improves, the most
that of runs which improve until --max-epochs; without validation, evaluation and MEPIs.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import qrdali
from qrdali.workflows.reproduce import plan

CONFIGS = Path(qrdali.__file__).parent / "configs"
DAY = 86_400


def figures(config: str) -> dict[str, Any]:
    """Returns tasks by kind, epochs and days at least and at most, of all networks and of each."""
    with TemporaryDirectory() as folder:  # where no run of the matrix is done
        planned = plan(CONFIGS / config, out=folder)
    runs = [task for task in planned.tasks if task.remaining is not None]
    networks = list(dict.fromkeys(run.name.partition("/")[0] for run in runs))
    return {
        "tasks": {"all": len(planned.tasks), **Counter(task.kind for task in planned.tasks)},
        "all": _sums(runs),
        "networks": {
            name: _sums([run for run in runs if run.name.startswith(f"{name}/")]) for name in networks
        },
    }


def _sums(runs: list[Any]) -> dict[str, Any]:
    remaining = [run.remaining for run in runs]
    return {
        "runs": len(runs),
        "epochs": [sum(one.epochs[end] for one in remaining) for end in (0, 1)],
        "days": [round(sum(one.seconds[end] for one in remaining) / DAY, 2) for end in (0, 1)],
    }


def main() -> None:
    names = sys.argv[1:]
    command = f"python benchmarks/dry_run.py {' '.join(names)}"
    print(json.dumps({"command": command, "matrices": {name: figures(name) for name in names}}, indent=1))


if __name__ == "__main__":
    main()
