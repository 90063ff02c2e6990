"""Per-image predictions: every image once, every figure computed from the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.interfaces import BatchSource, RunContext
from qrdali.schedule.epoch_plan import EpochPlan


def top1(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(predictions int64 [N], their probabilities float32 [N]) of logits [N, classes]."""
    confidence, prediction = logits.float().softmax(1).max(1)
    return prediction, confidence


def inference_batch_size(batch_size: int, world: int) -> int:
    """Images of a forward pass without gradients, where `world` ranks share training batches of `batch_size`: no fewer than in training,
    and up to 256 those of a whole batch, so that every figure is what one process alone gets."""
    return max(-(-batch_size // world), min(batch_size, 256))


def predict(
    model: nn.Module,
    source: BatchSource,
    plan: EpochPlan,
    context: RunContext,
    *,
    on_batch: Callable[[int], None] = lambda images: None,
    decide: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = top1,
) -> PredictionRows:
    """Classifies every image of `plan` in evaluation mode; the model is left in the mode it was in. Collective.

    Each rank takes every world-th batch as it is, and all get all rows, the same as one process alone. on_batch: is
    called with the images that all ranks have done since the last call, and may raise. decide: as `top1`.
    """
    group = context.group
    own = replace(plan, rank=group.rank, world_size=group.world_size, whole_batches=True)

    def classified(check: Callable[[], None]) -> list[npt.NDArray[Any]]:
        columns: list[tuple[torch.Tensor, ...]] = []
        for batch in source.epoch(own) if own.rank < own.batches else ():
            with context.autocast():
                logits = model(batch.images)
            columns.append((batch.samples, batch.labels, *decide(logits)))
            check()
            done = batch.number * plan.batch_size
            on_batch(min(plan.samples, done + group.world_size * plan.batch_size) - done)
        if not columns:
            return [np.empty(0, kind) for kind in (np.int64, np.int64, np.int64, np.float32)]
        return [torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)]

    training = model.training
    model.eval()
    with torch.inference_mode():
        mine = group.run_interruptible(classified)
    model.train(training)
    samples, labels, predictions, confidences = (np.concatenate(group.all_gather(column)) for column in mine)
    order = np.argsort(samples, kind="stable")
    return PredictionRows(samples[order], labels[order], predictions[order], confidences[order])
