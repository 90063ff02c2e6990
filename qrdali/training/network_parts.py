"""Parts of a network: which are not trained, have rates of their own, or are computed twice."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from timm.optim import auto_group_layers
from torch import nn

from qrdali.errors import InputError
from qrdali.network_heads import head_names, is_of_head
from qrdali.runs.settings import Settings


def prepare_network(model: nn.Module, settings: Settings) -> None:
    """Freezes parts of `model`, on any device, and sets gradient checkpointing, as the settings say.

    Raises InputError for a network that does not have what they ask for.
    """
    if settings.freeze:
        _freeze(model, settings)
    if settings.layer_decay < 1 and layers(model) < 2:
        raise InputError(
            f"--layer-decay {settings.layer_decay:g}: timm does not know the layers of {settings.model}, so "
            "that all would have one rate; leave it out, or take a network of timm"
        )
    if settings.grad_checkpointing:
        _checkpoint_gradients(model, settings.model)


def layers(model: nn.Module) -> int:
    """Returns into how many layers timm divides `model` for rates of their own."""
    if matcher := _matcher(model, coarse=False):
        return len(group_parameters(model, matcher))
    return len(set(auto_group_layers(model).values()))


def _matcher(model: nn.Module, coarse: bool) -> Any:
    """Returns by what timm divides `model` into layers or, `coarse`, into stages; None if it does not."""
    matcher: Any = getattr(model, "group_matcher", None)
    return matcher(coarse=coarse) if matcher else None


def _freeze(model: nn.Module, settings: Settings) -> None:
    if settings.freeze == "head":
        heads = head_names(model)
        trained = {name for name, _ in model.named_parameters() if is_of_head(name, heads)}
        if not trained:
            raise InputError(f"--freeze head: {settings.model} has no classifier that could be trained alone")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        return
    matcher = _matcher(model, coarse=True)
    if not matcher:
        raise InputError(
            f"--freeze {settings.freeze}: timm does not know the stages of {settings.model}; use --freeze "
            "head, or a network of timm"
        )
    stages = group_parameters(model, matcher)
    count = int(settings.freeze)
    if count >= len(stages):
        raise InputError(
            f"--freeze {count} leaves nothing to train: {settings.model} has {len(stages)} stages, the stem "
            "and the classifier among them"
        )
    frozen = {name for stage in range(count) for name in stages[stage]}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def fixed_norms(model: nn.Module) -> list[nn.Module]:
    """Returns the batch norms of the parts that are not trained, whose statistics must not change either."""
    found = []
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is None:
            continue
        owner, place = module, name
        while place and not any(True for _ in owner.parameters()):  # without weights of its own
            place = place.rpartition(".")[0]
            owner = model.get_submodule(place)
        if not any(parameter.requires_grad for parameter in owner.parameters()):
            found.append(module)
    return found


def _checkpoint_gradients(model: nn.Module, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError, TypeError):
        raise InputError(f"--grad-checkpointing: {name} has none; leave it out") from None
