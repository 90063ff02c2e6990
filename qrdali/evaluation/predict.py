"""The forward pass over an evaluated set: every image once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.evaluation.class_map import ClassMap
from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.evaluation.suite_answers import SuiteAnswers
from qrdali.evaluation.true_class import true_class
from qrdali.interfaces import BatchSource, RunContext
from qrdali.schedule.epoch_plan import EpochPlan

_KINDS = (np.int64, np.int64, np.int64, np.float32, np.int64, np.float64)  # of the columns of a batch


def top1(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (predictions int64 [N], their probabilities float32 [N]) of logits [N, classes]."""
    confidence, prediction = logits.float().softmax(1).max(1)
    return prediction, confidence


def top_answers(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the `count` most probable classes, int64 [N, count], and their probabilities, float32.

    logits: [N, classes]. Equally probable classes follow each other by number, so that the first is that of
    `top1`.
    """
    probability, classes = logits.float().softmax(1).sort(dim=1, descending=True, stable=True)
    return classes[:, :count], probability[:, :count]


def inference_batch_size(batch_size: int, world: int) -> int:
    """Returns the images of a forward pass without gradients where `world` ranks share a `batch_size`.

    It is no fewer than in training, and up to 256 those of a whole batch, so that every figure is what one
    process alone gets.
    """
    return max(-(-batch_size // world), min(batch_size, 256))


def _ignore(images: int) -> None:
    """Does nothing: the default of `on_batch`."""


def predict(
    model: nn.Module,
    source: BatchSource,
    plan: EpochPlan,
    context: RunContext,
    *,
    on_batch: Callable[[int], None] = _ignore,
    class_map: ClassMap | SuiteAnswers | None = None,
) -> PredictionRows:
    """Classifies every image of `plan` in evaluation mode and returns a row for each.

    The model is left in the mode that it was in.

    on_batch: is called after each batch of this process with the images that all processes have done since;
    what it raises ends the pass on all of them. class_map: for labels of other classes than the network's, or
    for a suite that says which of them may be answered and are right.
    Collective: the processes of `context.group` take every world-th batch as it is, and all return all rows,
    the same as one process alone.
    """
    group = context.group
    shard = replace(plan, rank=group.rank, world_size=group.world_size, whole_batches=True)

    def classify(check_other_ranks: Callable[[], None]) -> list[npt.NDArray[Any]]:
        columns: list[tuple[torch.Tensor, ...]] = []
        # A rank beyond the last batch begins no epoch: starting readers for nothing would take seconds.
        for batch in source.epoch(shard) if shard.rank < shard.batches else ():
            with context.autocast():
                logits = model(batch.images)
            predictions, confidence = class_map.decide(logits) if class_map else top1(logits)
            probability = class_map.probability(logits) if class_map else logits.double().softmax(1)
            labels = batch.labels
            if isinstance(class_map, SuiteAnswers):
                labels = class_map.labels(batch.samples, labels, predictions, probability)
            of_label = true_class(probability, labels, predictions)
            columns.append((batch.samples, labels, predictions, confidence, *of_label))
            check_other_ranks()
            done = batch.number * plan.batch_size
            on_batch(min(plan.samples, done + group.world_size * plan.batch_size) - done)
        if not columns:
            return [np.empty(0, kind) for kind in _KINDS]
        # Copied to the host once at the end: a copy per batch would wait for the GPU every time.
        return [torch.cat(column).cpu().numpy() for column in zip(*columns, strict=True)]

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            own_columns = group.run_interruptible(classify)
    finally:
        model.train(was_training)
    columns: list[npt.NDArray[Any]] = []
    for column in own_columns:
        of_all_ranks = group.all_gather(column)
        columns.append(np.concatenate(of_all_ranks))
    order = np.argsort(columns[0], kind="stable")
    return PredictionRows(*(column[order] for column in columns))
