"""What an epoch brought: a row of metrics.jsonl, and lines on the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.reduction.levels import quality_names
from qrdali.reduction.quality import LevelScale, quality
from qrdali.schedule.epoch_schedule import Phase, ScheduleEvent, ScheduleRule, ScheduleState
from qrdali.training.epoch_totals import EpochSums, RunTotals


@dataclass(frozen=True)
class EpochResult:
    """Holds what an epoch brought, before the schedule decides on it.

    number: of the epoch, from 1. phase, stage: its own. sums: of all ranks. scale: the run's levels.
    level_counts: int64 [names, levels], how many training images had each, by `quality_names` of the run's
    reduction. rows: predictions of the validation split. reduced_validation: whether its images were shown
    reduced. measured: keys of the metrics row for the learning rate at the epoch's end, memory, energy and
    tracked sets."""

    number: int
    phase: Phase
    stage: int
    sums: EpochSums
    scale: LevelScale
    level_counts: npt.NDArray[np.int64]
    rows: PredictionRows
    reduced_validation: bool
    measured: dict[str, Any]
    reduction: str = "none"

    @property
    def mean_quality(self) -> dict[str, float]:
        """Returns the mean quality of the training images by dimension, and of the run's distortion."""
        images = int(self.level_counts[0].sum())
        means = self.level_counts @ quality(np.arange(self.scale.count), self.scale) / images
        return dict(zip(quality_names(self.reduction), means.tolist(), strict=True))

    @property
    def images_per_second(self) -> float:
        return self.sums.images / max(self.sums.seconds, 1e-9)


def metrics_row(result: EpochResult, totals: RunTotals, quarantined: int) -> dict[str, Any]:
    """Returns the row of an epoch that `totals` include. quarantined: images that training does without by
    now."""
    sums = result.sums
    return {
        "epoch": result.number,
        "phase": "reduced" if result.phase is Phase.REDUCED else "full",
        "stage": result.stage,
        "quality": result.mean_quality,
        "quarantined": quarantined,
        "train_loss": float(sums.loss) / sums.images,
        "train_accuracy": int(sums.correct) / sums.images,
        "val_accuracy": result.rows.accuracy,
        "val_loss": result.rows.negative_log_likelihood,
        "time": utc_time(),
        "seconds": round(sums.seconds, 3),
        "images_per_second": round(result.images_per_second, 1),
        "data_wait_seconds": round(sums.data_wait, 3),
        "optimizer_steps": totals.optimizer_steps,
        "forward_images": totals.forward_images,
        "total_seconds": round(totals.seconds, 3),
        **result.measured,
    }


def utc_time() -> str:
    """Returns the time as ISO 8601 writes it, in UTC and whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def epoch_summary(result: EpochResult, rule: ScheduleRule, state: ScheduleState, event: ScheduleEvent) -> str:
    """Returns an epoch's line for the terminal; `state` and `event` are those after it."""
    sums = result.sums
    wait = ""
    if rule.patience is not None:
        wait = f"  patience left {0 if event.stage_end_reason else rule.patience - state.wait}"
    reduced = [q for q in result.mean_quality.values() if q < 1]
    stage = "" if rule.stages == 1 else f" stage {result.stage}"
    return (
        f"epoch {result.number:3d}  {result.phase}{stage} "
        f"quality {sum(reduced) / len(reduced) if reduced else 1:<6.3g} "
        f"loss {float(sums.loss) / sums.images:.4f}  train {int(sums.correct) / sums.images:.4f}  "
        f"val {result.rows.accuracy:.4f}{'*' if event.is_best_of_run else ' '} "
        f"{result.images_per_second:6.0f} img/s  wait {sums.data_wait / max(sums.seconds, 1e-9):4.0%}{wait}"
    )


def stage_end_summary(rule: ScheduleRule, before: ScheduleState, reason: str, restored: bool) -> str:
    """Returns the log line announcing that an epoch ended the round or stage of `before`, the state before
    that epoch."""
    ended = f"{before.round} round of stage {before.stage}" if rule.has_rounds else f"stage {before.stage}"
    return f"{ended} ended by {reason}" + (f"; back to epoch {before.best_epoch}" if restored else "")


def decay_summary(rule: ScheduleRule, before: ScheduleState, after: ScheduleState) -> str:
    """Returns the log line announcing that the decay of wsd begins, or that the run has none; else "".

    before, after: the states before and after the epoch that has been announced."""
    if rule.decay_epochs is None or before.decay_epochs:
        return ""
    if after.decay_epochs:
        plural = "s" if after.decay_epochs > 1 else ""
        cut = after.decay_epochs < rule.whole_decay(after.epoch)
        text = f"the learning rate decays over {after.decay_epochs} C epoch{plural}"
        return f"{text}, as many as --max-epochs {rule.max_epochs} leaves" if cut else text
    if after.ended:
        return f"no decay of the learning rate: --max-epochs {rule.max_epochs} ended the run first"
    return ""


def run_end_summary(state: ScheduleState) -> str:
    """Returns the log line announcing the end of a run and its best epoch."""
    why = (
        "" if state.ended.startswith("patience") else f" by {state.ended}"
    )  # the line before has named patience
    best = f"epoch {state.run_best_epoch}" if state.run_best_epoch else "the start, no epoch was better,"
    return f"run ended{why}; best is {best} with val {state.run_best:.4f}"
