"""Options of optimizer and network: keywords, clipped gradients, frozen parts, rates by layer, a growing
average, checkpointed gradients, compiled steps, and steps that do not fit into memory."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_fakes import Recorder, stopped_again_and_again, trainer_of
from safetensors.torch import load_file
from test_trainer_loop import equal, rows, saved
from torch import nn

from qrdali import models
from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted, RunError
from qrdali.interfaces import Batch, JobControl, never_stop
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.methods import check_settings
from qrdali.training import optimizer_step
from qrdali.training.memory_trial import out_of_memory
from qrdali.training.network_parts import fixed_norms, prepare_network
from qrdali.workflows.train import run_training


def trained(
    dataset: Dataset,
    run: Path,
    listener: Recorder | None = None,
    stop: Callable[[], int] = never_stop,
    **values: Any,
) -> Path:
    """Trains a run of small images, or continues it."""
    base = {
        "method": "shared",
        "data": str(dataset.folder),
        "input_size": 32,
        "batch_size": 8,
        "device": "cpu",
        "threads": 1,
        "epochs": 1,
        "lr": 0.01,
    }
    if "init" not in values:
        base["model"] = "test_resnet"
    run_training(validate_settings({**base, **values}), run, True, JobControl(listener or Recorder(), stop))
    return run


@pytest.fixture
def train(dataset: Dataset, tmp_path: Path) -> Callable[..., Path]:
    return lambda name, **values: trained(dataset, tmp_path / name, **values)


@pytest.fixture(scope="module")
def start(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the defaults, which is not changed."""
    return trained(dataset, tmp_path_factory.mktemp("start") / "run")


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


# --model-option


def test_options_of_the_network_stay_with_its_weights(train: Callable[..., Path], start: Path) -> None:
    run = train("a", model_options={"stem_width": 8, "drop_path_rate": 0.2})
    model, trained = run_folder.load_best(run)
    assert trained.model_options == {"stem_width": 8, "drop_path_rate": 0.2}
    assert json.loads((run / "best/state.json").read_text())["model_options"] == trained.model_options
    assert model.conv1[0].out_channels == 8  # type: ignore[index, union-attr]
    # What follows has the network's options, and its own in place of them.
    after = train("b", init=str(run), model_options={"drop_path_rate": 0.5})
    assert run_folder.describe_best(after).model_options == {"stem_width": 8, "drop_path_rate": 0.5}
    with pytest.raises(RunError, match="its options make another network: .* differs"):
        train("c", init=str(run), model_options={"stem_width": 16})
    assert "model_options" not in json.loads((start / "best/state.json").read_text())


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("test_resnet", {"drop_path_rat": 0.1}, "no such option; near it: drop_path_rate"),
        ("test_resnet", {"num_classes": 3}, "no such option"),
        ("test_resnet", {"checkpoint_path": "/etc/passwd"}, "no such option"),
        ("test_resnet", {"pretrained": True}, "no such option"),
        ("squeezenet1_1", {"weights": "DEFAULT"}, "no such option; it has dropout"),
        ("squeezenet1_1", {"version": "1_0"}, "cannot be built with it"),
        ("test_resnet", {"drop_path_rate": "much"}, "cannot be built with it"),
        ("test_resnet", {"layers": [10**6, 1, 1, 1]}, "is larger than 4096"),
    ],
)
def test_unknown_options_of_a_network(model: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        models.create(model, 4, options=options)


@pytest.mark.parametrize(
    "options", [{"stem_width": 64}, {"drop": 1}, {"stem_width": 1e9}, {"a b": 1}, [1], {"x": {"y": 1}}]
)
def test_a_checkpoint_with_options_of_another_network_is_refused(
    start: Path, tmp_path: Path, options: Any
) -> None:
    run = shutil.copytree(start, tmp_path / "run")
    file = run / "best/state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_options": options}))
    (run / "best/SHA256SUMS").unlink()
    with pytest.raises((InputError, RunError)) as error:
        run_folder.load_best(run)
    assert len(str(error.value)) < 400 + len(str(run))


