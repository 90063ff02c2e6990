"""The rank and the probability of the true class among everything that a network may answer."""

from __future__ import annotations

import torch


def true_class(
    probability: torch.Tensor, labels: torch.Tensor, predictions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (ranks int64 [N], true probabilities float64 [N]) of the labels int64 [N].

    probability: float64 [N, K], of each of the K possible answers. predictions: int64 [N], -1 where none of
    the classes is the answer.

    The rank counts from 1 the answers that are more probable than the label and, of equally probable ones,
    those of lower number. It is 1 where the prediction is the label and only there: networks that compute
    with 16 bits give equal logits often, and the rank must not contradict the prediction then. Nothing here
    makes the host wait for the device.
    """
    of_label = probability.gather(1, labels[:, None])
    number = torch.arange(probability.shape[1], device=probability.device)
    # "Not less" rather than "at least": a network of NaN answers its first class, and so is ranked.
    is_ahead = torch.where(number < labels[:, None], ~(probability < of_label), probability > of_label)
    return 1 + is_ahead.sum(1).clamp(min=1) * (predictions != labels), of_label[:, 0]
