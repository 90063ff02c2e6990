"""`qrdali predict` and `qrdali.predict`: the answers of `evaluate` to a person's own images."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from gcs_server import BUCKET as GCS_BUCKET
from gcs_server import gcs
from object_stores import BUCKET, put, s3
from recording_listener import RecordingListener
from torch import nn

import qrdali
from qrdali.cli.main import cli
from qrdali.data import given_images
from qrdali.errors import Interrupted
from qrdali.evaluation.predict import top1, top_answers
from qrdali.interfaces import JobControl
from qrdali.runs import folder as run_folder
from qrdali.workflows import predict as workflow

CPU: dict[str, Any] = {"device": "cpu", "threads": 1}


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["predict", *map(str, words), "--device", "cpu", "--threads", "1"])


def test_the_first_answer_is_that_of_the_prediction_in_ties_too() -> None:
    logits = torch.tensor([[1.0, 3, 3, 0], [0, 0, 0, 0], [2, 1, 0, 5]], dtype=torch.bfloat16)
    classes, probability = top_answers(logits, 3)
    assert classes.tolist() == [[1, 2, 0], [0, 1, 2], [3, 0, 1]]
    first, confidence = top1(logits)
    assert classes[:, 0].tolist() == first.tolist()
    assert torch.equal(probability[:, 0], confidence)
    assert (probability.diff(dim=1) <= 0).all()


def test_a_test_set_has_the_answers_of_evaluate(workplace: Path, in_workplace: Path) -> None:
    (result,) = qrdali.evaluate("runs/shared", "data", split="test", batch_size=5, **CPU)
    rows = qrdali.Run("runs/shared").rows("test")
    found = qrdali.predict("runs/shared", "images/test", batch_size=5, top=3, **CPU)
    assert [str(Path(path).absolute()) for path in found.rows["path"].to_pylist()] == rows["path"].to_pylist()
    assert found.rows["prediction"].to_pylist() == rows["prediction"].to_pylist()
    assert found.rows["confidence"].to_pylist() == rows["confidence"].to_pylist()  # bit for bit
    assert found.unreadable == {}
    assert result["images"] == len(found.rows) == 12
    classes = qrdali.Run("runs/shared").classes
    for row, probability, rank, label in zip(
        found.rows.to_pylist(),
        rows["true_probability"].to_pylist(),
        rows["rank"].to_pylist(),
        rows["label"].to_pylist(),
        strict=True,
    ):
        assert row["class"] == classes[row["prediction"]] == row["top"][0]["class"]
        assert row["confidence"] == row["top"][0]["probability"]
        assert len(row["top"]) == 3
        if rank <= 3:
            assert row["top"][rank - 1]["prediction"] == label
            assert row["top"][rank - 1]["probability"] == pytest.approx(probability, rel=1e-5)
    (alone,) = qrdali.predict("runs/shared", [rows["path"][4].as_py()], **CPU).rows.to_pylist()
    assert alone["prediction"] == rows["prediction"][4].as_py()
    assert alone["confidence"] == pytest.approx(rows["confidence"][4].as_py(), rel=1e-4)
    assert len(alone["top"]) == 4  # all the classes there are
    assert sum(answer["probability"] for answer in alone["top"]) == pytest.approx(1)
    assert alone["name"] is None


def test_files_folders_and_what_cannot_be_read(workplace: Path, tmp_path: Path) -> None:
    pictures = sorted((workplace / "images" / "val").rglob("*.jpg"))
    deep = tmp_path / "photos" / "2019" / "summer"
    deep.mkdir(parents=True)
    shutil.copy(pictures[0], deep / "b.JPG")
    shutil.copy(pictures[1], tmp_path / "photos" / "a.jpeg")
    shutil.copy(pictures[2], tmp_path / "of another ending.dat")
    (deep / "note.txt").write_text("x")
    (tmp_path / "photos" / ".thumbnails").mkdir()
    shutil.copy(pictures[3], tmp_path / "photos" / ".thumbnails" / "a.jpg")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "bad\x1b[31m.jpg").write_bytes(b"\xff\xd8no")
    os.mkfifo(tmp_path / "photos" / "fifo.png")
    (tmp_path / "photos" / os.fsdecode(b"\xff.jpg")).write_bytes(pictures[0].read_bytes())
    out = tmp_path / "rows.parquet"
    places = [tmp_path / "of another ending.dat", tmp_path / "photos", pictures[0]]
    result = invoke("--run", workplace / "runs/shared", *places, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stderr
    assert result.stderr.count("warning: passed over: ") == 3
    assert "bad?[31m.jpg" in result.stderr
    assert "1 .txt" in result.stderr
    found = json.loads(result.stdout)
    paths = [Path(row["path"]) for row in found["predictions"]]
    assert paths == [places[0], deep / "b.JPG", tmp_path / "photos" / "a.jpeg", pictures[0]]
    assert found["images"] == 4
    reasons = dict(found["unreadable_files"])
    assert reasons[str(tmp_path / "photos" / "fifo.png")] == "not a regular file"
    assert reasons[str(tmp_path / "photos" / "bad\x1b[31m.jpg")]
    assert len(reasons) == 3
    table = pq.read_table(out)
    assert table.schema.equals(workflow.SCHEMA)
    assert table.to_pylist() == found["predictions"]
    same, other = found["predictions"][1], found["predictions"][3]
    assert same["top"] == other["top"]


def test_the_terminal_shows_classes_below_the_path(workplace: Path) -> None:
    shown = invoke("--run", workplace / "runs/shared", workplace / "photo.jpg", "--top", "2")
    assert shown.stdout == ""
    path, first, second = shown.stderr.splitlines()
    assert path == str(workplace / "photo.jpg")
    (row,) = qrdali.predict(workplace / "runs/shared", workplace / "photo.jpg", **CPU).rows.to_pylist()
    for line, answer in zip((first, second), row["top"], strict=False):
        assert line.split() == [f"{answer['probability']:.2%}", answer["class"]]
    (line,) = invoke(
        "--run", workplace / "runs/shared", workplace / "photo.jpg", "--top", "1"
    ).stderr.splitlines()
    assert line.split() == [f"{row['confidence']:.2%}", row["class"], path]


def test_readable_names_stand_beside_those_of_the_run() -> None:
    answers = workflow._Answers(np.array([1]), np.array([[1, 0]]), np.array([[0.75, 0.25]], np.float32))
    trained = SimpleNamespace(classes=("n01", "n02"), readable=("tench, Tinca tinca", "goldfish"))
    (row,) = workflow._table(["x.jpg", "y.jpg"], answers, cast("Any", trained)).to_pylist()
    assert (row["path"], row["class"], row["name"], row["prediction"]) == ("y.jpg", "n02", "goldfish", 1)
    assert [answer["name"] for answer in row["top"]] == ["goldfish", "tench, Tinca tinca"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["{run}", "nowhere.jpg"], 2, "nowhere.jpg does not exist"),
        (["{run}", "{tmp}"], 2, "holds no image (left out: 1 .md)"),
        (["{tmp}", "{photo}"], 2, "is not a run folder"),
        (["{run}", "{photo}", "--out", "{tmp}"], 2, "a folder: give a file"),
        (["{run}", "{photo}", "--out", "{tmp}/x/y.parquet"], 2, "is not a folder"),
        (["{run}", "{tmp}/note.md"], 1, "none of 1 images could be classified; "),
        (["{run}", "{photo}", "--top", "0"], 2, "0 is not in the range"),
    ],
)
def test_refusals(workplace: Path, tmp_path: Path, words: list[str], status: int, message: str) -> None:
    (tmp_path / "note.md").write_text("x")
    values = {"run": workplace / "runs/shared", "tmp": tmp_path, "photo": workplace / "photo.jpg"}
    first, *others = (word.format(**values) for word in words)
    result = invoke(*others, "--run", first)
    kinds = {1: qrdali.RunError, 2: (qrdali.InputError, SystemExit)}
    assert isinstance(result.exception, kinds[status])
    assert message in f"{result.exception}{result.output}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.md"]


def test_an_image_that_goes_after_it_was_checked_is_passed_over(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = sorted((workplace / "images" / "val").rglob("*.jpg"))[:3]
    for i, path in enumerate(pictures):
        shutil.copy(path, tmp_path / f"{i}.jpg")
    check = workflow._checked

    def checked_then_gone(*words: Any) -> Any:
        reports = check(*words)
        (tmp_path / "1.jpg").unlink()
        return reports

    monkeypatch.setattr(workflow, "_checked", checked_then_gone)
    found = qrdali.predict(workplace / "runs/shared", tmp_path, **CPU)
    assert [Path(path).name for path in found.rows["path"].to_pylist()] == ["0.jpg", "2.jpg"]
    assert list(found.unreadable) == [str(tmp_path / "1.jpg")]


def test_answers_that_are_not_numbers_are_passed_over(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :4] * torch.nan

    load = run_folder.load_best
    monkeypatch.setattr(run_folder, "load_best", lambda folder: (Broken(), load(folder)[1]))
    with pytest.raises(qrdali.RunError, match="is not a number"):
        qrdali.predict(workplace / "runs/shared", workplace / "photo.jpg", **CPU)


def test_progress_and_a_signal(workplace: Path, tmp_path: Path) -> None:
    listener = RecordingListener()
    qrdali.predict(workplace / "runs/shared", workplace / "images/val", progress=listener, **CPU)
    assert listener.passes == [("check", 12, 12), ("predict", 12, 12)]
    control = JobControl(stop=lambda: 15)
    with pytest.raises(Interrupted, match="nothing was written"):
        workflow.predict(
            workplace / "runs/shared",
            [str(workplace / "photo.jpg")],
            out=tmp_path / "x.parquet",
            control=control,
            **CPU,
        )
    assert list(tmp_path.iterdir()) == []


def test_stores_beside_files(workplace: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "p", workplace / "runs/shared"
    (folder / "deep" / "er").mkdir(parents=True)
    pictures = sorted((workplace / "images" / "val").rglob("*.jpg"))
    for place, path in zip(("x.jpg", "deep/er/y.jpg"), pictures, strict=False):
        shutil.copy(path, folder / place)
    (folder / "readme.md").write_text("x")
    here = qrdali.predict(run, folder, **CPU).rows
    with s3() as client:
        put(client, folder, "in/p")
        put(client, folder / "deep", "in/p/.hidden")
        names = [str(folder / "x.jpg"), f"s3://{BUCKET}/in/p", f"s3://{BUCKET}/in/p/x.jpg"]
        found = qrdali.predict(run, names, **CPU)
        assert found.rows["path"].to_pylist() == [
            names[0],
            f"s3://{BUCKET}/in/p/deep/er/y.jpg",
            f"s3://{BUCKET}/in/p/x.jpg",
            names[2],
        ]
        expected = [here["class"][i].as_py() for i in (1, 0, 1, 1)]
        assert found.rows["class"].to_pylist() == expected
        with pytest.raises(qrdali.InputError, match="does not exist"):
            qrdali.predict(run, f"s3://{BUCKET}/in/p/none.jpg", **CPU)
        with pytest.raises(qrdali.InputError, match="holds no image"):
            qrdali.predict(run, f"s3://{BUCKET}/none", **CPU)
    with gcs() as store:
        for name in ("q/x.jpg", "q/deep/er/y.jpg"):
            store.put(name, (folder / name[2:]).read_bytes())
        listed = given_images.given_images([f"gs://{GCS_BUCKET}/q"], lambda *_: None, lambda _: None)
        assert listed == [f"gs://{GCS_BUCKET}/q/{name}" for name in ("deep/er/y.jpg", "x.jpg")]
