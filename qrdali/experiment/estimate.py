"""Estimates how many epochs a run of the matrix takes at least and at most, and how long.

Pure, but for reading metrics.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from qrdali.errors import RunError
from qrdali.experiment.config import Network
from qrdali.experiment.expand import PlannedRun
from qrdali.experiment.tasks import Task, Tasks
from qrdali.files.json_objects import read_objects
from qrdali.reduction.quality import REDUCTIONS
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_schedule import ScheduleRule
from qrdali.schedule.methods import schedule_rule_of

# An adaptive run's probe in full epochs where nothing better is known: SqueezeNet 1.1 on two CPU cores,
# README.
PROBE_SHARE = {"color": 0.33, "crop": 1.51, "resolution": 0.34, "combination": 2.09}


@dataclass(frozen=True)
class Work:
    """Holds the epochs and probes of a run.

    phases: a letter per epoch in their order, "R" reduced or "C" full, as `Phase` has them.
    """

    phases: str
    probes: int = 0


class Seconds(NamedTuple):
    """Holds a span of time; None where it is not known."""

    low: float | None
    high: float | None


class Remaining(NamedTuple):
    """Holds what a run still takes. epochs: at least and at most."""

    epochs: tuple[int, int]
    seconds: Seconds


def least(settings: Settings) -> Work:
    """Returns the shortest run: no unit of patience but the first improves, and an adaptive run's images do
    not move.
    """
    return Work(_shortest(schedule_rule_of(settings)), int(_max_probes(settings) > 0))


def most(settings: Settings) -> Work:
    """Returns the longest run: units improve until --max-epochs."""
    rule = schedule_rule_of(settings)
    phases = "".join(phase.value for _, _, phase in epoch_schedule.longest_run(rule))
    shortest_stage = len(_shortest(ScheduleRule(rule.sequence, rule.patience, rule.max_epochs)))
    return Work(phases, min(_max_probes(settings), math.ceil(len(phases) / shortest_stage)))


def _shortest(rule: ScheduleRule) -> str:
    if rule.patience is None:
        return "C" * rule.max_epochs
    state, phases = epoch_schedule.start(0.0), ""
    while not state.ended:
        if not state.begun:
            state = epoch_schedule.begin_stage(rule, state, moved=0)
        phase = epoch_schedule.next_phase(rule, state)
        phases += phase.value if phase else ""
        state, _ = epoch_schedule.update(rule, state, 0.0)
    return phases


def _max_probes(settings: Settings) -> int:
    """Returns the probes of the longest descent: every image goes down level by level, and the last probe
    moves none.
    """
    if settings.method != "adaptive" or settings.feedback != "probe":
        return 0
    return sum(REDUCTIONS[settings.reduction]) * (settings.scale.count - 1) + 1


@dataclass(frozen=True)
class Pace:
    """Holds seconds of one epoch by "full" and reduction, and of one probe by reduction.

    measured: by finished runs; otherwise the matrix's file states them.
    """

    epoch: dict[str, float]
    probe: dict[str, float]
    measured: bool = False

    def seconds(self, work: Work, reduction: str) -> float | None:
        """Returns the time of training and probes, without validation as in metrics.jsonl; None where no
        epoch's is known.
        """
        full = self.epoch.get("full", next(iter(self.epoch.values()), None))
        if full is None:
            return None
        reduced = self.epoch.get(reduction, full)
        probe = self.probe.get(reduction, PROBE_SHARE.get(reduction, 0.0) * full)
        return work.phases.count("C") * full + work.phases.count("R") * reduced + work.probes * probe


def declared(network: Network) -> Pace:
    """Returns the pace that the matrix's file states for a network."""
    stated = network.epoch_seconds
    by_kind = stated if isinstance(stated, dict) else {"full": stated}
    return Pace(
        {str(kind): seconds for kind, seconds in by_kind.items()},
        {str(reduction): seconds for reduction, seconds in network.probe_seconds.items()},
    )


