"""One pass over the training images: its steps, the saves within it, and what ends it early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from qrdali.distributed import LaggedMax, ProcessGroup
from qrdali.errors import Interrupted, OtherRankFailed, RunError
from qrdali.interfaces import Batch, BatchSource, ProgressListener
from qrdali.reduction.levels import Levels
from qrdali.reduction.quality import num_levels_of
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.energy import EnergyMeter
from qrdali.training.epoch_totals import EpochSums, RunTotals
from qrdali.training.finite_check import FiniteCheck, NotFinite
from qrdali.training.level_stages import LevelStages
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.quarantine import Quarantine


class EpochTrainer:
    """Of the run in the folder `run`, by its parts. `save` writes `last/` at a state and the sums of the epoch after it."""

    def __init__(
        self,
        settings: Settings,
        run: Path,
        loader: BatchSource,
        samples: int,
        learner: TrainStep,
        stages: LevelStages,
        quarantine: Quarantine,
        energy: EnergyMeter,
        listener: ProgressListener,
        stop: Callable[[], int],
        save: Callable[[epoch_schedule.ScheduleState, EpochSums], None],
        group: ProcessGroup,
    ) -> None:
        self.settings, self.run, self.loader, self.samples, self.learner = (
            settings,
            run,
            loader,
            samples,
            learner,
        )
        self.stages, self.quarantine, self.energy, self.listener = stages, quarantine, energy, listener
        self.stop, self.save, self.group = stop, save, group
        self.totals, self.finite, self.num_levels = RunTotals(), FiniteCheck(), num_levels_of(settings.step)
        every = settings.save_every
        self.save_seconds = 60 * float(every[:-1]) if every.endswith("m") else None
        self.save_steps = int(every) if every and self.save_seconds is None else None

    def train(
        self,
        state: epoch_schedule.ScheduleState,
        phase: epoch_schedule.Phase,
        levels: Levels,
        epoch: EpochSums,
        totals: RunTotals,
    ) -> EpochSums:
        """The rest of the epoch after `state`, of the phase `phase`; `epoch` has the sums of what is done of it and gets those of the
        rest, as `totals`. Raises Interrupted after a signal, when all is saved, and RunError."""
        self.totals = totals
        plan = self._plan(state, levels, epoch.step)
        self.learner.model.train()
        self.energy.begin(epoch.joules)
        if epoch.step == plan.batches or (
            self.settings.match_steps and self.totals.optimizer_steps >= self.settings.match_steps
        ):
            return epoch  # stopped in its validation
        before, saved = epoch.seconds, time.monotonic()
        begun = asked = time.perf_counter()
        agreement = LaggedMax(self.group)
        self.listener.begin(
            f"epoch {state.epoch + 1} {phase}",
            plan.samples - min(plan.samples, epoch.step * plan.batch_size),
        )
        for number, batch in self._steps(plan, state.epoch + 1):
            epoch.data_wait += time.perf_counter() - asked
            count = len(batch.labels) if self.group.is_single and batch is not None else plan.count(number)
            if not self._step(number, batch, count, epoch, plan, phase is epoch_schedule.Phase.REDUCED):
                epoch.step, asked = number + 1, time.perf_counter()
                continue
            epoch.step = number + 1  # batches of which no image is left do not come
            if epoch.step % self.finite.EVERY == 0:
                self._require_finite(state, weights=False)
            epoch.seconds = before + time.perf_counter() - begun
            self.totals.optimizer_steps += 1
            self.totals.forward_images += count
            self.energy.poll()
            self.listener.advance(count, lambda: f"train {int(epoch.correct) / max(1, epoch.images):.3f}")
            if self.save_seconds and self.group.is_main and time.monotonic() - saved >= self.save_seconds:
                due, saved = True, time.monotonic()
            else:
                due = bool(self.save_steps and epoch.step % self.save_steps == 0)
            signum, to_save = agreement.update(self.stop(), int(due))
            if to_save or signum:
                self._require_finite(state, weights=True)
                self.save(state, epoch)
            if signum:
                self.listener.end()
                agreement.flush()
                self.group.barrier()  # a rank that leaves ends those of its host: not before the save is whole
                raise Interrupted(
                    f"stopped in epoch {state.epoch + 1} after step {epoch.step}, saved: the same command "
                    "with --resume continues",
                    signum,
                )
            if self.totals.optimizer_steps == self.settings.match_steps:
                break
            asked = time.perf_counter()
        else:
            epoch.step = plan.batches
        agreement.flush()
        self._require_finite(state, weights=True)
        self.listener.end()
        return epoch

    def _plan(self, state: epoch_schedule.ScheduleState, levels: Levels, first_batch: int) -> EpochPlan:
        s = self.settings
        order = state.epoch + 1 - (state.position if s.same_order else 0)
        return EpochPlan(
            self.samples,
            s.batch_size,
            levels,
            self.num_levels,
            s.seed,
            order,
            True,
            s.augment,
            self.group.rank,
            self.group.world_size,
            first_batch=first_batch,
            excluded=self.quarantine.samples,
        )

    def _steps(self, plan: EpochPlan, epoch: int) -> Iterator[tuple[int, Batch | None]]:
        """Number and batch of each step. Alone, steps without an image do not come; of ranks all take every step that any may have an
        image for, with None for those that have none."""
        batches = self.loader.epoch(plan, lambda reasons: self.quarantine.record(epoch, reasons))
        if self.group.is_single:
            yield from ((batch.number, batch) for batch in batches)
            return
        ahead = next(batches, None)
        for number in range(plan.first_batch, plan.batches):
            if ahead is not None and ahead.number == number:
                yield number, ahead
                ahead = next(batches, None)
            elif plan.count(number):
                yield number, None

    def _step(
        self, number: int, batch: Batch | None, count: int, epoch: EpochSums, plan: EpochPlan, reduced: bool
    ) -> bool:
        """One optimizer step, `batch` being this rank's part of `count` images. False if the batch had to be passed over."""
        if batch is None and self.settings.sync_batch_norm:
            raise RunError(
                f"--sync-batch-norm needs an image for every process in every step: one has none that can be read for step "
                f"{number + 1}"
            )
        try:
            found = self.learner.step(batch, count)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            if (
                self.quarantine.samples and self.group.is_single
            ):  # left of a batch of more: no reason to end the run
                self.listener.warn(
                    f"batch norm cannot train on the one image left of step {number + 1}: it is passed over"
                )
                return False
            raise RunError(
                f"batch norm cannot train on one image, as in step {number + 1}: choose a --batch-size that does not leave "
                f"one of {plan.samples} images over for a process or part of a step"
            ) from None
        if batch is None or found is None:
            return True
        loss, right = found
        with torch.no_grad():
            epoch.loss += loss.double() * len(batch.labels)
            epoch.correct += right.sum()
            epoch.images += len(batch.labels)
            if self.stages.online and reduced:
                self.stages.record(batch.samples, right)
        self.finite.record(number + 1, loss, batch.samples)
        return True

    def _require_finite(self, state: epoch_schedule.ScheduleState, weights: bool) -> None:
        own: list[Any] = []
        try:
            self.finite.verify(self.learner.model if weights else None)
        except NotFinite as error:
            own = [not error.loss, error.step, self.group.rank, str(error)]
        # Of several ranks the one that saw it first knows the samples; the others' weights are spoilt by it a step later.
        found = (
            [one for one in self.group.all_gather_object(own) if one]
            if self.group.world_size > 1
            else [own]
            if own
            else []
        )
        if found:
            self.listener.end()
            _, _, rank, text = min(found)
            if rank != self.group.rank:
                raise OtherRankFailed(f"rank {rank}: {text}")
            raise RunError(
                f"epoch {state.epoch + 1}: {text}: training stopped before it could be saved, {run_folder.describe_saved(self.run)}; "
                "lower --lr, or look at these images"
            ) from None
