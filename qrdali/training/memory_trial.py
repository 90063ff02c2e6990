"""Finds out into how many parts a step must be divided for which a GPU's memory did not suffice."""

from __future__ import annotations

import copy

import torch
from torch import nn

from qrdali.errors import RunError
from qrdali.interfaces import Batch
from qrdali.runs.settings import Settings
from qrdali.training.optimizer_step import TrainStep


def out_of_memory(train_step: TrainStep, batch: Batch | None, settings: Settings, ranks: int) -> RunError:
    """Returns the error of a first step that did not fit, with the options that would fit.

    Each is tried with the step's own images. `train_step` is spoilt by that: the run cannot go on. batch:
    this rank's part, None if it has none.
    """
    what = f"the GPU's memory does not suffice for a step of --batch-size {settings.batch_size}"
    if settings.accumulate > 1:
        what += f" in --accumulate {settings.accumulate} parts"
    if batch is None:
        return RunError(f"{what}, although this process has none of its images: choose another --model")
    parts = _fitting_parts(train_step, batch, settings.accumulate, ranks)
    if parts is None:
        return RunError(f"{what}, nor for one image at a time: use a smaller --input-size or another --model")
    smaller = max(1, len(batch.labels) // parts) * ranks
    size = f"--batch-size {smaller}" + (" without --accumulate" if settings.accumulate > 1 else "")
    if settings.sync_batch_norm:
        return RunError(f"{what}: {size} fits, as a trial has shown")
    return RunError(f"{what}: --accumulate {parts} fits, as a trial has shown, and so does {size}")


def _fitting_parts(train_step: TrainStep, batch: Batch, accumulate: int, ranks: int) -> int | None:
    """Returns the least number of parts, doubled each time, in which the step fits; None if none does."""
    count, parts = len(batch.labels), min(accumulate, len(batch.labels))
    while parts < count:
        parts = min(2 * parts, count)
        if _fits(train_step, batch, parts, ranks):
            return parts
    return None


def _fits(train_step: TrainStep, batch: Batch, parts: int, ranks: int) -> bool:
    """Returns whether two of so many parts and an optimizer step fit into what is free."""
    train_step.optimizer.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        # Beyond one rank a backward pass of the network itself would wait for the others.
        model = train_step.model if ranks == 1 else copy.deepcopy(train_step.model)
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.eval()
        # The first part makes the gradients, with which the second must have room.
        pieces = zip(batch.images.tensor_split(parts)[:2], batch.labels.tensor_split(parts)[:2], strict=True)
        for images, labels in pieces:
            train_step.trial_pass(model, images, labels)
        if ranks == 1:
            train_step.optimizer.step()
    except torch.OutOfMemoryError:
        return False
    return True
