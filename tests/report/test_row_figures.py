"""Calibration, classes, agreement, people and disputed images in the report, from prediction rows."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torchmetrics.functional.classification import binary_cohen_kappa, multiclass_calibration_error

import qrdali
from qrdali.cli.main import cli
from qrdali.interfaces import SilentListener
from qrdali.report.build import ReportOptions, build

CLASSES = tuple("abcdefgh")
IMAGES = 160
LABELS = np.arange(IMAGES) % len(CLASSES)


class Warnings(SilentListener):
    """Keeps the warnings of a report."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def logits(seed: int, skill: float = 1.0) -> "np.ndarray[Any, Any]":
    values = np.random.default_rng(seed).normal(size=(IMAGES, len(CLASSES)))
    values[np.arange(IMAGES), LABELS] += skill
    return values


def answering(*answers: str) -> "np.ndarray[Any, Any]":
    """Logits of a network that gives these answers, to the first images, and the true class to the others."""
    given = LABELS.copy()
    given[: len(answers)] = [CLASSES.index(answer) for answer in answers]
    return 5 * np.eye(len(CLASSES))[given]


def run(folder: Path, scores: "np.ndarray[Any, Any]", sets: tuple[str, ...] = ("test",), **more: Any) -> Path:
    paths = more.pop("paths", None)
    made = fake_runs.run(folder, [0.1, 0.5], {}, classes=CLASSES, **more)
    for name in sets:
        fake_runs.scored_rows(made, name, scores, LABELS, paths)
    return made


def table(report: dict[str, Any], slug: str) -> list[dict[str, Any]]:
    found = report["tables"][slug]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def kappa(first: "np.ndarray[Any, Any]", second: "np.ndarray[Any, Any]") -> float:
    return binary_cohen_kappa(torch.from_numpy(first).int(), torch.from_numpy(second).int()).item()


def test_calibration_of_each_configuration_and_set(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "first", 3 * logits(0), ("val", "test")),
        run(tmp_path / "second", 3 * logits(1), ("val", "test"), seed=1),
        run(tmp_path / "linear", logits(2), ("val", "test"), method="linear"),
    ]
    report = build(runs, [], tmp_path / "out")
    found = {(row["set"], row["method"]): row for row in table(report, "calibration-1")}
    assert list(found) == [(name, method) for name in ("val", "test") for method in ("baseline", "linear")]
    theirs = [
        multiclass_calibration_error(
            torch.from_numpy(scores).softmax(1), torch.from_numpy(LABELS), len(CLASSES), n_bins=15
        ).item()
        for scores in (3 * logits(0), 3 * logits(1), logits(2))
    ]
    for name in ("val", "test"):
        assert found[name, "baseline"]["ECE"] == pytest.approx(50 * (theirs[0] + theirs[1]), rel=1e-4)
    assert found["test", "linear"]["ECE"] == pytest.approx(100 * theirs[2], rel=1e-4)
    confidence = torch.from_numpy(logits(2)).softmax(1).max(1).values.numpy()
    right = logits(2).argmax(1) == LABELS
    linear = found["test", "linear"]
    assert linear["mean confidence"] == pytest.approx(100 * confidence.mean(), rel=1e-5)
    assert linear["confidence less accuracy"] == pytest.approx(
        100 * (confidence.mean() - right.mean()), rel=1e-4
    )
    bins = [row for row in table(report, "reliability-bins-1") if row["set"] == "test"]
    assert sum(row["images"] for row in bins) == 3 * IMAGES
    for row in bins:
        assert row["above"] < row["mean confidence"] <= row["at most"]
    own = [row for row in bins if row["configuration"].startswith("linear")]
    again = sum(row["images"] * abs(row["mean confidence"] - row["accuracy"]) for row in own) / IMAGES
    assert 100 * again == pytest.approx(linear["ECE"], rel=1e-9)
    # The figure was drawn from these rows; test's is the first.
    drawn = report["figures"]["reliability-1-1"]
    assert "on test" in drawn["title"]
    assert drawn["rows"] == [list(row.values())[1:] for row in bins]


