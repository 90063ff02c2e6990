"""The training loop. It asks the scheduler what comes next and hands each epoch's plan to the loader."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from qrdali import runs, schedule
from qrdali.batch import Batch, Loader
from qrdali.data.index import Index
from qrdali.device import autocast_for
from qrdali.energy import Energy, peak_memory
from qrdali.errors import Elsewhere, Interrupted, RunError
from qrdali.evaluate import Rows, at_once, evaluate, write_rows
from qrdali.finite import Finite, NotFinite
from qrdali.levels import FULL, Levels, histogram
from qrdali.methods import rule_of
from qrdali.models import Preprocessing
from qrdali.plan import Plan
from qrdali.quality import DIMENSIONS, quality, steps
from qrdali.quarantine import FILE, Quarantine
from qrdali.ranks import ALONE, Ranks
from qrdali.saves import Epoch, Saves, Stage, Totals
from qrdali.settings import Settings
from qrdali.stages import Stages
from qrdali.track import Tracker, tracked_text
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
        self.facts, self.energy, self.finite = facts, Energy(device), Finite()
        self.changed: dict[str, Any] = {}
        torch.manual_seed((settings.seed + ranks.rank * 0x9E3779B97F4A7C15) % 2**63)  # dropout differs between ranks
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.sync_batch_norm and not ranks.alone:
            self.model = convert_sync_batchnorm(self.model)  # timm's: torch's own drops the activations in its networks' layers
        self.ema = ModelEmaV3(self.model, settings.ema) if settings.ema else None
        # Is validated, asked in probes and saved as best/.
        self.judged: nn.Module = self.ema.module if self.ema else self.model
        self.parallel = ranks.parallel(self.model, device)
        self.optimizer = create_optimizer_v2(self.model, settings.optimizer, lr=settings.lr,
                                             weight_decay=settings.weight_decay)
        self.autocast, scaled = autocast_for(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self.n = steps(settings.step)
        self.rule = rule_of(settings)
        self.quarantine = Quarantine(run, self.train_index, settings.max_bad, watcher.warn, ranks.main)
        self.quarantine.samples = tuple(ranks.of_main(list(self.quarantine.samples)))
        self.unread: dict[int, str] = {}  # found by this rank, not yet told to the others
        self.stages = Stages(settings, run, self.train_index, device, watcher, ranks)
        self.saves = Saves(run, self.model, self.optimizer, self.scaler, device, self.train_index.fingerprint, len(self.train_index),
                           settings.batch_size, ranks, self.ema and self.ema.module)
        self.totals, self.stage = Totals(), Stage({})
        self.trained: tuple[schedule.State, Epoch, Totals] | None = None  # of an epoch that only lacks its validation
        every = settings.save_every
        self.save_seconds = 60 * float(every[:-1]) if every.endswith("m") else None
        self.save_steps = int(every) if every and self.save_seconds is None else None
        if not ranks.alone:
            # DDP orders gradients anew after its first pass, and three ranks or more add in that order: a run that goes on
            # shall not differ.
            self._take_part()
            self.optimizer.zero_grad(set_to_none=True)

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
        self.watcher.line(f"run ended{why}; best is epoch {state.run_best_epoch} with val {state.run_best:.4f}")
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
                              "probe_candidates": done.candidates, **self._joules("probe_energy_joules")}
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
        self._share_unread(number)
        self.ranks.share_buffers(self.model)
        if self.ema:
            self.ranks.share_buffers(self.judged)
        epoch = own.of_all(self.ranks)
        if not epoch.images:
            raise RunError(f"no training image can be read: {self.run / FILE} says why")
        mean_loss = float(epoch.loss) / epoch.images
        counts = histogram(levels, len(self.train_index), self.n)
        shown = dict(zip(DIMENSIONS, (counts @ quality(np.arange(self.n), self.n) / len(self.train_index)).tolist(), strict=True))
        watched = self.stages.watched(levels, counts, letter)
        self.trained = state, own, replace(self.totals)  # what a signal saves from here on: validation alone is done again
        rows = self._validate(f"epoch {number} val", watched)
        spent = self._memory() | self._joules("energy_joules")
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
        accuracy = int(epoch.correct) / epoch.images
        rate = (epoch.images) / max(epoch.seconds, 1e-9)
        self.totals.seconds += epoch.seconds
        row = {
            "epoch": number, "phase": "reduced" if letter == "R" else "full", "stage": stage, "quality": shown,
            "quarantined": len(self.quarantine.samples), "train_loss": mean_loss, "train_accuracy": accuracy, "val_accuracy": rows.accuracy,
            "seconds": round(epoch.seconds, 3), "images_per_second": round(rate, 1),
            "data_wait_seconds": round(epoch.waited, 3), "optimizer_steps": self.totals.optimizer_steps,
            "forward_images": self.totals.forward_images, "total_seconds": round(self.totals.seconds, 3),
            **spent, **tracked, **self.changed}
        if self.stages.adaptive:
            row["levels"] = {name: counts[i].tolist() for i, name in enumerate(DIMENSIONS)}
        if first:
            row |= self.stage.row
        self.stage.shown = not event.closed or state.stage == stage
        self._append(row)
        self.changed = {}
        self._save("last", state, None)
        wait = ""
        if self.rule.patience is not None:
            wait = f"  patience left {0 if event.closed else self.rule.patience - state.wait}"
        moved = [q for q in shown.values() if q < 1]
        stage_text = "" if self.rule.stages == 1 else f" stage {stage}"
        self.watcher.line(f"epoch {number:3d}  {letter}{stage_text} quality {sum(moved) / len(moved) if moved else 1:.2f}  "
                          f"loss {mean_loss:.4f}  train {accuracy:.4f}  val {rows.accuracy:.4f}{'*' if event.run_improved else ' '} "
                          f"{rate:6.0f} img/s  wait {epoch.waited / max(epoch.seconds, 1e-9):4.0%}{wait}{tracked_text(tracked)}")
        if event.closed:
            what = f"{before.round} round of stage {stage}" if self.rule.rounds else f"stage {stage}"
            self.watcher.line(f"{what} ended by {event.closed}"
                              + (f"; back to epoch {before.best_epoch}" if self.settings.restore_best else ""))
        if rows.constant_class is not None:
            self.watcher.warn(f"the network answers {self.classes[rows.constant_class]!r} for every validation image: "
                              "if that lasts, lower --lr")
        return state

    def _plan(self, state: schedule.State, levels: Levels, first_batch: int) -> Plan:
        s = self.settings
        order = state.epoch + 1 - (state.position if s.same_order else 0)
        return Plan(len(self.train_index), s.batch_size, levels, self.n, s.seed, order, True, s.augment, self.ranks.rank, self.ranks.world,
                    first_batch=first_batch, without=self.quarantine.samples)

    def _steps(self, plan: Plan, epoch: int) -> Iterator[tuple[int, Batch | None]]:
        """Number and batch of each step. Alone, steps without an image do not come; of ranks all take every step that any may have an
        image for, with None for those that have none."""
        batches = self.train_loader.epoch(plan, lambda reasons: self._unreadable(epoch, reasons))
        if self.ranks.alone:
            yield from ((batch.number, batch) for batch in batches)
            return
        ahead = next(batches, None)
        for number in range(plan.first_batch, plan.batches):
            if ahead is not None and ahead.number == number:
                yield number, ahead
                ahead = next(batches, None)
            elif plan.count(number):
                yield number, None

    def _train(self, state: schedule.State, letter: str, levels: Levels, resumed: Epoch | None) -> Epoch:
        epoch = resumed or Epoch.begin(self.device)
        plan = self._plan(state, levels, epoch.step)
        self.model.train()
        self.energy.begin(epoch.joules)
        if epoch.step == plan.batches or (self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps):
            return epoch  # stopped in its validation
        before, saved = epoch.seconds, time.monotonic()
        begun = asked = time.perf_counter()
        agreement = self.ranks.agreement()
        self.watcher.begin(f"epoch {state.epoch + 1} {letter}", plan.samples - min(plan.samples, epoch.step * plan.batch_size))
        for number, batch in self._steps(plan, state.epoch + 1):
            epoch.waited += time.perf_counter() - asked
            count = len(batch.labels) if self.ranks.alone and batch is not None else plan.count(number)
            if not self._step(number, batch, count, epoch, plan, letter == "R"):
                epoch.step, asked = number + 1, time.perf_counter()
                continue
            epoch.step = number + 1  # batches of which no image is left do not come
            if epoch.step % self.finite.EVERY == 0:
                self._require_finite(state, weights=False)
            epoch.seconds = before + time.perf_counter() - begun
            self.totals.optimizer_steps += 1
            self.totals.forward_images += count
            self.energy.poll()
            self.watcher.advance(count, lambda: f"train {int(epoch.correct) / max(1, epoch.images):.3f}")
            if self.save_seconds and self.ranks.main and time.monotonic() - saved >= self.save_seconds:
                due, saved = True, time.monotonic()
            else:
                due = bool(self.save_steps and epoch.step % self.save_steps == 0)
            signum, to_save = agreement.largest(self.stop(), int(due))
            if to_save or signum:
                self._require_finite(state, weights=True)
                self._save("last", state, epoch)
            if signum:
                self.watcher.end()
                agreement.settled()
                self.ranks.wait()  # a rank that leaves ends those of its host: not before the save is whole
                raise Interrupted(f"stopped in epoch {state.epoch + 1} after step {epoch.step}, saved: the same command "
                                  "with --resume continues", signum)
            if self.totals.optimizer_steps == self.settings.match_steps:
                break
            asked = time.perf_counter()
        else:
            epoch.step = plan.batches
        agreement.settled()
        self._require_finite(state, weights=True)
        self.watcher.end()
        return epoch

    def _step(self, number: int, batch: Batch | None, count: int, epoch: Epoch, plan: Plan, reduced: bool) -> bool:
        """One optimizer step, `batch` being this rank's part of `count` images. False if the batch had to be passed over."""
        self.optimizer.zero_grad(set_to_none=True)
        if batch is None and self.settings.sync_batch_norm:
            raise RunError(f"--sync-batch-norm needs an image for every process in every step: one has none that can be read for step "
                           f"{number + 1}")
        if batch is None:
            self._take_part()
        else:
            try:
                loss, right = self._passes(batch, len(batch.labels) * self.ranks.world / count)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                if self.quarantine.samples and self.ranks.alone:  # left of a batch of more: no reason to end the run
                    self.watcher.warn(f"batch norm cannot train on the one image left of step {number + 1}: it is passed over")
                    return False
                raise RunError(f"batch norm cannot train on one image, as in step {number + 1}: choose a --batch-size that does not leave "
                               f"one of {plan.samples} images over for a process or part of a step") from None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model)
        if batch is None:
            return True
        with torch.no_grad():
            epoch.loss += loss.double() * len(batch.labels)
            epoch.correct += right.sum()
            epoch.images += len(batch.labels)
            if self.stages.online and reduced:
                self.stages.hear(batch.samples, right)
        self.finite.seen(number + 1, loss, batch.samples)
        return True

    def _passes(self, batch: Batch, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a batch, in --accumulate parts. Returns its mean loss, and which images are right.

        share: what the mean over these images counts in the mean of ranks: 1 where all have as many.
        """
        count = len(batch.labels)
        pieces = min(self.settings.accumulate, count)
        parts = list(zip(batch.images.tensor_split(pieces), batch.labels.tensor_split(pieces), strict=True))
        losses, right = [], []
        for i, (images, labels) in enumerate(parts):
            last = i == len(parts) - 1  # gradients are exchanged once
            with nullcontext() if last or self.ranks.alone else self.parallel.no_sync():  # type: ignore[operator]
                with self.ranks.speaking(), self.autocast():
                    logits = self.parallel(images)
                    loss = self.loss(logits, labels)
                weight = share * len(labels) / count
                with self.ranks.speaking():
                    self.scaler.scale(loss if weight == 1 else loss * weight).backward()
            losses.append(loss.detach() if len(parts) == 1 else loss.detach() * len(labels) / count)
            right.append(logits.detach().argmax(1) == labels)
        return (losses[0], right[0]) if len(parts) == 1 else (torch.stack(losses).sum(), torch.cat(right))

    def _take_part(self) -> None:
        """The part in a step of a rank that has no image for it: gradients of nothing, so that the others' are the mean."""
        side = self.preprocessing.input_size
        self.model.eval()  # statistics of batch norm are those of images
        with self.ranks.speaking():
            with self.autocast():
                nothing = self.parallel(torch.zeros((1, 3, side, side), device=self.device)).sum() * 0
            self.scaler.scale(nothing).backward()
        self.model.train()

    def _unreadable(self, epoch: int, reasons: dict[int, str]) -> None:
        """Training images that cannot be read. Of several ranks each leaves out its own until all are told."""
        if self.ranks.alone:
            self.quarantine.add(epoch, reasons)
        else:
            self.unread |= reasons

    def _share_unread(self, epoch: int) -> None:
        if not self.ranks.alone:
            found, self.unread = self.ranks.tell(self.unread), {}
            self.quarantine.add(epoch, {int(sample): reason for part in found for sample, reason in part.items()})

    def _require_finite(self, state: schedule.State, weights: bool) -> None:
        own: list[Any] = []
        try:
            self.finite.check(self.model if weights else None)
        except NotFinite as error:
            own = [not error.loss, error.step, self.ranks.rank, str(error)]
        # Of several ranks the one that saw it first knows the samples; the others' weights are spoilt by it a step later.
        found = [one for one in self.ranks.tell(own) if one] if self.ranks.world > 1 else [own] if own else []
        if found:
            self.watcher.end()
            _, _, rank, text = min(found)
            if rank != self.ranks.rank:
                raise Elsewhere(f"rank {rank}: {text}")
            raise RunError(f"epoch {state.epoch + 1}: {text}: training stopped before it could be saved, {runs.saved(self.run)}; "
                           "lower --lr, or look at these images") from None

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

    def _joules(self, key: str) -> dict[str, float]:
        """Of all GPUs, or of the processors of all hosts."""
        used = self.energy.used()
        if self.device.type == "cpu" and self.ranks.local_rank:
            used = 0.0  # counted by the first rank of this host
        found = self.ranks.tell(used)
        return {} if None in found else {key: round(sum(found), 2)}

    def _memory(self) -> dict[str, Any]:
        """Of the rank that needs most."""
        found: dict[str, Any] = max(self.ranks.tell(peak_memory(self.device)), key=lambda peak: peak["peak_memory_mb"])
        return found

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
        self._share_unread(state.epoch + 1)
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
