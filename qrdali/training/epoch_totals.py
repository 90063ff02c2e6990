"""What is added up while training: over the epoch in hand, over the whole run, and what a stage reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from qrdali.distributed import ProcessGroup


@dataclass(frozen=True)
class EpochSums:
    """Holds the sums over this rank's part of the epoch in hand.

    step: batches done. images: images seen. loss: float64 scalar, the sum over images; correct: int64 scalar.
    Both stay on the device, because reading them would wait for it. seconds, data_wait: time so far, and that
    part of it spent waiting for batches. joules: energy used before this process took the epoch on; None if
    it is unknown."""

    step: int
    images: int
    loss: torch.Tensor
    correct: torch.Tensor
    seconds: float = 0.0
    data_wait: float = 0.0
    joules: float | None = 0.0

    @classmethod
    def zero(cls, device: torch.device) -> EpochSums:
        """Returns the sums of an epoch that has not begun."""
        loss = torch.zeros((), dtype=torch.float64, device=device)
        return cls(0, 0, loss, torch.zeros((), dtype=torch.int64, device=device))

    def add(self, loss: torch.Tensor, right: torch.Tensor) -> EpochSums:
        """Returns the sums with one more batch, without waiting for the device.

        loss: scalar, its mean. right: bool [N], which of its images are classified correctly.
        """
        with torch.no_grad():
            return replace(
                self,
                images=self.images + len(right),
                loss=self.loss + loss.double() * len(right),
                correct=self.correct + right.sum(),
            )

    def accuracy_note(self) -> str:
        """Returns the training accuracy so far for a progress bar. Waits for the device."""
        return f"train {int(self.correct) / max(1, self.images):.3f}"

    def local_values(self) -> tuple[float, int, int]:
        """Returns loss, correct and images of this rank as plain numbers. Waits for the device."""
        return float(self.loss), int(self.correct), self.images

    def all_ranks(self, group: ProcessGroup) -> EpochSums:
        """Returns the sums of all ranks, the same on all; times are rank 0's. Collective."""
        if group.is_single:
            return self
        parts = group.all_gather_object(self.local_values())
        loss, correct, images = (sum(column) for column in zip(*parts, strict=True))
        seconds, waited = group.broadcast_object([self.seconds, self.data_wait])
        return replace(
            self,
            images=images,
            loss=torch.tensor(loss, dtype=torch.float64),
            correct=torch.tensor(correct),
            seconds=seconds,
            data_wait=waited,
        )


@dataclass(frozen=True)
class RunTotals:
    """Holds the totals of the whole run.

    forward_images: images that the network saw in training, validation and probes. seconds: of training and
    probes. Tracked sets count in neither: they cost a run nothing that it needs."""

    optimizer_steps: int = 0
    forward_images: int = 0
    seconds: float = 0.0

    def after_step(self, images: int) -> RunTotals:
        """Returns the totals after one more optimizer step on `images` images of all ranks."""
        return RunTotals(self.optimizer_steps + 1, self.forward_images + images, self.seconds)

    def plus(self, forward_images: int = 0, seconds: float = 0.0) -> RunTotals:
        """Returns the totals after work other than optimizer steps."""
        return RunTotals(self.optimizer_steps, self.forward_images + forward_images, self.seconds + seconds)


@dataclass(frozen=True)
class StageInfo:
    """Holds what the row of a stage's first epoch reports of the stage's beginning, and whether it has been
    reported."""

    row: dict[str, Any] = field(default_factory=dict)
    reported: bool = False
