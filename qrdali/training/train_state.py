"""What a run keeps of its training: `last/` to go on from, `unit/` to go back to, `best/` for whoever uses the network.

Of several ranks the first writes and all read, which takes a folder that all see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qrdali.distributed import Ranks
from qrdali.errors import RunError, printable
from qrdali.runs import checkpoint
from qrdali.runs import folder as runs
from qrdali.schedule import epoch_schedule as schedule

_UNFIT = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)  # of data that no save has written


@dataclass
class Epoch:
    """Sums over this rank's part of the epoch in hand, kept on the device: reading them would wait for it. `step`: batches done.
    `joules`: used before this process took the epoch on."""

    step: int
    images: int
    loss: torch.Tensor
    correct: torch.Tensor
    seconds: float = 0.0
    waited: float = 0.0
    joules: float | None = 0.0

    @classmethod
    def begin(cls, device: torch.device) -> Epoch:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(0, 0, zero, zero.clone().long())

    def of_all(self, ranks: Ranks) -> Epoch:
        """The sums of all ranks, the same on all; times are rank 0's."""
        if ranks.alone:
            return self
        parts = ranks.tell(self._sums())
        loss, correct, images = (sum(column) for column in zip(*parts, strict=True))
        seconds, waited = ranks.of_main([self.seconds, self.waited])
        return Epoch(self.step, images, torch.tensor(loss, dtype=torch.float64), torch.tensor(correct), seconds, waited, self.joules)

    def _sums(self) -> tuple[float, int, int]:
        return float(self.loss), int(self.correct), self.images


@dataclass
class Totals:
    """Of the whole run. forward_images: images the network saw, in training, validation and probes. seconds: of training
    and probes. Tracked sets count in neither: they cost a run nothing that it needs."""

    optimizer_steps: int = 0
    forward_images: int = 0
    seconds: float = 0.0


@dataclass
class Stage:
    """What a stage's first epoch reports of its beginning, and whether it has."""

    row: dict[str, Any]
    shown: bool = False


@dataclass
class Saved:
    """What `last/` says. feedback: of online runs, uint8 [N]. damage: why it is that of the save before, or nothing."""

    schedule: schedule.State
    epoch: Epoch | None
    totals: Totals
    stage: Stage
    feedback: torch.Tensor | None
    damage: str