def measured(finished: Iterable[tuple[Path, str]], otherwise: Pace) -> Pace:
    """Returns the mean pace of finished runs of a network, given as (run folder, reduction).

    `otherwise` stands in for what they do not show.
    """
    epochs: dict[str, list[float]] = {}
    probes: dict[str, list[float]] = {}
    for run, reduction in finished:
        for row in rows(run):
            if row.get("phase") in ("full", "reduced"):
                kind = "full" if row["phase"] == "full" else reduction
                epochs.setdefault(kind, []).append(row["seconds"])
            if "probe_seconds" in row:
                probes.setdefault(reduction, []).append(row["probe_seconds"])
    if not epochs:
        return otherwise
    epoch, probe = (
        {key: math.fsum(seconds) / len(seconds) for key, seconds in kinds.items()}
        for kinds in (epochs, probes)
    )
    # Another machine's figure is of no use beside this one's: it is scaled, and only fills what was not
    # measured.
    scale = 1.0
    if "full" in epoch and otherwise.epoch.get("full"):
        scale = epoch["full"] / otherwise.epoch["full"]
    return Pace(
        {key: seconds * scale for key, seconds in otherwise.epoch.items()} | epoch,
        {key: seconds * scale for key, seconds in otherwise.probe.items()} | probe,
        True,
    )


def rows(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics.jsonl that are whole; none if there is no such file."""
    whole = []
    try:
        for row in read_objects(run / "metrics.jsonl"):
            times = [row[key] for key in ("seconds", "probe_seconds", "total_seconds") if key in row]
            if not isinstance(row["epoch"], int) or not all(map(_is_duration, times)):
                break
            if row["epoch"] == 0 or "seconds" in row:
                whole.append(row)
    except (RunError, KeyError, TypeError, OverflowError):
        pass
    return whole


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


class Estimate:
    """Estimates how long the tasks of a call still take."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self._networks = {network.folder: network for network in tasks.matrix.network}
        self._paces: dict[str, Pace] = {}

    def pace(self, network: str) -> Pace:
        """Returns what the network's finished runs measured, whether this call wants them or not; else what
        the file states.
        """
        if network not in self._paces:
            folder = self.tasks.folder
            finished = [
                (folder.run(run.name), str(run.values.get("reduction", "")))
                for run in self.tasks.runs.values()
                if run.network == network and folder.ended(run.name)
            ]
            self._paces[network] = measured(finished, declared(self._networks[network]))
        return self._paces[network]

    def remaining(self, run: PlannedRun) -> Remaining:
        """Returns the epochs and seconds of training still to come; zeros for a finished run."""
        if run.adopt is not None or self.tasks.folder.ended(run.name):
            return Remaining((0, 0), Seconds(0.0, 0.0))
        recorded = rows(self.tasks.folder.run(run.name))
        epochs = sum(row["epoch"] > 0 for row in recorded)
        probes = sum("probe_seconds" in row for row in recorded)
        low, high = (
            Work(work.phases[epochs:], max(0, work.probes - probes)) for work in self._least_and_most(run)
        )
        pace, reduction = self.pace(run.network), str(run.values.get("reduction", ""))
        return Remaining(
            (len(low.phases), len(high.phases)),
            Seconds(pace.seconds(low, reduction), pace.seconds(high, reduction)),
        )

    def like(self, task: Task) -> Seconds:
        """Returns the range of times that evaluations or MEPI sets of the same network took; None where none
        is done.
        """
        network = self.tasks.runs[task.name].network
        taken = [
            float(note["seconds"])
            for key, note in self.tasks.folder.done.items()
            if key.startswith(f"{task.kind} ")
            and isinstance(note.get("seconds"), int | float)
            and (run := self.tasks.runs.get(key.partition(" ")[2])) is not None
            and run.network == network
        ]
        return Seconds(min(taken), max(taken)) if taken else Seconds(None, None)

    def _least_and_most(self, run: PlannedRun) -> tuple[Work, Work]:
        if not run.settings.match:
            return least(run.settings), most(run.settings)
        model = self.tasks.runs[run.needs[-1]]  # as many steps, so as many epochs
        if self.tasks.folder.ended(model.name):
            epochs = sum(row["epoch"] > 0 for row in rows(self.tasks.folder.run(model.name)))
            return Work("C" * epochs), Work("C" * epochs)
        low, high = least(model.settings), most(model.settings)
        return Work("C" * len(low.phases)), Work("C" * len(high.phases))

    def sources(self) -> dict[str, str]:
        """Returns where each network's times come from, in words."""
        return {
            network: _source(self.pace(network))
            for network in dict.fromkeys(run.network for run in self.tasks.wanted)
        }


def _source(pace: Pace) -> str:
    if pace.measured:
        return "measured by its finished runs"
    return "what the file says" if pace.epoch else "unknown until a run of it is finished"


def span_text(seconds: Seconds) -> str:
    """Returns a span of time for people."""
    if seconds.low is None or seconds.high is None:
        return "time unknown"
    low, high = duration_text(seconds.low), duration_text(seconds.high)
    return low if low == high else f"{low} to {high}"


def duration_text(seconds: float) -> str:
    """Returns seconds for people, in the unit that suits."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.0f} s"
