"""Training with augmentations: mixed images and losses, what is refused, and runs that are stopped and
continued."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_fakes import FakeSource, stopped_again_and_again, trainer_of
from safetensors.torch import load_file
from test_trainer_loop import equal, rows, saved
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted
from qrdali.interfaces import Batch, JobControl
from qrdali.reduction.mixing import Box, Mix, MixRule
from qrdali.runs.configuration import applicable, names_of
from qrdali.runs.settings import Settings, read_settings, validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.schedule.methods import check_settings
from qrdali.training.mixed_batch import MixedBatch
from qrdali.workflows import train as train_workflow
from qrdali.workflows.train import run_training

ALL: dict[str, Any] = {"auto_augment": "rand-m9", "erase": 0.5, "mixup": 0.4, "cutmix": 1.0}


def batch(count: int = 5, side: int = 6) -> Batch:
    torch.manual_seed(0)
    images = torch.randn(count, side, side, 3).permute(0, 3, 1, 2)
    return Batch(images, torch.arange(count) % 4, torch.arange(count), 0)


# What a mix makes of images and losses


def test_mixup_is_the_weighted_sum_of_two_images() -> None:
    plain, partner = batch(), np.array([3, 1, 0, 4, 2])
    before = plain.images.clone()
    mixed = MixedBatch.of(plain, Mix(0.7, partner, None))
    torch.testing.assert_close(mixed.images, 0.7 * before + 0.3 * before[partner])
    assert torch.equal(plain.images, before)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed.labels.tolist() == plain.labels.tolist()
    assert mixed.partner_labels is not None
    assert mixed.partner_labels.tolist() == plain.labels[partner].tolist()


def test_cutmix_takes_a_box_of_the_partner() -> None:
    plain, partner = batch(), np.array([3, 1, 0, 4, 2])
    before = plain.images.clone()
    mixed = MixedBatch.of(plain, Mix(1 - 6 / 36, partner, Box(1, 2, 3, 5)))
    expected = before.clone()
    expected[:, :, 1:3, 2:5] = before[partner][:, :, 1:3, 2:5]
    assert torch.equal(mixed.images, expected)
    assert torch.equal(plain.images, before)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_timms_mixed_targets(smoothing: float) -> None:
    plain = batch(6)
    logits = torch.randn(6, 4)
    mixed = MixedBatch.of(plain, Mix(0.3, np.arange(6)[::-1].copy(), None))  # timm's partners
    loss = mixed.loss(torch.nn.CrossEntropyLoss(label_smoothing=smoothing), logits)
    targets = mixup_target(plain.labels, 4, 0.3, smoothing)
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, targets))


def test_without_a_mix_the_batch_is_itself() -> None:
    plain = batch()
    same = MixedBatch.of(plain, None)
    assert same.images is plain.images
    loss = torch.nn.CrossEntropyLoss()
    logits = torch.randn(5, 4)
    assert torch.equal(same.loss(loss, logits), loss(logits, plain.labels))
    assert [part.labels.tolist() for part in same.split(2)] == [[0, 1, 2], [3, 0]]


def test_parts_of_a_mixed_batch_are_the_whole() -> None:
    mixed = MixedBatch.of(batch(), Mix(0.7, np.array([3, 1, 0, 4, 2]), None))
    parts = mixed.split(2)
    assert torch.equal(torch.cat([part.images for part in parts]), mixed.images)
    assert mixed.partner_labels is not None
    others = [part.partner_labels for part in parts]
    assert torch.equal(torch.cat([labels for labels in others if labels is not None]), mixed.partner_labels)
    assert {part.share for part in parts} == {0.7}


def test_accuracy_is_that_of_an_images_own_class(tmp_path: Path) -> None:
    step = trainer_of(tmp_path / "run").train_step
    step.begin_training()
    images = torch.zeros(4, 3, 2, 2)
    images[2:] = 5.0
    labels = torch.tensor([0, 0, 1, 1])
    for _ in range(60):
        step.step(Batch(images, labels, torch.arange(4), 0), 4)
    step.model.eval()
    outcome = step.step(Batch(images, labels, torch.arange(4), 0), 4, Mix(0.05, np.array([2, 3, 0, 1]), None))
    assert outcome is not None
    assert outcome[1].tolist() == [False] * 4  # all look like the others'


# What a run does with them


def test_what_a_step_mixes_depends_on_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, Mix]] = []
    draw = MixRule.draw

    def keeping(self: MixRule, epoch: int, step: int, count: int) -> Mix:
        seen.append((epoch, step, draw(self, epoch, step, count)))
        return seen[-1][2]

    monkeypatch.setattr(MixRule, "draw", keeping)
    trainer_of(tmp_path / "run", mixup=1.0, seed=5, max_epochs=2, patience=5).train(False)
    monkeypatch.undo()
    assert [(epoch, step) for epoch, step, _ in seen] == [(e, s) for e in (1, 2) for s in range(3)]
    rule = MixRule(1.0, 0.0, 5, 2)
    assert [mix.share for _, _, mix in seen] == [rule.draw(e, s, 4).share for e, s, _ in seen]


def test_plans_of_training_are_augmented_and_others_are_not(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path / "run", method="fixed", reduction="color", sequence="RC", max_epochs=2, **ALL
    )
    trainer.train(False)
    train, val = trainer.splits.train.source, trainer.splits.val.source
    assert isinstance(train, FakeSource)
    assert isinstance(val, FakeSource)
    levels = [plan.levels.for_samples(np.zeros(1, np.int64)).any() for plan in train.plans]
    assert levels == [True, False]
    assert [(plan.auto_augment, plan.erase) for plan in train.plans] == [("rand-m9", 0.5)] * 2
    assert all(plan.policy is None and not plan.erases for plan in val.plans)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "baseline", "patience": 5},
        {"method": "linear", "reduction": "color", "sequence": "RC", "patience": 1, "accumulate": 2},
        {"method": "adaptive", "reduction": "color", "sequence": "RC", "patience": 1},
    ],
    ids=lambda values: values["method"],
)
def test_a_run_that_is_stopped_mixes_on_as_one_that_is_not(tmp_path: Path, values: dict[str, Any]) -> None:
    values = {**values, **ALL, "max_epochs": 4, "label_smoothing": 0.1}
    trainer_of(tmp_path / "whole", **values).train(False)
    run = tmp_path / "stopped"
    assert stopped_again_and_again(run, **values) > 4
    assert rows(tmp_path / "whole") == rows(run)
    for file in ("last/model", "last/optimizer", "last/random", "best/model"):
        assert equal(saved(tmp_path / "whole", file), saved(run, file)), file
    trainer_of(tmp_path / "plain", **{**values, "mixup": 0.0, "cutmix": 0.0}).train(False)
    assert not equal(saved(tmp_path / "plain", "last/model"), saved(run, "last/model"))


def settings_of(dataset: Dataset, **values: Any) -> Settings:
    base = {
        "method": "shared",
        "data": str(dataset.folder),
        "model": "test_resnet",
        "input_size": 32,
        "batch_size": 8,
        "device": "cpu",
        "threads": 1,
        "epochs": 2,
        "lr": 0.01,
    }
    return validate_settings({**base, **values})


@pytest.mark.parametrize("policy", ["rand-m9", "augmix"])
def test_a_run_on_images_that_is_stopped_ends_as_one_that_is_not(
    dataset: Dataset, tmp_path: Path, policy: str
) -> None:
    settings = settings_of(dataset, **{**ALL, "auto_augment": policy})
    whole, run = tmp_path / "whole", tmp_path / "stopped"
    run_training(settings, whole, False)
    for stops in range(40):
        calls = itertools.count(1)
        control = JobControl(stop=lambda c=calls, due=2 + stops % 3: 15 if next(c) == due else 0)  # type: ignore[misc]
        try:
            run_training(settings, run, True, control)
            break
        except Interrupted:
            pass
    assert stops > 2
    assert rows(whole) == rows(run)
    for name in ("last/model", "last/optimizer", "best/model"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (whole, run))
        assert equal(one, other), name
    recorded = read_settings(run / "config.toml")
    assert {name: recorded[name] for name in ALL} == {**ALL, "auto_augment": policy}


def test_a_run_keeps_its_augmentations(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    calls = itertools.count(1)
    with pytest.raises(Interrupted):
        run_training(settings_of(dataset, **ALL), run, False, JobControl(stop=lambda: 15 * (next(calls) > 3)))
    with pytest.raises(InputError, match="mixup"):
        run_training(settings_of(dataset, **{**ALL, "mixup": 0.5}), run, True)


# What is refused, and what makes another configuration


def checked(**values: Any) -> None:
    check_settings(validate_settings({"method": "shared", "data": "", **values}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"auto_augment": "rand-9"}, r"auto_augment = 'rand-9': give rand-mM with M from 0 to 30"),
        ({"auto_augment": "rand-m31"}, "give rand-mM with M from 0 to 30, such as rand-m9, or trivial"),
        ({"auto_augment": "\x1b[31m" * 99}, "auto_augment = "),
        ({"auto_augment": 9}, "auto_augment = 9: "),
        ({"erase": 1.1}, "erase = 1.1: .*less than or equal to 1"),
        ({"erase": -0.1}, "erase = -0.1: "),
        ({"mixup": -1}, "mixup = -1: "),
        ({"mixup": float("inf")}, "mixup = inf: "),
        ({"cutmix": float("nan")}, "cutmix = nan: "),
        ({"cutmix": 1e9}, "cutmix = 1000000000.0: "),
        ({"method": "adaptive", "feedback": "online", "mixup": 0.2}, "--mixup .*--feedback online .*probe"),
        ({"method": "adaptive", "feedback": "online", "cutmix": 1.0}, "--cutmix .*--feedback online"),
    ],
)
def test_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        checked(**values)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "values",
    [
        {"method": "adaptive", "feedback": "online", "auto_augment": "rand-m9", "erase": 0.5},
        {"method": "adaptive", "mixup": 0.2, "cutmix": 1.0},
        {"auto_augment": "none"},
        {"auto_augment": "augmix"},
        {"erase": 1.0, "mixup": 0.2},
    ],
)
def test_not_refused(values: dict[str, Any]) -> None:
    checked(**values)


def test_augmix_on_a_gpu_is_refused_before_anything_is_written(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_workflow, "resolve_device", lambda device: torch.device("cuda", 0))
    with pytest.raises(InputError, match="^--auto-augment augmix is made on a CPU only"):
        run_training(settings_of(dataset, auto_augment="augmix"), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_augmentations_tell_configurations_apart_where_they_have_an_effect() -> None:
    plain = validate_settings({"method": "baseline", "data": ""})
    assert not {*ALL} & {*applicable(plain)}
    for name, value in ALL.items():
        assert applicable(validate_settings({"method": "baseline", "data": "", name: value}))[name] == value


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "baseline"),
        ({"auto_augment": "rand-m9"}, "baseline rand-m9"),
        ({"auto_augment": "trivial", "match_steps": 10}, "baseline matched trivial"),
        ({"auto_augment": "none"}, "baseline"),
        ({"method": "shared", "auto_augment": "rand-m9"}, "shared"),
        ({"method": "linear", "auto_augment": "rand-m9"}, "linear"),
    ],
)
def test_names_of_runs(values: dict[str, Any], name: str) -> None:
    assert names_of(validate_settings({"method": "baseline", "data": "", **values}))[0] == name


def test_the_epochs_of_a_pair_with_one_order_are_augmented_alike(tmp_path: Path) -> None:
    """They differ in reductions only."""
    trainer = trainer_of(
        tmp_path / "run",
        method="fixed",
        reduction="color",
        sequence="RC",
        max_epochs=4,
        same_order=True,
        **ALL,
    )
    trainer.train(False)
    source = trainer.splits.train.source
    assert isinstance(source, FakeSource)
    drawn: Callable[[EpochPlan], Any] = lambda plan: plan.augmentation(np.arange(12), 2)  # noqa: E731
    first, second, third, _ = (drawn(plan).draws.operator for plan in source.plans)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