def test_every_figure_has_its_rows(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(i), logits(i), ("val", "test", "small"), seed=i) for i in range(3)]
    out = tmp_path / "out"
    report = build(runs, [], out)
    assert sorted(report["figures"]) == sorted(file.stem for file in (out / "figures").glob("*.svg"))
    assert all(figure["rows"] for figure in report["figures"].values())
    assert json.loads((out / "report.json").read_text())["figures"] == report["figures"]
    epochs = report["figures"]["evolution-1-1"]
    assert epochs["columns"] == ["run", "epoch", "phase", "stage", "val_accuracy"]
    assert epochs["rows"][:2] == [["0", 0, "start", 1, 0.1], ["0", 1, "full", 1, 0.5]]


def test_rows_of_before_have_all_but_the_likelihood(tmp_path: Path) -> None:
    right = {"test": np.arange(8) < 4}
    old = [fake_runs.run(tmp_path / str(i), [0.5, 0.5], right, seed=i) for i in range(2)]
    report = build(old, [], tmp_path / "out")
    assert "likelihood-1" not in report["tables"]
    (row,) = table(report, "calibration-1")
    assert (row["mean confidence"], row["ECE"]) == (50, 0)  # confidence .5, and half of them right
    assert [row["κ"] for row in table(report, "consistency-1")] == [1]
    assert {row["class"]: row["baseline"] for row in table(report, "classes-1-1")} == dict.fromkeys(
        ("ant", "bee", "cat", "dog"), 50
    )
    assert "disagreement-1" not in report["tables"]


def test_mapped_rows_have_the_classes_of_the_data(tmp_path: Path) -> None:
    made = run(tmp_path / "run", logits(0))
    names = ["animal", "plant"]
    scores = np.eye(2)[np.array([0, 1, 1, 0])] * 3.0
    fake_runs.scored_rows(
        made, "test-mapped-sum", scores, np.array([0, 1, 0, 0]), classes=names, map_rule="sum", epoch=1
    )
    report = build([made], [], tmp_path / "out")
    title = {
        found["title"]: slug for slug, found in report["tables"].items() if slug.startswith("classes-1-")
    }
    rows = table(report, title["Accuracy per class on test-mapped-sum"])
    assert [(row["class"], row["images"]) for row in rows] == [("animal", 3), ("plant", 1)]
    assert rows[0]["baseline"] == pytest.approx(200 / 3)
    assert rows[0]["most often taken for"] == "plant (33.3%)"
    notes = report["tables"]["likelihood-1"]["notes"]
    assert (
        "On test-mapped-sum the answers are the data's 2 classes: guessing gives an NLL of 0.693; top-5 is "
        "100% "
        "whatever a network says." in notes
    )
    pairs = [row for row in table(report, "confusions-1") if row["set"] == "test-mapped-sum"]
    assert [(row["class"], row["taken for"]) for row in pairs] == [("animal", "plant")]


@pytest.mark.parametrize("damage", ["labels", "classes", "confidence"])
def test_rows_that_name_no_class_are_no_disaster(tmp_path: Path, damage: str) -> None:
    made = run(tmp_path / "run", logits(0))
    file = made / "predictions" / "test.parquet"
    rows = pq.read_table(file)
    if damage == "labels":
        far = pa.array(rows["label"].to_numpy().astype(np.int64) + (1 << 61))
        rows = rows.set_column(rows.column_names.index("label"), "label", far)
        rows = rows.set_column(rows.column_names.index("prediction"), "prediction", far)
        rows = rows.set_column(rows.column_names.index("correct"), "correct", pa.array([True] * IMAGES))
        rows = rows.drop_columns(["rank", "true_probability"])
    elif damage == "classes":
        rows = rows.replace_schema_metadata({"qrdali": '{"map_rule": "sum", "classes": [1, 2]}'})
    else:
        nan = pa.array(np.full(IMAGES, np.nan, np.float32))
        rows = rows.set_column(rows.column_names.index("confidence"), "confidence", nan)
    pq.write_table(rows, file)
    report = build([made], [], tmp_path / "out")
    assert table(report, "accuracy-1")[0]["test"] is not None
    if damage == "labels":
        assert [row["class"] for row in table(report, "classes-1-1")] == ["none of the classes"]
    elif damage == "classes":
        assert not any(slug.startswith("classes-") for slug in report["tables"])
    else:
        assert table(report, "calibration-1")[0]["ECE"] is None


