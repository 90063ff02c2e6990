"""qrdali.Loader: the batches of `qrdali train`, set epoch by epoch, of one process and of several."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qrdali
from qrdali.data.index import Dataset
from qrdali.models import Preprocessing, preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels, PerImageLevels
from qrdali.reduction.quality import LevelScale
from qrdali.schedule.epoch_plan import EpochPlan

OPTIONS: dict[str, Any] = {"input_size": 32, "batch_size": 5, "device": "cpu", "threads": 1}


def assert_same_batches(ours: Any, theirs: Any) -> None:
    for first, second in zip(ours, theirs, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)
        assert torch.equal(first.samples, second.samples)


@pytest.mark.parametrize("augment", ["none", "flip", "rrc"])
def test_an_epoch_is_that_of_the_trainer(dataset: Dataset, augment: Any) -> None:
    index = dataset["train"]
    loader = qrdali.Loader(index, model="test_resnet", **OPTIONS)
    source = open_loader(index, preprocessing("test_resnet", 32), 5, Engine(threads=1))
    levels = ConstantLevels(0, 2, 1)
    plan = EpochPlan(len(index), 5, levels, seed=3, epoch=4, training=True, augment=augment)
    quality = {"crop": 0.5, "resolution": 0.75}
    assert_same_batches(
        loader.epoch(4, quality=quality, augment=augment, seed=3),
        source.epoch(plan),
    )


def test_an_augmented_epoch_is_that_of_the_trainer(dataset: Dataset) -> None:
    index = dataset["train"]
    loader = qrdali.Loader(index, model="test_resnet", **OPTIONS)
    source = open_loader(index, preprocessing("test_resnet", 32), 5, Engine(threads=1))
    plan = EpochPlan(
        len(index), 5, FULL_QUALITY, seed=3, epoch=4, training=True, auto_augment="rand-m9", erase=0.5
    )
    assert_same_batches(loader.epoch(4, auto_augment="rand-m9", erase=0.5, seed=3), source.epoch(plan))
    # The epoch after it has nothing of that.
    plain = EpochPlan(len(index), 5, FULL_QUALITY, seed=3, epoch=5, training=True)
    assert_same_batches(loader.epoch(5, seed=3), source.epoch(plain))


def test_without_shuffling_it_is_the_validation_pass(dataset: Dataset) -> None:
    index = dataset["val"]
    loader = qrdali.Loader(index, **OPTIONS)
    pre = Preprocessing(32, "whole", 1.0, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source = open_loader(index, pre, 5, Engine(threads=1))
    assert_same_batches(loader.epoch(7, shuffle=False), source.epoch(EpochPlan(len(index), 5, FULL_QUALITY)))
    assert [b.samples.tolist() for b in loader.epoch(7, shuffle=False)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11],
    ]


def test_each_image_can_have_its_own_levels(dataset: Dataset) -> None:
    index = dataset["train"]
    levels = np.random.default_rng(1).integers(0, 10, (len(index), 3), np.uint8)
    loader = qrdali.Loader(index, **OPTIONS)
    source = open_loader(index, loader.preprocessing, 5, Engine(threads=1))
    plan = EpochPlan(
        len(index), 5, PerImageLevels(levels, None, None), LevelScale(10), epoch=1, training=True
    )
    assert_same_batches(loader.epoch(1, levels=levels, step=0.1), source.epoch(plan))


def test_batches_are_what_the_docstring_says(dataset: Dataset) -> None:
    loader = qrdali.Loader(dataset["train"], **OPTIONS)
    assert len(loader) == 5
    assert loader.classes == dataset.classes
    batches = list(loader.epoch(0, augment="flip"))
    assert len(batches) == 5
    images = batches[0].images
    assert images.dtype == torch.float32
    assert images.shape == (5, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert {batches[0].labels.dtype, batches[0].samples.dtype} == {torch.int64}
    seen = torch.cat([b.samples for b in batches])
    assert sorted(seen.tolist()) == list(range(24))
    assert seen.tolist() != list(range(24))
    labels = dataset["train"].labels(seen.numpy())
    assert labels.tolist() == torch.cat([b.labels for b in batches]).tolist()


def test_the_numbers_of_an_epoch_decide_alone(dataset: Dataset) -> None:
    loader, other = (qrdali.Loader(dataset["train"], **OPTIONS) for _ in range(2))
    next(loader.epoch(1, quality={"color": 0.25}))  # abandoned: it leaves nothing behind
    assert_same_batches(loader.epoch(2, augment="rrc"), other.epoch(2, augment="rrc"))
    first, second = (next(loader.epoch(number, augment="rrc")).samples.tolist() for number in (2, 3))
    assert first != second
    assert next(loader.epoch(2, augment="rrc", seed=1)).samples.tolist() != first


def test_processes_share_each_batch(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.distributed import current_rank

    whole = [b.samples.tolist() for b in qrdali.Loader(dataset["train"], **OPTIONS).epoch(1)]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(current_rank.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(current_rank.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(current_rank.distributed, "get_world_size", lambda: 2)
        loader = qrdali.Loader(dataset["train"], **OPTIONS)
        assert len(loader) == 5
        parts.append([b.samples.tolist() for b in loader.epoch(1)])
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    # 24 = 23 + 1: the last batch would leave one process without an image.
    with pytest.raises(qrdali.InputError, match="leaves 1 of 24 images for a batch of 2 processes"):
        qrdali.Loader(dataset["train"], **{**OPTIONS, "batch_size": 23})


def test_what_is_given_beside_a_model_wins(dataset: Dataset) -> None:
    options = {**OPTIONS, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2), "fit": "center"}
    pre = qrdali.Loader(dataset["val"], model="resnet50", interpolation="bilinear", **options).preprocessing
    assert pre == Preprocessing(
        32, "center", preprocessing("resnet50").crop_share, "bilinear", (0.5,) * 3, (0.2,) * 3
    )
    del options["input_size"]
    assert qrdali.Loader(dataset["val"], model="resnet50", **options).preprocessing.input_size == 224


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": None}, "neither model nor input_size"),
        ({"input_size": 4}, "input_size is 4"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"model": "resnet10x"}, "near it"),
        ({"fit": "squeeze"}, "fit is 'squeeze'"),
        ({"std": (1, 1, 0)}, "std above 0"),
        ({"mean": (1, 1)}, "three numbers"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"device": "tpu"}, "device"),
        ({"threads": 0}, "threads"),
    ],
)
def test_an_option_that_cannot_be_is_refused(dataset: Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.Loader(dataset["val"], **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("number", "options", "message"),
    [
        (-1, {}, "number is -1"),
        (0, {"quality": {"crop": 0.6}}, r"crop: quality 0.6 is no level of step 0.25: use 0.75 or 0.5"),
        (0, {"quality": {"crop": 0}}, r"outside \(0, 1\]"),
        (0, {"quality": {"colour": 0.5}}, "the dimensions are color, crop, resolution"),
        (0, {"quality": {"crop": 0.5}, "levels": np.zeros((12, 3), np.uint8)}, "give one of them"),
        (0, {"levels": np.zeros((11, 3), np.uint8)}, r"uint8\[11, 3\]: give integers \[12, 3\]"),
        (0, {"levels": np.zeros((12, 3))}, "float64"),
        (0, {"levels": np.full((12, 3), 44)}, "have 0 to 43"),
        (0, {"step": 0.3}, "not 1/n"),
        (0, {"augment": "mixup"}, "choose one of none, flip, rrc"),
        (0, {"augment": "flip", "shuffle": False}, "for shuffled epochs"),
        (0, {"auto_augment": "trivial", "shuffle": False}, "auto_augment='trivial' is for shuffled epochs"),
        (0, {"erase": 0.5, "shuffle": False}, "erase=0.5 is for shuffled epochs"),
        (0, {"auto_augment": "rand-m99"}, "auto_augment is 'rand-m99': give rand-mM .*, or augmix, or none"),
        (0, {"auto_augment": 9}, "auto_augment is 9: give a text"),
        (0, {"erase": 1.5}, "erase is 1.5: give a probability, 0 to 1"),
        (0, {"erase": float("nan")}, "erase is nan"),
        (0, {"seed": -1}, "seed is -1"),
    ],
)
def test_an_epoch_that_cannot_be_is_refused_at_the_call(
    dataset: Dataset, number: int, options: dict[str, Any], message: str
) -> None:
    loader = qrdali.Loader(dataset["val"], **OPTIONS)
    with pytest.raises(qrdali.InputError, match=message):
        loader.epoch(number, **options)


def test_a_split_is_an_index() -> None:
    with pytest.raises(qrdali.InputError, match="split is 'train': give an index such as data"):
        qrdali.Loader("train", **OPTIONS)  # type: ignore[arg-type]


def test_a_file_that_is_gone_is_named_or_reported(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    data = qrdali.index(tmp_path / "images", tmp_path / "data", threads=1)
    path = Path(data["train"].paths(np.array([7]))[0])
    path.unlink()
    loader = qrdali.Loader(data["train"], **OPTIONS)
    with pytest.raises(qrdali.RunError, match=rf"sample 7, .*{path.name}, is gone"):
        list(loader.epoch(1))
    reasons: dict[int, str] = {}
    seen = [s for b in loader.epoch(1, on_unreadable=reasons.update) for s in b.samples.tolist()]
    assert list(reasons) == [7]
    assert sorted(seen) == [s for s in range(24) if s != 7]
