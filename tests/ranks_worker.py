"""Runs trainings in one job: `python -m torch.distributed.run … tests/ranks_worker.py ENTRIES.json`.

An entry has settings, run, resume, kill and end: the rank and optimizer step before which that rank dies,
unless torchrun has begun again, or before which it gets SIGTERM, or the signal that `signal` says; spoil: the
rank and step whose loss becomes NaN; switches: torch's of determinism, in every step. Each rank logs its part
of every step as RUN.RANK.jsonl beside the run's folder.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from qrdali.cli.signals import terminal_control
from qrdali.cli.torchrun import job
from qrdali.distributed import ProcessGroup
from qrdali.runs.settings import validate_settings
from qrdali.training.epoch import EpochTrainer, StepInput
from qrdali.workflows.train import run_training


@contextmanager
def logged(run: Path, ranks: ProcessGroup, entry: dict[str, Any]) -> Iterator[None]:
    kill, end, spoil = (entry.get(key) for key in ("kill", "end", "spoil"))
    optimizer_step = EpochTrainer._optimizer_step

    def logged_step(self: EpochTrainer, step: StepInput, progress: Any, plan: Any, phase: Any) -> Any:
        at = [ranks.rank, progress.totals.optimizer_steps]
        if kill == at and not ranks.restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        if end == at:
            os.kill(os.getpid(), entry.get("signal", signal.SIGTERM))
        if spoil == at:
            assert step.batch is not None
            step.batch.images.fill_(float("nan"))
        if "switches" in entry:
            assert entry["switches"] == [
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.backends.cudnn.deterministic,
                torch.backends.cudnn.benchmark,
                torch.utils.deterministic.fill_uninitialized_memory,
            ]
        samples = [] if step.batch is None else step.batch.samples.tolist()
        with open(f"{run}.{ranks.rank}.jsonl", "a") as log:
            log.write(json.dumps([time.time(), plan.epoch, step.number, ranks.world_size, samples]) + "\n")
        return optimizer_step(self, step, progress, plan, phase)

    EpochTrainer._optimizer_step = logged_step  # type: ignore[method-assign]
    try:
        yield
    finally:
        EpochTrainer._optimizer_step = optimizer_step  # type: ignore[method-assign]


def train(entries: list[dict[str, Any]], ranks: ProcessGroup) -> None:
    for entry in entries:
        settings, run = validate_settings(entry["settings"]), Path(entry["run"])
        with logged(run, ranks, entry), terminal_control(ranks) as control:
            run_training(settings, run, entry.get("resume", False), control)


def order(run: Path) -> list[tuple[int, int, list[int]]]:
    """Epoch, step and samples of all ranks together, of each step as it was last taken."""
    lines = []
    for file in run.parent.glob(f"{run.name}.*.jsonl"):
        lines += [(json.loads(line), int(file.suffixes[-2][1:])) for line in file.read_text().splitlines()]
    found: dict[tuple[int, int], dict[int, list[int]]] = {}
    for (_, epoch, number, world, samples), rank in sorted(lines):
        parts = found.setdefault((epoch, number), {})
        if rank >= world or any(other >= world for other in parts):
            parts.clear()  # of a job with more ranks, before
        parts[rank] = samples
    return [
        (*at, [sample for _, part in sorted(parts.items()) for sample in part])
        for at, parts in sorted(found.items())
    ]


if __name__ == "__main__":
    with job() as joined:
        train(json.loads(Path(sys.argv[1]).read_text()), joined)
