"""The levels of a run, stage by stage: what training images show in R epochs, and validation images with --monitor phase."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.data.index import Index
from qrdali.distributed import ProcessGroup
from qrdali.errors import Interrupted, RunError, Unreadable, printable
from qrdali.interfaces import BatchSource, ProgressListener
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels, Levels, PerImageLevels
from qrdali.reduction.quality import num_levels_of, quality
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule
from qrdali.schedule.methods import descent_rule_of, reduced_levels, stage_level
from qrdali.system.device import probe_batch_size
from qrdali.system.energy import EnergyMeter
from qrdali.training.probe import DescentCounts, descend_by_feedback, descend_by_probe
from qrdali.training.quarantine import Quarantine


class LevelStages:
    """Of one run in the folder `run`. For adaptive runs it holds every image's own levels, and of online feedback what the network
    last said of each."""

    def __init__(
        self,
        settings: Settings,
        run: Path,
        index: Index,
        device: torch.device,
        listener: ProgressListener,
        group: ProcessGroup,
    ) -> None:
        self.settings, self.run, self.index, self.device, self.listener, self.group = (
            settings,
            run,
            index,
            device,
            listener,
            group,
        )
        self.num_levels, self.descent = num_levels_of(settings.step), descent_rule_of(settings)
        self.adaptive = settings.method == "adaptive"
        self.online = self.adaptive and settings.feedback == "online"
        self.images: PerImageLevels | None = None
        self._feedback = torch.zeros(len(index) if self.online else 0, dtype=torch.uint8, device=device)
        self._epoch_feedback = torch.zeros_like(
            self._feedback
        )  # in the epoch in hand: 0 nothing, 1 wrong, 2 right

    def record(self, samples: torch.Tensor, right: torch.Tensor) -> None:
        """What the network said of `samples` [N] in an R epoch: right bool [N]."""
        self._epoch_feedback[samples] = right.to(torch.uint8) + 1

    def sync_feedback(self) -> torch.Tensor | None:
        """Of all ranks until now, uint8 [images] on the CPU: 1 where the network was right when it last saw the image. None of runs
        without."""
        if not self.online:
            return None
        found = torch.from_numpy(self.group.all_reduce_max(self._epoch_feedback.cpu().numpy())).to(
            self.device
        )
        self._feedback = torch.where(found > 0, found - 1, self._feedback)
        self._epoch_feedback.zero_()
        return self._feedback.cpu()

    def restore(self, state: epoch_schedule.ScheduleState, feedback: torch.Tensor | None) -> None:
        """As it was when `state` was saved. Raises RunError for a file that is missing or damaged."""
        if self.online:
            if feedback is None or feedback.shape != self._feedback.shape or feedback.dtype != torch.uint8:
                raise RunError(
                    f"{printable(self.run / 'last')} does not fit this run: it holds no feedback of {len(self.index)} images"
                )
            self._feedback.copy_(feedback)
        if self.adaptive and (state.begun or state.stage > 1):
            self.images = self._load(state.stage if state.begun else state.stage - 1)

    def levels(self, state: epoch_schedule.ScheduleState, phase: epoch_schedule.Phase) -> Levels:
        """Of the training images in the epoch after `state`."""
        if phase is epoch_schedule.Phase.FULL:
            return FULL_QUALITY
        if self.images is not None:
            return self.images
        return reduced_levels(self.settings, state.stage, state.epoch + 1)

    def validation_levels(
        self, levels: Levels, counts: npt.NDArray[np.int64], phase: epoch_schedule.Phase
    ) -> Levels:
        """The validation images' levels: full, or with --monitor phase those of the epoch. Where the training images have
        their own, every validation image gets their mean, rounded."""
        if self.settings.monitor == "full" or phase is epoch_schedule.Phase.FULL:
            return FULL_QUALITY
        if isinstance(levels, PerImageLevels):
            mean = np.floor(counts @ np.arange(self.num_levels) / len(self.index) + 0.5).astype(int)
            return ConstantLevels(*mean.tolist())
        return levels

    def log_stage(self, state: epoch_schedule.ScheduleState, stages: int) -> None:
        q = quality(
            np.array([stage_level(self.settings.direction, self.num_levels, state.stage)]), self.num_levels
        )[0]
        self.listener.line(f"stage {state.stage} of {stages}: quality {q:.2f}")

    def descend(
        self,
        state: epoch_schedule.ScheduleState,
        model: nn.Module,
        loader: BatchSource,
        autocast: Callable[[], AbstractContextManager[object]],
        energy: EnergyMeter,
        quarantine: Quarantine,
        stop: Callable[[], int],
    ) -> tuple[DescentCounts, float]:
        """One descent step of every training image before an adaptive stage; all ranks have the same levels after it. Returns also its
        seconds."""
        begun = time.perf_counter()
        states = self.images or PerImageLevels.at_full_quality(
            len(self.index), self.descent.dimensions.crop, self.online
        )
        if self.online:
            feedback = self.sync_feedback()
            correct = feedback.numpy() if feedback is not None and state.stage > 1 else None
            states, done = descend_by_feedback(self.index, states, correct, self.descent, self.settings.seed)
        else:
            states, done = self._probe(state, states, model, loader, autocast, energy, quarantine, stop)
        self.group.require_equal("the levels of the training images", _digest(states))
        if self.group.is_main:
            states.save(self.run / "levels", state.stage)
        self.group.barrier()
        self.images = self._load(state.stage)
        seconds = time.perf_counter() - begun
        self.listener.line(
            f"stage {state.stage}: {done.images} of {len(self.index)} images take a step down"
            + (f" ({done.candidates} candidates shown in {seconds:.1f} s)" if not self.online else "")
            + ("; this stage is the last" if done.images == 0 else "")
        )
        return done, seconds

    def _probe(
        self,
        state: epoch_schedule.ScheduleState,
        states: PerImageLevels,
        model: nn.Module,
        loader: BatchSource,
        autocast: Callable[[], AbstractContextManager[object]],
        energy: EnergyMeter,
        quarantine: Quarantine,
        stop: Callable[[], int],
    ) -> tuple[PerImageLevels, DescentCounts]:
        s = self.settings
        self.listener.begin(f"probe {state.stage}", len(self.index))
        begun, shown = time.perf_counter(), 0

        def progress(images: int, candidates: int) -> None:
            nonlocal shown
            shown += candidates * self.group.world_size
            energy.poll()
            self.listener.advance(
                images, lambda: f"{shown / max(time.perf_counter() - begun, 1e-9):,.0f} candidates/s"
            )

        def heed() -> None:
            if signum := stop():
                self.listener.end()
                raise Interrupted(
                    f"stopped in the probe before stage {state.stage}: the same command with --resume repeats it",
                    signum,
                )

        at_once = s.probe_batch_size or probe_batch_size(self.device, s.batch_size)
        while True:
            try:
                result = descend_by_probe(
                    model,
                    loader,
                    self.index,
                    states,
                    self.descent,
                    at_once,
                    autocast,
                    progress,
                    heed,
                    quarantine.samples,
                    self.group,
                )
                break
            except Unreadable as error:  # nothing has moved yet: the probe begins again without
                quarantine.add(state.epoch + 1, error.reasons)
        self.listener.end()
        return result

    def _load(self, stage: int) -> PerImageLevels:
        return PerImageLevels.load(
            self.run / "levels",
            stage,
            len(self.index),
            self.num_levels,
            self.descent.dimensions.crop,
            self.online,
        )


def _digest(states: PerImageLevels) -> str:
    found = hashlib.sha256(np.ascontiguousarray(states.levels).data)
    places: Any = states.window_origins(
        np.arange(0, len(states.levels), max(1, len(states.levels) // 10_000))
    )
    if places is not None:
        found.update(np.ascontiguousarray(places).data)
    return found.hexdigest()
