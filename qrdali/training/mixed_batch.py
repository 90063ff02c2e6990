"""Mixes the images of a step with one another, and their losses: mixup and CutMix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qrdali.interfaces import Batch
from qrdali.reduction.mixing import Mix
from qrdali.system.device_copies import to_device

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of logits [N, classes] and labels [N]: a mean


@dataclass(frozen=True)
class MixedBatch:
    """Holds the images of a step as the network sees them, mixed or not.

    images: float32 [N, 3, S, S]. labels: int64 [N], of the images themselves. partner_labels: int64 [N], of
    what was mixed into them, None where nothing was. share: of an image itself, in [0, 1].
    """

    images: torch.Tensor
    labels: torch.Tensor
    partner_labels: torch.Tensor | None = None
    share: float = 1.0

    @classmethod
    def of(cls, batch: Batch, mix: Mix | None) -> MixedBatch:
        """Returns a batch mixed as `mix` says, in memory of its own; without it the batch's own images."""
        if mix is None:
            return cls(batch.images, batch.labels)
        partner = to_device(torch.from_numpy(mix.partner), str(batch.images.device))
        if mix.box is None:
            images = batch.images * mix.share
            images.add_(batch.images.index_select(0, partner), alpha=1 - mix.share)
        else:
            images = batch.images.clone(memory_format=torch.preserve_format)
            rows, columns = slice(mix.box.top, mix.box.bottom), slice(mix.box.left, mix.box.right)
            images[:, :, rows, columns] = batch.images[:, :, rows, columns].index_select(0, partner)
        return cls(images, batch.labels, batch.labels.index_select(0, partner), mix.share)

    def split(self, pieces: int) -> list[MixedBatch]:
        """Returns the batch in so many parts, in order; each has an image."""
        if pieces == 1:
            return [self]
        images, labels = self.images.tensor_split(pieces), self.labels.tensor_split(pieces)
        if self.partner_labels is None:
            return [MixedBatch(*part) for part in zip(images, labels, strict=True)]
        others = self.partner_labels.tensor_split(pieces)
        return [MixedBatch(*part, self.share) for part in zip(images, labels, others, strict=True)]

    def loss(self, loss: Loss, logits: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss: that of either label, weighted by the share of its image.

        The cross-entropy with mixed targets, smoothed or not, is the same number.
        """
        own = loss(logits, self.labels)
        if self.partner_labels is None:
            return own
        return own * self.share + loss(logits, self.partner_labels) * (1 - self.share)
