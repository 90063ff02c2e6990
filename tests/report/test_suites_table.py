"""The report's tables of published suites, of rows that `evaluate --suite` writes."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qrdali.data.suite_definitions import suite_definition
from qrdali.evaluation.suite_figures import SuiteRows, names_digest
from qrdali.interfaces import SilentListener
from qrdali.report.build import build

CLASSES = tuple("abcdefgh")
MCE = tuple(suite_definition("imagenet-c").alexnet_error)


class Warnings(SilentListener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def rows(run: Path, name: str, right: int, images: int = 8, epoch: int = 1, **suite: Any) -> None:
    """Writes rows of a set of which the first `right` are right; of a suite if `suite` describes it."""
    correct = np.arange(images) < right
    labels = np.arange(images) % 8
    paths = [f"/c/{name}/ILSVRC2012_val_{i:08d}.JPEG" for i in range(images)]
    table = pa.table(
        {
            "sample": np.arange(images),
            "path": paths,
            "label": labels.astype(np.int32),
            "prediction": np.where(correct, labels, (labels + 1) % 8).astype(np.int32),
            "correct": correct,
            "confidence": np.full(images, 0.5, np.float32),
            "rank": np.where(correct, 1, 6).astype(np.int32),
            "true_probability": np.where(correct, 0.5, 0.25),
        }
    )
    metadata: dict[str, Any] = {"epoch": epoch, "definitions": 2}
    if suite:
        metadata |= SuiteRows(names=names_digest(paths), **suite).to_metadata()
    (run / "predictions").mkdir(exist_ok=True)
    table = table.replace_schema_metadata({"qrdali": json.dumps(metadata)})
    pq.write_table(table, run / "predictions" / f"{name}.parquet")


def a_run(folder: Path, seed: int = 0, **settings: Any) -> Path:
    return fake_runs.run(folder, [0.1, 0.5], {}, classes=CLASSES, seed=seed, **settings)


def corrupted(run: Path, corruption: str, right: int) -> None:
    for severity in range(1, 6):
        name = f"imagenet-c-{corruption}-{severity}"
        rows(run, name, right, suite="imagenet-c", corruption=corruption, severity=severity)


def lines(report: dict[str, Any], slug: str) -> list[dict[str, Any]]:
    table = report["tables"][slug]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_one_table_has_all_suites_and_means_over_seeds(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "first"), a_run(tmp_path / "second", 1)
    other = a_run(tmp_path / "other", method="linear")
    for run, right in ((first, 2), (second, 4)):
        rows(run, "imagenet-a", right, suite="imagenet-a")
        for corruption in MCE:
            corrupted(run, corruption, right)
        rows(run, "test", 6)
    rows(other, "real", 8, suite="real")
    rows(other, "human-crop", 2, suite="human")
    rows(other, "human-color", 6, suite="human")
    report = build([first, second, other], [], tmp_path / "out")
    columns = report["tables"]["suites"]["columns"]
    assert columns[5:] == [
        "ImageNet-C mCE",
        "ImageNet-C relative mCE",
        "ImageNet-A",
        "ReaL",
        "Human minimal images",
        "Human minimal images, color",
        "Human minimal images, crop",
    ]
    baseline, linear = lines(report, "suites")
    assert (baseline["seeds"], baseline["ImageNet-A"], baseline["ReaL"]) == (2, 37.5, None)
    alexnet = np.array(list(suite_definition("imagenet-c").alexnet_error.values()))
    assert baseline["ImageNet-C mCE"] == pytest.approx(100 * (0.625 / alexnet).mean())
    # The clean error of both is .25.
    assert baseline["ImageNet-C relative mCE"] == pytest.approx(100 * (0.375 / (alexnet - 0.4348)).mean())
    assert (linear["ReaL"], linear["Human minimal images"]) == (100, 50)
    assert (linear["Human minimal images, color"], linear["Human minimal images, crop"]) == (75, 25)
    text = (tmp_path / "out" / "tables" / "suites.md").read_text()
    assert "37.5 ± 17.7" in text
    assert "fewer images than the 7,500 published" in text
    assert "No rows of ReaL for first, second: qrdali evaluate" in text
    table = list(csv.reader(io.StringIO((tmp_path / "out" / "tables" / "suites.csv").read_text())))
    assert table[0].index("ImageNet-A sd") == table[0].index("ImageNet-A") + 1
    assert "tabular" in (tmp_path / "out" / "tables" / "suites.tex").read_text()
    # Rows of suites are no sets of the other tables.
    assert set(report["tables"]["accuracy-1"]["columns"]) >= {"test"}
    assert not any("imagenet" in column for column in report["tables"]["accuracy-1"]["columns"])
    assert "imagenet-c" not in json.dumps(report["tables"]["accuracy-1"]["notes"])
    figures = {(line["suite"], line["method"]): line for line in lines(report, "suite-figures")}
    assert figures["ImageNet-A", "baseline"]["top-5"] == 37.5
    nll = (2 * np.log(2) + 6 * np.log(4) + 4 * np.log(2) + 4 * np.log(4)) / 16
    assert figures["ImageNet-A", "baseline"]["NLL"] == pytest.approx(nll)
    assert figures["Human minimal images", "linear"]["images"] == 16
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="table-suites"' in page


def test_some_corruptions_have_a_named_mean_and_no_mce(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one"), a_run(tmp_path / "other", method="linear")
    for name in ("fog", "snow"):
        corrupted(one, name, 4)
    corrupted(other, "fog", 4)
    corrupted(other, "spatter", 0)
    report = build([one, other], [], tmp_path / "out")
    table = report["tables"]["suites"]
    assert table["columns"][5:] == ["ImageNet-C mean CE (1)", "ImageNet-C mean CE (2)"]
    first, second = lines(report, "suites")
    assert first["ImageNet-C mean CE (1)"] == pytest.approx(100 * (0.5 / 0.866816 + 0.5 / 0.819324) / 2)
    assert (first["ImageNet-C mean CE (2)"], second["ImageNet-C mean CE (1)"]) == (None, None)
    assert second["ImageNet-C mean CE (2)"] == pytest.approx(100 * 0.5 / 0.819324)
    notes = " ".join(table["notes"])
    assert "Mean CE (1) is of snow, fog: mCE is of all 15 corruptions." in notes
    assert "not evaluated on the same images" in notes
    by_corruption = {(line["corruption"], line["method"]): line for line in lines(report, "corruptions")}
    assert list(by_corruption) == [
        ("snow", "baseline"),
        ("fog", "baseline"),
        ("fog", "linear"),
        ("spatter (extra)", "linear"),
    ]
    assert by_corruption["fog", "linear"]["severity 3"] == 50
    assert by_corruption["spatter (extra)", "linear"]["CE"] == pytest.approx(100 / 0.717512)
    assert by_corruption["fog", "linear"]["relative CE"] is None


def test_rows_that_cannot_be_used_are_left_out_with_a_warning(tmp_path: Path) -> None:
    run, listener = a_run(tmp_path / "run"), Warnings()
    rows(run, "imagenet-a", 2, suite="imagenet-a")
    rows(run, "imagenet-r", 2, epoch=0, suite="imagenet-r")
    rows(run, "imagenet-v2", 2, suite="imagenet-v2")
    file = run / "predictions" / "imagenet-v2.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    rows(run, "odd", 2, suite="unknown\x1b")
    corrupted(run, "fog\x1b", 2)
    rows(run, "imagenet-c-fog-1", 2, suite="imagenet-c", corruption="fog", severity=77)
    report = build([run], [], tmp_path / "out", listener=listener)
    assert report["tables"]["suites"]["columns"][5:] == ["ImageNet-A"]
    texts = " ".join(listener.texts)
    assert "imagenet-r.parquet is of epoch 0 and best/ of epoch 1: left out" in texts
    assert "odd.parquet does not say of which suite it is" in texts
    assert "imagenet-v2.parquet" in texts
    assert "\x1b" not in texts + (tmp_path / "out" / "report.html").read_text()


def test_a_report_without_suites_has_no_such_section(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    rows(run, "test", 6)
    report = build([run], [], tmp_path / "out")
    assert not {"suites", "suite-figures", "corruptions"} & set(report["tables"])
    assert "Published suites" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("has_suites", [False, True])
def test_a_report_does_not_import_timm(tmp_path: Path, has_suites: bool) -> None:
    """Its lists of classes are not needed, and it takes seconds and 190 MB to import."""
    folder = a_run(tmp_path / "run")
    if has_suites:
        corrupted(folder, "fog", 4)
    code = (
        "import sys; from pathlib import Path; from qrdali.report.build import build; "
        f"build([Path({str(folder)!r})], [], Path({str(tmp_path / 'out')!r})); print('timm' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-1] == "False"
    assert ("fog" in (tmp_path / "out/report.json").read_text()) == has_suites
