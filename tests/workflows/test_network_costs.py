"""What networks cost, and which of them are refused before a run has a folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from qrdali import models, network_costs
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError

DOZEN = (
    "squeezenet1_1", "timm/resnet152", "efficientnet_b3", "test_resnet", "cait_xxs24_224", "test_vit3",
    "torchvision/alexnet", "torchvision/regnet_x_16gf", "torchvision/inception_v3", "torchvision/vit_h_14",
    "torchvision/swin_t", "deit_tiny_distilled_patch16_224",
)  # fmt: skip


class Sees(torch.nn.Module):
    """Looks at a value of its input, as no network can on the meta device; `answer` makes its output."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.answer = answer

    def forward(self, images: torch.Tensor) -> object:
        assert float(images.sum()) == 0
        logits = self.norm(images).mean((2, 3))
        if self.answer == "fails":
            raise RuntimeError("size 31\nis odd")
        return (logits, logits) if self.training and self.answer == "pair" else logits


@pytest.mark.parametrize("name", DOZEN)
def test_the_table_is_what_counting_gives(name: str) -> None:
    counted, shown = models.count(name), models.describe(name)
    assert counted.parameters == shown.parameters
    assert counted.gmacs is not None
    assert counted.gmacs == pytest.approx(shown.gmacs, rel=1e-6)
    assert counted.input_size == shown.input_size
    library, _, bare = name.rpartition("/")
    cost = network_costs.cost_of(library or "timm", bare) or network_costs.cost_of("torchvision", bare)
    assert cost is not None
    assert (cost.parameters, cost.input_size) == (counted.parameters, counted.input_size)


def test_every_network_has_figures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        models, "count", lambda *_: pytest.fail("not in the table: run benchmarks/network_costs.py")
    )
    begun = time.monotonic()
    rows = [models.describe(name) for name in models.model_names()]
    assert len(rows) > 1300
    assert all(row.parameters and row.gmacs for row in rows)
    assert time.monotonic() - begun < 30


def test_another_version_of_the_library_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    published = network_costs.cost_of("timm", "test_resnet")
    assert published is not None
    monkeypatch.setattr(network_costs.metadata, "version", lambda library: "0.0.1+cu126")
    network_costs._table.cache_clear()
    try:
        assert network_costs.installed_version("timm") == "0.0.1"
        assert network_costs.cost_of("timm", "test_resnet") is None
        assert models.describe("test_resnet").parameters == published.parameters
    finally:
        network_costs._table.cache_clear()


def test_other_classes_or_sizes_are_counted() -> None:
    few, small = models.describe("test_resnet", 4), models.describe("test_resnet", input_size=32)
    whole = models.describe("test_resnet")
    assert few.parameters is not None
    assert whole.parameters is not None
    assert few.parameters < whole.parameters == small.parameters
    assert small.gmacs is not None
    assert whole.gmacs is not None
    assert small.gmacs < whole.gmacs


def test_a_network_blind_to_the_meta_device_is_tried_on_two_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, message in (("pair", "answers in training with tuple"), ("fails", "cannot be trained on")):
        model = Sees(answer)
        monkeypatch.setattr(models, "create", lambda name, classes, model=model: model)
        with pytest.raises(InputError, match=message) as refused:
            models.require_logits("sees", 3, 32, model)
        assert "\n" not in str(refused.value)
        models.require_logits("sees", 3, 32)
    model, state = Sees("logits"), torch.get_rng_state()
    models.require_logits("sees", 3, 32, model)
    assert int(model.norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_train_refuses_it_before_there_is_a_folder(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.create_model", lambda name, **options: Sees("pair"))
    words = ["shared", "--data", dataset.folder, "--run", tmp_path / "run", "--model", "test_resnet"]
    words += ["--input-size", 32, "--device", "cpu", "--epochs", 1]
    result = CliRunner().invoke(cli, ["train", *map(str, words)])
    assert isinstance(result.exception, InputError)
    assert "answers in training with tuple" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_network_is_built_for_its_published_size() -> None:
    with torch.device("meta"):
        model = models.create("torchvision/vit_h_14", 4)
        side = models.preprocessing("torchvision/vit_h_14").input_size
        assert side == 518
        assert model(torch.empty(1, 3, side, side)).shape == (1, 4)
