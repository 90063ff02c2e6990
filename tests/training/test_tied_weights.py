"""Networks that use one weight under several names, as timm's coat does."""

from pathlib import Path

import torch

from qrdali.runs import checkpoint


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 3)
        self.other = self.one


def test_tied_weights_are_saved_and_read_back_tied(tmp_path: Path) -> None:
    model, again = Tied(), Tied()
    checkpoint.save(tmp_path / "best", {}, model=model.state_dict())
    _, (tensors,) = checkpoint.load(tmp_path / "best", "model")
    again.load_state_dict(tensors)
    assert torch.equal(again.other.weight, model.one.weight)
    assert again.one.weight is again.other.weight


def test_views_of_one_tensor_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    checkpoint.save(tmp_path / "best", {}, model={"first": whole[:3], "last": whole[3:]})
    _, (tensors,) = checkpoint.load(tmp_path / "best", "model")
    assert tensors["first"].tolist() == [0, 1, 2]
    assert tensors["last"].tolist() == [3, 4, 5]
