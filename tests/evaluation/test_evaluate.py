"""`qrdali evaluate` on splits, on folders and along the qualities."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from recording_listener import RecordingListener
from scipy.stats import binom

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted
from qrdali.evaluation.calibration import calibration
from qrdali.evaluation.prediction_rows import read_rows
from qrdali.interfaces import JobControl
from qrdali.reduction.quality import QUARTERS
from qrdali.runs.settings import validate_settings
from qrdali.workflows import quality_curve as curve
from qrdali.workflows.evaluate import evaluate
from qrdali.workflows.train import run_training


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": str(dataset.folder),
                "epochs": 3,
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 8,
                "device": "cpu",
                "threads": 2,
            }
        ),
        folder,
        False,
    )
    return folder


def evaluated(run: Path, *words: object) -> dict[str, Any]:
    result = CliRunner().invoke(
        cli, ["evaluate", "--run", str(run), "--device", "cpu", *map(str, words), "--json"]
    )
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_a_split_copied_to_a_folder_gives_the_same_rows(run: Path, dataset: Dataset, images: Path) -> None:
    found = evaluated(run, "--data", dataset.folder, "--split", "val", "--set", f"copy={images / 'val'}")
    assert found["set"] == "val"
    assert list(found["sets"]) == ["val", "copy"]
    assert found["sets"]["copy"]["images"] == found["images"] == 12
    assert found["sets"]["copy"]["accuracy"] == found["accuracy"]
    one, other = (pq.read_table(run / "predictions" / f"{name}.parquet") for name in ("val", "copy"))
    assert one["path"].to_pylist() == other["path"].to_pylist()
    assert one["prediction"].equals(other["prediction"])


def test_a_set_of_some_classes_with_files_that_cannot_be_read(
    run: Path, dataset: Dataset, images: Path, tmp_path: Path
) -> None:
    name = dataset.classes[2]
    (tmp_path / "set" / name).mkdir(parents=True)
    for i, path in enumerate(sorted((images / "val" / name).iterdir())):
        with Image.open(path) as picture:
            picture.resize((40 + i, 30)).save(tmp_path / "set" / name / f"{i}.PNG")
    (tmp_path / "set" / name / "broken\x1b[31m.jpg").write_bytes(b"\xff\xd8no")
    result = CliRunner().invoke(
        cli, ["evaluate", "--run", str(run), "--device", "cpu", "--set", f"human-color={tmp_path / 'set'}"]
    )
    assert result.exit_code == 0
    assert "human-color: accuracy" in result.stderr
    assert "of 3, 1 unreadable" in result.stderr
    assert "broken?[31m.jpg" in result.stderr
    assert "\x1b" not in result.stderr
    found = evaluated(run, "--set", f"human-color={tmp_path / 'set'}")
    assert [Path(path).name for path, _ in found["unreadable_files"]] == ["broken?[31m.jpg"]
    assert pq.read_table(run / "predictions" / "human-color.parquet")["label"].to_pylist() == [2] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to evaluate"),
        (("--set", "x"), "give NAME=FOLDER"),
        (("--set", "../x=here"), "give NAME=FOLDER"),
        (("--set", "val=here"), "and not train, val, test"),
        (("--set", ".x=here"), "give NAME=FOLDER"),
        (("--set", "x=/nowhere"), "is not a folder"),
        (("--set", "x=a", "--set", "x=b"), "gives one NAME twice"),
        (("--set", "x={tmp}/unknown"), "has the folder 'zebra', which is not a class of the run"),
        (("--set", "x={tmp}/empty"), "holds no readable image in a class folder"),
        (("--set", "x=a", "--curve", "--step", "0.3"), "step 0.3 is not 1/n"),
        (("--set", "test-crop-0.5=a"), "nor one of them reduced"),
        (("--set", "x=a", "--reduced", ".5"), "--reduced is of a split"),
        (("--data", "x", "--reduced", ".6"), "quality 0.6 is no level of step 0.25"),
        (("--data", "x", "--reduced", "1"), "give a quality below 1"),
        (("--data", "x", "--reduced", "nan"), "quality nan is outside"),
    ],
)
def test_refusals(run: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    (tmp_path / "unknown" / "zebra").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match=message):
        evaluated(run, *(word.format(tmp=tmp_path) for word in words))
    assert sorted(run.rglob("*")) == before


def test_a_curve_is_the_accuracy_at_every_level(run: Path, dataset: Dataset) -> None:
    words = ("--split", "val", "--curve", "--step", ".25", "--tail", "none")
    found = evaluated(run, "--data", dataset.folder, *words)
    rows = pq.read_table(run / "curves" / "val.parquet").to_pylist()
    assert len(rows) == 4 * 4 * 12
    told = json.loads((run / "curves" / "val.json").read_text())
    for reduction, own in told["curves"].items():
        assert own["quality"] == [1, 0.75, 0.5, 0.25]
        for q, accuracy in zip(own["quality"], own["accuracy"], strict=True):
            correct = [
                r["label"] == r["prediction"]
                for r in rows
                if r["reduction"] == reduction and r["quality"] == q
            ]
            assert accuracy == pytest.approx(np.mean(correct))
        assert own["accuracy"][0] == found["accuracy"]
        assert found["curve"][reduction] == own
    assert {r["reduction"] for r in rows} == {"color", "crop", "resolution", "combination"}
    for kind in ("png", "svg"):
        assert (run / "curves" / f"val.{kind}").stat().st_size > 5000
    first = (run / "curves" / "val.svg").read_bytes()
    evaluated(run, "--data", dataset.folder, *words)
    assert (run / "curves" / "val.svg").read_bytes() == first


def test_a_reduced_split_is_the_curves_level_and_can_be_compared(run: Path, dataset: Dataset) -> None:
    found = evaluated(
        run, "--data", dataset.folder, "--split", "val", "--reduced", ".4", "--curve", "--step", ".2"
    )
    assert list(found["reduced"]) == ["color", "crop", "resolution", "combination"]
    curves = pq.read_table(run / "curves" / "val.parquet").to_pylist()
    for reduction, own in found["reduced"].items():
        rows = read_rows(run, f"val-{reduction}-0.4")
        expected = [r["prediction"] for r in curves if (r["reduction"], r["level"]) == (reduction, 3)]
        assert rows["prediction"].tolist() == expected
        assert bool(own["notes"]) == (own["p_above_chance"] > 0.05)
        assert own == {
            "set": f"val-{reduction}-0.4",
            "images": 12,
            "correct": int(rows["correct"].sum()),
            "accuracy": rows["correct"].mean(),
            "top5_accuracy": 1.0,  # of four classes
            "negative_log_likelihood": pytest.approx(-np.log(rows["true_probability"]).mean()),
            "expected_calibration_error": calibration(rows["confidence"], rows["correct"]).error,
            "most_frequent": 3,  # 12 images of four classes
            "p_above_chance": pytest.approx(binom.sf(int(rows["correct"].sum()) - 1, 12, 0.25)),
            "notes": own["notes"],
            "unreadable": 0,
            "quality": 0.4,
            "rows": str(run / "predictions" / f"val-{reduction}-0.4.parquet"),
        }
    assert len({tuple(read_rows(run, f"val-{r}-0.4")["confidence"].tolist()) for r in found["reduced"]}) == 4
    said = CliRunner().invoke(cli, ["compare", str(run), str(run), "--set", "val-crop-0.4"])
    assert said.exit_code == 0
    assert f"val-crop-0.4 accuracy {found['reduced']['crop']['accuracy']:.4f}" in said.stderr
    missing = CliRunner().invoke(cli, ["compare", str(run), str(run), "--set", "test-crop-0.5"])
    assert "--data DATASET --split test --reduced 0.5`" in str(missing.exception)


def test_the_crop_of_a_curve_is_the_centred_window(
    run: Path, dataset: Dataset, images: Path, tmp_path: Path
) -> None:
    for path in sorted((images / "val").rglob("*.jpg")):
        target = tmp_path / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(exist_ok=True)
        with Image.open(path) as picture:
            w, h = picture.width // 2, picture.height // 2  # the square root of .25
            left, top = (picture.width - w) // 2, (picture.height - h) // 2
            picture.crop((left, top, left + w, top + h)).save(target)
    found = evaluated(
        run,
        "--data",
        dataset.folder,
        "--split",
        "val",
        "--set",
        f"cropped={tmp_path}",
        "--curve",
        "--step",
        ".25",
    )
    assert found["curve"]["crop"]["accuracy"][3] == found["sets"]["cropped"]["accuracy"]
    rows = [
        r
        for r in pq.read_table(run / "curves" / "val.parquet").to_pylist()
        if (r["reduction"], r["level"]) == ("crop", 3)
    ]
    cropped = pq.read_table(run / "predictions" / "cropped.parquet")["prediction"].to_pylist()
    assert [r["prediction"] for r in rows] == cropped


def test_python_evaluates_silently_what_the_command_prints(
    run: Path, dataset: Dataset, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = images / "val"
    words = ["--data", dataset.folder, "--split", "val", "--set", f"mine={mine}", "--reduced", ".5"]
    printed = evaluated(run, *words)
    capsys.readouterr()
    results = evaluate(run, dataset.folder, split="val", sets={"mine": mine}, reduced=0.5, device="cpu")
    assert capsys.readouterr() == ("", "")
    assert {result["set"]: result for result in results} == printed["sets"]
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(run, device="cpu")
    with pytest.raises(InputError, match="and not train, val, test"):
        evaluate(run, sets={"val": mine}, device="cpu")


def test_the_listener_is_told_every_pass_and_what_is_left_out(
    run: Path, dataset: Dataset, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images / "val", tmp_path / "set")
    (tmp_path / "set" / dataset.classes[0] / "broken.jpg").write_bytes(b"\xff\xd8no")
    listener = RecordingListener()
    sets = {"mine": tmp_path / "set"}
    evaluate(
        run,
        dataset.folder,
        split="val",
        sets=sets,
        curve=True,
        tail="none",
        device="cpu",
        batch_size=8,
        control=JobControl(listener),
    )
    assert listener.passes == [
        ("evaluate val", 12, 12),
        ("curve of val", 156, 156),
        ("evaluate mine", 12, 12),
        ("curve of mine", 156, 156),
    ]
    assert listener.open is None
    assert [Path(warning.split(": ")[1]).name for warning in listener.warnings] == ["broken.jpg"]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_stop_interrupts_at_any_batch_and_leaves_the_rows_as_they_were(
    run: Path, dataset: Dataset, batch: int
) -> None:
    evaluate(run, dataset.folder, split="val", device="cpu")
    file = run / "predictions" / "val.parquet"
    before, asked = file.stat().st_mtime_ns, iter(range(1, 100))
    listener = RecordingListener()
    control = JobControl(listener, lambda: 15 if next(asked) == batch else 0)
    with pytest.raises(Interrupted, match="stopped in the evaluation of val") as interruption:
        evaluate(run, dataset.folder, split="val", curve=True, device="cpu", batch_size=4, control=control)
    assert interruption.value.signum == 15
    assert listener.open is None
    assert (file.stat().st_mtime_ns == before) is (batch <= 3)  # three batches of the split, then the curve
    assert not list(run.rglob("*.partial"))


def test_the_workflows_need_neither_click_nor_rich() -> None:
    code = (
        "import sys; sys.modules['click'] = sys.modules['rich'] = None\n"
        "import qrdali.workflows.build_mepi, qrdali.workflows.compare, qrdali.workflows.evaluate"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_area_is_the_mean_over_the_qualities() -> None:
    rows = {"reduction": [], "quality": [], "correct": []}
    for reduction in curve.SEARCHED:
        for q, right in ((1.0, 4), (0.5, 2), (0.75, 4), (0.25, 0)):
            rows["reduction"] += [reduction] * 4
            rows["quality"] += [q] * 4
            rows["correct"] += [True] * right + [False] * (4 - right)
    found = curve.summary(pa.table(rows), QUARTERS)["crop"]
    assert found["quality"] == [1, 0.75, 0.5, 0.25]
    assert found["accuracy"] == [1, 1, 0.5, 0]
    assert found["area"] == pytest.approx((1 + 0.75 + 0.25) / 3)
    # Between .5 and .25 the accuracy falls from .5 to 0 over one halving, of two that there are.
    log = np.log2([1, 0.75, 0.5])
    above = -np.sum(np.diff(log) * [1, 0.75])
    assert found["log_area"] == pytest.approx((above + 0.25) / 2)
    assert found["tail"] == 0


def test_a_curve_goes_down_the_tail_to_one_pixel(run: Path, dataset: Dataset) -> None:
    found = evaluated(run, "--data", dataset.folder, "--split", "val", "--curve", "--step", ".25")
    rows = pq.read_table(run / "curves" / "val.parquet").to_pylist()
    curves = json.loads((run / "curves" / "val.json").read_text())
    assert (curves["tail"], curves["step"]) == (40, 0.25)
    for reduction, own in curves["curves"].items():
        below = own["quality"][4:]
        assert below == [0.25 / 2**halvings for halvings in range(1, len(below) + 1)]
        assert own["tail"] == len(below)
        assert found["curve"][reduction] == own
    assert curves["curves"]["color"]["tail"] == 2  # bins of 128 and of 256
    index = dataset.index("val")
    longest = index.sizes(np.arange(len(index))).max()
    to_one_pixel = next(n for n in range(1, 40) if longest * math.sqrt(0.25 / 2**n) < 1.5)
    assert curves["curves"]["resolution"]["tail"] == curves["curves"]["crop"]["tail"] == to_one_pixel
    lowest = [r for r in rows if r["reduction"] == "color" and r["quality"] == 0.0625]
    assert len({(r["prediction"], r["confidence"]) for r in lowest}) == 1  # all are one gray
