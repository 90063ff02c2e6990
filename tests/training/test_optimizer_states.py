"""The state of every optimizer that a run may have is saved as plain data and tensors, and taken back."""

import json

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from qrdali.errors import InputError
from qrdali.runs import checkpoint
from qrdali.schedule.recipe_checks import require_optimizer
from qrdali.training.optimizer import create_optimizer, load_optimizer

CPU = torch.device("cpu")


def usable() -> list[str]:
    names = []
    for name in list_optimizers():
        try:
            require_optimizer(name, {})
        except InputError:
            continue
        names.append(name)
    return names


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4))


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(torch.randn(4, 3, 4, 4)), torch.arange(4)).backward()
    optimizer.step()


def saved_and_read(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    tensors, rest = checkpoint.flatten(optimizer.state_dict())
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    return checkpoint.unflatten(kept, json.loads(json.dumps(rest)))


@pytest.mark.parametrize("name", usable())
def test_goes_on_as_if_never_saved(name: str) -> None:
    model, again = network(), network()
    optimizer = create_optimizer(model, name, 1e-3, 0.05, CPU)
    for seed in (1, 2):
        take_step(model, optimizer, seed)
    again.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    other = create_optimizer(again, name, 1e-3, 0.05, CPU)
    load_optimizer(other, saved_and_read(optimizer))
    for seed in (3, 4):
        take_step(model, optimizer, seed)
        take_step(again, other, seed)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_step_that_belongs_to_a_group_is_saved_as_a_tensor() -> None:
    model = network()
    optimizer = create_optimizer(model, "lamb", 1e-3, 0.05, CPU)
    take_step(model, optimizer, 1)
    tensors, rest = checkpoint.flatten(optimizer.state_dict())
    assert [tensors[f"group-{number}.step"].item() for number in range(2)] == [1.0, 1.0]
    assert all("step" not in group for group in rest["param_groups"])
    with pytest.raises(IndexError):
        checkpoint.unflatten({"group-7.step": torch.zeros(())}, rest)
