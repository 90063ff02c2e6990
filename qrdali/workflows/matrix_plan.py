"""What a call of `reproduce` would do: tasks, their states and times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.experiment.estimate import Remaining, Seconds
from qrdali.experiment.makespan import Chain, Makespan


@dataclass(frozen=True)
class PlannedTask:
    """Describes a task of a matrix before it is done.

    state: "done", "failed", "begun" or "waiting"; why: the reason, or what it waits for. remaining: of a
    training run. seconds: of an evaluation or a MEPI set, as others of the same network took.
    """

    kind: str
    name: str
    state: str
    why: str
    remaining: Remaining | None = None
    seconds: Seconds | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the task's entry in the list of `--dry-run --json`."""
        entry: dict[str, Any] = {"kind": self.kind, "name": self.name, "state": self.state, "why": self.why}
        if self.remaining is not None:
            entry |= {"epochs": self.remaining.epochs, "seconds": self.remaining.seconds}
        elif self.seconds is not None:
            entry["seconds"] = self.seconds
        return entry


@dataclass(frozen=True)
class Plan:
    """Holds what a call would do.

    out: the matrix' folder. sources: where the times of each network come from, in words. makespan: the time
    until all is done with the workers asked for. longest_chain: what no number of workers can shorten.
    """

    out: Path
    tasks: tuple[PlannedTask, ...]
    sources: dict[str, str]
    makespan: Makespan
    longest_chain: Chain

    @property
    def training(self) -> Seconds:
        """Returns the time that all runs still take on one machine, without validation; None where a run's is
        unknown.
        """
        times = [task.remaining.seconds for task in self.tasks if task.remaining is not None]
        low, high = [time.low for time in times], [time.high for time in times]
        return Seconds(_sum_if_known(low), _sum_if_known(high))

    def as_json(self) -> dict[str, Any]:
        """Returns the list of `--dry-run --json`."""
        total = self.training
        return {
            "out": str(self.out),
            "tasks": [task.as_json() for task in self.tasks],
            "seconds": _span(total),
            "source": self.sources,
            "makespan": {
                "workers": len(self.makespan.gpus),
                "gpus": list(self.makespan.gpus),
                "seconds": _span(self.makespan.seconds),
                "idle_share": _span(self.makespan.idle_share),
                "impossible": list(self.makespan.impossible),
            },
            "longest_chain": {
                "tasks": list(self.longest_chain.keys),
                "seconds": _span(self.longest_chain.seconds),
            },
        }


def _sum_if_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _span(seconds: Seconds) -> list[float] | None:
    """Returns a span as JSON holds it: [low, high], or null where it is not known."""
    return None if seconds.low is None or seconds.high is None else [seconds.low, seconds.high]