class Saves:
    """Writes and takes back what belongs to `model` (with statistics of batch norm), `optimizer`, `scaler`, torch's generators and, of
    runs that have one, the average of weights `ema`, which is then what `best/` holds.

    fingerprint: of the training images, without which nothing is continued. images: how many they are. All ranks call `write`,
    `back_to` and `read`.
    """

    def __init__(self, run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                 device: torch.device, fingerprint: str, images: int, batch_size: int, ranks: Ranks, ema: nn.Module | None = None) -> None:
        self._networks = {"model": model} if ema is None else {"model": model, "ema": ema}
        self._best = model if ema is None else ema
        self._run, self._optimizer, self._scaler, self._device = run, optimizer, scaler, device
        self._fingerprint, self._images, self._batch_size, self._ranks = fingerprint, images, batch_size, ranks

    def there(self) -> bool:
        """Whether there is something to continue."""
        return (self._run / "last").exists() or (self._run / "last.old").exists()

    def best(self, trained: runs.Trained) -> None:
        """Of rank 0 alone."""
        if self._ranks.main:
            checkpoint.save(self._run / "best", trained.as_dict(), model=self._best.state_dict())

    def write(self, name: str, state: schedule.State, epoch: Epoch | None, totals: Totals, stage: Stage,
              feedback: torch.Tensor | None, joules: float | None) -> None:
        """joules: used in the epoch in hand."""
        random = self._generators()
        sums = [] if epoch is None else self._ranks.tell(epoch._sums())
        if not self._ranks.main:
            return
        tensors, rest = checkpoint.flatten(self._optimizer.state_dict())
        data: dict[str, Any] = {"schedule": state.as_dict(), "optimizer": rest, "scaler": self._scaler.state_dict(),
                                "epoch": None, "totals": asdict(totals), "stage_row": stage.row,
                                "stage_shown": stage.shown, "data": self._fingerprint}
        if epoch is not None:
            loss, correct, images = (sum(column) for column in zip(*sums, strict=True))
            data["epoch"] = {"step": epoch.step, "images": images, "loss": loss, "correct": correct, "seconds": epoch.seconds,
                             "waited": epoch.waited, "joules": joules}
            if len(sums) > 1:
                data["epoch"]["ranks"] = sums  # added up again at the end, in the same order
        if feedback is not None:
            random["feedback"] = feedback
        checkpoint.save(self._run / name, data, keep_previous=name == "last",
                        **{key: network.state_dict() for key, network in self._networks.items()}, optimizer=tensors, random=random)

    def back_to(self, name: str) -> None:
        """Takes weights, their average, optimizer and scaler back."""
        self._ranks.wait()  # until rank 0 has written it
        state, (optimizer, *weights) = checkpoint.load(self._run / name, "optimizer", *self._networks)
        self._take(self._run / name, state, weights, optimizer)

    def read(self, check: Callable[[schedule.State], object]) -> Saved:
        """Takes `last/` back, or the save before it if that is damaged. `check` raises for a state that cannot be.

        Raises RunError for what is damaged or of other data. A rank that was not there takes rank 0's place in nothing: its generators
        are its own, its sums begin at nothing.
        """
        folder = self._run / "last"
        data, (optimizer, random, *weights), damage = checkpoint.load_newest(folder, "optimizer", "random", *self._networks)
        if data.get("data") != self._fingerprint:
            raise RunError(f"the index of the training images has changed since {printable(self._run)} was saved: restore it, or train "
                           "anew in another --run")
        self._take(folder, data, weights, optimizer)
        try:
            self._take_generators(random)
            state = schedule.State.from_dict(data["schedule"])
            check(state)
            totals = Totals(**data["totals"])
            if totals != Totals(int(totals.optimizer_steps), int(totals.forward_images), float(totals.seconds)):
                raise ValueError("totals that are no numbers")
            saved = Saved(state, self._epoch_of(data["epoch"]), totals, Stage(dict(data["stage_row"]), bool(data["stage_shown"])),
                          random.get("feedback"), damage)
        except _UNFIT as error:
            raise _unfit(folder, error) from None
        self._ranks.same("the checkpoints", f"{state.as_dict()} {data['epoch']}")
        return saved

    def put_aside(self) -> None:
        """Makes room for the next save where `last/` is damaged, so that the one before it stays."""
        self._ranks.wait()  # until all have read it
        if self._ranks.main:
            checkpoint.set_aside(self._run / "last")

    def _generators(self) -> checkpoint.Tensors:
        """States of torch's generators by device; those of rank r, from 1, as DEVICE.r."""
        own = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self._device)
        return {name if rank == 0 else f"{name}.{rank}": torch.from_numpy(state)
                for name, tensor in own.items() for rank, state in enumerate(self._ranks.gather(tensor.numpy()))}

    def _take_generators(self, random: checkpoint.Tensors) -> None:
        suffix = "" if self._ranks.main else f".{self._ranks.rank}"
        if self._ranks.main or f"cpu{suffix}" in random:
            torch.set_rng_state(random[f"cpu{suffix}"])
        if self._device.type == "cuda" and f"cuda{suffix}" in random:
            torch.cuda.set_rng_state(random[f"cuda{suffix}"], self._device)

    def _take(self, folder: Path, state: dict[str, Any], weights: list[checkpoint.Tensors], optimizer: checkpoint.Tensors) -> None:
        try:
            for network, tensors in zip(self._networks.values(), weights, strict=True):
                network.load_state_dict(tensors)
            self._optimizer.load_state_dict(checkpoint.unflatten(optimizer, state["optimizer"]))
            if state["scaler"]:
                self._scaler.load_state_dict(state["scaler"])
        except _UNFIT as error:
            raise _unfit(folder, error) from None

    def _epoch_of(self, sums: dict[str, Any] | None) -> Epoch | None:
        """The epoch in hand as it was saved."""
        if sums is None:
            return None
        joules = sums.get("joules")
        parts, ranks = sums.get("ranks", []), self._ranks
        loss, correct, images = sums["loss"], sums["correct"], sums["images"]
        # Fewer images than steps have room for, where some could not be read.
        if sums["step"] < 1 or not 0 <= images <= min(sums["step"] * self._batch_size, self._images):
            raise ValueError(f"{images} images in {sums['step']} steps")
        if len(parts) == ranks.world:
            loss, correct, images = parts[ranks.rank]
        elif not ranks.main:
            loss, correct, images, joules = 0.0, 0, 0, 0.0
        return Epoch(int(sums["step"]), int(images), torch.tensor(float(loss), dtype=torch.float64, device=self._device),
                     torch.tensor(int(correct), device=self._device), float(sums["seconds"]), float(sums["waited"]),
                     None if joules is None else float(joules))


def _unfit(folder: Path, error: Exception) -> RunError:
    return RunError(f"{printable(folder)} does not fit this run: {printable((str(error).splitlines() or [type(error).__name__])[0])[:160]}")
