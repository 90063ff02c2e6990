"""The training loop. The schedule decides what comes next; each epoch's plan goes to the images' source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from qrdali.errors import Interrupted, RunError
from qrdali.evaluation.prediction_rows import write_rows
from qrdali.interfaces import RunContext
from qrdali.reduction.levels import FULL_QUALITY, Levels, histogram, quality_names
from qrdali.reduction.quality import DIMENSIONS
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import DEFINITIONS
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_schedule import Phase, ScheduleEvent, ScheduleState
from qrdali.system.energy import all_reduce_peak_memory
from qrdali.training.epoch import EpochTrainer
from qrdali.training.epoch_log import EpochLog
from qrdali.training.epoch_totals import EpochSums, RunTotals, StageInfo
from qrdali.training.level_stages import LevelStages
from qrdali.training.metrics_row import EpochResult, metrics_row
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.progress import TrainProgress
from qrdali.training.quarantine import FILE, Quarantine
from qrdali.training.run_spec import RunSpec, Splits
from qrdali.training.train_state import TrainStateStore
from qrdali.training.validation import Validator


class Trainer:
    """Trains the network of `spec` on `splits`. Every process of `context.group` constructs one and calls
    `train`."""

    def __init__(self, spec: RunSpec, splits: Splits, context: RunContext) -> None:
        self.spec, self.splits, self.context = spec, splits, context
        self.settings, train = spec.settings, splits.train
        self.rule = spec.rule
        self.train_step = TrainStep(spec, len(train.index), context)
        self.quarantine = Quarantine(spec.run, train.index, spec.settings.max_bad, context)
        self.stages = LevelStages(spec, train, self.quarantine, context)
        self.epochs = EpochTrainer(spec, train, self.train_step, self.stages, self.quarantine, context)
        self.validator = Validator(spec, splits, context)
        self.store = TrainStateStore(spec, train.index, self.train_step, context)
        self.log = EpochLog(spec, self.rule, context)

    def train(self, resume: bool) -> ScheduleState:
        """Trains to the end and returns the last state, or raises Interrupted after a signal, when all is
        saved.

        resume: continues from last/ if it is there. Steps marked with * are collective:

            begin         * validate the start weights, or restore last/
            until the schedule has ended:
                stage levels  * at the begin of a stage: one descent step of every image of an adaptive run
                preview         for loggers: a few images of the stage's first R epoch
                epoch         * one optimizer step per batch, last/ now and then
                share         * unreadable images, statistics of batch norm and sums, for all ranks
                validate      * the validation split and the tracked sets
                decide          the schedule's next state and plateau's rate, from the accuracy
                record        * best/ and unit/ where the epoch was better, a row of metrics.jsonl
                restore       * weights and optimizer from unit/ where patience has ended a stage or round,
                                and the rate's next span begins
                save          * last/
        """
        progress = self._begin(resume)
        while not progress.schedule.ended:
            if not progress.schedule.begun:
                progress = self._begin_stage(progress)
            before = progress.schedule
            phase = epoch_schedule.next_phase(self.rule, before)
            assert phase is not None
            levels = self.stages.levels(before, phase)
            if phase is Phase.REDUCED:
                self.log.preview(before, levels, self.splits.train, progress.definitions)
            progress = self.epochs.train(progress, phase, levels, self._save_last)
            sums = self._share(progress)
            result = self._validate(progress, sums, phase, levels)
            progress, event = self._decide(progress, result)
            if epoch_schedule.judges_unit(self.rule, before):
                self.train_step.rate.after_unit(result.rows.accuracy)
            self._keep_best(progress, result, event)
            self._record(progress, result, first_of_stage=not progress.stage.reported)
            progress = replace(progress, stage=_reported(progress.stage, before, progress.schedule, event))
            progress = self._with_new_definitions(progress)
            if event.stage_end_reason and self.settings.restore_best:
                self.store.restore("unit")
            if event.stage_end_reason:
                self.train_step.rate.begin_span(progress.schedule.decay_epochs)
            self._save_last(progress)
            self.log.announce(result, before, progress.schedule, event)
        self.log.announce_end(progress.schedule)
        return progress.schedule

    def _begin(self, resume: bool) -> TrainProgress:
        """Returns where the run begins: after validating the start weights, or where `last/` says.
        Collective."""
        self.quarantine.check()
        resumable = self.context.group.broadcast_object(resume and self.store.exists())
        if resumable:
            return self._resume()
        try:
            rows = self.validator.validate("start", self.train_step.eval_model, FULL_QUALITY)
            state = epoch_schedule.start(rows.accuracy)
            self.store.save_best(self._best_model(0, rows.accuracy))
            if self.context.group.is_main:
                write_rows(self._val_rows, rows, self.splits.val.index, {"epoch": 0})
            tracked = self.validator.evaluate_tracked("start", self.train_step.eval_model)
        except Interrupted as interruption:
            self._leave(interruption.signum, saved=False)  # nothing has been done yet
        self.log.begin(rows, self.train_step.rate.rate, tracked)
        return TrainProgress(state, totals=RunTotals(forward_images=len(self.splits.val.index)))

    def _resume(self) -> TrainProgress:
        """Restores `last/` on all ranks. Collective."""
        # `next_phase` raises for a place that the sequence does not have.
        restored = self.store.read(lambda state: epoch_schedule.next_phase(self.rule, state))
        progress = restored.progress
        self.stages.restore(progress.schedule, restored.feedback)
        self.context.group.run_on_all(lambda: self.log.resume(progress.schedule))
        if progress.epoch is None:
            progress = self._with_new_definitions(progress)
        where = f"continuing after epoch {progress.schedule.epoch}"
        if progress.epoch:
            where += f" and {progress.epoch.step} steps of the next"
        if restored.damage:
            self.store.quarantine_damaged()
            self.context.listener.warn(
                f"{restored.damage}: it is now last.damaged/, and the save before it is whole: {where}"
            )
        else:
            self.context.listener.line(where)
        return progress

    def _with_new_definitions(self, progress: TrainProgress) -> TrainProgress:
        """Returns that what follows goes by today's definitions, and warns where it went by others."""
        if progress.definitions == DEFINITIONS or progress.schedule.ended:
            return progress
        self.context.listener.warn(
            f"this run was begun under definitions {progress.definitions}: from epoch "
            f"{progress.schedule.epoch + 1} on it goes by definitions {DEFINITIONS}, which order, crop and "
            "scale images in other ways (docs/explanation/definitions.md); reports call it mixed"
        )
        return replace(progress, definitions=DEFINITIONS)

    def _begin_stage(self, progress: TrainProgress) -> TrainProgress:
        """Sets the levels of the stage in hand: for adaptive runs, one descent step of every image.
        Collective."""
        state, energy = progress.schedule, self.context.energy
        if not self.stages.adaptive:
            if self.rule.stages is not None and self.rule.stages != 1:
                self.stages.log_stage(state, self.rule.stages)
            stage = replace(progress.stage, row={})
            return replace(progress, schedule=epoch_schedule.begin_stage(self.rule, state), stage=stage)
        energy.begin()
        counts, seconds = self.stages.descend(state, self.train_step.eval_model)
        joules = energy.all_reduce_joules("probe_energy_joules", self.context.group)
        row = {
            "moved": counts.images / len(self.splits.train.index),
            "probe_seconds": round(seconds, 3),
            "probe_candidates": counts.candidates,
            **joules,
        }
        progress = replace(
            progress,
            schedule=epoch_schedule.begin_stage(self.rule, state, counts.images),
            totals=progress.totals.plus(counts.candidates, seconds),
            stage=replace(progress.stage, row=row),
        )
        self._save_last(progress)  # a probe is long: it is not done twice
        return progress

    def _share(self, progress: TrainProgress) -> EpochSums:
        """Returns the epoch's sums over all ranks, which then leave out the same images and have the same
        buffers. Collective."""
        assert progress.epoch is not None
        self.quarantine.share(progress.schedule.epoch + 1)
        self.train_step.broadcast_buffers()
        sums = progress.epoch.all_ranks(self.context.group)
        if not sums.images:
            raise RunError(f"no training image can be read: {self.spec.run / FILE} says why")
        return sums

    def _validate(
        self, progress: TrainProgress, sums: EpochSums, phase: Phase, levels: Levels
    ) -> EpochResult:
        """Returns what the epoch brought. Collective. After a signal `progress` is saved: only validation is
        repeated."""
        number, model, group = progress.schedule.epoch + 1, self.train_step.eval_model, self.context.group
        names = quality_names(self.settings.reduction)
        counts = histogram(levels, len(self.splits.train.index), self.settings.scale, names)
        shown = self.stages.validation_levels(levels, counts, phase)
        try:
            rows = self.validator.validate(f"epoch {number} val", model, shown, progress.definitions)
            memory = all_reduce_peak_memory(self.context.device, group)
            joules = self.context.energy.all_reduce_joules("energy_joules", group)
            # Of the epoch's own weights: a restore may change them later.
            tracked = self.validator.evaluate_tracked(f"epoch {number}", model, progress.definitions)
        except Interrupted as interruption:
            self._save_last(progress)
            self._leave(interruption.signum, saved=True)
        measured = {"lr": self.train_step.rate.rate} | memory | joules | tracked
        reduced = shown is not FULL_QUALITY
        stage = progress.schedule.stage
        scale, reduction = self.settings.scale, self.settings.reduction
        return EpochResult(number, phase, stage, sums, scale, counts, rows, reduced, measured, reduction)

    def _decide(self, progress: TrainProgress, result: EpochResult) -> tuple[TrainProgress, ScheduleEvent]:
        """Returns the progress after the epoch, and what the schedule has decided."""
        state, event = epoch_schedule.update(self.rule, progress.schedule, result.rows.accuracy)
        limit = self.settings.match_steps
        if limit and progress.totals.optimizer_steps >= limit:
            state = replace(state, ended=f"the {limit} optimizer steps of {self.settings.match}")
        totals = progress.totals.plus(len(result.rows.samples), result.sums.seconds)
        return replace(progress, schedule=state, epoch=None, totals=totals), event

    def _keep_best(self, progress: TrainProgress, result: EpochResult, event: ScheduleEvent) -> None:
        """Writes best/ after the run's best epoch and unit/ after the stage's or round's best. Collective."""
        if event.is_best_of_run:
            self.store.save_best(self._best_model(result.number, result.rows.accuracy))
            if self.context.group.is_main and not result.reduced_validation:
                write_rows(self._val_rows, result.rows, self.splits.val.index, {"epoch": result.number})
        if event.is_best_of_stage and self.rule.patience is not None and self.settings.restore_best:
            self._save("unit", progress)

    def _record(self, progress: TrainProgress, result: EpochResult, first_of_stage: bool) -> None:
        """Writes the epoch's row of metrics.jsonl."""
        row = metrics_row(result, progress.totals, len(self.quarantine.samples))
        more: dict[str, Any] = {}
        if self.stages.adaptive:
            more["levels"] = {name: result.level_counts[i].tolist() for i, name in enumerate(DIMENSIONS)}
        if first_of_stage:
            more |= progress.stage.row
        if self.settings.definitions != progress.definitions:
            more |= self.log.mark_of_definitions(progress.definitions)
        self.log.record(row, more)

    def _save_last(self, progress: TrainProgress) -> None:
        self._save("last", progress)

    def _save(self, name: str, progress: TrainProgress) -> None:
        """Writes the folder `name`, and shares before it what ranks know alone. Collective."""
        self.quarantine.share(progress.schedule.epoch + 1)
        feedback = self.stages.sync_feedback()
        self.store.save(name, progress, feedback)

    def _leave(self, signum: int, saved: bool) -> NoReturn:
        """Raises Interrupted once every rank has come here. Collective."""
        self.context.listener.end()
        # torchrun ends all ranks of a host once one has left it: none may leave before rank 0 has saved.
        self.context.group.barrier()
        raise Interrupted(
            f"stopped in validation{', saved' if saved else ''}: the same command with --resume continues",
            signum,
        ) from None

    def _best_model(self, epoch: int, accuracy: float) -> run_folder.BestModel:
        spec = self.spec
        settings, pre = spec.settings, spec.preprocessing
        options = dict(settings.model_options)
        return run_folder.BestModel(
            settings.model, spec.classes, pre, epoch, accuracy, spec.readable, options
        )

    @property
    def _val_rows(self) -> Path:
        return self.spec.run / "predictions" / "val.parquet"


def _reported(
    stage: StageInfo, before: ScheduleState, after: ScheduleState, event: ScheduleEvent
) -> StageInfo:
    """Returns that the stage in hand has been reported, unless the epoch between the states has ended it."""
    return replace(stage, reported=not event.stage_end_reason or after.stage == before.stage)
