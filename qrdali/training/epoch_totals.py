"""What is added up while training: over the epoch in hand, over the whole run, and what a stage reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from qrdali.distributed import ProcessGroup


@dataclass
class EpochSums:
    """Sums over this rank's part of the epoch in hand, kept on the device: reading them would wait for it. `step`: batches done.
    `joules`: used before this process took the epoch on."""

    step: int
    images: int
    loss: torch.Tensor
    correct: torch.Tensor
    seconds: float = 0.0
    data_wait: float = 0.0
    joules: float | None = 0.0

    @classmethod
    def begin(cls, device: torch.device) -> EpochSums:
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(0, 0, zero, zero.clone().long())

    def all_ranks(self, group: ProcessGroup) -> EpochSums:
        """The sums of all ranks, the same on all; times are rank 0's."""
        if group.is_single:
            return self
        parts = group.all_gather_object(self._sums())
        loss, correct, images = (sum(column) for column in zip(*parts, strict=True))
        seconds, waited = group.broadcast_object([self.seconds, self.data_wait])
        return EpochSums(
            self.step,
            images,
            torch.tensor(loss, dtype=torch.float64),
            torch.tensor(correct),
            seconds,
            waited,
            self.joules,
        )

    def _sums(self) -> tuple[float, int, int]:
        return float(self.loss), int(self.correct), self.images


@dataclass
class RunTotals:
    """Of the whole run. forward_images: images the network saw, in training, validation and probes. seconds: of training
    and probes. Tracked sets count in neither: they cost a run nothing that it needs."""

    optimizer_steps: int = 0
    forward_images: int = 0
    seconds: float = 0.0


@dataclass
class StageInfo:
    """What a stage's first epoch reports of its beginning, and whether it has."""

    row: dict[str, Any]
    reported: bool = False
