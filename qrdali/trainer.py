"""The training loop. It asks the scheduler what comes next and hands each epoch's plan to the loader."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from qrdali import checkpoint, runs, schedule
from qrdali.batch import Loader
from qrdali.data.index import Index
from qrdali.errors import RunError
from qrdali.evaluate import Rows, evaluate, write_rows
from qrdali.levels import FULL, Constant, constant
from qrdali.models import Preprocessing
from qrdali.plan import Plan
from qrdali.quality import DIMENSIONS, REDUCTIONS, level_of, quality, steps
from qrdali.settings import Settings


class Watcher(Protocol):
    """Who shows what happens; the terminal implements it."""

    def begin(self, what: str, images: int) -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class Interrupted(RunError):
    """A signal asked to stop; everything up to the current step is saved. `signum` is the signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class Epoch:
    """Sums over the epoch in hand, kept on the device: reading them would wait for it. `step`: batches done."""

    step: int
    images: int
    loss: torch.Tensor
    correct: torch.Tensor
    seconds: float = 0.0
    waited: float = 0.0


def device_of(choice: str) -> torch.device:
    """Raises RunError if a GPU was asked for and there is none."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: no usable GPU; check nvidia-smi and the driver (in a container: --gpus all), or use --device auto")
    return torch.device("cuda", torch.cuda.current_device()) if choice != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def autocast_for(amp: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[object]], bool]:
    """(context of the forward pass, whether gradients need scaling). "auto": bf16 on GPUs that have it, fp16 on others,
    off on CPUs, where its gain depends on the processor and the results with it."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if amp == "off":
        return nullcontext, False
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype), amp == "fp16"


