"""Fused optimizers: a GPU gets them, a CPU does not, and a state goes from one kind to the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import trainer_of
from timm.optim import create_optimizer_v2
from torch import nn

from qrdali.training import optimizer_step
from qrdali.training.optimizer import create_optimizer, fused_options, load_optimizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def stepped(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def fused(model: nn.Module, name: str) -> Any:
    """The optimizer of a GPU, on the CPU, where torch has it too."""
    return create_optimizer_v2(model, name, lr=0.1, weight_decay=0.01, **fused_options(name, CUDA))


@pytest.mark.parametrize("name", ["adamw", "AdamW", "adam", "sgd", "momentum", "nesterov"])
def test_a_gpu_gets_the_fused_optimizer_of_torch(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = fused(model, name)
    assert all(group["fused"] for group in optimizer.param_groups)
    stepped(optimizer, model)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_with_deterministic_algorithms_does_not(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "qrdali.training.optimizer.create_optimizer_v2", lambda *_, **options: asked.append(options)
    )
    create_optimizer(nn.Linear(3, 2), "adamw", 0.1, 0.01, CUDA, deterministic)
    assert ("fused" in asked[0]) == (not deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
def test_training_says_whether_it_is_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    asked: list[bool] = []

    def create(*values: Any, **options: Any) -> torch.optim.Optimizer:
        asked.append(values[5])
        return create_optimizer(*values, **options)

    monkeypatch.setattr(optimizer_step, "create_optimizer", create)
    trainer_of(tmp_path / "run", deterministic=deterministic)
    assert asked == [deterministic]


@pytest.mark.parametrize("name", ["lamb", "adagrad", "adamw", "sgd"])
def test_others_and_a_cpu_do_not(name: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = create_optimizer(model, name, 0.1, 0.01, CPU)
    assert not any(group.get("fused") for group in optimizer.param_groups)
    assert fused_options("lamb", CUDA) == {}
    stepped(optimizer, model)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("to_fused", [False, True])
def test_a_state_of_the_other_kind_is_taken_over(name: str, to_fused: bool) -> None:
    model = nn.Linear(3, 2)
    both = [fused(model, name), create_optimizer(model, name, 0.1, 0.01, CPU)]
    saver, loader = both if not to_fused else both[::-1]
    stepped(saver, model)
    state = saver.state_dict()
    load_optimizer(loader, state)
    assert [bool(group["fused"]) for group in loader.param_groups] == [to_fused] * len(loader.param_groups)
    assert [bool(group["fused"]) for group in state["param_groups"]] == [not to_fused] * len(
        state["param_groups"]
    )
    for parameter, values in saver.state.items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(loader.state[parameter][key]), torch.as_tensor(value)), key
    stepped(loader, model)


def test_a_state_of_another_network_is_refused() -> None:
    state = create_optimizer(nn.Linear(3, 2), "adamw", 0.1, 0.0, CPU).state_dict()
    state["param_groups"].append(dict(state["param_groups"][0]))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        load_optimizer(create_optimizer(nn.Linear(3, 2), "adamw", 0.1, 0.0, CPU), state)