# --optimizer-option, --clip-grad, --layer-decay


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optimizer_options": {"beta": 1}}, "--optimizer-option beta: .* no such option; near it: betas"),
        ({"optimizer_options": {"lr": 1}}, "--optimizer-option lr: .* no such option"),
        ({"optimizer_options": {"betas": [2, 3]}}, "betas=.*does not take it .Invalid beta"),
        ({"optimizer": "sgd", "optimizer_options": {"eps": 1}}, "near it: .*|it has "),
        ({"optimizer": "adamwx"}, "no optimizer is called 'adamwx'; near it: .*adamw"),
        ({"ema_warmup": True}, "--ema-warmup .* such as --ema 0.999"),
        ({"freeze": "head"}, "--freeze head .* --init or --pretrained"),
    ],
)
def test_refused_settings(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_settings(validate_settings({"method": "shared", "data": "", **values}))


@pytest.mark.parametrize(
    "values", [{"freeze": "0"}, {"freeze": "tail"}, {"clip_grad": -1}, {"layer_decay": 0}]
)
def test_refused_values(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        validate_settings({"method": "shared", "data": "", **values})


def test_keywords_reach_the_optimizer(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", optimizer_options={"betas": [0.8, 0.9], "eps": 1e-5})
    (group,) = {(tuple(group["betas"]), group["eps"]) for group in trainer.train_step.optimizer.param_groups}
    assert group == ((0.8, 0.9), 1e-5)


@pytest.mark.parametrize("limit", [0.0, 0.01])
def test_gradients_are_clipped_by_their_norm(tmp_path: Path, limit: float) -> None:
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=1, clip_grad=limit)
    model, norms = trainer.train_step.model, list[float]()
    step = trainer.train_step.optimizer.step

    def noting(*arguments: Any) -> Any:
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        return step(*arguments)

    trainer.train_step.optimizer.step = noting  # type: ignore[method-assign]
    trainer.train(False)
    assert len(norms) == 3
    assert all(norm == pytest.approx(limit, rel=1e-3) for norm in norms) == bool(limit)


def test_each_layer_has_the_rate_of_the_next_times_a_factor(train: Callable[..., Path]) -> None:
    run = train("a", layer_decay=0.5, lr_schedule="cosine", epochs=2)
    groups = json.loads((run / "last.old/state.json").read_text())["optimizer"]["param_groups"]
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales[-1] == 1.0
    assert all(low == high / 2 for low, high in itertools.pairwise(scales))
    half = rows(run)[1]["lr"]
    assert half == pytest.approx(0.005)
    assert {group["lr"] / group["lr_scale"] for group in groups} == {half}


def test_a_constant_rate_has_its_layers_scaled_too(tmp_path: Path, train: Callable[..., Path]) -> None:
    state = json.loads((train("a", layer_decay=0.5) / "last/state.json").read_text())
    rates = {group["lr"] for group in state["optimizer"]["param_groups"]}
    assert max(rates) == 0.01
    assert len(rates) > 2
    with pytest.raises(InputError, match="--layer-decay 0.5: timm does not know the layers of squeezenet1_1"):
        train("b", layer_decay=0.5, model="squeezenet1_1")


def test_optimizers_that_a_run_cannot_have_are_refused_in_one_line(train: Callable[..., Path]) -> None:
    refused = {
        "adahessian": "optimizer adahessian needs gradients of gradients",
        "kronw": "optimizer kronw draws random numbers of its own",
    }
    if not torch.cuda.is_available():
        refused["bnbadam"] = "optimizer bnbadam does not work here: CUDA required"
    for name, said in refused.items():
        with pytest.raises(InputError, match=said) as error:
            train("a", optimizer=name)
        assert "\n" not in str(error.value)


# --freeze


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_head_is_trained(train: Callable[..., Path], start: Path) -> None:
    run = train("b", init=str(start), freeze="head", ema=0.5)
    assert changed(weights(start, "best"), weights(run)) == {"fc.weight", "fc.bias"}
    assert changed(weights(start, "best"), load_file(run / "last/ema.safetensors")) == {
        "fc.weight",
        "fc.bias",
    }


def test_the_first_stages_stay_as_they_are_with_their_statistics(
    train: Callable[..., Path], start: Path
) -> None:
    run = train("b", init=str(start), freeze="3")  # stem, layer1 and layer2
    names = changed(weights(start, "best"), weights(run))
    assert {name.split(".")[0] for name in names} == {"layer3", "layer4", "fc"}
    assert any("running_mean" in name for name in names)
    with pytest.raises(InputError, match="--freeze 6 leaves nothing to train: test_resnet has 6 stages"):
        train("c", init=str(start), freeze="6")


def test_a_network_of_torchvision_has_a_head_and_no_stages() -> None:
    model = models.create("squeezenet1_1", 4)

    def frozen(value: str) -> Settings:
        return validate_settings(
            {"method": "shared", "data": "", "model": "squeezenet1_1", "pretrained": True, "freeze": value}
        )

    prepare_network(model, frozen("head"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(InputError, match="--freeze 2: timm does not know the stages of squeezenet1_1"):
        prepare_network(model, frozen("2"))


def test_batch_norm_without_weights_belongs_to_its_part() -> None:
    part = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    other = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False))
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    assert fixed_norms(nn.Sequential(part, other)) == [part[1]]


@pytest.mark.parametrize(
    "schedule", [{"lr_schedule": "cosine"}, {"lr_schedule": "wsd", "decay_epochs": 1}], ids=["cosine", "wsd"]
)
def test_a_frozen_network_stopped_again_and_again_ends_as_if_it_never_was(
    dataset: Dataset, tmp_path: Path, start: Path, schedule: dict[str, Any]
) -> None:
    values = {
        "init": str(start),
        "freeze": "2",
        "layer_decay": 0.8,
        "clip_grad": 1.0,
        "ema": 0.9,
        "ema_warmup": True,
        "warmup_epochs": 0.5,
        "epochs": 2,
        "save_every": "1",
        **schedule,
    }
    whole = trained(dataset, tmp_path / "whole", **values)
    run, stops = tmp_path / "stopped", 0
    while True:
        calls, due = iter(range(10**6)), 3 + stops % 2
        try:
            trained(dataset, run, None, lambda c=calls, due=due: 15 if next(c) >= due else 0, **values)
            break
        except Interrupted:
            stops += 1
    assert stops > 1
    assert rows(whole) == rows(run)
    for name in ("last/model", "last/ema", "last/optimizer", "last/random", "best/model"):
        assert equal(saved(whole, name), saved(run, name)), name


# --ema-warmup


def test_the_average_follows_at_first_and_slows_down(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=2, ema=0.5, ema_warmup=True)
    step, seen = trainer.train_step.step, list[tuple[dict[str, Any], dict[str, Any]]]()

    def noting(*arguments: Any) -> Any:
        outcome = step(*arguments)
        model, average = trainer.train_step.model, trainer.train_step.eval_model
        seen.append(
            tuple({k: v.clone() for k, v in one.state_dict().items()} for one in (model, average))  # type: ignore[arg-type]
        )
        return outcome

    trainer.train_step.step = noting  # type: ignore[method-assign]
    trainer.train(False)
    assert equal(*seen[0])  # timm's decay of the first update is 0
    expected = seen[0][0]["2.weight"].double()
    for number, (model, average) in enumerate(seen[1:], 2):
        decay = min(0.5, 1 - (1 + (number - 1)) ** (-2 / 3))
        expected = decay * expected + (1 - decay) * model["2.weight"].double()
        torch.testing.assert_close(average["2.weight"].double(), expected, atol=1e-6, rtol=1e-5)
    assert json.loads((tmp_path / "run/last/state.json").read_text())["ema_steps"] == 6


def test_a_run_with_everything_is_resumed_as_if_never_stopped(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "patience": 1,
        "max_epochs": 6,
        "save_every": "1",
        "ema": 0.9,
        "ema_warmup": True,
        "clip_grad": 0.5,
        "layer_decay": 0.7,
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.8},
        "lr_schedule": "wsd",
        "decay_epochs": 2,
        "warmup_epochs": 1,
    }
    trainer_of(tmp_path / "whole", **values).train(False)
    run = tmp_path / "stopped"
    assert stopped_again_and_again(run, **values) > 4
    assert rows(tmp_path / "whole") == rows(run)
    for file in ("last/model", "last/ema", "last/optimizer", "last/random", "best/model"):
        assert equal(saved(tmp_path / "whole", file), saved(run, file)), file


# --grad-checkpointing, --compile


def test_checkpointed_gradients_are_the_same(train: Callable[..., Path]) -> None:
    # Batch norm counts its statistics twice then: a network without it.
    runs = [
        train(str(value), model="test_convnext", grad_checkpointing=value, ema=0.5) for value in (False, True)
    ]
    for name, value in weights(runs[0]).items():
        torch.testing.assert_close(value, weights(runs[1])[name], atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="--grad-checkpointing: squeezenet1_1 has none"):
        train("c", model="squeezenet1_1", grad_checkpointing=True)


def test_a_compiled_network_has_the_names_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer_of(tmp_path / "plain", method="shared", epochs=1).train(False)
    compiled, compile_ = list[object](), torch.compile

    def by_eager(module: Any) -> Any:
        compiled.append(module)
        return compile_(module, backend="eager")  # no compiler is needed for the rest of it

    monkeypatch.setattr(torch, "compile", by_eager)
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=1, compile=True)
    assert compiled[-1] is trainer.train_step.model
    trainer.train(False)
    for name in ("last/model", "best/model"):
        assert equal(saved(tmp_path / "run", name), saved(tmp_path / "plain", name))
    (parts,) = [trainer_of(tmp_path / "parts", compile=True).train_step]
    assert parts._forward is not parts.model


