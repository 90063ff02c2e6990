"""Distortions in the Python API: `reduce`, `Loader` and `Schedule`."""

import json

import numpy as np
import pytest

import qrdali
from qrdali.data.index import Dataset
from qrdali.reduction.distortions import BY_NAME
from qrdali.reduction.names import DISTORTIONS


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_reduce(name: str) -> None:
    image = picture()
    before = image.copy()
    found = qrdali.reduce(image, **{name: 0.5})
    assert found.dtype == np.uint8
    assert found.shape == image.shape
    assert np.array_equal(image, before)
    assert not np.array_equal(found, image)
    assert np.array_equal(qrdali.reduce(image, **{name: 1.0}), image)
    assert not np.may_share_memory(qrdali.reduce(image, **{name: 1.0}), image)
    if name != "noise":
        amount = BY_NAME[name].amounts(np.array([0.5]), 60)[0]
        assert np.array_equal(found, BY_NAME[name].on_host(image, amount, None))
    smaller = qrdali.reduce(image, resolution=0.25, crop=0.5)
    assert np.array_equal(
        qrdali.reduce(image, resolution=0.25, crop=0.5, **{name: 0.3}), qrdali.reduce(smaller, **{name: 0.3})
    )


def test_noise_has_a_seed() -> None:
    image = picture()
    first = qrdali.reduce(image, noise=0.5)
    assert np.array_equal(first, qrdali.reduce(image, noise=0.5, seed=0))
    assert not np.array_equal(first, qrdali.reduce(image, noise=0.5, seed=1))


def test_reduce_refuses() -> None:
    image = picture()
    for wrong in (0.0, 1.5, float("nan"), -1):
        with pytest.raises(qrdali.InputError, match=r"blur = .* is outside \(0, 1\]"):
            qrdali.reduce(image, blur=wrong)
    with pytest.raises(qrdali.InputError, match="there is no reduction 'sepia': give a quality of color"):
        qrdali.reduce(image, sepia=0.5)
    with pytest.raises(qrdali.InputError, match="seed is -1"):
        qrdali.reduce(image, noise=0.5, seed=-1)
    with pytest.raises(qrdali.InputError, match="a JPEG has 65,500 pixels a side at most, the image 65,501"):
        qrdali.reduce(np.zeros((1, 65_501, 3), np.uint8), jpeg=0.5)
    assert qrdali.reduce(image, level=(1, 0, 0), jpeg=0.5).shape == image.shape


def test_a_loader_takes_what_a_schedule_yields(dataset: Dataset) -> None:
    schedule = qrdali.Schedule("linear", reduction="blur", patience=1, max_epochs=30)
    loader = qrdali.Loader(dataset["val"], input_size=64, batch_size=8, device="cpu", threads=1)
    means: dict[float, float] = {}
    for epoch in schedule:
        assert list(epoch.quality) == ["color", "crop", "resolution", "blur"]
        batches = [batch.images for batch in loader.epoch(0, quality=epoch.quality, shuffle=False)]
        means[epoch.quality["blur"]] = float(np.mean([images.std() for images in batches]))
        schedule.report(0.5)
        json.dumps(schedule.state_dict())
    assert list(means) == [0.75, 1.0, 0.5, 0.25]
    assert means[1.0] > means[0.75] > means[0.5] > means[0.25]


def test_a_loader_combines_and_refuses(dataset: Dataset) -> None:
    loader = qrdali.Loader(dataset["val"], input_size=32, batch_size=12, device="cpu", threads=1)

    def first(**quality: float) -> np.ndarray:
        (batch,) = loader.epoch(0, quality=quality, shuffle=False)
        images: np.ndarray = batch.images.numpy()
        return images

    both = first(crop=0.5, blur=0.5)
    assert not np.array_equal(both, first(crop=0.5))
    assert not np.array_equal(both, first(blur=0.5))
    assert np.array_equal(first(blur=1.0, noise=1.0), first())
    with pytest.raises(qrdali.InputError, match="quality names 'sepia': the dimensions are color, crop, res"):
        loader.epoch(0, quality={"sepia": 0.5})
    with pytest.raises(qrdali.InputError, match=r"jpeg: quality 0\.6 is no level of step 0\.25"):
        loader.epoch(0, quality={"jpeg": 0.6})
