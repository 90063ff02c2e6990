"""Files of weights in all their forms, and files that are none: nothing of them is ever executed."""

import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qrdali.errors import InputError
from qrdali.models import create
from qrdali.runs.adopted_weights import read_weights

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return create("test_resnet", 5)


@pytest.fixture(scope="module")
def weights(network: nn.Module) -> Weights:
    return {key: value.clone() for key, value in network.state_dict().items()}


def wrapped(weights: Weights, prefix: str = "module.") -> Weights:
    return {prefix + key: value for key, value in weights.items()}


FORMS: dict[str, tuple[str, Callable[[Weights], Any]]] = {
    "plain": ("", lambda w: w),
    "state_dict": ("state_dict", lambda w: {"state_dict": w, "epoch": 3, "args": argparse.Namespace(lr=0.1)}),
    "model": ("model", lambda w: {"model": w, "optimizer": {"state": {}}}),
    "model_ema": ("model_ema", lambda w: {"model_ema": {"n_averaged": torch.tensor(3), **wrapped(w)}}),
    "both": ("model_ema", lambda w: {"model": {k: v * 2 for k, v in w.items()}, "model_ema": w}),
    "module": ("", wrapped),
    "compiled": ("state_dict", lambda w: {"state_dict": wrapped(wrapped(w, "_orig_mod."))}),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_in_what_training_scripts_save(
    form: str, network: nn.Module, weights: Weights, tmp_path: Path
) -> None:
    part, save = FORMS[form]
    torch.save(save(weights), tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth", network, "test_resnet", 5)
    assert (read.part, set(read.weights)) == (part, set(weights))
    assert all(torch.equal(read.weights[key], value) for key, value in weights.items())


def test_safetensors_old_torch_files_and_half_precision(
    network: nn.Module, weights: Weights, tmp_path: Path
) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    without = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    save_file(wrapped(half), tmp_path / "w.safetensors")
    torch.save(without, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    for name, expected in (("w.safetensors", half), ("w.pt", without)):
        read = read_weights(tmp_path / name, network, "test_resnet", 5).weights
        assert set(read) == set(expected)
        assert all(torch.equal(read[key], value) for key, value in expected.items())


def test_weights_that_timm_converts_are_taken(tmp_path: Path) -> None:
    """The first vision transformers were published with a matrix in place of a convolution."""
    model = create("vit_tiny_patch16_224", 5)
    own = model.state_dict()
    patches = own["patch_embed.proj.weight"]
    torch.save({**own, "patch_embed.proj.weight": patches.flatten(1)}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth", model, "vit_tiny_patch16_224", 5)
    assert torch.equal(read.weights["patch_embed.proj.weight"], patches)
    torch.save({**own, "patch_embed.proj.weight": patches.flatten(1)[:, 1:]}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="1 have another shape, such as patch_embed.proj.weight 192×767"):
        read_weights(tmp_path / "w.pth", model, "vit_tiny_patch16_224", 5)


class _Code:
    """Makes a folder when it is unpickled by a loader that executes code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_form", [True, False])
def test_code_in_a_pickle_is_refused_and_never_executed(
    new_form: bool, network: nn.Module, weights: Weights, tmp_path: Path
) -> None:
    sign = tmp_path / "executed"
    file = tmp_path / "w.pth"
    torch.save({**weights, "evil": _Code(sign)}, file, _use_new_zipfile_serialization=new_form)
    with pytest.raises(
        InputError, match=r"holds more than weights: (posix|os)\.mkdir, which would have to be"
    ):
        read_weights(file, network, "test_resnet", 5)
    assert not sign.exists()
    torch.load(file, weights_only=False)  # what would have happened
    assert sign.exists()
    torch.save(network, file)
    with pytest.raises(InputError, match="holds more than weights: timm.models.resnet.ResNet"):
        read_weights(file, network, "test_resnet", 5)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_was_cut_is_refused(
    name: str, network: nn.Module, weights: Weights, tmp_path: Path
) -> None:
    (save_file if name.endswith("s") else torch.save)(weights, tmp_path / name)  # type: ignore[operator]
    content = (tmp_path / name).read_bytes()
    for size in (1, 3, 9, 200, len(content) // 2, len(content) - 1):
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(InputError, match="cut or damaged"):
            read_weights(tmp_path / name, network, "test_resnet", 5)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_ten_gigabytes_of_zeros_are_refused_unread(name: str, network: nn.Module, tmp_path: Path) -> None:
    with open(tmp_path / name, "wb") as file:
        file.truncate(10 << 30)  # sparse: it takes no room on the disk
    with pytest.raises(
        InputError, match="has 10,737,418,240 bytes, far more than the weights of test_resnet"
    ):
        read_weights(tmp_path / name, network, "test_resnet", 5)


def test_a_zip_that_unpacks_to_more_than_its_size_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        with archive.open("w/data/0", "w") as member:
            for _ in range(200):
                member.write(bytes(1 << 20))
    assert (tmp_path / "w.pth").stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"would unpack to 209,715,20\d bytes: these are not its weights"):
        read_weights(tmp_path / "w.pth", network, "test_resnet", 5)


def refused(content: Any, network: nn.Module, folder: Path, name: str = "w.pth") -> str:
    torch.save(content, folder / name)
    with pytest.raises(InputError) as error:
        read_weights(folder / name, network, "test_resnet", 5)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def test_weights_of_another_network_or_head_are_one_line_with_the_first_names(
    network: nn.Module, weights: Weights, tmp_path: Path
) -> None:
    other = refused(create("resnet10t", 5).state_dict(), network, tmp_path)
    assert "does not hold the weights of test_resnet: it lacks " in other
    assert ", such as layer3.0.conv3.weight, " in other
    assert "conv1.0.weight 24×3×3×3 instead of 16×3×3×3" in other
    head = refused(create("test_resnet", 7).state_dict(), network, tmp_path)
    assert "has a last layer of 7 outputs (fc.weight 7×96), not of 5: list its 7 classes" in head
    few = dict(list(weights.items())[4:])
    assert "it lacks 4 of" in (text := refused(few, network, tmp_path))
    assert f"such as {', '.join([*weights][:3])}, …" in text
    more = refused({**weights, "extra\x1b[31m": torch.zeros(1)}, network, tmp_path)
    assert "it has 1 that the network does not know, such as extra?[31m" in more


def test_what_holds_no_weights_is_refused(network: nn.Module, weights: Weights, tmp_path: Path) -> None:
    assert "holds a list and no weights by name" in refused([1, 2], network, tmp_path)
    assert "holds the keys a, b and no weights" in refused({"a": 1, "b": 2}, network, tmp_path)
    assert "holds nothing and no weights" in refused({}, network, tmp_path)
    first = next(iter(weights))
    assert "is not a plain tensor" in refused({"model": {**weights, first: 3}}, network, tmp_path)
    sparse = torch.zeros(2, 2).to_sparse()
    assert "is not a plain tensor" in refused({**weights, first: sparse}, network, tmp_path)
    complex_one = weights[first].to(torch.complex64)
    assert "is not a plain tensor" in refused({**weights, first: complex_one}, network, tmp_path)
    assert "not named as weights are" in refused(weights, network, tmp_path, "w.npz")
    os.mkfifo(tmp_path / "f.pth")
    (tmp_path / "empty.pth").touch()
    for name, message in (
        ("f.pth", "is not a file"),
        ("empty.pth", "is empty"),
        ("none.pth", "cannot be read: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            read_weights(tmp_path / name, network, "test_resnet", 5)