def test_without_a_compiler_training_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(function: Any) -> Any:
        raise RuntimeError("no C++ compiler\nis here")

    monkeypatch.setattr(torch, "compile", missing)
    listener = Recorder()
    trainer_of(tmp_path / "run", listener, method="shared", epochs=1, compile=True).train(False)
    assert listener.warnings == [
        "--compile: torch.compile does not work here (no C++ compiler); training goes on without it"
    ]
    assert len(rows(tmp_path / "run")) == 2


# Memory


class Limited(nn.Module):
    """A network that has room for so many images in training, and less once there are gradients."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network, self.images, self.seen = network, images, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(len(images))
            gradients = any(p.grad is not None for p in self.parameters())
            if len(images) > self.images - gradients:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return self.network(images)  # type: ignore[no-any-return]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    def limit(images: int) -> None:
        plain = optimizer_step.RunSpec.__init__

        def init(self: Any, *rest: Any, **named: Any) -> None:
            plain(self, *rest, **named)
            object.__setattr__(self, "model", Limited(self.model, images))

        monkeypatch.setattr(optimizer_step.RunSpec, "__init__", init)

    return limit  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("room", "values", "said"),
    [
        (3, {}, "--batch-size 4: --accumulate 2 fits, as a trial has shown, and so does --batch-size 2"),
        # Two images fit alone, but not beside the gradients of the two before them.
        (2, {}, "--batch-size 4: --accumulate 4 fits, as a trial has shown, and so does --batch-size 1"),
        (
            2,
            {"batch_size": 12, "accumulate": 2},
            "--batch-size 12 in --accumulate 2 parts: --accumulate 12 fits, as a trial has shown, and so "
            "does --batch-size 1 without --accumulate",
        ),
        (1, {}, "--batch-size 4, nor for one image at a time: use a smaller --input-size or another --model"),
    ],
)
def test_a_first_step_that_does_not_fit_says_what_would(
    tmp_path: Path, limited: Callable[[int], None], room: int, values: dict[str, Any], said: str
) -> None:
    limited(room)
    run = tmp_path / "run"
    trainer = trainer_of(run, method="shared", epochs=1, **values)
    with pytest.raises(RunError) as error:
        trainer.train(False)
    assert str(error.value) == f"the GPU's memory does not suffice for a step of {said}"
    assert not (run / "last").exists()  # what the trials have trained is not saved


def test_a_rank_tries_alone_and_names_the_batch_of_all(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    limited(3)
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=1, batch_size=8)
    before = {name: value.clone() for name, value in trainer.train_step.model.state_dict().items()}
    batch = Batch(torch.randn(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4), 0)
    error = out_of_memory(trainer.train_step, batch, trainer.settings, 2)
    assert "--batch-size 8: --accumulate 2 fits, as a trial has shown, and so does --batch-size 4" in str(
        error
    )
    # Others may be waiting in DDP for the network itself: a copy was tried.
    assert all(parameter.grad is None for parameter in trainer.train_step.model.parameters())
    assert equal(before, dict(trainer.train_step.model.state_dict()))
    synchronized = trainer.settings.model_copy(update={"sync_batch_norm": True})
    assert str(out_of_memory(trainer.train_step, batch, synchronized, 2)).endswith(
        "--batch-size 8: --batch-size 4 fits, as a trial has shown"
    )
    assert "has none of its images" in str(out_of_memory(trainer.train_step, None, trainer.settings, 2))


def test_later_steps_without_memory_are_not_tried_again(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    limited(9)
    trainer = trainer_of(tmp_path / "run", method="shared", epochs=1)
    model, step = trainer.train_step.model, trainer.train_step.step
    assert isinstance(model, Limited)
    taken = list[int]()

    def shrinking(*arguments: Any) -> Any:
        taken.append(1)
        model.images = 9 if len(taken) == 1 else 0
        return step(*arguments)

    trainer.train_step.step = shrinking  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train(False)
    assert model.seen == [4, 4]