def test_networks_that_guess_have_counts_of_the_first_confusions_alone(tmp_path: Path) -> None:
    """Of every pair of 60 classes: the table has 200 of them, and each class its most frequent one."""
    names = tuple(f"c{i:02}" for i in range(60))
    labels = np.repeat(np.arange(60), 59)
    runs = []
    for seed in range(2):
        made = fake_runs.run(tmp_path / str(seed), [0.1, 0.5], {}, classes=names, seed=seed)
        answers = (labels + 1 + np.tile(np.arange(59), 60)) % 60
        answers[:3] = [50 + seed, 50, 7]  # over both runs c50 five times, c07 four, c51 three
        fake_runs.scored_rows(made, "test", np.eye(60)[answers] * 9.0, labels)
        runs.append(made)
    report = build(runs, [], tmp_path / "out")
    rows = table(report, "confusions-1")
    assert len(rows) == 200
    assert [(row["class"], row["taken for"]) for row in rows[:2]] == [("c00", "c50"), ("c00", "c07")]
    assert [row["mean of the runs"] for row in rows[:3]] == pytest.approx([250 / 59, 200 / 59, 150 / 59])
    found = {row["class"]: row["most often taken for"] for row in table(report, "classes-1-1")}
    assert len(found) == 60
    assert (found["c00"], found["c59"]) == ("c50 (4.2%)", "c00 (1.7%)")
    assert not any(slug.startswith("confusion-matrix") for slug in report["figures"])


def test_rows_of_other_images_are_left_out_with_a_note(tmp_path: Path) -> None:
    same = [run(tmp_path / str(i), logits(i), seed=i) for i in range(2)]
    other = [f"/elsewhere/{i}.jpg" for i in range(IMAGES)]
    report = build([*same, run(tmp_path / "other", logits(2), seed=2, paths=other)], [], tmp_path / "out")
    assert [(row["run"], row["and run"]) for row in table(report, "consistency-1")] == [("0", "1")]
    for slug in ("consistency-1", "classes-1-1", "confusions-1", "disagreement-1"):
        notes = report["tables"][slug]["notes"]
        assert "The rows of test of other are of other images and left out." in notes, slug


def people(tmp_path: Path, lines: list[str]) -> Path:
    file = tmp_path / "answers.csv"
    file.write_text("\n".join(["path,person,answer", *lines]) + "\n")
    return file


def test_consistency_with_people(tmp_path: Path) -> None:
    paths = [f"/data/test/{i}.jpg" for i in range(IMAGES)]
    both_sets = ("test", "test-crop-0.5")
    runs = [run(tmp_path / str(i), logits(i), both_sets, seed=i, paths=paths) for i in range(2)]
    rng = np.random.default_rng(5)
    seen = {"P": rng.permutation(IMAGES)[:90], "Q": rng.permutation(IMAGES)[:120]}
    answers = {person: rng.random(IMAGES) < 0.6 for person in seen}
    lines = [
        f"test/{i}.jpg,{person},{CLASSES[LABELS[i]] if answers[person][i] else 'no idea'}"
        for person, images in seen.items()
        for i in images
    ]
    options = ReportOptions(humans=people(tmp_path, lines))
    report = build(runs, [], tmp_path / "out", options)
    found = {(row["person"], row["with"]): row for row in table(report, "human-pairs-1")}
    assert list(found) == [("P", "0"), ("P", "1"), ("Q", "0"), ("Q", "1"), ("P", "Q")]
    expected = {}
    for person, images in seen.items():
        for seed in range(2):
            right = logits(seed).argmax(1) == LABELS
            expected[person, seed] = kappa(answers[person][images], right[images])
            row = found[person, str(seed)]
            assert row["κ"] == pytest.approx(expected[person, seed], rel=1e-4, abs=1e-6)
            assert (row["images"], row["the other's accuracy"]) == (len(images), 100 * right[images].mean())
    both = np.intersect1d(seen["P"], seen["Q"])
    among = kappa(answers["P"][both], answers["Q"][both])
    assert found["P", "Q"]["images"] == len(both)
    assert found["P", "Q"]["κ"] == pytest.approx(among, rel=1e-4, abs=1e-6)
    summary = table(report, "humans-1")
    # Not on the reduced images, which have the same files: nobody saw them.
    assert [(row["set"], row["run"]) for row in summary] == [
        ("test", "people among themselves"),
        ("test", "0"),
        ("test", "1"),
    ]
    assert summary[0]["mean κ"] == pytest.approx(among, rel=1e-4, abs=1e-6)
    assert summary[1]["mean κ"] == pytest.approx((expected["P", 0] + expected["Q", 0]) / 2, rel=1e-4)
    assert (summary[1]["people"], summary[1]["answers"]) == (2, 210)
    wrong = sum(int((~answers[person][images]).sum()) for person, images in seen.items())
    assert f"{wrong} answers of people are none of the classes and count as wrong: 'no idea'" in str(
        report["tables"]["humans-1"]["notes"]
    )


