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

from qrdali.distributed import ProcessGroup
from qrdali.errors import RunError, printable
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.schedule import epoch_schedule
from qrdali.training.epoch_totals import EpochSums, RunTotals, StageInfo

_UNFIT = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)  # of data that no save has written


@dataclass
class RestoredState:
    """What `last/` says. feedback: of online runs, uint8 [N]. damage: why it is that of the save before, or nothing."""

    schedule: epoch_schedule.ScheduleState
    epoch: EpochSums | None
    totals: RunTotals
    stage: StageInfo
    feedback: torch.Tensor | None
    damage: str


class TrainStateStore:
    """Writes and takes back what belongs to `model` (with statistics of batch norm), `optimizer`, `scaler`, torch's generators and, of
    runs that have one, the average of weights `ema`, which is then what `best/` holds.

    fingerprint: of the training images, without which nothing is continued. images: how many they are. All ranks call `write`,
    `back_to` and `read`.
    """

    def __init__(
        self,
        run: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        fingerprint: str,
        images: int,
        batch_size: int,
        group: ProcessGroup,
        ema: nn.Module | None = None,
    ) -> None:
        self._networks = {"model": model} if ema is None else {"model": model, "ema": ema}
        self._best = model if ema is None else ema
        self._run, self._optimizer, self._scaler, self._device = run, optimizer, scaler, device
        self._fingerprint, self._images, self._batch_size, self._group = (
            fingerprint,
            images,
            batch_size,
            group,
        )

    def exists(self) -> bool:
        """Whether there is something to continue."""
        return (self._run / "last").exists() or (self._run / "last.old").exists()

    def save_best(self, trained: run_folder.BestModel) -> None:
        """Of rank 0 alone."""
        if self._group.is_main:
            checkpoint.save(self._run / "best", trained.as_dict(), model=self._best.state_dict())

    def save(
        self,
        name: str,
        state: epoch_schedule.ScheduleState,
        epoch: EpochSums | None,
        totals: RunTotals,
        stage: StageInfo,
        feedback: torch.Tensor | None,
        joules: float | None,
    ) -> None:
        """joules: used in the epoch in hand."""
        random = self._generators()
        sums = [] if epoch is None else self._group.all_gather_object(epoch._sums())
        if not self._group.is_main:
            return
        tensors, rest = checkpoint.flatten(self._optimizer.state_dict())
        data: dict[str, Any] = {
            "schedule": state.as_dict(),
            "optimizer": rest,
            "scaler": self._scaler.state_dict(),
            "epoch": None,
            "totals": asdict(totals),
            "stage_row": stage.row,
            "stage_shown": stage.reported,
            "data": self._fingerprint,
        }
        if epoch is not None:
            loss, correct, images = (sum(column) for column in zip(*sums, strict=True))
            data["epoch"] = {
                "step": epoch.step,
                "images": images,
                "loss": loss,
                "correct": correct,
                "seconds": epoch.seconds,
                "waited": epoch.data_wait,
                "joules": joules,
            }
            if len(sums) > 1:
                data["epoch"]["ranks"] = sums  # added up again at the end, in the same order
        if feedback is not None:
            random["feedback"] = feedback
        checkpoint.save(
            self._run / name,
            data,
            keep_previous=name == "last",
            **{key: network.state_dict() for key, network in self._networks.items()},
            optimizer=tensors,
            random=random,
        )

    def restore(self, name: str) -> None:
        """Takes weights, their average, optimizer and scaler back."""
        self._group.barrier()  # until rank 0 has written it
        state, (optimizer, *weights) = checkpoint.load(self._run / name, "optimizer", *self._networks)
        self._take(self._run / name, state, weights, optimizer)

    def read(self, check: Callable[[epoch_schedule.ScheduleState], object]) -> RestoredState:
        """Takes `last/` back, or the save before it if that is damaged. `check` raises for a state that cannot be.

        Raises RunError for what is damaged or of other data. A rank that was not there takes rank 0's place in nothing: its generators
        are its own, its sums begin at nothing.
        """
        folder = self._run / "last"
        data, (optimizer, random, *weights), damage = checkpoint.load_newest(
            folder, "optimizer", "random", *self._networks
        )
        if data.get("data") != self._fingerprint:
            raise RunError(
                f"the index of the training images has changed since {printable(self._run)} was saved: restore it, or train "
                "anew in another --run"
            )
        self._take(folder, data, weights, optimizer)
        try:
            self._take_generators(random)
            state = epoch_schedule.ScheduleState.from_dict(data["schedule"])
            check(state)
            totals = RunTotals(**data["totals"])
            if totals != RunTotals(
                int(totals.optimizer_steps), int(totals.forward_images), float(totals.seconds)
            ):
                raise ValueError("totals that are no numbers")
            saved = RestoredState(
                state,
                self._epoch_of(data["epoch"]),
                totals,
                StageInfo(dict(data["stage_row"]), bool(data["stage_shown"])),
                random.get("feedback"),
                damage,
            )
        except _UNFIT as error:
            raise _unfit(folder, error) from None
        self._group.require_equal("the checkpoints", f"{state.as_dict()} {data['epoch']}")
        return saved

    def quarantine_damaged(self) -> None:
        """Makes room for the next save where `last/` is damaged, so that the one before it stays."""
        self._group.barrier()  # until all have read it
        if self._group.is_main:
            checkpoint.quarantine_damaged(self._run / "last")

    def _generators(self) -> checkpoint.Tensors:
        """States of torch's generators by device; those of rank r, from 1, as DEVICE.r."""
        own = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self._device)
        return {
            name if rank == 0 else f"{name}.{rank}": torch.from_numpy(state)
            for name, tensor in own.items()
            for rank, state in enumerate(self._group.all_gather(tensor.numpy()))
        }

    def _take_generators(self, random: checkpoint.Tensors) -> None:
        suffix = "" if self._group.is_main else f".{self._group.rank}"
        if self._group.is_main or f"cpu{suffix}" in random:
            torch.set_rng_state(random[f"cpu{suffix}"])
        if self._device.type == "cuda" and f"cuda{suffix}" in random:
            torch.cuda.set_rng_state(random[f"cuda{suffix}"], self._device)

    def _take(
        self,
        folder: Path,
        state: dict[str, Any],
        weights: list[checkpoint.Tensors],
        optimizer: checkpoint.Tensors,
    ) -> None:
        try:
            for network, tensors in zip(self._networks.values(), weights, strict=True):
                network.load_state_dict(tensors)
            self._optimizer.load_state_dict(checkpoint.unflatten(optimizer, state["optimizer"]))
            if state["scaler"]:
                self._scaler.load_state_dict(state["scaler"])
        except _UNFIT as error:
            raise _unfit(folder, error) from None

    def _epoch_of(self, sums: dict[str, Any] | None) -> EpochSums | None:
        """The epoch in hand as it was saved."""
        if sums is None:
            return None
        joules = sums.get("joules")
        parts, group = sums.get("ranks", []), self._group
        loss, correct, images = sums["loss"], sums["correct"], sums["images"]
        # Fewer images than steps have room for, where some could not be read.
        if sums["step"] < 1 or not 0 <= images <= min(sums["step"] * self._batch_size, self._images):
            raise ValueError(f"{images} images in {sums['step']} steps")
        if len(parts) == group.world_size:
            loss, correct, images = parts[group.rank]
        elif not group.is_main:
            loss, correct, images, joules = 0.0, 0, 0, 0.0
        return EpochSums(
            int(sums["step"]),
            int(images),
            torch.tensor(float(loss), dtype=torch.float64, device=self._device),
            torch.tensor(int(correct), device=self._device),
            float(sums["seconds"]),
            float(sums["waited"]),
            None if joules is None else float(joules),
        )


def _unfit(folder: Path, error: Exception) -> RunError:
    return RunError(
        f"{printable(folder)} does not fit this run: {printable((str(error).splitlines() or [type(error).__name__])[0])[:160]}"
    )
