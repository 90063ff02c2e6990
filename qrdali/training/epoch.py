"""One pass over the training images: its steps, the saves within it, and what ends it early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, NoReturn

import torch

from qrdali.distributed import LaggedMax
from qrdali.errors import Interrupted, OtherRankFailed, RunError
from qrdali.interfaces import Batch, RunContext
from qrdali.models import ONE_VALUE
from qrdali.reduction.levels import Levels
from qrdali.reduction.mixing import MixRule
from qrdali.runs import folder as run_folder
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.schedule.epoch_schedule import Phase, ScheduleState
from qrdali.system.deterministic import cudnn_benchmark
from qrdali.system.device_copies import wait_for_device
from qrdali.training.epoch_totals import EpochSums, RunTotals
from qrdali.training.finite_check import FiniteCheck, NotFinite
from qrdali.training.level_stages import LevelStages
from qrdali.training.memory_trial import out_of_memory
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.progress import TrainProgress
from qrdali.training.quarantine import Quarantine
from qrdali.training.run_spec import RunSpec, Split
from qrdali.training.save_interval import SaveInterval, SaveTimer

Save = Callable[[TrainProgress], None]


class StepInput(NamedTuple):
    """Holds a step's number within its plan, this rank's part of the batch (None: it has no image), and how
    many images all ranks have together."""

    number: int
    batch: Batch | None
    images: int


class EpochTrainer:
    """Trains one epoch at a time. `stages` gets online feedback, `quarantine` the images that cannot be
    read."""

    def __init__(
        self,
        spec: RunSpec,
        split: Split,
        train_step: TrainStep,
        stages: LevelStages,
        quarantine: Quarantine,
        context: RunContext,
    ) -> None:
        self.spec, self.settings, self.split, self.context = spec, spec.settings, split, context
        self.train_step, self.stages, self.quarantine = train_step, stages, quarantine
        side = spec.preprocessing.input_size
        self.mixing = MixRule(self.settings.mixup, self.settings.cutmix, self.settings.seed, side)
        self.finite = FiniteCheck()
        self._fits = False  # whether a step has had enough memory
        self.save_interval = SaveInterval.parse(spec.settings.save_every)

    def train(self, progress: TrainProgress, phase: Phase, levels: Levels, save: Save) -> TrainProgress:
        """Returns the progress at the end of the epoch that follows `progress.schedule`, or that is in hand.
        Collective.

        save: writes `last/`; it is called every --save-every, and after a signal, before Interrupted is
        raised on every rank. Raises RunError for a loss or weights that are not finite."""
        sums = progress.epoch or EpochSums.zero(self.context.device)
        progress = replace(progress, epoch=sums)
        plan = self._plan(progress, levels, sums.step)
        self.train_step.begin_training()
        self.context.energy.begin(sums.joules)
        if sums.step == plan.batches or self._all_steps_taken(progress.totals):
            return progress  # the run was stopped in this epoch's validation: only that is left to do
        done = min(plan.samples, sums.step * plan.batch_size)
        self.context.listener.begin(f"epoch {epoch_number(progress)} {phase}", plan.samples - done)
        # Batches but the last have one shape; probes have many, and evaluations are to be repeated.
        with cudnn_benchmark(self.context.device.type == "cuda" and not self.settings.deterministic):
            progress = self._take_steps(progress, plan, phase, save)
        self._require_finite(progress.schedule, weights=True)
        self.context.listener.end()
        return progress

    def _take_steps(
        self, progress: TrainProgress, plan: EpochPlan, phase: Phase, save: Save
    ) -> TrainProgress:
        context = self.context
        assert progress.epoch is not None
        sums, seconds_before = progress.epoch, progress.epoch.seconds
        agreement = LaggedMax(context.group)
        timer = SaveTimer(self.save_interval, context.group.is_main)
        started = requested = time.perf_counter()
        for step in self._steps(plan, epoch_number(progress)):
            # Batches of which no image is left do not come: the step's number says how many are done.
            sums = replace(
                sums, step=step.number + 1, data_wait=sums.data_wait + (time.perf_counter() - requested)
            )
            after = self._optimizer_step(step, replace(progress, epoch=sums), plan, phase)
            if after is None:  # passed over
                progress, requested = replace(progress, epoch=sums), time.perf_counter()
                continue
            if after.step % self.finite.EVERY == 0:
                self._require_finite(progress.schedule, weights=False)
            sums = replace(after, seconds=seconds_before + time.perf_counter() - started)
            progress = replace(progress, epoch=sums, totals=progress.totals.after_step(step.images))
            context.energy.poll()
            context.listener.advance(step.images, sums.accuracy_note)
            # One step late, so that no rank waits for another here; all ranks save and leave after the same
            # step.
            signum, to_save = agreement.update(context.stop(), int(timer.due(sums.step)))
            if to_save or signum:
                self._require_finite(progress.schedule, weights=True)
                save(progress)
            if signum:
                agreement.flush()
                self._leave(progress, signum)
            if self._all_steps_taken(progress.totals):
                break
            requested = time.perf_counter()
        else:
            progress = replace(progress, epoch=replace(sums, step=plan.batches))
        wait_for_device(context.device)  # the host runs ahead of it: an epoch's seconds are the device's
        assert progress.epoch is not None
        seconds = seconds_before + time.perf_counter() - started
        progress = replace(progress, epoch=replace(progress.epoch, seconds=seconds))
        agreement.flush()
        return progress

    def _all_steps_taken(self, totals: RunTotals) -> bool:
        """Returns whether a run with --match has taken all the optimizer steps that it may take."""
        return bool(self.settings.match_steps) and totals.optimizer_steps >= self.settings.match_steps

    def _leave(self, progress: TrainProgress, signum: int) -> NoReturn:
        """Raises Interrupted once every rank has come here. Collective."""
        assert progress.epoch is not None
        self.context.listener.end()
        # torchrun ends all ranks of a host once one has left it: none may leave before rank 0 has saved.
        self.context.group.barrier()
        raise Interrupted(
            f"stopped in epoch {epoch_number(progress)} after step {progress.epoch.step}, saved: the "
            "same command with --resume continues",
            signum,
        )

    def _plan(self, progress: TrainProgress, levels: Levels, first_batch: int) -> EpochPlan:
        settings, group = self.settings, self.context.group
        return EpochPlan(
            samples=len(self.split.index),
            batch_size=settings.batch_size,
            levels=levels,
            scale=settings.scale,
            seed=settings.seed,
            epoch=self._stream(progress),
            training=True,
            augment=settings.augment,
            auto_augment=settings.auto_augment,
            erase=settings.erase,
            rank=group.rank,
            world_size=group.world_size,
            first_batch=first_batch,
            excluded=self.quarantine.samples,
            definitions=progress.definitions,
        )

    def _stream(self, progress: TrainProgress) -> int:
        """Returns the epoch by which order, windows and flips are drawn.

        It counts on from the runs that --init continues, so that none of their epochs comes again. With
        --same-order the second epoch of a pair draws as the first."""
        state, settings = progress.schedule, self.settings
        epoch = settings.epochs_before + state.epoch + 1
        if not settings.same_order:
            return epoch
        first = 0 if progress.definitions == 1 else self.spec.rule.pair_start(state.position)
        return epoch - (state.position - first)

    def _steps(self, plan: EpochPlan, epoch: int) -> Iterator[StepInput]:
        """Yields each step's input.

        A single process gets no step without an image. Of several ranks all take every step for which any of
        them may have an image, because every one of them takes part in the exchange of gradients."""
        batches = self.split.source.epoch(plan, lambda reasons: self.quarantine.record(epoch, reasons))
        if self.context.group.is_single:
            for batch in batches:
                yield StepInput(batch.number, batch, len(batch.labels))
            return
        ahead = next(batches, None)
        for number in range(plan.first_batch, plan.batches):
            if ahead is not None and ahead.number == number:
                yield StepInput(number, ahead, plan.count(number))
                ahead = next(batches, None)
            elif count := plan.count(number):
                yield StepInput(number, None, count)

    def _optimizer_step(
        self, step: StepInput, progress: TrainProgress, plan: EpochPlan, phase: Phase
    ) -> EpochSums | None:
        """Returns the sums of `progress` with this step's part added, or None if the batch had to be passed
        over."""
        sums = progress.epoch
        assert sums is not None
        if step.batch is None and self.settings.sync_batch_norm:
            raise RunError(
                "--sync-batch-norm needs an image for every process in every step: one has none that "
                f"can be read for step {step.number + 1}"
            )
        try:
            mix = None
            if step.batch is not None and self.mixing.mixes:
                mix = self.mixing.draw(plan.epoch, step.number, len(step.batch.labels))
            outcome, fits = self.train_step.step(step.batch, step.images, mix), True
        except torch.OutOfMemoryError:
            if self._fits:  # it is not the size of the batch
                raise
            outcome, fits = None, False  # behind this block, where the error keeps no tensors in memory
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            if self.quarantine.samples and self.context.group.is_single:
                # Unreadable images have made the batch so small: that is not a reason to end the run.
                self.context.listener.warn(
                    f"batch norm cannot train on the one image left of step {step.number + 1}: it is "
                    "passed over"
                )
                return None
            raise RunError(
                f"batch norm cannot train on one image, as in step {step.number + 1}: choose a "
                "--batch-size that "
                f"does not leave one of {plan.samples} images over for a process or part of a step"
            ) from None
        if not fits:
            self.context.listener.end()
            raise out_of_memory(self.train_step, step.batch, self.settings, self.context.group.world_size)
        self._fits = True
        if step.batch is None or outcome is None:
            return sums
        loss, right = outcome
        if self.stages.online and phase is Phase.REDUCED:
            self.stages.record(step.batch.samples, right)
        self.finite.record(step.number + 1, loss, step.batch.samples)
        return sums.add(loss, right)

    def _require_finite(self, state: ScheduleState, weights: bool) -> None:
        """Raises RunError on every rank if a loss (or, with `weights`, a weight) of any rank is not finite.
        Collective."""
        group, failures = self.context.group, []
        try:
            self.finite.verify(self.train_step.model if weights else None)
        except NotFinite as error:
            failures.append([not error.loss, error.step, group.rank, str(error)])
        failures_of_ranks = group.all_gather_object(failures)
        failed = [failure for failures in failures_of_ranks for failure in failures]
        if not failed:
            return
        self.context.listener.end()
        # The rank that saw it first knows the samples; the others' weights are spoilt by it a step later.
        _, _, rank, text = min(failed)
        if rank != group.rank:
            raise OtherRankFailed(f"rank {rank}: {text}")
        raise RunError(
            f"epoch {state.epoch + 1}: {text}: training stopped before it could be saved, "
            f"{run_folder.describe_saved(self.spec.run)}; lower --lr, or look at these images"
        )


def epoch_number(progress: TrainProgress) -> int:
    """Returns the number of the epoch in hand, from 1."""
    return progress.schedule.epoch + 1
