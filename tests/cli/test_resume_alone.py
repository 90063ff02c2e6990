"""A run that is continued needs nothing but its folder: everything else stands in its config.toml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import qrdali
from qrdali import models, torchvision_weights
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError


def train(*words: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, words)])


@pytest.fixture
def begun(dataset: Dataset, tmp_path: Path) -> Path:
    """A run of one epoch that is to have two, with settings that are no defaults."""
    run = tmp_path / "run"
    options = (
        "--model test_resnet --input-size 32 --batch-size 8 --lr 0.002 --seed 5 --device cpu --threads 1"
    )
    words = ["shared", "--data", dataset.folder, "--run", run, *options.split(), "--threads", 1]
    assert train(*words, "--epochs", 1).exit_code == 0
    # As it would be if it had been stopped: one epoch of two.
    config = run / "config.toml"
    config.write_text(config.read_text().replace("\nepochs = 1\n", "\nepochs = 2\n"))
    continue_after_the_end(run)
    return run


def continue_after_the_end(run: Path) -> None:
    """Makes a finished run one that was stopped."""
    state = run / "last" / "state.json"
    saved = json.loads(state.read_text())
    saved["schedule"]["ended"] = ""
    state.write_text(json.dumps(saved))
    (run / "last" / "SHA256SUMS").unlink()


def epochs(run: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_resume_needs_the_folder_alone(begun: Path) -> None:
    before = (begun / "config.toml").read_text()
    result = train("shared", "--run", begun, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing after epoch 1" in result.output
    assert epochs(begun) == [0, 1, 2]
    assert set(before.splitlines()) - set((begun / "config.toml").read_text().splitlines()) <= {"threads = 1"}


def test_what_is_said_again_must_agree(begun: Path) -> None:
    assert "seed 5 → 6" in str(train("shared", "--run", begun, "--resume", "--seed", 6).exception)
    assert epochs(begun) == [0, 1]
    assert train("shared", "--run", begun, "--resume", "--seed", 5).exit_code == 0


def test_another_method_is_named(begun: Path) -> None:
    error = str(train("baseline", "--run", begun, "--resume").exception)
    assert "is a run of shared, not of baseline" in error
    assert "qrdali train shared" in error


def test_a_run_that_has_not_begun_needs_its_data(tmp_path: Path) -> None:
    for words in (["--resume"], []):
        assert "--data" in str(train("shared", "--run", tmp_path / "new", *words).exception)
    assert not (tmp_path / "new").exists()


def test_python_resumes_by_the_folder_alone(begun: Path) -> None:
    assert qrdali.train("shared", run=begun, resume=True).best.epoch in (0, 1, 2)
    assert epochs(begun) == [0, 1, 2]


def test_a_run_goes_on_when_its_start_is_gone(begun: Path, dataset: Dataset, tmp_path: Path) -> None:
    """What it needs of the start stands in its own best/ and last/."""
    run = tmp_path / "linear"
    words = ["baseline", "--data", dataset.folder, "--run", run, "--init", begun, "--device", "cpu"]
    assert train(*words, "--batch-size", 8, "--max-epochs", 1).exit_code == 0
    config = run / "config.toml"
    config.write_text(config.read_text().replace("\nmax_epochs = 1\n", "\nmax_epochs = 2\n"))
    continue_after_the_end(run)
    begun.rename(tmp_path / "elsewhere")
    result = train("baseline", "--run", run, "--resume")
    assert result.exit_code == 0, result.exception
    assert epochs(run) == [0, 1, 2]
    error = str(train("baseline", *words[1:], "--run", tmp_path / "new").exception)
    assert "is not a run folder" in error


def test_one_image_left_for_batch_norm_is_refused_before_there_is_a_folder(
    dataset: Dataset, tmp_path: Path
) -> None:
    """24 training images in batches of 23 leave one, whose feature map is a single pixel at 8 px."""
    run = tmp_path / "run"
    words = ["shared", "--data", dataset.folder, "--run", run, "--device", "cpu", "--epochs", 1]
    small = ["--model", "test_resnet", "--input-size", 8, "--batch-size"]
    error = str(train(*words, *small, 23).exception)
    assert "--batch-size 23 leaves one of 24 training images alone" in error
    assert "use --batch-size 24" in error
    assert not run.exists()
    assert train(*words, *small, 24).exit_code == 0
    assert models.fails_on_one_image(torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.BatchNorm2d(3)), 8)
    assert not models.fails_on_one_image(torch.nn.BatchNorm2d(3), 8)


def test_networks_with_auxiliary_heads_answer_with_logits() -> None:
    for name in ("googlenet", "torchvision/inception_v3"):
        models.require_logits(name, 4, models.preprocessing(name).input_size)
    with torch.device("meta"):
        output = models.create("googlenet", 4).train()(torch.empty(2, 3, 224, 224))
    assert output.shape == (2, 4)


def test_published_weights_make_the_network_that_reads_its_own_weights_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision

    published = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    weights = torchvision.models.GoogLeNet_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: published)
    monkeypatch.setattr(torchvision_weights, "require_answer", lambda url, cached: None)
    trained, again = models.create("googlenet", 4, pretrained=True), models.create("googlenet", 4)
    again.load_state_dict(trained.state_dict())
    assert trained.transform_input == again.transform_input is True
    assert trained.train()(torch.zeros(2, 3, 224, 224)).shape == (2, 4)


def test_a_network_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pair(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return images, images

    monkeypatch.setattr(models, "create", lambda name, classes, **named: Pair())
    with pytest.raises(InputError, match="answers in training with tuple instead of 4 logits"):
        models.require_logits("pair", 4, 32)


def test_networks_that_cannot_be_counted_have_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, classes: int, **named: Any) -> torch.nn.Module:
        raise ValueError("no weights without values")

    monkeypatch.setattr("qrdali.network_costs.cost_of", lambda library, name: None)
    with monkeypatch.context() as patch:
        patch.setattr(models, "create", create)
        row = models.describe("regnet_x_16gf")
        assert (row.parameters, row.gmacs, row.input_size) == (None, None, 224)
        result = CliRunner().invoke(cli, ["models", "regnet_x_16*", "--json"])
        assert json.loads(result.stdout)["models"][0]["parameters"] is None
    monkeypatch.setattr("qrdali.cli.models.COUNTING_SECONDS", 0)
    said = CliRunner().invoke(cli, ["models", "test_resnet*"])
    assert said.exit_code == 0
    assert "have no figures" in said.output
    assert "test_resnet" in said.output