def test_people_who_saw_other_images_are_told(tmp_path: Path) -> None:
    made = run(tmp_path / "run", logits(0))
    warnings = Warnings()
    file = people(tmp_path, ["elsewhere.jpg,P,a"])
    report = build([made], [], tmp_path / "out", ReportOptions(humans=file), warnings)
    assert "humans-1" not in report["tables"]
    assert "none of its 1 rows is of an image that these runs were evaluated on" in warnings.texts[0]
    bad = CliRunner().invoke(
        cli, ["report", str(made), "--out", str(tmp_path / "bad"), "--humans", str(tmp_path / "gone.csv")]
    )
    assert "gone.csv cannot be read" in str(bad.exception)
    assert not (tmp_path / "bad").exists()
    written = qrdali.write_report([made], out=tmp_path / "python", humans=people(tmp_path, ["0.jpg,P,a"]))
    assert written.contents["tables"]["humans-1"]["rows"]


def pictures(page: str) -> list[tuple[str, str, str]]:
    """The disputed images of a page: data URI, text and answers."""
    gallery = page[page.index('<div class="gallery photographs">') :].partition("</section>")[0]
    return re.findall(
        r'<img src="([^"]*)"[^>]*>\s*<figcaption>([^<]*)<br><span class="further">([^<]*)</span>', gallery
    )


def images(folder: Path, missing: tuple[int, ...] = ()) -> list[str]:
    folder.mkdir()
    for i in range(IMAGES):
        if i not in missing:
            Image.new("RGB", (400, 300), (i, 255 - i, 0)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(IMAGES)]


def test_the_images_on_which_runs_disagree_most(tmp_path: Path) -> None:
    # Four runs: image 0 (a) splits them 3 to 1; 1 (b), 2 (c) and 9 (b) 2 to 2, 9 with more answers. A second
    # image of b comes after the first one of c.
    paths = images(tmp_path / "images", missing=(2,))
    right = list(CLASSES)
    answers = [
        ["b", "b", "c", *right[3:], "a", "b"],
        ["a", "b", "c", *right[3:], "a", "b"],
        ["a", "a", "b", *right[3:], "a", "c"],
        ["a", "a", "b", *right[3:], "a", "d"],
    ]
    runs = [
        run(tmp_path / f"<i>{i}", answering(*given), seed=i, paths=paths) for i, given in enumerate(answers)
    ]
    report = build(runs, [], tmp_path / "out", ReportOptions(gallery_rows=3))
    rows = table(report, "disagreement-1")
    assert [row["image"] for row in rows] == [f"images/{i}.png" for i in (9, 2, 1, 0)]
    assert [(row["right"], row["wrong"]) for row in rows] == [(2, 2)] * 3 + [(3, 1)]
    assert [rows[0][f"<i>{i}"] for i in range(4)] == ["b", "b", "c", "d"]
    assert "4 of 160 images" in report["tables"]["disagreement-1"]["notes"][0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "1 of the images on which runs disagree cannot be opened where they were and is passed over" in page
    )
    shown = pictures(page)
    assert [text for _, text, _ in shown] == ["b, images/9.png", "b, images/1.png", "a, images/0.png"]
    assert shown[0][2] == "right: &lt;i&gt;0, &lt;i&gt;1; c: &lt;i&gt;2; d: &lt;i&gt;3"
    assert shown[2][2] == "right: &lt;i&gt;1, &lt;i&gt;2, &lt;i&gt;3; b: &lt;i&gt;0"
    with Image.open(io.BytesIO(base64.b64decode(shown[2][0].partition(",")[2]))) as picture:
        assert picture.size == (280, 210)
        assert np.abs(np.array(picture.convert("RGB")).mean((0, 1)) - (0, 255, 0)).max() < 6
    assert "<i>" not in page[page.index("<body>") : page.rindex("<script>")]
    without = build(runs, [], tmp_path / "none", ReportOptions(gallery_rows=0))
    assert "photographs" not in (tmp_path / "none" / "report.html").read_text().partition("<body>")[2]
    assert without["tables"]["disagreement-1"] == report["tables"]["disagreement-1"]


