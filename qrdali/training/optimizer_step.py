"""The network that learns: one optimizer step at a time, of this process' part of a batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from qrdali.distributed import ProcessGroup
from qrdali.interfaces import Batch
from qrdali.runs.settings import Settings
from qrdali.system.device import autocast_for


class TrainStep:
    """`model` on `device` with its optimizer, precision and, with --ema, the average of its weights. `judged` is what is validated, asked
    in probes and saved as best/. All of `ranks` make one, and take every step."""

    def __init__(
        self, settings: Settings, model: nn.Module, input_size: int, device: torch.device, group: ProcessGroup
    ) -> None:
        self._group, self._device, self._input_size, self._accumulate = (
            group,
            device,
            input_size,
            settings.accumulate,
        )
        torch.manual_seed(
            (settings.seed + group.rank * 0x9E3779B97F4A7C15) % 2**63
        )  # dropout differs between ranks
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.sync_batch_norm and not group.is_single:
            self.model = convert_sync_batchnorm(
                self.model
            )  # timm's: torch's own drops the activations in its networks' layers
        self.ema = ModelEmaV3(self.model, settings.ema) if settings.ema else None
        self.eval_model: nn.Module = self.ema.module if self.ema else self.model
        self._parallel = group.wrap_ddp(self.model, device)
        self.optimizer = create_optimizer_v2(
            self.model, settings.optimizer, lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.autocast, scaled = autocast_for(settings.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self._loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        if not group.is_single:
            # DDP orders gradients anew after its first pass, and three ranks or more add in that order: a run that goes on
            # shall not differ.
            self._dummy_step()
            self.optimizer.zero_grad(set_to_none=True)

    def step(self, batch: Batch | None, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """One optimizer step, `batch` being this rank's part of `count` images. Returns its mean loss, and which images are right (bool
        [N]); nothing without a part. Raises ValueError where batch norm has one value per channel."""
        self.optimizer.zero_grad(set_to_none=True)
        found = None
        if batch is None:
            self._dummy_step()
        else:
            found = self._forward_backward(batch, len(batch.labels) * self._group.world_size / count)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update(self.model)
        return found

    def broadcast_buffers(self) -> None:
        """Rank 0's statistics of batch norm, on every rank: what is validated is what is saved."""
        self._group.broadcast_buffers(self.model)
        if self.ema:
            self._group.broadcast_buffers(self.eval_model)

    def _forward_backward(self, batch: Batch, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of a batch, in --accumulate parts. Returns its mean loss, and which images are right.

        share: what the mean over these images counts in the mean of ranks: 1 where all have as many.
        """
        count = len(batch.labels)
        pieces = min(self._accumulate, count)
        parts = list(zip(batch.images.tensor_split(pieces), batch.labels.tensor_split(pieces), strict=True))
        losses, right = [], []
        for i, (images, labels) in enumerate(parts):
            last = i == len(parts) - 1  # gradients are exchanged once
            with nullcontext() if last or self._group.is_single else self._parallel.no_sync():  # type: ignore[operator]
                with self._group.translate_errors(), self.autocast():
                    logits = self._parallel(images)
                    loss = self._loss(logits, labels)
                weight = share * len(labels) / count
                with self._group.translate_errors():
                    self.scaler.scale(loss if weight == 1 else loss * weight).backward()
            losses.append(loss.detach() if len(parts) == 1 else loss.detach() * len(labels) / count)
            right.append(logits.detach().argmax(1) == labels)
        return (losses[0], right[0]) if len(parts) == 1 else (torch.stack(losses).sum(), torch.cat(right))

    def _dummy_step(self) -> None:
        """The part in a step of a rank that has no image for it: gradients of nothing, so that the others' are the mean."""
        side = self._input_size
        self.model.eval()  # statistics of batch norm are those of images
        with self._group.translate_errors():
            with self.autocast():
                nothing = self._parallel(torch.zeros((1, 3, side, side), device=self._device)).sum() * 0
            self.scaler.scale(nothing).backward()
        self.model.train()
