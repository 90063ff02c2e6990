"""What counts as an answer, and as a right one, on an evaluation suite."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qrdali.system.device_copies import to_device

_NO_ANSWER = -1.0  # in place of the probability of a class that is no answer: below that of any that is


@dataclass(frozen=True)
class SuiteAnswers:
    """Says among which classes a network answers, and which answers are right for each image.

    kept: int64 [K], ascending, the network's numbers of the classes that may be answered; None for all. The
    others' logits are left out before the softmax, so that probabilities are among the K. right: int16 or
    int64 [samples, M], the network's numbers of the classes that are right for each sample, padded with -1;
    None where each sample has its label alone.
    """

    kept: npt.NDArray[np.int64] | None = None
    right: npt.NDArray[np.integer] | None = None

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (predictions int64 [N], their probabilities float32 [N]) of logits [N, classes]."""
        if self.kept is None:
            confidence, prediction = logits.float().softmax(1).max(1)
            return prediction, confidence
        kept = self._on(logits.device, "kept", self.kept)
        confidence, position = logits.index_select(1, kept).float().softmax(1).max(1)
        return kept[position], confidence

    def probability(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the probability of each class as an answer, float64 [N, classes]; -1 if it is none."""
        if self.kept is None:
            return logits.double().softmax(1)
        kept = self._on(logits.device, "kept", self.kept)
        among = logits.index_select(1, kept).double().softmax(1)
        every = torch.full(logits.shape, _NO_ANSWER, dtype=torch.float64, device=logits.device)
        return every.index_copy(1, kept, among)

    def labels(
        self,
        samples: torch.Tensor,
        labels: torch.Tensor,
        predictions: torch.Tensor,
        probability: torch.Tensor,
    ) -> torch.Tensor:
        """Returns the class that each image's row is of, int64 [N].

        It is the label, or where several answers are right the prediction if it is one of them, else the most
        probable of them. So a row is right where any right answer was given, and its rank is the best of
        theirs. samples, labels, predictions: int64 [N]; probability: as `probability` returns it.
        """
        if self.right is None:
            return labels
        right = self._on(samples.device, "right", self.right)[samples].long()
        of_right = probability.gather(1, right.clamp(min=0)).masked_fill(right < 0, _NO_ANSWER)
        best = right.gather(1, of_right.argmax(1, keepdim=True))[:, 0]
        is_right = (right == predictions[:, None]).any(1)
        return torch.where(is_right, predictions, best)

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, str], torch.Tensor]:
        return {}

    def _on(self, device: torch.device, name: str, values: npt.NDArray[Any]) -> torch.Tensor:
        """Returns one of the arrays on `device`, copied there at the first batch alone."""
        key = device, name
        if key not in self._copies:
            self._copies[key] = to_device(values, device)
        return self._copies[key]
