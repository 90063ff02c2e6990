"""Whether a loss or the weights have become NaN or infinite, checked without waiting for the device at every
step."""

from __future__ import annotations

import math

import torch
from torch import nn

_LISTED = 16  # sample numbers in a message


class NotFinite(ValueError):
    """Says that training has diverged.

    step: the first that is known to be affected, from 1. loss: whether a loss of known samples is not finite,
    rather than a weight."""

    def __init__(self, step: int, text: str, loss: bool = True) -> None:
        super().__init__(text)
        self.step, self.loss = step, loss


class FiniteCheck:
    """Keeps the losses and sample numbers of the steps since the last check, on the device.

    They are read every EVERY steps, before a save and at an epoch's end: at most EVERY steps are taken with a
    network that is already spoilt, and none of them is saved."""

    EVERY = 50

    def __init__(self) -> None:
        self._recorded: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def record(self, step: int, loss: torch.Tensor, samples: torch.Tensor) -> None:
        """Records a step, counted from 1 in its epoch. loss: scalar. samples: int64 [N]."""
        self._recorded.append((step, loss.detach(), samples))

    def verify(self, model: nn.Module | None) -> None:
        """Raises NotFinite naming the first step whose loss is not finite, with its samples.

        With a `model` it also raises for a weight that is not finite, naming the steps since the last check
        and the samples of the last one."""
        recorded, self._recorded = self._recorded, []
        if not recorded:
            return
        losses = torch.stack([loss for _, loss, _ in recorded]).float().tolist()
        for (step, _, samples), loss in zip(recorded, losses, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(step, f"the loss of step {step} is {loss} (samples {_listed(samples)})")
        if model is None:
            return
        floats = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        if not floats:
            return
        # One number per tensor is stacked on the device and read at once: reading each would wait for each.
        finite = torch.stack([torch.isfinite(value).all() for value in floats.values()]).tolist()
        spoilt = [name for name, is_finite in zip(floats, finite, strict=True) if not is_finite]
        if spoilt:
            raise NotFinite(
                recorded[0][0],
                f"the weights {spoilt[0]} are not finite after a step from {recorded[0][0]} to "
                f"{recorded[-1][0]} (samples of the last: {_listed(recorded[-1][2])})",
                loss=False,
            )


def _listed(samples: torch.Tensor) -> str:
    text = ", ".join(map(str, samples[:_LISTED].tolist()))
    return text if len(samples) <= _LISTED else f"{text} and {len(samples) - _LISTED} more"
