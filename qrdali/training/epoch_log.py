"""The journal of a run: rows of metrics.jsonl, and a line for each thing that a person should know."""

from __future__ import annotations

from typing import Any

from qrdali.errors import printable
from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.interfaces import RunContext
from qrdali.loggers.run_log import RunLog, describe_failure
from qrdali.reduction.levels import Levels, quality_names
from qrdali.runs import folder as run_folder
from qrdali.runs.logger_names import split_logger_names
from qrdali.schedule.epoch_schedule import ScheduleEvent, ScheduleRule, ScheduleState
from qrdali.training.metrics_row import (
    EpochResult,
    decay_summary,
    epoch_summary,
    run_end_summary,
    stage_end_summary,
    utc_time,
)
from qrdali.training.preview_sheet import draw_preview, keep_previews
from qrdali.training.run_spec import RunSpec, Split
from qrdali.training.tracked_sets import tracked_summary


class EpochLog:
    """Writes the rows of a run, on rank 0, and reports to the listener."""

    def __init__(self, spec: RunSpec, rule: ScheduleRule, context: RunContext) -> None:
        self._spec, self._rule, self._context = spec, rule, context
        self._changed_environment: dict[str, Any] = {}
        self._constant_class: int | None = None
        names = split_logger_names(spec.settings.log) if context.group.is_main else ()
        self._loggers = RunLog(spec.run, names, self._warn_of_logger)

    def begin(self, start: PredictionRows, rate: float, tracked: dict[str, Any]) -> None:
        """Begins the file with the row of the start weights, which holds the run's facts.

        start: their predictions of the validation split. rate: the learning rate of the first step."""
        accuracy = start.accuracy
        if self._context.group.is_main:
            run_folder.keep_metrics(self._spec.run, -1)
        row = {
            "epoch": 0,
            "phase": "start",
            "stage": 1,
            "quality": dict.fromkeys(quality_names(self._spec.settings.reduction), 1.0),
            "val_accuracy": accuracy,
            "val_loss": start.negative_log_likelihood,
            "lr": rate,
            "time": utc_time(),
        }
        self._append(row | tracked | self._spec.facts)
        self._loggers.begin(self._spec.settings)
        self._context.listener.line(f"epoch   0  start weights, val {accuracy:.4f}{tracked_summary(tracked)}")

    def resume(self, state: ScheduleState) -> None:
        """Drops the rows of epochs that are done again. An environment that has changed goes into the next
        row."""
        if not self._context.group.is_main:
            return
        run_folder.keep_metrics(self._spec.run, state.epoch)
        keep_previews(self._spec.run, state.epoch)
        self._loggers.begin(self._spec.settings)
        now = self._spec.facts["environment"]
        changed = run_folder.last_recorded(self._spec.run, "environment") != now
        self._changed_environment = {"environment": now} if changed else {}

    def mark_of_definitions(self, definitions: int) -> dict[str, int]:
        """Returns the key that marks the first epoch by other definitions than the run began with."""
        marked = run_folder.last_recorded(self._spec.run, "definitions") == definitions
        return {} if marked or not self._context.group.is_main else {"definitions": definitions}

    def record(self, row: dict[str, Any], more: dict[str, Any]) -> None:
        """Appends an epoch's row. more: keys that only some epochs have; they come last."""
        whole = row | self._changed_environment | more
        self._append(whole)
        self._loggers.epoch(whole)
        self._changed_environment = {}

    def announce(
        self, result: EpochResult, before: ScheduleState, after: ScheduleState, event: ScheduleEvent
    ) -> None:
        """Reports an epoch between the states `before` and `after`, and whether it has ended a stage or a
        round."""
        listener = self._context.listener
        summary = epoch_summary(result, self._rule, after, event)
        listener.line(summary + tracked_summary(result.measured))
        if reason := event.stage_end_reason:
            listener.line(stage_end_summary(self._rule, before, reason, self._spec.settings.restore_best))
        if decay := decay_summary(self._rule, before, after):
            listener.line(decay)
        self._warn_of_one_answer(result.rows.constant_class)

    def announce_end(self, state: ScheduleState) -> None:
        """Reports the end of the run."""
        self._context.listener.line(run_end_summary(state))
        self._loggers.end(True)

    def close(self) -> None:
        """Closes what loggers have open, for a run that will be continued."""
        self._loggers.end(False)

    def preview(self, state: ScheduleState, levels: Levels, split: Split, definitions: int) -> None:
        """Draws the sheet of a stage before its first R epoch, the one after `state`, if loggers are set.

        levels, definitions: of that epoch. split: of the training images. A failure is a warning."""
        settings = self._spec.settings
        if not settings.log or not self._context.group.is_main or settings.reduction == "none":
            return
        try:
            draw_preview(self._spec, state, levels, split, definitions)
        except Exception as error:  # training does not need it
            self._context.listener.warn(
                f"stage {state.stage} has no preview: {printable(error)[:200]}; training goes on"
            )

    def _warn_of_logger(self, name: str, error: Exception) -> None:
        self._context.listener.warn(describe_failure(name, error, self._spec.run))

    def _warn_of_one_answer(self, constant_class: int | None) -> None:
        """Warns where the network gives one answer for every image, but not in every epoch again."""
        if constant_class is not None and constant_class != self._constant_class:
            self._context.listener.warn(
                f"the network answers {self._spec.classes[constant_class]!r} for every validation image: "
                "if that lasts, lower --lr"
            )
        self._constant_class = constant_class

    def _append(self, row: dict[str, Any]) -> None:
        if self._context.group.is_main:
            run_folder.append_metrics(self._spec.run, row)
