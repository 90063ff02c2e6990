"""What a run keeps of its training: `last/` to resume from, `unit/` to restore, `best/` for whoever uses the
network.

Of several ranks the first writes and all read, which takes a folder that all see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qrdali.data.index import Index
from qrdali.errors import RunError, printable
from qrdali.interfaces import RunContext
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import DEFINITIONS
from qrdali.schedule.epoch_schedule import ScheduleState
from qrdali.training.epoch_totals import EpochSums, RunTotals, StageInfo
from qrdali.training.learning_rate import count_of
from qrdali.training.optimizer import load_optimizer
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.progress import TrainProgress
from qrdali.training.run_spec import RunSpec

# What reading data raises that no save has written.
_MALFORMED = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class RestoredState:
    """Holds what `last/` says. feedback: of online runs, uint8 [N]. damage: why it is the save before the
    last, or ""."""

    progress: TrainProgress
    feedback: torch.Tensor | None
    damage: str


class TrainStateStore:
    """Writes and restores what belongs to `train_step` (model with statistics of batch norm, optimizer,
    scaler, rate and, with --ema, the average of weights, which is then what `best/` holds), torch's
    generators and a run's progress.

    index: of the training images, without which no run is resumed. Every rank calls `save`, `restore` and
    `read`."""

    def __init__(self, spec: RunSpec, index: Index, train_step: TrainStep, context: RunContext) -> None:
        self._networks = {"model": train_step.model}
        if train_step.ema:
            self._networks["ema"] = train_step.ema.module
        self._best, self._optimizer, self._scaler = (
            train_step.eval_model,
            train_step.optimizer,
            train_step.scaler,
        )
        self._train_step, self._rate = train_step, train_step.rate
        self._counts_ema = spec.settings.ema_warmup
        self._run, self._batch_size = spec.run, spec.settings.batch_size
        self._images, self._index = len(index), index
        self._device, self._group, self._energy = context.device, context.group, context.energy

    def exists(self) -> bool:
        """Returns whether there is something to resume."""
        return run_folder.has_checkpoint(self._run)

    def save_best(self, trained: run_folder.BestModel) -> None:
        """Writes `best/`, on rank 0."""
        if self._group.is_main:
            checkpoint.save(self._run / "best", trained.as_dict(), model=self._best.state_dict())

    def save(self, name: str, progress: TrainProgress, feedback: torch.Tensor | None) -> None:
        """Writes the folder `name`, whole or not at all. Collective. feedback: of online runs, uint8 [N]."""
        random = self._generators()
        sums = progress.epoch
        sums_by_rank = [] if sums is None else self._group.all_gather_object(sums.local_values())
        if not self._group.is_main:
            return
        tensors, rest = checkpoint.flatten(self._optimizer.state_dict())
        data: dict[str, Any] = {
            "schedule": progress.schedule.as_dict(),
            "optimizer": rest,
            "scaler": self._scaler.state_dict(),
            "epoch": None,
            "totals": asdict(progress.totals),
            "stage_row": progress.stage.row,
            "stage_shown": progress.stage.reported,
            "data": self._index.fingerprint,
            "definitions": progress.definitions,
        }
        if rate := self._rate.state_dict():
            data["rate"] = rate
        if self._counts_ema:
            data["ema_steps"] = self._train_step.ema_steps
        if sums is not None:
            loss, correct, images = (sum(column) for column in zip(*sums_by_rank, strict=True))
            data["epoch"] = {
                "step": sums.step,
                "images": images,
                "loss": loss,
                "correct": correct,
                "seconds": sums.seconds,
                "waited": sums.data_wait,
                "joules": self._energy.used(),
            }
            if len(sums_by_rank) > 1:
                # Each rank takes its own sums back, so that they are added up in the same order at the end.
                data["epoch"]["ranks"] = sums_by_rank
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
        """Takes weights, their average, optimizer and scaler from the folder `name`. Collective.

        The rate becomes what its schedule says after a restore."""
        self._group.barrier()  # until rank 0 has written it
        state, (optimizer, *weights) = checkpoint.load(self._run / name, "optimizer", *self._networks)
        self._take(self._run / name, state, weights, optimizer)
        try:
            self._rate.after_restore(state.get("rate", {}))
        except _MALFORMED as error:
            raise _unfit(self._run / name, error) from None

    def read(self, check: Callable[[ScheduleState], object]) -> RestoredState:
        """Takes everything from `last/`, or from the save before it if that is damaged. Collective.

        check: raises for a state that the run's schedule does not have. Raises RunError for what is damaged
        or of other data. Ranks beyond the saved world size keep fresh RNG state and zero sums."""
        folder = self._run / "last"
        data, (optimizer, random, *weights), damage = checkpoint.load_newest(
            folder, "optimizer", "random", *self._networks
        )
        if data.get("data") != self._index.fingerprint_like(data.get("data")):
            raise RunError(
                f"the index of the training images has changed since {printable(self._run)} was saved: "
                "restore it, or train anew in another --run"
            )
        self._take(folder, data, weights, optimizer)
        try:
            self._rate.load_state_dict(data.get("rate", {}))
            self._take_generators(random)
            progress = self._progress_from(data)
            check(progress.schedule)
            feedback = random.get("feedback")
        except _MALFORMED as error:
            raise _unfit(folder, error) from None
        self._group.require_equal("the checkpoints", f"{progress.schedule.as_dict()} {data['epoch']}")
        return RestoredState(progress, feedback, damage)

    def _progress_from(self, data: dict[str, Any]) -> TrainProgress:
        schedule, totals = ScheduleState.from_dict(data["schedule"]), RunTotals(**data["totals"])
        numbers = RunTotals(int(totals.optimizer_steps), int(totals.forward_images), float(totals.seconds))
        if totals != numbers:
            raise ValueError("totals that are no numbers")
        stage = StageInfo(dict(data["stage_row"]), bool(data["stage_shown"]))
        definitions = data.get("definitions", 1)
        if definitions not in (1, DEFINITIONS):
            raise ValueError(f"definitions {definitions!r:.20}, which this version does not know")
        return TrainProgress(schedule, self._sums_from(data["epoch"]), totals, stage, definitions)

    def quarantine_damaged(self) -> None:
        """Renames a damaged `last/`, so that the next save leaves the one before it in place. Collective."""
        self._group.barrier()  # until all have read it
        if self._group.is_main:
            checkpoint.quarantine_damaged(self._run / "last")

    def _generators(self) -> checkpoint.Tensors:
        """Returns the states of torch's generators by device; those of rank r, from 1, as DEVICE.r.
        Collective."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        result = {}
        for name, state in states.items():
            state_by_rank = self._group.all_gather(state.numpy())
            for rank, values in enumerate(state_by_rank):
                result[name if rank == 0 else f"{name}.{rank}"] = torch.from_numpy(values)
        return result

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
            load_optimizer(self._optimizer, checkpoint.unflatten(optimizer, state["optimizer"]))
            if state["scaler"]:
                self._scaler.load_state_dict(state["scaler"])
            if self._counts_ema:
                self._train_step.ema_steps = count_of(state["ema_steps"])
        except _MALFORMED as error:
            raise _unfit(folder, error) from None

    def _sums_from(self, saved: dict[str, Any] | None) -> EpochSums | None:
        """Returns this rank's sums of the epoch in hand. Raises ValueError for sums that cannot be."""
        if saved is None:
            return None
        joules, parts, group = saved.get("joules"), saved.get("ranks", []), self._group
        loss, correct, images = saved["loss"], saved["correct"], saved["images"]
        # Fewer images than the steps have room for, where some could not be read.
        if saved["step"] < 1 or not 0 <= images <= min(saved["step"] * self._batch_size, self._images):
            raise ValueError(f"{images} images in {saved['step']} steps")
        if len(parts) == group.world_size:
            loss, correct, images = parts[group.rank]
        elif not group.is_main:
            loss, correct, images, joules = 0.0, 0, 0, 0.0
        return EpochSums(
            int(saved["step"]),
            int(images),
            torch.tensor(float(loss), dtype=torch.float64, device=self._device),
            torch.tensor(int(correct), device=self._device),
            float(saved["seconds"]),
            float(saved["waited"]),
            None if joules is None else float(joules),
        )


def _unfit(folder: Path, error: Exception) -> RunError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return RunError(f"{printable(folder)} does not fit this run: {printable(first_line)[:160]}")
