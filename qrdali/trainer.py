"""The training loop. It asks the scheduler what comes next and hands each epoch's plan to the loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from qrdali import checkpoint, runs, schedule
from qrdali.batch import Loader
from qrdali.data.index import Index
from qrdali.device import autocast_for
from qrdali.energy import Energy, peak_memory
from qrdali.errors import Interrupted, RunError, Unreadable, printable
from qrdali.evaluate import Rows, evaluate, write_rows
from qrdali.finite import Finite
from qrdali.levels import FULL, Constant, Levels, PerImage, histogram
from qrdali.methods import descent_of, reduced_levels, rule_of, stage_level
from qrdali.models import Preprocessing
from qrdali.plan import Plan
from qrdali.probe import Moved, candidates_at_once, online_step, step
from qrdali.quality import DIMENSIONS, quality, steps
from qrdali.quarantine import FILE, Quarantine
from qrdali.settings import Settings
from qrdali.track import Tracker, tracked_text
from qrdali.watcher import Watcher

_UNFIT = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)  # of data that no save has written


@dataclass
class Epoch:
    """Sums over the epoch in hand, kept on the device: reading them would wait for it. `step`: batches done. `joules`: used
    before this process took the epoch on."""

    step: int
    images: int
    loss: torch.Tensor
    correct: torch.Tensor
    seconds: float = 0.0
    waited: float = 0.0
    joules: float | None = 0.0


@dataclass
class Totals:
    """Of the whole run. forward_images: images the network saw, in training, validation and probes. seconds: of training
    and probes. Tracked sets count in neither: they cost a run nothing that it needs."""

    optimizer_steps: int = 0
    forward_images: int = 0
    seconds: float = 0.0


class Trainer:
    """Trains `model` in the run folder `run`. The loaders are of the train and val split; `tracker` has more sets to watch.
    `facts` go into the start row; their "environment" also into the first row after a change of it."""

    def __init__(self, settings: Settings, run: Path, model: nn.Module, preprocessing: Preprocessing,
                 classes: tuple[str, ...], train: tuple[Loader, Index], val: tuple[Loader, Index], device: torch.device,
                 watcher: Watcher, stop: Callable[[], int], tracker: Tracker,
                 facts: dict[str, Any]) -> None:
        self.settings, self.run, self.preprocessing, self.classes = settings, run, preprocessing, classes
        self.train_loader, self.train_index = train
        self.val_loader, self.val_index = val
        self.device, self.watcher, self.stop, self.tracker = device, watcher, stop, tracker
        self.facts, self.energy, self.finite = facts, Energy(device), Finite()
        self.changed: dict[str, Any] = {}
        torch.manual_seed(settings.seed)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = create_optimizer_v2(self.model, settings.optimizer, lr=settings.lr,
                                             weight_decay=settings.weight_decay)
        self.autocast, scaled = autocast_for(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self.n = steps(settings.step)
        self.rule = rule_of(settings)
        self.descent = descent_of(settings)
        self.quarantine = Quarantine(run, self.train_index, settings.max_bad, watcher.warn)
        self.images: PerImage | None = None  # an adaptive run's levels
        self.totals = Totals()
        self.stage_row: dict[str, float] = {}  # what the stage's first epoch reports of its beginning
        self.stage_shown = False
        self.trained: tuple[schedule.State, Epoch, Totals] | None = None  # of an epoch that only lacks its validation
        self.feedback = torch.zeros(len(self.train_index) if self._online else 0, dtype=torch.uint8, device=device)
        every = settings.save_every
        self.save_seconds = 60 * float(every[:-1]) if every.endswith("m") else None
        self.save_steps = int(every) if every and self.save_seconds is None else None

    def fit(self, resume: bool) -> schedule.State:
        """Runs to the end, or to a signal (Interrupted). `resume` continues from `last/` if it is there."""
        epoch = None
        self.quarantine.check()
        if resume and ((self.run / "last").exists() or (self.run / "last.old").exists()):
            state, epoch = self._restore()
        else:
            runs.keep_metrics(self.run, -1)
            rows = self._validate("start", FULL)
            state = schedule.start(rows.accuracy)
            self._save_best(state.run_best, 0, rows)
            tracked = self._track("start")
            runs.append_metrics(self.run, {"epoch": 0, "phase": "start", "stage": 1, "quality": dict.fromkeys(DIMENSIONS, 1.0),
                                           "val_accuracy": rows.accuracy, **tracked, **self.facts})
            self.watcher.line(f"epoch   0  start weights, val {rows.accuracy:.4f}{tracked_text(tracked)}")
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

    def _begin_stage(self, state: schedule.State) -> schedule.State:
        """Sets the levels of the stage in hand: for adaptive runs, one descent step of every training image."""
        moved = None
        self.stage_row = {}
        if self.settings.method == "adaptive":
            begun = time.perf_counter()
            self.energy.begin()
            states = self.images or PerImage.begin(len(self.train_index), self.descent.moving[1], self._online)
            if self._online:
                correct = self.feedback.cpu().numpy() if state.stage > 1 else None
                states, done = online_step(self.train_index, states, correct, self.descent, self.settings.seed)
            else:
                states, done = self._probe(state, states)
            states.save(self.run / "levels", state.stage)
            self.images = self._stage_images(state.stage)
            moved = done.images
            seconds = time.perf_counter() - begun
            self.totals.forward_images += done.candidates
            self.totals.seconds += seconds
            self.stage_row = {"moved": done.images / len(self.train_index), "probe_seconds": round(seconds, 3),
                              "probe_candidates": done.candidates, **self._joules("probe_energy_joules")}
            self.watcher.line(f"stage {state.stage}: {done.images} of {len(self.train_index)} images take a step down"
                              + (f" ({done.candidates} candidates shown in {seconds:.1f} s)" if not self._online else "")
                              + ("; this stage is the last" if moved == 0 else ""))
        elif self.rule.stages != 1:
            q = quality(np.array([stage_level(self.settings, state.stage)]), self.n)[0]
            self.watcher.line(f"stage {state.stage} of {self.rule.stages}: quality {q:.2f}")
        state = schedule.begin_stage(self.rule, state, moved)
        if self.settings.method == "adaptive":
            self._save(self.run / "last", state, None)  # a probe is long: it is not done twice
        return state

    def _probe(self, state: schedule.State, states: PerImage) -> tuple[PerImage, Moved]:
        s = self.settings
        self.watcher.begin(f"probe {state.stage}", len(self.train_index))
        begun, shown = time.perf_counter(), 0

        def progress(images: int, candidates: int) -> None:
            nonlocal shown
            shown += candidates
            self.energy.poll()
            self.watcher.advance(images, lambda: f"{shown / max(time.perf_counter() - begun, 1e-9):,.0f} candidates/s")

        def stop() -> None:
            if signum := self.stop():
                self.watcher.end()
                raise Interrupted(f"stopped in the probe before stage {state.stage}: the same command with --resume repeats it",
                                  signum)

        at_once = s.probe_batch_size or candidates_at_once(self.device, s.batch_size)
        while True:
            try:
                result = step(self.model, self.train_loader, self.train_index, states, self.descent, at_once,
                              self.autocast, progress, stop, self.quarantine.samples)
                break
            except Unreadable as error:  # nothing has moved yet: the probe begins again without
                self.quarantine.add(state.epoch + 1, error.reasons)
        self.watcher.end()
        return result

    @property
    def _online(self) -> bool:
        return self.settings.method == "adaptive" and self.settings.feedback == "online"

    def _stage_images(self, stage: int) -> PerImage:
        return PerImage.load(self.run / "levels", stage, len(self.train_index), self.n, self.descent.moving[1], self._online)

    def _levels(self, state: schedule.State, letter: str) -> Levels:
        if letter == "C":
            return FULL
        if self.images is not None:
            return self.images
        return reduced_levels(self.settings, state.stage, state.epoch + 1)

    def _epoch(self, state: schedule.State, letter: str, resumed: Epoch | None) -> schedule.State:
        number, stage, first = state.epoch + 1, state.stage, not self.stage_shown
        levels = self._levels(state, letter)
        epoch = self._train(state, letter, levels, resumed)
        mean_loss = float(epoch.loss) / epoch.images
        counts = histogram(levels, len(self.train_index), self.n)
        shown = dict(zip(DIMENSIONS, (counts @ quality(np.arange(self.n), self.n) / len(self.train_index)).tolist(), strict=True))
        watched = self._watched(levels, counts, letter)
        self.trained = state, epoch, replace(self.totals)  # what a signal saves from here on: validation alone is done again
        rows = self._validate(f"epoch {number} val", watched)
        spent = peak_memory(self.device) | self._joules("energy_joules")
        tracked = self._track(f"epoch {number}")  # before a restore may change the weights
        self.trained = None
        before = state
        state, event = schedule.update(self.rule, state, rows.accuracy)
        if self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps:
            state = replace(state, ended=f"the {self.settings.match_steps} optimizer steps of {self.settings.match}")
        if event.run_improved:
            self._save_best(rows.accuracy, number, rows if watched is FULL else None)
        if event.unit_improved and self.rule.patience is not None and self.settings.restore_best:
            self._save(self.run / "unit", state, None)
        if event.closed and self.settings.restore_best:
            self._load_weights(self.run / "unit")
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
        if self.settings.method == "adaptive":
            row["levels"] = {name: counts[i].tolist() for i, name in enumerate(DIMENSIONS)}
        if first:
            row |= self.stage_row
        self.stage_shown = not event.closed or state.stage == stage
        runs.append_metrics(self.run, row)
        self.changed = {}
        self._save(self.run / "last", state, None)
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

    def _watched(self, levels: Levels, counts: npt.NDArray[np.int64], letter: str) -> Levels:
        """The validation images' levels: full, or with --monitor phase those of the epoch. Where the training images have
        their own, every validation image gets their mean, rounded."""
        if self.settings.monitor == "full" or letter == "C":
            return FULL
        if isinstance(levels, PerImage):
            mean = np.floor(counts @ np.arange(self.n) / len(self.train_index) + 0.5).astype(int)
            return Constant(*mean.tolist())
        return levels

    def _plan(self, state: schedule.State, levels: Levels, first_batch: int) -> Plan:
        s = self.settings
        order = state.epoch + 1 - (state.position if s.same_order else 0)
        return Plan(len(self.train_index), s.batch_size, levels, self.n, s.seed, order, True, s.augment,
                    first_batch=first_batch, without=self.quarantine.samples)

    def _train(self, state: schedule.State, letter: str, levels: Levels, resumed: Epoch | None) -> Epoch:
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        epoch = resumed or Epoch(0, 0, zero, zero.clone().long())
        plan = self._plan(state, levels, epoch.step)
        self.model.train()
        self.energy.begin(epoch.joules)
        if epoch.step == plan.batches or (self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps):
            return epoch  # stopped in its validation
        before, saved = epoch.seconds, time.monotonic()
        begun = asked = time.perf_counter()
        self.watcher.begin(f"epoch {state.epoch + 1} {letter}", plan.samples - epoch.images)
        for batch in self.train_loader.epoch(plan, lambda reasons: self.quarantine.add(state.epoch + 1, reasons)):
            epoch.waited += time.perf_counter() - asked
            with self.autocast():
                try:
                    logits = self.model(batch.images)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    if self.quarantine.samples:  # left of a batch of more: no reason to end the run
                        self.watcher.warn(f"batch norm cannot train on the one image left of step {batch.number + 1}: it is passed over")
                        epoch.step, asked = batch.number + 1, time.perf_counter()
                        continue
                    raise RunError(f"batch norm cannot train on the {len(batch.labels)} image of step {epoch.step + 1}: choose a "
                                   f"--batch-size that does not leave one of {plan.samples} images over") from None
                loss = self.loss(logits, batch.labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            with torch.no_grad():
                right = logits.argmax(1) == batch.labels
                epoch.loss += loss.double() * len(batch.labels)
                epoch.correct += right.sum()
                if self._online and letter == "R":
                    self.feedback[batch.samples] = right.to(torch.uint8)
            epoch.step = batch.number + 1  # batches of which no image is left do not come
            self.finite.seen(epoch.step, loss, batch.samples)
            if epoch.step % self.finite.EVERY == 0:
                self._require_finite(state, weights=False)
            epoch.images += len(batch.labels)
            epoch.seconds = before + time.perf_counter() - begun
            self.totals.optimizer_steps += 1
            self.totals.forward_images += len(batch.labels)
            self.energy.poll()
            self.watcher.advance(len(batch.labels), lambda: f"train {int(epoch.correct) / epoch.images:.3f}")
            due = (self.save_steps and epoch.step % self.save_steps == 0) or (
                self.save_seconds and time.monotonic() - saved >= self.save_seconds)
            signum = self.stop()
            if due or signum:
                self._require_finite(state, weights=True)
                self._save(self.run / "last", state, epoch)
                saved = time.monotonic()
            if signum:
                self.watcher.end()
                raise Interrupted(f"stopped in epoch {state.epoch + 1} after step {epoch.step}, saved: the same command "
                                  "with --resume continues", signum)
            if self.totals.optimizer_steps == self.settings.match_steps:
                break
            asked = time.perf_counter()
        else:
            epoch.step = plan.batches
        self._require_finite(state, weights=True)
        self.watcher.end()
        if not epoch.images:
            raise RunError(f"no training image can be read: {self.run / FILE} says why")
        return epoch

    def _require_finite(self, state: schedule.State, weights: bool) -> None:
        try:
            self.finite.check(self.model if weights else None)
        except ValueError as error:
            self.watcher.end()
            raise RunError(f"epoch {state.epoch + 1}: {error}: training stopped before it could be saved, {runs.saved(self.run)}; "
                           "lower --lr, or look at these images") from None

    def _validate(self, what: str, levels: Levels) -> Rows:
        plan = Plan(len(self.val_index), self.settings.batch_size, levels, self.n, self.settings.seed)
        self.watcher.begin(what, plan.samples)
        rows = evaluate(self.model, self.val_loader, plan, self.autocast, self._advance)
        self.watcher.end()
        self.totals.forward_images += plan.samples
        return rows

    def _advance(self, images: int) -> None:
        self.energy.poll()
        self.watcher.advance(images, str)
        if signum := self.stop():
            self.watcher.end()
            saved = ", saved"
            if self.trained is None:
                saved = ""  # the start weights: nothing has been done yet
            else:
                state, epoch, self.totals = self.trained
                self._save(self.run / "last", state, epoch)
            raise Interrupted(f"stopped in validation{saved}: the same command with --resume continues", signum)

    def _joules(self, key: str) -> dict[str, float]:
        used = self.energy.used()
        return {} if used is None else {key: round(used, 2)}

    def _track(self, what: str) -> dict[str, Any]:
        return self.tracker.measure(what, self.model, self.autocast, self.watcher, self._advance)

    def _save_best(self, accuracy: float, epoch: int, rows: Rows | None) -> None:
        trained = runs.Trained(self.settings.model, self.classes, self.preprocessing, epoch, accuracy)
        checkpoint.save(self.run / "best", trained.as_dict(), model=self.model.state_dict())
        if rows is not None:
            write_rows(self.run / "predictions" / "val.parquet", rows, self.val_index, {"epoch": epoch})

    def _save(self, folder: Path, state: schedule.State, epoch: Epoch | None) -> None:
        tensors, rest = checkpoint.flatten(self.optimizer.state_dict())
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        data: dict[str, Any] = {"schedule": state.as_dict(), "optimizer": rest, "scaler": self.scaler.state_dict(),
                                "epoch": None, "totals": asdict(self.totals), "stage_row": self.stage_row,
                                "stage_shown": self.stage_shown, "data": self.train_index.fingerprint}
        if epoch is not None:
            data["epoch"] = {"step": epoch.step, "images": epoch.images, "loss": float(epoch.loss),
                             "correct": int(epoch.correct), "seconds": epoch.seconds, "waited": epoch.waited,
                             "joules": self.energy.used()}
        if self._online:
            random["feedback"] = self.feedback
        checkpoint.save(folder, data, keep_previous=folder.name == "last",
                        model=self.model.state_dict(), optimizer=tensors, random=random)

    def _load_weights(self, folder: Path) -> None:
        state, (model, optimizer) = checkpoint.load(folder, "model", "optimizer")
        self._take(folder, state, model, optimizer)

    def _take(self, folder: Path, state: dict[str, Any], model: checkpoint.Tensors, optimizer: checkpoint.Tensors) -> None:
        """Restores weights with batch-norm statistics, optimizer and gradient scaler."""
        try:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(checkpoint.unflatten(optimizer, state["optimizer"]))
            if state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except _UNFIT as error:
            raise _unfit(folder, error) from None

    def _restore(self) -> tuple[schedule.State, Epoch | None]:
        folder = self.run / "last"
        data, (model, optimizer, random), damage = checkpoint.load_newest(folder, "model", "optimizer", "random")
        if data.get("data") != self.train_index.fingerprint:
            raise RunError(f"{self.train_index.file} has changed since this run was saved: restore it, or train anew in another --run")
        self._take(folder, data, model, optimizer)
        try:
            torch.set_rng_state(random["cpu"])
            if self.device.type == "cuda" and "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"], self.device)
            state = schedule.State.from_dict(data["schedule"])
            schedule.phase(self.rule, state)  # that there is such a place in the sequence
            self.totals = Totals(**data["totals"])
            if self.totals != Totals(int(self.totals.optimizer_steps), int(self.totals.forward_images), float(self.totals.seconds)):
                raise ValueError("totals that are no numbers")
            self.stage_row, self.stage_shown = dict(data["stage_row"]), bool(data["stage_shown"])
            if self._online:
                self.feedback.copy_(random["feedback"])
            epoch = self._epoch_of(data["epoch"])
        except _UNFIT as error:
            raise _unfit(folder, error) from None
        if self.settings.method == "adaptive" and (state.begun or state.stage > 1):
            self.images = self._stage_images(state.stage if state.begun else state.stage - 1)
        runs.keep_metrics(self.run, state.epoch)
        if runs.last_recorded(self.run, "environment") != self.facts["environment"]:
            self.changed = {"environment": self.facts["environment"]}
        where = f"continuing after epoch {state.epoch}" + (f" and {epoch.step} steps of the next" if epoch else "")
        if damage:
            checkpoint.set_aside(folder)
            self.watcher.warn(f"{damage}: it is now last.damaged/, and the save before it is whole: {where}")
        else:
            self.watcher.line(where)
        return state, epoch

    def _epoch_of(self, sums: dict[str, Any] | None) -> Epoch | None:
        """The epoch in hand as it was saved."""
        if sums is None:
            return None
        joules = sums.get("joules")
        # Fewer images than steps have room for, where some could not be read.
        if sums["step"] < 1 or not 0 <= sums["images"] <= min(sums["step"] * self.settings.batch_size, len(self.train_index)):
            raise ValueError(f"{sums['images']} images in {sums['step']} steps")
        return Epoch(int(sums["step"]), int(sums["images"]), torch.tensor(float(sums["loss"]), dtype=torch.float64, device=self.device),
                     torch.tensor(int(sums["correct"]), device=self.device), float(sums["seconds"]), float(sums["waited"]),
                     None if joules is None else float(joules))


def _unfit(folder: Path, error: Exception) -> RunError:
    return RunError(f"{printable(folder)} does not fit this run: {printable((str(error).splitlines() or [type(error).__name__])[0])[:160]}")
