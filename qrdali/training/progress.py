"""How far a run has come: one value that each step of the loop returns and a save writes."""

from __future__ import annotations

from dataclasses import dataclass, field

from qrdali.runs.settings import DEFINITIONS
from qrdali.schedule.epoch_schedule import ScheduleState
from qrdali.training.epoch_totals import EpochSums, RunTotals, StageInfo


@dataclass(frozen=True)
class TrainProgress:
    """Holds all that `last/` remembers besides weights, optimizer and generators. Nobody changes one: a new
    one replaces it.

    schedule: after the last finished epoch. epoch: this rank's sums of the epoch after it, or None between
    epochs. definitions: by which the epoch in hand, or the next one, is trained."""

    schedule: ScheduleState
    epoch: EpochSums | None = None
    totals: RunTotals = field(default_factory=RunTotals)
    stage: StageInfo = field(default_factory=StageInfo)
    definitions: int = DEFINITIONS
