"""The network in training: one optimizer step at a time, on this process' part of a batch."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV3
from torch import nn

from qrdali.interfaces import Batch, RunContext
from qrdali.reduction.mixing import Mix
from qrdali.system.device import autocast_for
from qrdali.training.compilation import compile_network
from qrdali.training.learning_rate import plan_rate, rate_schedule
from qrdali.training.mixed_batch import MixedBatch
from qrdali.training.network_parts import fixed_norms
from qrdali.training.optimizer import create_optimizer
from qrdali.training.run_spec import RunSpec

_RANK_SEED = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: seeds of neighbouring ranks lie far apart


class TrainStep:
    """Holds the network on its device with its optimizer, rate, precision and, with --ema, the average of its
    weights.

    images: of the training split. model: what is trained. eval_model: what is validated, shown candidates in
    probes and saved as best/: the average, or `model` itself. Every rank constructs one (collective) and
    takes every step."""

    def __init__(self, spec: RunSpec, images: int, context: RunContext) -> None:
        settings, group = spec.settings, context.group
        self._group, self._device, self._autocast = group, context.device, context.autocast
        self._input_size, self._accumulate = spec.preprocessing.input_size, settings.accumulate
        torch.manual_seed((settings.seed + group.rank * _RANK_SEED) % 2**63)  # dropout differs between ranks
        self.model = spec.model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.sync_batch_norm and not group.is_single:
            # timm's conversion: torch's own drops the activations within timm's layers.
            self.model = convert_sync_batchnorm(self.model)
        self._fixed_norms = fixed_norms(self.model) if settings.freeze else []
        self.ema = (
            ModelEmaV3(self.model, settings.ema, use_warmup=settings.ema_warmup) if settings.ema else None
        )
        self.ema_steps = 0  # by which the decay of --ema-warmup grows
        self.eval_model: nn.Module = self.ema.module if self.ema else self.model
        self._parallel = group.wrap_ddp(self.model, context.device)
        self._forward = compile_network(self._parallel, context) if settings.compile else self._parallel
        self._clip_grad = settings.clip_grad
        self.optimizer = create_optimizer(
            self.model,
            settings.optimizer,
            settings.lr,
            settings.weight_decay,
            context.device,
            settings.deterministic,
            layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
            **settings.optimizer_options,
        )
        self.rate = rate_schedule(self.optimizer, plan_rate(settings, images))
        _, scaled = autocast_for(settings.amp, context.device)
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=scaled)
        self._loss = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        if not group.is_single:
            # DDP orders gradients anew after its first pass, and three ranks or more add in that order:
            # without this pass a resumed run would differ from an uninterrupted one.
            self._dummy_step()
            self.optimizer.zero_grad(set_to_none=True)

    def step(
        self, batch: Batch | None, count: int, mix: Mix | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Takes one optimizer step. Collective.

        batch: this rank's part of the `count` images of all ranks. mix: how its images are mixed with one
        another, None for not at all. Returns its mean loss (scalar) and which images are right (bool [N]), of
        mixed ones those that are taken for the image's own class, or None if this rank has no images in the
        batch. Raises ValueError where batch norm has one value per channel."""
        self.optimizer.zero_grad(set_to_none=True)
        outcome = None
        if batch is None:
            self._dummy_step()
        else:
            share = len(batch.labels) * self._group.world_size / count
            outcome = self._forward_backward(MixedBatch.of(batch, mix), share)
        if self._clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema_steps += 1
            self.ema.update(self.model, step=self.ema_steps if self.ema.use_warmup else None)
        self.rate.after_step()
        return outcome

    def begin_training(self) -> None:
        """Puts the network into training mode, but for batch norms in parts that are not trained."""
        self.model.train()
        for module in self._fixed_norms:
            module.eval()

    def broadcast_buffers(self) -> None:
        """Gives every rank rank 0's statistics of batch norm, so that what is validated is what is saved.
        Collective."""
        self._group.broadcast_buffers(self.model)
        if self.ema:
            self._group.broadcast_buffers(self.eval_model)

    def _forward_backward(self, batch: MixedBatch, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs forward and backward of a batch, in --accumulate parts. Returns its mean loss, and which
        images are right.

        share: the weight of the mean over these images in the mean over ranks: 1 where all have equally many.
        """
        count = len(batch.labels)
        pieces = min(self._accumulate, count)
        parts = batch.split(pieces)
        losses, right = [], []
        for i, part in enumerate(parts):
            last = i == len(parts) - 1  # gradients are exchanged once
            with nullcontext() if last or self._group.is_single else self._parallel.no_sync():  # type: ignore[operator]
                with self._group.translate_errors(), self._autocast():
                    logits = self._forward(part.images)
                    loss = part.loss(self._loss, logits)
                weight = share * len(part.labels) / count
                with self._group.translate_errors():
                    self.scaler.scale(loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() if len(parts) == 1 else loss.detach() * len(part.labels) / count)
            right.append(logits.detach().argmax(1) == part.labels)
        return (losses[0], right[0]) if len(parts) == 1 else (torch.stack(losses).sum(), torch.cat(right))

    def trial_pass(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Runs forward and backward of `model`, not wrapped in DDP, to see whether memory suffices."""
        with self._autocast():
            loss = self._loss(model(images), labels)
        self.scaler.scale(loss).backward()

    def _dummy_step(self) -> None:
        """Runs a forward and backward pass with zero gradient for a rank whose part of this batch is empty,
        so that DDP's all-reduce completes and the mean is that of the others."""
        side = self._input_size
        self.model.eval()  # statistics of batch norm are those of images
        with self._group.translate_errors():
            with self._autocast():
                zero = self._parallel(torch.zeros((1, 3, side, side), device=self._device)).sum() * 0
            self.scaler.scale(zero).backward()
        self.begin_training()
