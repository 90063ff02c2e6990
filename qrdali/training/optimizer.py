"""Makes the optimizer of a run, and lets it take over a state that was saved on another device."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

# timm's names of torch's optimizers that a GPU can fuse
_FUSED = {"sgd", "momentum", "nesterov", "adam", "adamw"}


def create_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    device: torch.device,
    deterministic: bool = False,
    **options: Any,
) -> torch.optim.Optimizer:
    """Returns the optimizer that timm calls `name` for a `model` that is on `device`.

    options: more keywords of timm's function, such as `layer_decay`, or of the optimizer's class.

    Where torch has a fused one, a GPU gets it: one kernel for many weights, which reads fp16's scale on the
    device, where others wait for it. With `deterministic` it does not: torch's documentation does not say
    that the fused ones repeat their bits, and `torch.use_deterministic_algorithms` does not know them. A CPU
    does not either: its weights would differ in the last bit from those of earlier versions.
    """
    if not deterministic:
        options |= fused_options(name, device)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, name, lr=lr, weight_decay=weight_decay, **options
    )
    return optimizer


def fused_options(name: str, device: torch.device) -> dict[str, bool]:
    """Returns the keywords that make timm's optimizer `name` a fused one on `device`, or none."""
    return {"fused": True} if device.type == "cuda" and name.lower() in _FUSED else {}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what another optimizer's `state_dict` returned, saved on any device.

    `optimizer` stays fused, or not, as it is, and keeps its types of tensors: torch would take them from the
    state.
    """
    kept = [
        {name: value for name, value in group.items() if name == "fused" or isinstance(value, torch.dtype)}
        for group in optimizer.state_dict()["param_groups"]
    ]
    # What does not fit is left for torch to refuse.
    groups = [saved | (kept[i] if i < len(kept) else {}) for i, saved in enumerate(state["param_groups"])]
    optimizer.load_state_dict({**state, "param_groups": groups})
