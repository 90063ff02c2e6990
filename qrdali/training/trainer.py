"""The training loop. It asks the scheduler what comes next and hands each epoch's plan to the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from qrdali.data.index import Index
from qrdali.distributed import SINGLE_PROCESS, ProcessGroup
from qrdali.errors import Interrupted, RunError
from qrdali.evaluation.predict import inference_batch_size, predict
from qrdali.evaluation.prediction_rows import PredictionRows, write_rows
from qrdali.interfaces import BatchSource, ProgressListener, RunContext
from qrdali.models import Preprocessing
from qrdali.reduction.levels import FULL_QUALITY, Levels, histogram
from qrdali.reduction.quality import DIMENSIONS, num_levels_of, quality
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.schedule.methods import schedule_rule_of
from qrdali.system.energy import EnergyMeter, all_reduce_peak_memory
from qrdali.training.epoch import EpochTrainer
from qrdali.training.epoch_totals import EpochSums, RunTotals, StageInfo
from qrdali.training.level_stages import LevelStages
from qrdali.training.metrics_row import epoch_summary, metrics_row, stage_end_summary
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.quarantine import FILE, Quarantine
from qrdali.training.tracked_sets import TrackedSets, tracked_summary
from qrdali.training.train_state import TrainStateStore


class Trainer:
    """Trains `model` in the run folder `run`. The loaders are of the train and val split; `tracker` has more sets to watch.
    `facts` go into the start row; their "environment" also into the first row after a change of it. `ranks` share each batch."""

    def __init__(
        self,
        settings: Settings,
        run: Path,
        model: nn.Module,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        train: tuple[BatchSource, Index],
        val: tuple[BatchSource, Index],
        device: torch.device,
        listener: ProgressListener,
        stop: Callable[[], int],
        tracker: TrackedSets,
        facts: dict[str, Any],
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.settings, self.run, self.preprocessing, self.classes = settings, run, preprocessing, classes
        self.train_loader, self.train_index = train
        self.val_loader, self.val_index = val
        self.device, self.listener, self.stop, self.tracker, self.group = (
            device,
            listener,
            stop,
            tracker,
            group,
        )
        self.facts, self.energy = facts, EnergyMeter(device)
        self.changed_environment: dict[str, Any] = {}
        self.constant_class: int | None = None
        self.train_step = learner = TrainStep(settings, model, preprocessing.input_size, device, group)
        self.model, self.eval_model, self.autocast = learner.model, learner.eval_model, learner.autocast
        self.context = RunContext(device, self.autocast, self.energy, group, listener, stop)
        self.num_levels = num_levels_of(settings.step)
        self.rule = schedule_rule_of(settings)
        self.quarantine = Quarantine(run, self.train_index, settings.max_bad, listener.warn, group)
        self.stages = LevelStages(settings, run, self.train_index, device, listener, group)
        self.store = TrainStateStore(
            run,
            self.model,
            learner.optimizer,
            learner.scaler,
            device,
            self.train_index.fingerprint,
            len(self.train_index),
            settings.batch_size,
            group,
            learner.ema and learner.ema.module,
        )
        self.totals, self.stage = RunTotals(), StageInfo({})
        self.unvalidated: tuple[epoch_schedule.ScheduleState, EpochSums, RunTotals] | None = (
            None  # of an epoch that only lacks its validation
        )
        self.training = EpochTrainer(
            settings,
            run,
            train[0],
            len(self.train_index),
            learner,
            self.stages,
            self.quarantine,
            self.energy,
            listener,
            stop,
            lambda state, epoch: self._save("last", state, epoch),
            group,
        )

    def fit(self, resume: bool) -> epoch_schedule.ScheduleState:
        """Runs to the end, or to a signal (Interrupted). `resume` continues from `last/` if it is there."""
        epoch = None
        self.quarantine.check()
        if self.group.broadcast_object(resume and self.store.exists()):
            state, epoch = self._restore()
        else:
            state = self._begin()
        while not state.ended:
            if not state.begun:
                state = self._begin_stage(state)
            phase = epoch_schedule.next_phase(self.rule, state)
            assert phase is not None
            state = self._epoch(state, phase, epoch)
            epoch = None
        why = "" if state.ended.startswith("patience") else f" by {state.ended}"  # patience has just said so
        best = f"epoch {state.run_best_epoch}" if state.run_best_epoch else "the start, no epoch was better,"
        self.listener.line(f"run ended{why}; best is {best} with val {state.run_best:.4f}")
        return state

    def _begin(self) -> epoch_schedule.ScheduleState:
        if self.group.is_main:
            run_folder.keep_metrics(self.run, -1)
        rows = self._validate("start", FULL_QUALITY)
        state = epoch_schedule.start(rows.accuracy)
        self._save_best(state.run_best, 0, rows)
        tracked = self._track("start")
        self._append(
            {
                "epoch": 0,
                "phase": "start",
                "stage": 1,
                "quality": dict.fromkeys(DIMENSIONS, 1.0),
                "val_accuracy": rows.accuracy,
                **tracked,
                **self.facts,
            }
        )
        self.listener.line(f"epoch   0  start weights, val {rows.accuracy:.4f}{tracked_summary(tracked)}")
        return state

    def _begin_stage(self, state: epoch_schedule.ScheduleState) -> epoch_schedule.ScheduleState:
        """Sets the levels of the stage in hand: for adaptive runs, one descent step of every training image."""
        moved = None
        self.stage.row = {}
        if self.stages.adaptive:
            self.energy.begin()
            done, seconds = self.stages.descend(
                state,
                self.eval_model,
                self.train_loader,
                self.autocast,
                self.energy,
                self.quarantine,
                self.stop,
            )
            moved = done.images
            self.totals.forward_images += done.candidates
            self.totals.seconds += seconds
            joules = self.energy.all_reduce_joules("probe_energy_joules", self.group)
            self.stage.row = {
                "moved": done.images / len(self.train_index),
                "probe_seconds": round(seconds, 3),
                "probe_candidates": done.candidates,
                **joules,
            }
        elif self.rule.stages is not None and self.rule.stages != 1:
            self.stages.log_stage(state, self.rule.stages)
        state = epoch_schedule.begin_stage(self.rule, state, moved)
        if self.stages.adaptive:
            self._save("last", state, None)  # a probe is long: it is not done twice
        return state

    def _epoch(
        self, state: epoch_schedule.ScheduleState, phase: epoch_schedule.Phase, resumed: EpochSums | None
    ) -> epoch_schedule.ScheduleState:
        number, stage, first = state.epoch + 1, state.stage, not self.stage.reported
        levels = self.stages.levels(state, phase)
        own = self._train(state, phase, levels, resumed)
        self.quarantine.share(number)
        self.train_step.broadcast_buffers()
        epoch = own.all_ranks(self.group)
        if not epoch.images:
            raise RunError(f"no training image can be read: {self.run / FILE} says why")
        counts = histogram(levels, len(self.train_index), self.num_levels)
        shown = dict(
            zip(
                DIMENSIONS,
                (
                    counts @ quality(np.arange(self.num_levels), self.num_levels) / len(self.train_index)
                ).tolist(),
                strict=True,
            )
        )
        watched = self.stages.validation_levels(levels, counts, phase)
        self.unvalidated = (
            state,
            own,
            replace(self.totals),
        )  # what a signal saves from here on: validation alone is done again
        rows = self._validate(f"epoch {number} val", watched)
        peak = all_reduce_peak_memory(self.device, self.group)
        joules = self.energy.all_reduce_joules("energy_joules", self.group)
        spent = peak | joules
        tracked = self._track(f"epoch {number}")  # before a restore may change the weights
        self.unvalidated = None
        before = state
        state, event = epoch_schedule.update(self.rule, state, rows.accuracy)
        if self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps:
            state = replace(
                state, ended=f"the {self.settings.match_steps} optimizer steps of {self.settings.match}"
            )
        if event.is_best_of_run:
            self._save_best(rows.accuracy, number, rows if watched is FULL_QUALITY else None)
        if event.is_best_of_stage and self.rule.patience is not None and self.settings.restore_best:
            self._save("unit", state, None)
        if event.stage_end_reason and self.settings.restore_best:
            self._load_weights("unit")
        self.totals.seconds += epoch.seconds
        row = metrics_row(
            number, phase, stage, shown, epoch, rows.accuracy, self.totals, len(self.quarantine.samples)
        )
        row |= spent | tracked | self.changed_environment
        if self.stages.adaptive:
            row["levels"] = {name: counts[i].tolist() for i, name in enumerate(DIMENSIONS)}
        if first:
            row |= self.stage.row
        self.stage.reported = not event.stage_end_reason or state.stage == stage
        self._append(row)
        self.changed_environment = {}
        self._save("last", state, None)
        self.listener.line(epoch_summary(row, epoch, self.rule, state, event) + tracked_summary(tracked))
        if event.stage_end_reason:
            self.listener.line(
                stage_end_summary(self.rule, before, event.stage_end_reason, self.settings.restore_best)
            )
        if (
            rows.constant_class is not None and rows.constant_class != self.constant_class
        ):  # not every epoch again
            self.listener.warn(
                f"the network answers {self.classes[rows.constant_class]!r} for every validation image: "
                "if that lasts, lower --lr"
            )
        self.constant_class = rows.constant_class
        return state

    def _train(
        self,
        state: epoch_schedule.ScheduleState,
        phase: epoch_schedule.Phase,
        levels: Levels,
        resumed: EpochSums | None,
    ) -> EpochSums:
        return self.training.train(state, phase, levels, resumed or EpochSums.begin(self.device), self.totals)

    def _validate(self, what: str, levels: Levels) -> PredictionRows:
        plan = EpochPlan(
            len(self.val_index),
            inference_batch_size(self.settings.batch_size, self.group.world_size),
            levels,
            self.num_levels,
            self.settings.seed,
        )
        self.listener.begin(what, plan.samples)
        try:
            rows = predict(self.eval_model, self.val_loader, plan, self.context, on_batch=self._advance)
        except Interrupted as interruption:
            self._save_and_exit(interruption.signum)
        self.listener.end()
        self._exit_if_signalled()
        self.totals.forward_images += plan.samples
        return rows

    def _advance(self, images: int) -> None:
        self.energy.poll()
        self.listener.advance(images, str)
        if signum := self.stop():
            raise Interrupted("stopped in validation", signum)  # which all ranks hear of

    def _exit_if_signalled(self) -> None:
        """Of several ranks all leave together: they have to, to save."""
        if not self.group.is_single and (signum := max(self.group.all_gather_object(self.stop()))):
            self._save_and_exit(signum)

    def _save_and_exit(self, signum: int) -> NoReturn:
        self.listener.end()
        saved = ", saved"
        if self.unvalidated is None:
            saved = ""  # the start weights: nothing has been done yet
        else:
            state, epoch, self.totals = self.unvalidated
            self._save("last", state, epoch)
            self.group.barrier()
        raise Interrupted(f"stopped in validation{saved}: the same command with --resume continues", signum)

    def _track(self, what: str) -> dict[str, Any]:
        try:
            found = self.tracker.evaluate(what, self.eval_model, self.context, self._advance)
        except Interrupted as interruption:
            self._save_and_exit(interruption.signum)
        self._exit_if_signalled()
        return found

    def _append(self, row: dict[str, Any]) -> None:
        if self.group.is_main:
            run_folder.append_metrics(self.run, row)

    def _save_best(self, accuracy: float, epoch: int, rows: PredictionRows | None) -> None:
        self.store.save_best(
            run_folder.BestModel(self.settings.model, self.classes, self.preprocessing, epoch, accuracy)
        )
        if rows is not None and self.group.is_main:
            write_rows(self.run / "predictions" / "val.parquet", rows, self.val_index, {"epoch": epoch})

    def _save(self, name: str, state: epoch_schedule.ScheduleState, epoch: EpochSums | None) -> None:
        """`epoch`: in hand, if it is not at its end."""
        self.quarantine.share(state.epoch + 1)
        self.store.save(
            name, state, epoch, self.totals, self.stage, self.stages.sync_feedback(), self.energy.used()
        )

    def _load_weights(self, name: str) -> None:
        self.store.restore(name)

    def _restore(self) -> tuple[epoch_schedule.ScheduleState, EpochSums | None]:
        saved = self.store.read(
            lambda state: epoch_schedule.next_phase(self.rule, state)
        )  # that there is such a place in the sequence
        state, epoch, self.totals, self.stage = saved.schedule, saved.epoch, saved.totals, saved.stage
        self.stages.restore(state, saved.feedback)
        self.changed_environment = self.group.broadcast_object(
            self._drop_repeated_metrics(state) if self.group.is_main else {}
        )
        where = f"continuing after epoch {state.epoch}" + (
            f" and {epoch.step} steps of the next" if epoch else ""
        )
        if saved.damage:
            self.store.quarantine_damaged()
            self.listener.warn(
                f"{saved.damage}: it is now last.damaged/, and the save before it is whole: {where}"
            )
        else:
            self.listener.line(where)
        return state, epoch

    def _drop_repeated_metrics(self, state: epoch_schedule.ScheduleState) -> dict[str, Any]:
        """Drops metrics of epochs that are done again. Returns the environment, if it has changed."""
        run_folder.keep_metrics(self.run, state.epoch)
        now = self.facts["environment"]
        return {} if run_folder.last_recorded(self.run, "environment") == now else {"environment": now}
