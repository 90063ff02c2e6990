"""What a training run is made of: its settings and network, and the splits that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qrdali.data.index import Index
from qrdali.interfaces import BatchSource
from qrdali.models import Preprocessing
from qrdali.runs.settings import Settings
from qrdali.schedule.epoch_schedule import ScheduleRule
from qrdali.schedule.methods import schedule_rule_of
from qrdali.training.tracked_sets import TrackedSets


@dataclass(frozen=True)
class RunSpec:
    """Holds what a run needs besides its data and its surroundings.

    settings: complete, with all that --init, --match and the network decide. run: its folder. model: the
    network with its start weights, on any device. classes: their names, by label; readable: readable names,
    or (). facts: what the first row
    of metrics.jsonl holds besides accuracies; its "environment" is also written when a run is continued in
    another one. stage_levels: of linear's stages, as `methods.stage_levels` gives them for the
    training images; None where those do not matter."""

    settings: Settings
    run: Path
    model: nn.Module
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    facts: dict[str, Any]
    stage_levels: tuple[int, ...] | None = None
    readable: tuple[str, ...] = ()

    @property
    def rule(self) -> ScheduleRule:
        """Returns the rule of the run's epochs."""
        return schedule_rule_of(self.settings, self.stage_levels)


@dataclass(frozen=True)
class Split:
    """Holds the images of one split: `source` yields them in batches, `index` knows their labels, paths and
    sizes."""

    source: BatchSource
    index: Index


@dataclass(frozen=True)
class Splits:
    """Holds the splits of a run. tracked: more sets whose accuracy is written down after every epoch."""

    train: Split
    val: Split
    tracked: TrackedSets
