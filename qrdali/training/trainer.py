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
from qrdali.distributed import ALONE, Ranks
from qrdali.errors import Interrupted, RunError
from qrdali.evaluation.predict import Rows, at_once, evaluate, write_rows
from qrdali.interfaces import Loader
from qrdali.models import Preprocessing
from qrdali.reduction.levels import FULL, Levels, histogram
from qrdali.reduction.quality import DIMENSIONS, quality, steps
from qrdali.runs import folder as runs
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule as schedule
from qrdali.schedule.epoch_plan import Plan
from qrdali.schedule.methods import rule_of
from qrdali.system.energy import Energy, peak_memory
from qrdali.training.epoch import EpochTrainer
from qrdali.training.level_stages import Stages
from qrdali.training.metrics_row import closed_text, epoch_row, epoch_text
from qrdali.training.optimizer_step import Learner
from qrdali.training.quarantine import FILE, Quarantine
from qrdali.training.tracked_sets import Tracker, tracked_text
from qrdali.training.train_state import Epoch, Saves, Stage, Totals
from qrdali.watcher import Watcher


class Trainer:
    """Trains `model` in the run folder `run`. The loaders are of the train and val split; `tracker` has more sets to watch.
    `facts` go into the start row; their "environment" also into the first row after a change of it. `ranks` share each batch."""

    def __init__(self, settings: Settings, run: Path, model: nn.Module, preprocessing: Preprocessing,
                 classes: tuple[str, ...], train: tuple[Loader, Index], val: tuple[Loader, Index], device: torch.device,
                 watcher: Watcher, stop: Callable[[], int], tracker: Tracker,
                 facts: dict[str, Any], ranks: Ranks = ALONE) -> None:
        self.settings, self.run, self.preprocessing, self.classes = settings, run, preprocessing, classes
        self.train_loader, self.train_index = train
        self.val_loader, self.val_index = val
        self.device, self.watcher, self.stop, self.tracker, self.ranks = device, watcher, stop, tracker, ranks
        self.facts, self.energy = facts, Energy(device)
        self.changed: dict[str, Any] = {}
        self.constant_class: int | None = None
        self.learner = learner = Learner(settings, model, preprocessing.input_size, device, ranks)
        self.model, self.judged, self.autocast = learner.model, learner.judged, learner.autocast
        self.n = steps(settings.step)
        self.rule = rule_of(settings)
        self.quarantine = Quarantine(run, self.train_index, settings.max_bad, watcher.warn, ranks)
        self.stages = Stages(settings, run, self.train_index, device, watcher, ranks)
        self.saves = Saves(run, self.model, learner.optimizer, learner.scaler, device, self.train_index.fingerprint, len(self.train_index),
                           settings.batch_size, ranks, learner.ema and learner.ema.module)
        self.totals, self.stage = Totals(), Stage({})
        self.trained: tuple[schedule.State, Epoch, Totals] | None = None  # of an epoch that only lacks its validation
        self.training = EpochTrainer(settings, run, train[0], len(self.train_index), learner, self.stages, self.quarantine, self.energy,
                                     watcher, stop, lambda state, epoch: self._save("last", state, epoch), ranks)

    def fit(self, resume: bool) -> schedule.State:
        """Runs to the end, or to a signal (Interrupted). `resume` continues from `last/` if it is there."""
        epoch = None
        self.quarantine.check()
        if self.ranks.of_main(resume and self.saves.there()):
            state, epoch = self._restore()
        else:
            state = self._begin()
        while not state.ended:
            if not state.begun:
                state = self._begin_stage(state)
            letter = schedule.phase(self.rule, state)
            assert letter is not None
            state = self._epoch(state, letter, epoch)
            epoch = None
        why = "" if state.ended.startswith("patience") else f" by {state.ended}"  # patience has just said so
        best = f"epoch {state.run_best_epoch}" if state.run_best_epoch else "the start, no epoch was better,"
        self.watcher.line(f"run ended{why}; best is {best} with val {state.run_best:.4f}")
        return state

    def _begin(self) -> schedule.State:
        if self.ranks.main:
            runs.keep_metrics(self.run, -1)
        rows = self._validate("start", FULL)
        state = schedule.start(rows.accuracy)
        self._save_best(state.run_best, 0, rows)
        tracked = self._track("start")
        self._append({"epoch": 0, "phase": "start", "stage": 1, "quality": dict.fromkeys(DIMENSIONS, 1.0),
                      "val_accuracy": rows.accuracy, **tracked, **self.facts})
        self.watcher.line(f"epoch   0  start weights, val {rows.accuracy:.4f}{tracked_text(tracked)}")
        return state

    def _begin_stage(self, state: schedule.State) -> schedule.State:
        """Sets the levels of the stage in hand: for adaptive runs, one descent step of every training image."""
        moved = None
        self.stage.row = {}
        if self.stages.adaptive:
            self.energy.begin()
            done, seconds = self.stages.descend(state, self.judged, self.train_loader, self.autocast, self.energy, self.quarantine,
                                                self.stop)
            moved = done.images
            self.totals.forward_images += done.candidates
            self.totals.seconds += seconds
            self.stage.row = {"moved": done.images / len(self.train_index), "probe_seconds": round(seconds, 3),
                              "probe_candidates": done.candidates, **self.energy.of_all("probe_energy_joules", self.ranks)}
        elif self.rule.stages is not None and self.rule.stages != 1:
            self.stages.announce(state, self.rule.stages)
        state = schedule.begin_stage(self.rule, state, moved)
        if self.stages.adaptive:
            self._save("last", state, None)  # a probe is long: it is not done twice
        return state

    def _epoch(self, state: schedule.State, letter: str, resumed: Epoch | None) -> schedule.State:
        number, stage, first = state.epoch + 1, state.stage, not self.stage.shown
        levels = self.stages.levels(state, letter)
        own = self._train(state, letter, levels, resumed)
        self.quarantine.share(number)
        self.learner.share_buffers()
        epoch = own.of_all(self.ranks)
        if not epoch.images:
            raise RunError(f"no training image can be read: {self.run / FILE} says why")
        counts = histogram(levels, len(self.train_index), self.n)
        shown = dict(zip(DIMENSIONS, (counts @ quality(np.arange(self.n), self.n) / len(self.train_index)).tolist(), strict=True))
        watched = self.stages.watched(levels, counts, letter)
        self.trained = state, own, replace(self.totals)  # what a signal saves from here on: validation alone is done again
        rows = self._validate(f"epoch {number} val", watched)
        spent = peak_memory(self.device, self.ranks) | self.energy.of_all("energy_joules", self.ranks)
        tracked = self._track(f"epoch {number}")  # before a restore may change the weights
        self.trained = None
        before = state
        state, event = schedule.update(self.rule, state, rows.accuracy)
        if self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps:
            state = replace(state, ended=f"the {self.settings.match_steps} optimizer steps of {self.settings.match}")
        if event.run_improved:
            self._save_best(rows.accuracy, number, rows if watched is FULL else None)
        if event.unit_improved and self.rule.patience is not None and self.settings.restore_best:
            self._save("unit", state, None)
        if event.closed and self.settings.restore_best:
            self._load_weights("unit")
        self.totals.seconds += epoch.seconds
        row = epoch_row(number, letter, stage, shown, epoch, rows.accuracy, self.totals, len(self.quarantine.samples))
        row |= spent | tracked | self.changed
        if self.stages.adaptive:
            row["levels"] = {name: counts[i].tolist() for i, name in enumerate(DIMENSIONS)}
        if first:
            row |= self.stage.row
        self.stage.shown = not event.closed or state.stage == stage
        self._append(row)
        self.changed = {}
        self._save("last", state, None)
        self.watcher.line(epoch_text(row, epoch, self.rule, state, event) + tracked_text(tracked))
        if event.closed:
            self.watcher.line(closed_text(self.rule, before, event.closed, self.settings.restore_best))
        if rows.constant_class is not None and rows.constant_class != self.constant_class:  # not every epoch again
            self.watcher.warn(f"the network answers {self.classes[rows.constant_class]!r} for every validation image: "
                              "if that lasts, lower --lr")
        self.constant_class = rows.constant_class
        return state

    def _train(self, state: schedule.State, letter: str, levels: Levels, resumed: Epoch | None) -> Epoch:
        return self.training.train(state, letter, levels, resumed or Epoch.begin(self.device), self.totals)

    def _validate(self, what: str, levels: Levels) -> Rows:
        plan = Plan(len(self.val_index), at_once(self.settings.batch_size, self.ranks.world), levels, self.n, self.settings.seed)
        self.watcher.begin(what, plan.samples)
        try:
            rows = evaluate(self.judged, self.val_loader, plan, self.autocast, self._advance, ranks=self.ranks)
        except Interrupted as interruption:
            self._leave(interruption.signum)
        self.watcher.end()
        self._heed()
        self.totals.forward_images += plan.samples
        return rows

    def _advance(self, images: int) -> None:
        self.energy.poll()
        self.watcher.advance(images, str)
        if signum := self.stop():
            raise Interrupted("stopped in validation", signum)  # which all ranks hear of

    def _heed(self) -> None:
        """Of several ranks all leave together: they have to, to save."""
        if not self.ranks.alone and (signum := max(self.ranks.tell(self.stop()))):
            self._leave(signum)

    def _leave(self, signum: int) -> NoReturn:
        self.watcher.end()
        saved = ", saved"
        if self.trained is None:
            saved = ""  # the start weights: nothing has been done yet
        else:
            state, epoch, self.totals = self.trained
            self._save("last", state, epoch)
            self.ranks.wait()
        raise Interrupted(f"stopped in validation{saved}: the same command with --resume continues", signum)

    def _track(self, what: str) -> dict[str, Any]:
        try:
            found = self.tracker.measure(what, self.judged, self.autocast, self.watcher, self._advance, self.ranks)
        except Interrupted as interruption:
            self._leave(interruption.signum)
        self._heed()
        return found

    def _append(self, row: dict[str, Any]) -> None:
        if self.ranks.main:
            runs.append_metrics(self.run, row)

    def _save_best(self, accuracy: float, epoch: int, rows: Rows | None) -> None:
        self.saves.best(runs.Trained(self.settings.model, self.classes, self.preprocessing, epoch, accuracy))
        if rows is not None and self.ranks.main:
            write_rows(self.run / "predictions" / "val.parquet", rows, self.val_index, {"epoch": epoch})

    def _save(self, name: str, state: schedule.State, epoch: Epoch | None) -> None:
        """`epoch`: in hand, if it is not at its end."""
        self.quarantine.share(state.epoch + 1)
        self.saves.write(name, state, epoch, self.totals, self.stage, self.stages.feedback(), self.energy.used())

    def _load_weights(self, name: str) -> None:
        self.saves.back_to(name)

    def _restore(self) -> tuple[schedule.State, Epoch | None]:
        saved = self.saves.read(lambda state: schedule.phase(self.rule, state))  # that there is such a place in the sequence
        state, epoch, self.totals, self.stage = saved.schedule, saved.epoch, saved.totals, saved.stage
        self.stages.restore(state, saved.feedback)
        self.changed = self.ranks.of_main(self._taken_up(state) if self.ranks.main else {})
        where = f"continuing after epoch {state.epoch}" + (f" and {epoch.step} steps of the next" if epoch else "")
        if saved.damage:
            self.saves.put_aside()
            self.watcher.warn(f"{saved.damage}: it is now last.damaged/, and the save before it is whole: {where}")
        else:
            self.watcher.line(where)
        return state, epoch

    def _taken_up(self, state: schedule.State) -> dict[str, Any]:
        """Drops metrics of epochs that are done again. Returns the environment, if it has changed."""
        runs.keep_metrics(self.run, state.epoch)
        now = self.facts["environment"]
        return {} if runs.last_recorded(self.run, "environment") == now else {"environment": now}
