"""The last layers of networks, which give the logits: found, replaced, and dropped where unused."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qrdali.errors import InputError

# Of torchvision's googlenet and inception_v3: with these a training forward pass gives a tuple.
WITH_AUXILIARY_HEADS, _AUXILIARY_HEADS = ("googlenet", "inception_v3"), ("aux1", "aux2", "AuxLogits")


def drop_auxiliary_heads(model: nn.Module) -> None:
    """Leaves a network without the heads that only training would use."""
    for name in _AUXILIARY_HEADS:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)
            setattr(model, "aux_logits", False)  # noqa: B010  mypy takes attributes of modules for tensors


def without_auxiliary_heads(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of a network without those of the heads that only training would use."""
    return {key: value for key, value in weights.items() if key.partition(".")[0] not in _AUXILIARY_HEADS}


def replace_head(model: nn.Module, classes: int) -> None:
    """Puts a fresh last layer of `classes` outputs on a torchvision network with 1000."""
    name = _last_layer(model)
    if name is None:
        raise InputError("--pretrained: this network has no last layer to replace; train it from scratch")
    module = model.get_submodule(name)
    if isinstance(module, nn.Linear):
        head: nn.Module = nn.Linear(module.in_features, classes)
    else:  # as SqueezeNet ends
        assert isinstance(module, nn.Conv2d)
        head = nn.Conv2d(module.in_channels, classes, module.kernel_size[0])
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)


def renew_heads(model: nn.Module) -> None:
    """Draws the weights of the last layers anew, as torch initialises a linear or convolutional layer.

    It is for heads on weights that are trained already. timm draws that of an EfficientNet from
    ±1 / √classes: with few classes its logits are of the order of 10 and hide what the features say.
    """
    for name in head_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()


def _last_layer(model: nn.Module) -> str | None:
    """Returns the name of the last linear or convolutional layer, None where there is none."""
    layers = (n for n, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear | nn.Conv2d))
    return next(layers, None)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the layers that give the logits, as timm records them, or of the last layer."""
    config: Any = getattr(model, "pretrained_cfg", None)
    recorded = config.get("classifier") if isinstance(config, dict) else None
    if recorded:
        return (recorded,) if isinstance(recorded, str) else tuple(recorded)
    last = _last_layer(model)
    return () if last is None else (last,)


def is_of_head(key: str, heads: tuple[str, ...]) -> bool:
    """Returns whether the weight `key` belongs to one of the layers `heads`."""
    return any(key.startswith(f"{head}.") for head in heads)
