"""`evaluate --curve` and `--reduced` along distortions, the report's curves, and previews."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from matplotlib.figure import Figure as Canvas
from PIL import Image

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.data.set_names import check_set_name
from qrdali.errors import InputError
from qrdali.evaluation.prediction_rows import read_rows
from qrdali.reduction.names import DISTORTIONS, REDUCING, SEARCHED
from qrdali.report.figures import DARK, LIGHT, MARKERS
from qrdali.report.plots import quality_curve
from qrdali.report.read import read_run
from qrdali.runs.settings import validate_settings
from qrdali.workflows.evaluate import evaluate
from qrdali.workflows.preview import draw_preview
from qrdali.workflows.train import run_training


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    small = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu", "threads": 2}
    values = {"method": "shared", "data": str(dataset.folder), "epochs": 4, **small}
    run_training(validate_settings(values), folder, False)
    return folder


def called(run: Path, dataset: Dataset, *words: object) -> Result:
    base = ["evaluate", "--run", str(run), "--data", str(dataset.folder), "--split", "val", "--device", "cpu"]
    return CliRunner().invoke(cli, [*base, *map(str, words)])


def evaluated(run: Path, dataset: Dataset, *words: object) -> dict[str, Any]:
    result = called(run, dataset, "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_curve_of_all_reductions(run: Path, dataset: Dataset) -> None:
    found = evaluated(run, dataset, "--curve", "--reduced", ".5", "--tail", "none", "--reduction", "all")
    names = [name for name in found["curve"] if name not in ("step", "tail", "files")]
    assert names == list(REDUCING) == list(found["reduced"])
    table = pq.read_table(run / "curves" / "val.parquet")
    reductions, levels, confidence = (
        table[column].to_numpy(zero_copy_only=False) for column in ("reduction", "level", "confidence")
    )
    for name in REDUCING:
        curve, reduced = found["curve"][name], found["reduced"][name]
        assert curve["quality"] == [1, 0.75, 0.5, 0.25]
        assert curve["accuracy"][0] == found["accuracy"]
        assert curve["accuracy"][2] == reduced["accuracy"]
        assert reduced["set"] == f"val-{name}-0.5"
        for level, rows in ((0, "val"), (2, f"val-{name}-0.5")):
            of_level = confidence[(reductions == name) & (levels == level)]
            assert np.array_equal(of_level, read_rows(run, rows)["confidence"])
    different = {tuple(read_rows(run, f"val-{name}-0.5")["confidence"].tolist()) for name in REDUCING}
    assert len(different) == len(REDUCING)
    written = json.loads((run / "curves" / "val.json").read_text())
    assert list(written["curves"]) == list(REDUCING)
    warnings: list[str] = []
    curve = read_run(run, "run", warnings.append).curves["val"]
    assert list(curve.reductions) == list(REDUCING)
    assert not warnings
    canvas = Canvas()
    quality_curve(curve.reductions, 0.25, "slug", "title").draw(canvas, LIGHT)
    labels = [str(line.get_label()) for line in canvas.axes[0].get_lines()]
    assert [label.partition(" ")[0] for label in labels if "area" in label] == list(REDUCING)


def test_without_reduction_it_is_those_of_a_search(run: Path, dataset: Dataset) -> None:
    found = evaluated(run, dataset, "--reduced", ".5", "--curve", "--step", ".5", "--tail", "none")
    assert list(found["reduced"]) == list(SEARCHED)
    assert [name for name in found["curve"] if name in REDUCING] == list(SEARCHED)


def test_chosen_reductions_alone_are_measured(run: Path, dataset: Dataset) -> None:
    words = ("--curve", "--reduction", "jpeg", "--reduction", "contrast", "--tail", "full")
    found = evaluated(run, dataset, *words)
    assert [name for name in found["curve"] if name in REDUCING] == ["contrast", "jpeg"]
    # The tail ends where nothing changes any more: 1/256, and JPEG's quality 1.
    assert len(found["curve"]["contrast"]["quality"]) == 10
    assert found["curve"]["contrast"]["quality"][-1] == 0.25 / 2**6
    assert len(found["curve"]["jpeg"]["quality"]) == 9
    said = called(run, dataset, *words)
    assert "contrast     area" in said.stderr
    api = evaluate(run, dataset.folder, split="val", reduced=0.5, reductions=["blur"], device="cpu")
    assert list(api[0]["reduced"]) == ["blur"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reduction", "blur"), "--reduction is of --curve and --reduced"),
        (("--curve", "--reduction", "blurr"), "'blurr' is not one of 'color', 'crop'"),
        (("--reduced", ".6", "--reduction", "blur"), "quality 0.6 is no level of step 0.25"),
    ],
)
def test_refused(run: Path, dataset: Dataset, words: tuple[str, ...], message: str) -> None:
    result = called(run, dataset, *words)
    assert result.exit_code == 2 or isinstance(result.exception, InputError)
    assert message in f"{result.stderr} {result.exception}"


def test_names_of_distorted_splits_are_reserved() -> None:
    for name in DISTORTIONS:
        with pytest.raises(InputError, match="nor one of them reduced"):
            check_set_name(f"test-{name}-0.5", "--set")
    check_set_name("test-blurred-0.5", "--set")


def test_each_reduction_has_a_colour_and_a_marker_of_its_own() -> None:
    for theme in (LIGHT, DARK):
        assert len({theme.color(name) for name in REDUCING}) == len(REDUCING)
    assert len({MARKERS[name] for name in REDUCING}) == len(REDUCING)


def test_previews_have_a_row_for_each_reduction_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    small.resize((300, 200), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    out, heights = tmp_path / "sheet.png", {}
    asked = {"noise": ["noise"], "two": ["blur", "crop"], "all": ["all"], "": []}
    for what, reductions in asked.items():
        words = [word for name in reductions for word in ("--reduction", name)]
        call = ["preview", str(tmp_path / "image.png"), "--out", str(out), *words]
        result = CliRunner().invoke(cli, call)
        assert result.exit_code == 0, result.output
        heights[what] = Image.open(out).height
    one_row = heights["two"] - heights["noise"]
    assert heights[""] - heights["noise"] == 3 * one_row
    assert heights["all"] - heights[""] == 5 * one_row
    sheet = draw_preview(str(tmp_path / "image.png"), out, 0.25, ["jpeg", "color"])
    assert sheet.reductions == ("color", "jpeg")
    with pytest.raises(InputError, match="reduction 'sepia': give one or more of color"):
        draw_preview(str(tmp_path / "image.png"), out, 0.25, ["sepia"])