class Trainer:
    """Trains `model` in the run folder `run`. The loaders are of the train and val split."""

    def __init__(self, settings: Settings, run: Path, model: nn.Module, preprocessing: Preprocessing,
                 classes: tuple[str, ...], train: tuple[Loader, Index], val: tuple[Loader, Index], device: torch.device,
                 watcher: Watcher, stop: Callable[[], int]) -> None:
        self.settings, self.run, self.preprocessing, self.classes = settings, run, preprocessing, classes
        self.train_loader, self.train_index = train
        self.val_loader, self.val_index = val
        self.device, self.watcher, self.stop = device, watcher, stop
        torch.manual_seed(settings.seed)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = create_optimizer_v2(self.model, settings.optimizer, lr=settings.lr,
                                             weight_decay=settings.weight_decay)
        self.autocast, scaled = autocast_for(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        self.n = steps(settings.step)
        self.rule = rule_of(settings)
        self.reduced = constant(REDUCTIONS[settings.reduction], level_of(settings.quality, self.n))
        every = settings.save_every
        self.save_seconds = 60 * float(every[:-1]) if every.endswith("m") else None
        self.save_steps = int(every) if every and self.save_seconds is None else None

    def fit(self, resume: bool) -> schedule.State:
        """Runs to the end, or to a signal (Interrupted). `resume` continues from `last/` if it is there."""
        epoch = None
        if resume and ((self.run / "last").exists() or (self.run / "last.old").exists()):
            state, epoch = self._restore()
        else:
            runs.keep_metrics(self.run, -1)
            rows = self._validate("start")
            state = schedule.start(rows.accuracy)
            self._save_best(state.run_best, 0, rows)
            runs.append_metrics(self.run, {"epoch": 0, "phase": "start", "stage": 1, "quality": dict.fromkeys(DIMENSIONS, 1.0),
                                           "val_accuracy": rows.accuracy})
            self.watcher.line(f"epoch   0  start weights          val {rows.accuracy:.4f}")
        while letter := schedule.phase(self.rule, state):
            state = self._epoch(state, letter, epoch)
            epoch = None
        self.watcher.line(f"ended by {state.ended}; best is epoch {state.run_best_epoch} with val {state.run_best:.4f}")
        return state

    def _epoch(self, state: schedule.State, letter: str, resumed: Epoch | None) -> schedule.State:
        number = state.epoch + 1
        levels = self.reduced if letter == "R" else FULL
        epoch = self._train(state, letter, levels, resumed)
        rows = self._validate(f"epoch {number} val")
        state, event = schedule.update(self.rule, state, rows.accuracy)
        if event.run_improved:
            self._save_best(rows.accuracy, number, rows)
        if event.unit_improved and self.rule.patience is not None and self.settings.restore_best:
            self._save(self.run / "unit", state, None)
        if state.ended.startswith("patience") and self.settings.restore_best:
            self._load_weights(self.run / "unit")
        mean_loss = float(epoch.loss) / epoch.images
        if not np.isfinite(mean_loss):
            raise RunError(f"the loss of epoch {number} is {mean_loss}: lower --lr; last/ still holds the epoch before")
        accuracy = int(epoch.correct) / epoch.images
        shown = dict(zip(DIMENSIONS, quality(levels.of(np.zeros(1, np.int64))[0], self.n).tolist(), strict=True))
        rate = (epoch.images) / max(epoch.seconds, 1e-9)
        runs.append_metrics(self.run, {
            "epoch": number, "phase": "reduced" if letter == "R" else "full", "stage": 1, "quality": shown,
            "train_loss": mean_loss, "train_accuracy": accuracy, "val_accuracy": rows.accuracy,
            "seconds": round(epoch.seconds, 3), "images_per_second": round(rate, 1),
            "data_wait_seconds": round(epoch.waited, 3)})
        self._save(self.run / "last", state, None)
        wait = "" if self.rule.patience is None else f"  patience left {self.rule.patience - state.wait}"
        moved = [q for q in shown.values() if q < 1]
        self.watcher.line(f"epoch {number:3d}  {letter} quality {moved[0] if moved else 1:.2f}  loss {mean_loss:.4f}  "
                          f"train {accuracy:.4f}  val {rows.accuracy:.4f}{'*' if event.run_improved else ' '} {rate:6.0f} img/s  "
                          f"wait {epoch.waited / max(epoch.seconds, 1e-9):4.0%}{wait}")
        if rows.constant_class is not None:
            self.watcher.warn(f"the network answers {self.classes[rows.constant_class]!r} for every validation image: "
                              "if that lasts, lower --lr")
        return state

    def _plan(self, state: schedule.State, levels: Constant, first_batch: int) -> Plan:
        s = self.settings
        return Plan(len(self.train_index), s.batch_size, levels, self.n, s.seed, state.epoch + 1, True, s.augment,
                    first_batch=first_batch)

    def _train(self, state: schedule.State, letter: str, levels: Constant, resumed: Epoch | None) -> Epoch:
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        epoch = resumed or Epoch(0, 0, zero, zero.clone().long())
        plan = self._plan(state, levels, epoch.step)
        self.model.train()
        before, saved = epoch.seconds, time.monotonic()
        begun = asked = time.perf_counter()
        self.watcher.begin(f"epoch {state.epoch + 1} {letter}", plan.samples - epoch.images)
        for batch in self.train_loader.epoch(plan):
            epoch.waited += time.perf_counter() - asked
            with self.autocast():
                logits = self.model(batch.images)
                loss = self.loss(logits, batch.labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            with torch.no_grad():
                epoch.loss += loss.double() * len(batch.labels)
                epoch.correct += (logits.argmax(1) == batch.labels).sum()
            epoch.step += 1
            epoch.images += len(batch.labels)
            epoch.seconds = before + time.perf_counter() - begun
            self.watcher.advance(len(batch.labels), lambda: f"train {int(epoch.correct) / epoch.images:.3f}")
            due = (self.save_steps and epoch.step % self.save_steps == 0) or (
                self.save_seconds and time.monotonic() - saved >= self.save_seconds)
            signum = self.stop()
            if due or signum:
                self._save(self.run / "last", state, epoch)
                saved = time.monotonic()
            if signum:
                self.watcher.end()
                raise Interrupted(f"stopped in epoch {state.epoch + 1} after step {epoch.step}, saved: the same command "
                                  "with --resume continues", signum)
            asked = time.perf_counter()
        self.watcher.end()
        return epoch

    def _validate(self, what: str) -> Rows:
        plan = Plan(len(self.val_index), self.settings.batch_size, FULL, self.n)
        self.watcher.begin(what, plan.samples)
        rows = evaluate(self.model, self.val_loader, plan, self.autocast, lambda images: self.watcher.advance(images, str))
        self.watcher.end()
        return rows

    def _save_best(self, accuracy: float, epoch: int, rows: Rows) -> None:
        trained = runs.Trained(self.settings.model, self.classes, self.preprocessing, epoch, accuracy)
        checkpoint.save(self.run / "best", trained.as_dict(), model=self.model.state_dict())
        write_rows(self.run / "predictions" / "val.parquet", rows, self.val_index)

    def _save(self, folder: Path, state: schedule.State, epoch: Epoch | None) -> None:
        tensors, rest = checkpoint.flatten(self.optimizer.state_dict())
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        data: dict[str, Any] = {"schedule": state.as_dict(), "optimizer": rest, "scaler": self.scaler.state_dict(),
                                "epoch": None}
        if epoch is not None:
            data["epoch"] = {"step": epoch.step, "images": epoch.images, "loss": float(epoch.loss),
                             "correct": int(epoch.correct), "seconds": epoch.seconds, "waited": epoch.waited}
        checkpoint.save(folder, data, model=self.model.state_dict(), optimizer=tensors, random=random)

    def _load_weights(self, folder: Path) -> dict[str, Any]:
        """Restores weights with batch-norm statistics, optimizer and gradient scaler."""
        state, (model, optimizer) = checkpoint.load(folder, "model", "optimizer")
        try:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(checkpoint.unflatten(optimizer, state["optimizer"]))
            if state["scaler"]:
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"{folder} does not fit this run: {str(error).splitlines()[0][:160]}") from None
        return state

    def _restore(self) -> tuple[schedule.State, Epoch | None]:
        folder = self.run / "last"
        data = self._load_weights(folder)
        _, (random,) = checkpoint.load(folder, "random")
        torch.set_rng_state(random["cpu"])
        if self.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], self.device)
        state = schedule.State.from_dict(data["schedule"])
        runs.keep_metrics(self.run, state.epoch)
        epoch = None
        if data["epoch"] is not None:
            sums = data["epoch"]
            loss = torch.tensor(sums["loss"], dtype=torch.float64, device=self.device)
            epoch = Epoch(sums["step"], sums["images"], loss, torch.tensor(sums["correct"], device=self.device),
                          sums["seconds"], sums["waited"])
        self.watcher.line(f"continuing after epoch {state.epoch}" + (f", step {epoch.step}" if epoch else ""))
        return state, epoch


def rule_of(settings: Settings) -> schedule.Rule:
    """The scheduler's rule: `shared` trains a set number of C epochs, the others until patience ends them."""
    if settings.method == "shared":
        return schedule.Rule("C", None, settings.epochs)
    pattern = "C" if settings.method == "baseline" else schedule.NAMED_PATTERNS.get(settings.sequence, settings.sequence)
    return schedule.Rule(pattern, settings.patience, settings.max_epochs)