def test_wide_tables_are_whole_in_the_files_and_cut_on_the_page(tmp_path: Path) -> None:
    lr = [0.1 + 0.01 * i for i in range(12)]
    runs = [run(tmp_path / f"run{i}", logits(i), lr=value) for i, value in enumerate(lr)]
    report = build(runs, [], tmp_path / "out")
    assert len(report["tables"]["classes-1-1"]["columns"]) == 4 + 12
    head = (tmp_path / "out" / "tables" / "classes-1-1.csv").read_text().partition("\n")[0]
    assert head.count(",") == 15
    page = (tmp_path / "out" / "report.html").read_text()
    shown = page[page.index('id="table-classes-1-1"') :].partition("</details>")[0]
    assert shown.partition("</thead>")[0].count("<th ") == 12
    assert shown.partition("<tbody>")[2].partition("</tr>")[0].count("<td") == 11
    assert "The first 12 of 16 columns; tables/classes-1-1.csv has all." in shown


def test_the_epoch_of_the_best_stands_beside_the_slides(tmp_path: Path) -> None:
    def made(name: str, accuracies: list[float], **more: Any) -> Path:
        return fake_runs.run(
            tmp_path / name, accuracies, {"test": np.arange(8) < 4}, model="squeezenet1_1", **more
        )

    shared = made("shared", [0.1, 0.2, 0.5, 0.4], method="shared")
    baseline = made("baseline", [0.5, 0.55, 0.6], init=str(shared))
    lone = made("linear", [0.5, 0.6], init="/gone/shared-2", method="linear")
    report = build([shared, baseline, lone], [], tmp_path / "out")
    rows = {row["method"].split(" ")[0]: row for row in table(report, "best-epochs-1")}
    found = {name: (row["best epoch"], row["counted on"], row["the slides'"]) for name, row in rows.items()}
    assert found == {"shared": (2, 2, 21), "baseline": (2, 4, 29), "linear": (1, None, None)}
    theirs = {(row["network"], row["run"]): row["best epoch"] for row in table(report, "slides-accuracy")}
    known = {key: epoch for key, epoch in theirs.items() if epoch is not None}
    assert known == {
        (f"{network} on HumaNet", method): epoch
        for network, epochs in {
            "SqueezeNet": (21, 29),
            "ResNet-152": (11, 11),
            "EfficientNet-B3": (19, 143),
        }.items()
        for method, epoch in zip(("shared", "baseline"), epochs, strict=True)
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "keeps about q × q × q = q³ of the raw information" in page
    other = fake_runs.run(tmp_path / "other", [0.5, 0.6], {"test": np.arange(8) < 4})
    assert "best-epochs-1" not in build([other], [], tmp_path / "without")["tables"]


def test_runs_that_begin_with_each_other_have_no_count(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fake_runs.run(one, [0.5, 0.6], {"test": np.arange(8) < 4}, init=str(two))
    fake_runs.run(two, [0.5, 0.6], {"test": np.arange(8) < 4}, init=str(one), seed=1)
    rows = table(build([one, two], [], tmp_path / "out"), "best-epochs-1")
    assert [row["counted on"] for row in rows] == [None] * len(rows)
