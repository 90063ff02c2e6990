"""The levels of a run, stage by stage: what training images show in R epochs, and validation images with
--monitor phase."""

from __future__ import annotations

import hashlib
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.errors import Interrupted, RunError, printable
from qrdali.interfaces import RunContext
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels, Levels, PerImageLevels
from qrdali.reduction.quality import round_half_up
from qrdali.schedule.epoch_schedule import Phase, ScheduleState
from qrdali.schedule.methods import descent_rule_of, reduced_levels, stage_levels
from qrdali.system.device import probe_batch_size
from qrdali.training.probe import DescentCounts, ProbeOptions, descend_by_feedback, descend_by_probe
from qrdali.training.quarantine import Quarantine
from qrdali.training.run_spec import RunSpec, Split

_DIGEST_ORIGINS = 10_000  # windows that go into a digest of levels: all of many images would take seconds


class StageDescent(NamedTuple):
    """Holds what one descent step of all training images did, and its seconds."""

    counts: DescentCounts
    seconds: float


class LevelStages:
    """Holds the levels of one run. Adaptive runs have every image's own levels, and online feedback has one
    bit per image.

    split: of the training images. Images that a probe cannot read are added to `quarantine`.
    """

    def __init__(self, spec: RunSpec, split: Split, quarantine: Quarantine, context: RunContext) -> None:
        self.settings, self.folder = spec.settings, spec.run / "levels"
        self.stage_levels = stage_levels(spec.settings) if spec.stage_levels is None else spec.stage_levels
        self.split, self.index, self.quarantine, self.context = split, split.index, quarantine, context
        self.last = spec.run / "last"
        self.scale, self.descent = spec.settings.scale, descent_rule_of(spec.settings)
        self.adaptive = spec.settings.method == "adaptive"
        self.online = self.adaptive and spec.settings.feedback == "online"
        self.images: PerImageLevels | None = None
        count = len(self.index) if self.online else 0
        self._feedback = torch.zeros(count, dtype=torch.uint8, device=context.device)
        # Of the epoch in hand: 0 not seen, 1 wrong, 2 right, so that the maximum over ranks is the rank's
        # that saw it.
        self._epoch_feedback = torch.zeros_like(self._feedback)

    def record(self, samples: torch.Tensor, right: torch.Tensor) -> None:
        """Records for the images `samples` int64 [N] of an R epoch whether they were classified correctly,
        bool [N]."""
        self._epoch_feedback[samples] = right.to(torch.uint8) + 1

    def sync_feedback(self) -> torch.Tensor | None:
        """All-reduces and clears this epoch's per-image feedback. Collective.

        Returns uint8 [images] on the CPU, 1 where the network was right when it last saw the image; None
        unless feedback is online."""
        if not self.online:
            return None
        of_this_rank = self._epoch_feedback.cpu().numpy()
        of_all_ranks = self.context.group.all_reduce_max(of_this_rank)
        seen = torch.from_numpy(of_all_ranks).to(self.context.device)
        self._feedback = torch.where(seen > 0, seen - 1, self._feedback)
        self._epoch_feedback.zero_()
        return self._feedback.cpu()

    def restore(self, state: ScheduleState, feedback: torch.Tensor | None) -> None:
        """Takes levels and feedback as they were when `state` was saved. Raises RunError for a missing or
        damaged file."""
        if self.online:
            if feedback is None or feedback.shape != self._feedback.shape or feedback.dtype != torch.uint8:
                raise RunError(
                    f"{printable(self.last)} does not fit this run: it holds no feedback of "
                    f"{len(self.index)} images"
                )
            self._feedback.copy_(feedback)
        if self.adaptive and (state.begun or state.stage > 1):
            self.images = self._load(state.stage if state.begun else state.stage - 1)

    def levels(self, state: ScheduleState, phase: Phase) -> Levels:
        """Returns the levels of the training images in the epoch after `state`."""
        if phase is Phase.FULL:
            return FULL_QUALITY
        if self.images is not None:
            return self.images
        epoch = self.settings.epochs_before + state.epoch + 1
        return reduced_levels(self.settings, state.stage, epoch, self.stage_levels)

    def validation_levels(self, levels: Levels, counts: npt.NDArray[np.int64], phase: Phase) -> Levels:
        """Returns the levels of the validation images: full quality, or with --monitor phase those of the
        epoch.

        Where training images have their own `levels`, every validation image gets their mean, rounded.
        counts: int64 [3, n], how many training images have each level."""
        if self.settings.monitor == "full" or phase is Phase.FULL:
            return FULL_QUALITY
        if isinstance(levels, PerImageLevels):
            mean = round_half_up(counts @ np.arange(self.scale.count) / len(self.index))
            return ConstantLevels(*mean.tolist())
        return levels

    def log_stage(self, state: ScheduleState, stages: int) -> None:
        """Reports the stage in hand of a run whose quality is the same for every image."""
        level = self.stage_levels[state.stage - 1]
        self.context.listener.line(f"stage {state.stage} of {stages}: quality {self.scale.describe(level)}")

    def descend(self, state: ScheduleState, model: nn.Module) -> StageDescent:
        """Takes one descent step of every training image before an adaptive stage and writes the levels.
        Collective.

        All ranks have the same levels after it. Raises Interrupted after a signal, with nothing changed.
        """
        group, begun = self.context.group, time.perf_counter()
        states = self.images or PerImageLevels.at_full_quality(
            len(self.index), self.descent.dimensions.crop, self.online
        )
        if self.online:
            feedback = self.sync_feedback()
            correct = feedback.numpy() if feedback is not None and state.stage > 1 else None
            states, counts = descend_by_feedback(
                self.index, states, correct, self.descent, self.settings.seed
            )
        else:
            states, counts = self._probe(state, states, model)
        group.require_equal("the levels of the training images", _digest(states))
        if group.is_main:
            states.save(self.folder, state.stage)
        group.barrier()  # the others read what rank 0 has written
        self.images = self._load(state.stage)
        seconds = time.perf_counter() - begun
        self.context.listener.line(
            f"stage {state.stage}: {counts.images} of {len(self.index)} images take a step down"
            + (f" ({counts.candidates} candidates shown in {seconds:.1f} s)" if not self.online else "")
            + ("; this stage is the last" if counts.images == 0 else "")
        )
        return StageDescent(counts, seconds)

    def _probe(
        self, state: ScheduleState, states: PerImageLevels, model: nn.Module
    ) -> tuple[PerImageLevels, DescentCounts]:
        context = self.context
        batch_size = self.settings.probe_batch_size or probe_batch_size(
            context.device, self.settings.batch_size
        )
        begun, shown = time.perf_counter(), 0

        def candidates_note() -> str:
            return f"{shown / max(time.perf_counter() - begun, 1e-9):,.0f} candidates/s"

        def report(images: int, candidates: int) -> None:
            nonlocal shown
            shown += candidates * context.group.world_size
            context.energy.poll()
            context.listener.advance(images, candidates_note)

        def descend(excluded: tuple[int, ...]) -> tuple[PerImageLevels, DescentCounts]:
            options = ProbeOptions(self.descent, batch_size, excluded)
            return descend_by_probe(model, self.split, states, options, context, report)

        context.listener.begin(f"probe {state.stage}", len(self.index))
        try:
            # No image has moved when one turns out unreadable: the probe begins again without it.
            result = self.quarantine.replay_without(state.epoch + 1, descend)
        except Interrupted as interruption:
            context.listener.end()
            raise Interrupted(
                f"stopped in the probe before stage {state.stage}: the same command with --resume repeats it",
                interruption.signum,
            ) from None
        context.listener.end()
        return result

    def _load(self, stage: int) -> PerImageLevels:
        return PerImageLevels.load(
            self.folder, stage, len(self.index), self.scale, self.descent.dimensions.crop, self.online
        )


def _digest(states: PerImageLevels) -> str:
    """Returns a SHA-256, hexadecimal, of all levels and of evenly spread window origins."""
    digest = hashlib.sha256(np.ascontiguousarray(states.levels).data)
    every = max(1, len(states.levels) // _DIGEST_ORIGINS)
    origins = states.window_origins(np.arange(0, len(states.levels), every))
    if origins is not None:
        digest.update(np.ascontiguousarray(origins).data)
    return digest.hexdigest()
