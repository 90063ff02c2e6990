"""How many epochs a run of the matrix takes at least and at most, and how long. Pure, but for reading metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.errors import RunError
from qrdali.experiment.config import Network
from qrdali.experiment.expand import PlannedRun
from qrdali.experiment.tasks import Task, Tasks
from qrdali.files.json_objects import read_objects
from qrdali.reduction.quality import REDUCTIONS, num_levels_of
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_schedule import ScheduleRule
from qrdali.schedule.methods import schedule_rule_of

# An adaptive run's probe in full epochs where nothing better is known: SqueezeNet 1.1 on two CPU cores, README.
PROBE_SHARE = {"color": 0.33, "crop": 1.51, "resolution": 0.34, "combination": 2.09}


@dataclass(frozen=True)
class Work:
    """The epochs of a run, a letter each in their order, and its probes."""

    letters: str
    probes: int = 0


def least(settings: Settings) -> Work:
    """The shortest run: no unit of patience but the first improves, and an adaptive run's images do not move."""
    return Work(_shortest(schedule_rule_of(settings)), int(_probes(settings) > 0))


def most(settings: Settings) -> Work:
    """The longest run: units improve until --max-epochs."""
    rule = schedule_rule_of(settings)
    letters = "".join(phase.value for _, _, phase in epoch_schedule.longest_run(rule))
    stage = len(_shortest(ScheduleRule(rule.sequence, rule.patience, rule.max_epochs)))
    return Work(letters, min(_probes(settings), math.ceil(len(letters) / stage)))


def _shortest(rule: ScheduleRule) -> str:
    if rule.patience is None:
        return "C" * rule.max_epochs
    state, letters = epoch_schedule.start(0.0), ""
    while not state.ended:
        if not state.begun:
            state = epoch_schedule.begin_stage(rule, state, moved=0)
        phase = epoch_schedule.next_phase(rule, state)
        letters += phase.value if phase else ""
        state, _ = epoch_schedule.update(rule, state, 0.0)
    return letters


def _probes(settings: Settings) -> int:
    """Probes of the longest descent: every image goes down every level one by one, and the last probe moves none."""
    if settings.method != "adaptive" or settings.feedback != "probe":
        return 0
    return sum(REDUCTIONS[settings.reduction]) * (num_levels_of(settings.step) - 1) + 1


@dataclass(frozen=True)
class Pace:
    """Seconds of one epoch by "full" and reduction, and of one probe by reduction; `measured` or only said by the file."""

    epoch: dict[str, float]
    probe: dict[str, float]
    measured: bool = False

    def seconds(self, work: Work, reduction: str) -> float | None:
        """Of training and probes; None where no epoch's is known. Validation is not in it, as in metrics.jsonl."""
        full = self.epoch.get("full", next(iter(self.epoch.values()), None))
        if full is None:
            return None
        reduced = self.epoch.get(reduction, full)
        probe = self.probe.get(reduction, PROBE_SHARE.get(reduction, 0.0) * full)
        return work.letters.count("C") * full + work.letters.count("R") * reduced + work.probes * probe


def declared(network: Network) -> Pace:
    """What the matrix's file says of a network."""
    said = network.epoch_seconds
    epoch = {str(key): seconds for key, seconds in said.items()} if isinstance(said, dict) else {"full": said}
    return Pace(epoch, {str(key): seconds for key, seconds in network.probe_seconds.items()})


def measured(finished: Iterable[tuple[Path, str]], otherwise: Pace) -> Pace:
    """The means of finished runs of a network, given as (run folder, reduction); `otherwise` for what they do not show."""
    epochs: dict[str, list[float]] = {}
    probes: dict[str, list[float]] = {}
    for run, reduction in finished:
        for row in rows(run):
            if row.get("phase") in ("full", "reduced"):
                epochs.setdefault("full" if row["phase"] == "full" else reduction, []).append(row["seconds"])
            if "probe_seconds" in row:
                probes.setdefault(reduction, []).append(row["probe_seconds"])
    if not epochs:
        return otherwise
    epoch, probe = (
        {key: math.fsum(values) / len(values) for key, values in found.items()} for found in (epochs, probes)
    )
    # Another machine's figure is of no use beside this one's: only where nothing like it was measured.
    scale = (
        epoch["full"] / otherwise.epoch["full"] if "full" in epoch and otherwise.epoch.get("full") else 1.0
    )
    return Pace(
        {key: value * scale for key, value in otherwise.epoch.items()} | epoch,
        {key: value * scale for key, value in otherwise.probe.items()} | probe,
        True,
    )


