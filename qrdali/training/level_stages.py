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
from qrdali.distributed import Ranks
from qrdali.errors import Interrupted, RunError, Unreadable, printable
from qrdali.interfaces import Loader
from qrdali.reduction.levels import FULL, Constant, Levels, PerImage
from qrdali.reduction.quality import quality, steps
from qrdali.runs.settings import Settings
from qrdali.schedule import epoch_schedule as schedule
from qrdali.schedule.methods import descent_of, reduced_levels, stage_level
from qrdali.system.energy import Energy
from qrdali.training.probe import Moved, candidates_at_once, online_step, step
from qrdali.training.quarantine import Quarantine
from qrdali.watcher import Watcher


class Stages:
    """Of one run in the folder `run`. For adaptive runs it holds every image's own levels, and of online feedback what the network
    last said of each."""

    def __init__(self, settings: Settings, run: Path, index: Index, device: torch.device, watcher: Watcher, ranks: Ranks) -> None:
        self.settings, self.run, self.index, self.device, self.watcher, self.ranks = settings, run, index, device, watcher, ranks
        self.n, self.descent = steps(settings.step), descent_of(settings)
        self.adaptive = settings.method == "adaptive"
        self.online = self.adaptive and settings.feedback == "online"
        self.images: PerImage | None = None
        self._feedback = torch.zeros(len(index) if self.online else 0, dtype=torch.uint8, device=device)
        self._heard = torch.zeros_like(self._feedback)  # in the epoch in hand: 0 nothing, 1 wrong, 2 right

    def hear(self, samples: torch.Tensor, right: torch.Tensor) -> None:
        """What the network said of `samples` [N] in an R epoch: right bool [N]."""
        self._heard[samples] = right.to(torch.uint8) + 1

    def feedback(self) -> torch.Tensor | None:
        """Of all ranks until now, uint8 [images] on the CPU: 1 where the network was right when it last saw the image. None of runs
        without."""
        if not self.online:
            return None
        found = torch.from_numpy(self.ranks.largest(self._heard.cpu().numpy())).to(self.device)
        self._feedback = torch.where(found > 0, found - 1, self._feedback)
        self._heard.zero_()
        return self._feedback.cpu()

    def restore(self, state: schedule.State, feedback: torch.Tensor | None) -> None:
        """As it was when `state` was saved. Raises RunError for a file that is missing or damaged."""
        if self.online:
            if feedback is None or feedback.shape != self._feedback.shape or feedback.dtype != torch.uint8:
                raise RunError(f"{printable(self.run / 'last')} does not fit this run: it holds no feedback of {len(self.index)} images")
            self._feedback.copy_(feedback)
        if self.adaptive and (state.begun or state.stage > 1):
            self.images = self._load(state.stage if state.begun else state.stage - 1)

    def levels(self, state: schedule.State, letter: str) -> Levels:
        """Of the training images in the epoch after `state`."""
        if letter == "C":
            return FULL
        if self.images is not None:
            return self.images
        return reduced_levels(self.settings, state.stage, state.epoch + 1)

    def watched(self, levels: Levels, counts: npt.NDArray[np.int64], letter: str) -> Levels:
        """The validation images' levels: full, or with --monitor phase those of the epoch. Where the training images have
        their own, every validation image gets their mean, rounded."""
        if self.settings.monitor == "full" or letter == "C":
            return FULL
        if isinstance(levels, PerImage):
            mean = np.floor(counts @ np.arange(self.n) / len(self.index) + 0.5).astype(int)
            return Constant(*mean.tolist())
        return levels

    def announce(self, state: schedule.State, stages: int) -> None:
        q = quality(np.array([stage_level(self.settings, state.stage)]), self.n)[0]
        self.watcher.line(f"stage {state.stage} of {stages}: quality {q:.2f}")

    def descend(self, state: schedule.State, model: nn.Module, loader: Loader, autocast: Callable[[], AbstractContextManager[object]],
                energy: Energy, quarantine: Quarantine, stop: Callable[[], int]) -> tuple[Moved, float]:
        """One descent step of every training image before an adaptive stage; all ranks have the same levels after it. Returns also its
        seconds."""
        begun = time.perf_counter()
        states = self.images or PerImage.begin(len(self.index), self.descent.moving[1], self.online)
        if self.online:
            feedback = self.feedback()
            correct = feedback.numpy() if feedback is not None and state.stage > 1 else None
            states, done = online_step(self.index, states, correct, self.descent, self.settings.seed)
        else:
            states, done = self._probe(state, states, model, loader, autocast, energy, quarantine, stop)
        self.ranks.same("the levels of the training images", _digest(states))
        if self.ranks.main:
            states.save(self.run / "levels", state.stage)
        self.ranks.wait()
        self.images = self._load(state.stage)
        seconds = time.perf_counter() - begun
        self.watcher.line(f"stage {state.stage}: {done.images} of {len(self.index)} images take a step down"
                          + (f" ({done.candidates} candidates shown in {seconds:.1f} s)" if not self.online else "")
                          + ("; this stage is the last" if done.images == 0 else ""))
        return done, seconds

    def _probe(self, state: schedule.State, states: PerImage, model: nn.Module, loader: Loader,
               autocast: Callable[[], AbstractContextManager[object]], energy: Energy, quarantine: Quarantine,
               stop: Callable[[], int]) -> tuple[PerImage, Moved]:
        s = self.settings
        self.watcher.begin(f"probe {state.stage}", len(self.index))
        begun, shown = time.perf_counter(), 0

        def progress(images: int, candidates: int) -> None:
            nonlocal shown
            shown += candidates * self.ranks.world
            energy.poll()
            self.watcher.advance(images, lambda: f"{shown / max(time.perf_counter() - begun, 1e-9):,.0f} candidates/s")

        def heed() -> None:
            if signum := stop():
                self.watcher.end()
                raise Interrupted(f"stopped in the probe before stage {state.stage}: the same command with --resume repeats it",
                                  signum)

        at_once = s.probe_batch_size or candidates_at_once(self.device, s.batch_size)
        while True:
            try:
                result = step(model, loader, self.index, states, self.descent, at_once, autocast, progress, heed, quarantine.samples,
                              self.ranks)
                break
            except Unreadable as error:  # nothing has moved yet: the probe begins again without
                quarantine.add(state.epoch + 1, error.reasons)
        self.watcher.end()
        return result

    def _load(self, stage: int) -> PerImage:
        return PerImage.load(self.run / "levels", stage, len(self.index), self.n, self.descent.moving[1], self.online)


def _digest(states: PerImage) -> str:
    found = hashlib.sha256(np.ascontiguousarray(states.levels).data)
    places: Any = states.places(np.arange(0, len(states.levels), max(1, len(states.levels) // 10_000)))
    if places is not None:
        found.update(np.ascontiguousarray(places).data)
    return found.hexdigest()
