"""What an epoch tells of itself: a line of metrics.jsonl, and one on the terminal."""

from __future__ import annotations

from typing import Any

from qrdali.schedule import epoch_schedule
from qrdali.training.epoch_totals import EpochSums, RunTotals


def metrics_row(
    number: int,
    phase: epoch_schedule.Phase,
    stage: int,
    quality: dict[str, float],
    epoch: EpochSums,
    val: float,
    totals: RunTotals,
    quarantined: int,
) -> dict[str, Any]:
    """Of epoch `number`, which `totals` include. quality: means by dimension; val: accuracy; epoch: sums of all ranks."""
    return {
        "epoch": number,
        "phase": "reduced" if phase is epoch_schedule.Phase.REDUCED else "full",
        "stage": stage,
        "quality": quality,
        "quarantined": quarantined,
        "train_loss": float(epoch.loss) / epoch.images,
        "train_accuracy": int(epoch.correct) / epoch.images,
        "val_accuracy": val,
        "seconds": round(epoch.seconds, 3),
        "images_per_second": round(_rate(epoch), 1),
        "data_wait_seconds": round(epoch.data_wait, 3),
        "optimizer_steps": totals.optimizer_steps,
        "forward_images": totals.forward_images,
        "total_seconds": round(totals.seconds, 3),
    }


def epoch_summary(
    row: dict[str, Any],
    epoch: EpochSums,
    rule: epoch_schedule.ScheduleRule,
    state: epoch_schedule.ScheduleState,
    event: epoch_schedule.ScheduleEvent,
) -> str:
    """The same for a person; `state` and `event` are those after the epoch."""
    wait = ""
    if rule.patience is not None:
        wait = f"  patience left {0 if event.stage_end_reason else rule.patience - state.wait}"
    moved = [q for q in row["quality"].values() if q < 1]
    stage = "" if rule.stages == 1 else f" stage {row['stage']}"
    return (
        f"epoch {row['epoch']:3d}  {'R' if row['phase'] == 'reduced' else 'C'}{stage} "
        f"quality {sum(moved) / len(moved) if moved else 1:.2f}  loss {row['train_loss']:.4f}  train {row['train_accuracy']:.4f}  "
        f"val {row['val_accuracy']:.4f}{'*' if event.is_best_of_run else ' '} {_rate(epoch):6.0f} img/s  "
        f"wait {epoch.data_wait / max(epoch.seconds, 1e-9):4.0%}{wait}"
    )


def stage_end_summary(
    rule: epoch_schedule.ScheduleRule, before: epoch_schedule.ScheduleState, closed: str, restored: bool
) -> str:
    """That the round or stage of the state `before` an epoch was ended by it."""
    what = f"{before.round} round of stage {before.stage}" if rule.has_rounds else f"stage {before.stage}"
    return f"{what} ended by {closed}" + (f"; back to epoch {before.best_epoch}" if restored else "")


def _rate(epoch: EpochSums) -> float:
    return epoch.images / max(epoch.seconds, 1e-9)
