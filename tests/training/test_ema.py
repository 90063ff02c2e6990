"""--ema: the average of weights is what timm's definition says, is the network that answers, and survives a
SIGKILL."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError
from qrdali.runs import checkpoint
from qrdali.runs.settings import Settings, validate_settings
from qrdali.training import level_stages as stages
from qrdali.training import optimizer_step as learner
from qrdali.training import validation
from qrdali.workflows.train import run_training

DECAY = 0.75


@pytest.fixture
def settings(dataset: Dataset) -> Settings:
    return validate_settings(
        {
            "method": "shared",
            "data": str(dataset.folder),
            "model": "test_resnet",
            "input_size": 32,
            "batch_size": 8,
            "device": "cpu",
            "threads": 1,
            "epochs": 1,
            "lr": 0.01,
            "seed": 3,
            "ema": DECAY,
        }
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_average_is_validated_and_saved(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, torch.Tensor]] = []
    answered: list[dict[str, torch.Tensor]] = []
    optimize, evaluate = learner.TrainStep._forward_backward, validation.predict

    def passes(self: learner.TrainStep, *rest: Any) -> Any:
        steps.append(
            {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        )  # as the step before left them
        return optimize(self, *rest)

    def asked(model: torch.nn.Module, *rest: Any, **named: Any) -> Any:
        answered.append({name: value.clone() for name, value in model.state_dict().items()})
        return evaluate(model, *rest, **named)

    monkeypatch.setattr(learner.TrainStep, "_forward_backward", passes)
    monkeypatch.setattr(validation, "predict", asked)
    monkeypatch.setattr(
        validation.PredictionRows, "accuracy", property(lambda rows: float(len(answered)))
    )  # every epoch is the best
    run_training(settings, tmp_path / "run", False)
    last, best = (
        load_file(tmp_path / "run" / file) for file in ("last/ema.safetensors", "best/model.safetensors")
    )
    trained = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert same(best, last)
    assert same(answered[1], last)
    assert same(answered[0], steps[0])  # the average begins with the start weights
    for name in (name for name in trained if name.endswith("weight")):
        assert not torch.equal(last[name], trained[name])
        average = steps[0][name].double()
        for weights in [*steps[1:], trained]:
            average = DECAY * average + (1 - DECAY) * weights[name].double()
        torch.testing.assert_close(last[name].double(), average, atol=1e-6, rtol=1e-5)
    assert all(int(last[name]) == 3 for name in last if name.endswith("num_batches_tracked"))


def test_a_probe_asks_the_average_and_patience_takes_it_back(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[dict[str, torch.Tensor]] = []
    step, save = stages.descend_by_probe, checkpoint.save

    def asking(model: torch.nn.Module, *rest: Any) -> Any:
        probed.append({name: value.clone() for name, value in model.state_dict().items()})
        return step(model, *rest)

    units: list[dict[str, torch.Tensor]] = []

    def saving(folder: Path, state: dict[str, Any], **rest: Any) -> None:
        save(folder, state, **rest)
        if folder.name == "unit":
            units.append(load_file(folder / "ema.safetensors"))

    monkeypatch.setattr(stages, "descend_by_probe", asking)
    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(
        validation.PredictionRows, "accuracy", property(lambda rows: 0.5)
    )  # the first unit of a stage stays its best
    chosen = validate_settings(
        {
            **settings.model_dump(),
            "method": "adaptive",
            "reduction": "color",
            "sequence": "CR",
            "patience": 1,
            "max_epochs": 5,
        }
    )
    run_training(chosen, tmp_path / "run", False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows[1:5]] == [1, 1, 1, 1]
    assert len(probed) == 2
    assert same(probed[1], units[0])  # after the stage's second pair the average of its first is back


def test_it_is_not_changed_on_the_way(settings: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_training(settings, run, False)
    with pytest.raises(InputError, match=r"ema 0.75 → 0.5"):
        run_training(settings.model_copy(update={"ema": 0.5}), run, True)
    for folder in ("last", "last.old"):
        if (run / folder).exists():
            (run / folder / "ema.safetensors").unlink()
    state = json.loads((run / "last" / "state.json").read_text())
    state["schedule"]["ended"] = ""
    (run / "last" / "state.json").write_text(json.dumps(state))
    (run / "last" / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match=r"ema.safetensors cannot be read: it is missing"):
        run_training(settings, run, True)
    with pytest.raises(InputError, match="ema"):
        validate_settings({**settings.model_dump(), "ema": 1.0})
