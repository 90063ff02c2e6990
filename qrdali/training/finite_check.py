"""Whether a loss or the weights have become NaN or infinite, asked without waiting for the device at every step."""

from __future__ import annotations

import math

import torch
from torch import nn

_SHOWN = 16  # sample numbers in a message


class NotFinite(ValueError):
    """step: the first that is known to be so, from 1. loss: whether it is the loss, of known samples, and not the weights."""

    def __init__(self, step: int, text: str, loss: bool = True) -> None:
        super().__init__(text)
        self.step, self.loss = step, loss


class FiniteCheck:
    """Keeps the losses and sample numbers of the steps since the last check, on the device. They are read every EVERY steps, before
    a save and at an epoch's end: at most EVERY steps are taken with a network that is already spoilt, and none of them is saved."""

    EVERY = 50

    def __init__(self) -> None:
        self._recorded: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def record(self, step: int, loss: torch.Tensor, samples: torch.Tensor) -> None:
        """A step has been taken, counted from 1 in its epoch. loss: scalar. samples: int64 [N]."""
        self._recorded.append((step, loss.detach(), samples))

    def verify(self, model: nn.Module | None) -> None:
        """Raises NotFinite naming the first step whose loss is not finite, with its samples; or, of `model` if given, a weight that
        is not, with the steps since the last check and the samples of the last one."""
        seen, self._recorded = self._recorded, []
        if not seen:
            return
        losses = torch.stack([loss for _, loss, _ in seen]).float().tolist()
        for (step, _, samples), loss in zip(seen, losses, strict=True):
            if not math.isfinite(loss):
                raise NotFinite(step, f"the loss of step {step} is {loss} (samples {_listed(samples)})")
        if model is None:
            return
        floats = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        if not floats:
            return
        good = torch.stack([torch.isfinite(value).all() for value in floats.values()]).tolist()
        bad = [name for name, finite in zip(floats, good, strict=True) if not finite]
        if bad:
            raise NotFinite(
                seen[0][0],
                f"the weights {bad[0]} are not finite after a step from {seen[0][0]} to {seen[-1][0]} "
                f"(samples of the last: {_listed(seen[-1][2])})",
                loss=False,
            )


def _listed(samples: torch.Tensor) -> str:
    numbers = samples[:_SHOWN].tolist()
    return ", ".join(map(str, numbers)) + (
        f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    )