def rows(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are whole; none if there is no such file."""
    found = []
    try:
        for row in read_objects(run / "metrics.jsonl"):
            seconds = [row[key] for key in ("seconds", "probe_seconds", "total_seconds") if key in row]
            if not isinstance(row["epoch"], int) or not all(
                isinstance(s, int | float) and math.isfinite(s) and s >= 0 for s in seconds
            ):
                break
            if row["epoch"] == 0 or "seconds" in row:
                found.append(row)
    except (RunError, KeyError, TypeError, OverflowError):
        pass
    return found


class Estimate:
    """How long the runs of a call still take."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks
        self._networks = {network.folder: network for network in tasks.matrix.network}
        self._paces: dict[str, Pace] = {}

    def pace(self, network: str) -> Pace:
        """Measured by the network's finished runs, whichever this call asks for; else what the file says."""
        if network not in self._paces:
            folder = self.tasks.folder
            finished = [
                (folder.run(run.name), str(run.values.get("reduction", "")))
                for run in self.tasks.runs.values()
                if run.network == network and folder.ended(run.name)
            ]
            self._paces[network] = measured(finished, declared(self._networks[network]))
        return self._paces[network]

    def left(self, run: PlannedRun) -> tuple[tuple[int, int], tuple[float | None, float | None]]:
        """(epochs at least, at most), (seconds at least, at most) still to come; zeros for a finished run."""
        if self.tasks.folder.ended(run.name):
            return (0, 0), (0.0, 0.0)
        done = sum(row["epoch"] > 0 for row in rows(self.tasks.folder.run(run.name)))
        probed = sum("probe_seconds" in row for row in rows(self.tasks.folder.run(run.name)))
        works = [Work(work.letters[done:], max(0, work.probes - probed)) for work in self._works(run)]
        pace, reduction = self.pace(run.network), str(run.values.get("reduction", ""))
        low, high = (pace.seconds(work, reduction) for work in works)
        return (len(works[0].letters), len(works[1].letters)), (low, high)

    def like(self, task: Task) -> tuple[float | None, float | None]:
        """(least, most) seconds that evaluations or MEPI sets of the same network took; None where none is done."""
        network = self.tasks.runs[task.name].network
        taken = [
            float(note["seconds"])
            for key, note in self.tasks.folder.done.items()
            if key.startswith(f"{task.kind} ")
            and isinstance(note.get("seconds"), int | float)
            and (run := self.tasks.runs.get(key.partition(" ")[2])) is not None
            and run.network == network
        ]
        return (min(taken), max(taken)) if taken else (None, None)

    def _works(self, run: PlannedRun) -> tuple[Work, Work]:
        if not run.settings.match:
            return least(run.settings), most(run.settings)
        model = self.tasks.runs[run.needs[-1]]  # as many steps, so as many epochs
        if self.tasks.folder.ended(model.name):
            taken = sum(row["epoch"] > 0 for row in rows(self.tasks.folder.run(model.name)))
            return Work("C" * taken), Work("C" * taken)
        low, high = least(model.settings), most(model.settings)
        return Work("C" * len(low.letters)), Work("C" * len(high.letters))

    def sources(self) -> dict[str, str]:
        """Where each network's times come from."""
        told = {}
        for network in dict.fromkeys(run.network for run in self.tasks.wanted):
            pace = self.pace(network)
            told[network] = (
                "measured by its finished runs"
                if pace.measured
                else "what the file says"
                if pace.epoch
                else "unknown until a run of it is finished"
            )
        return told


def lasting(low: float | None, high: float | None) -> str:
    """A span of seconds for people."""
    if low is None or high is None:
        return "time unknown"
    return _span(low) if _span(low) == _span(high) else f"{_span(low)} to {_span(high)}"


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size else 0}f} {unit}"
    return f"{seconds:.0f} s"
