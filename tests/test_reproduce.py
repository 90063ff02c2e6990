"""`qrdali reproduce` as a person runs it, on a few tiny pictures: all of it, stopped and continued, failed and tried again."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from safetensors.torch import load_file

from qrdali import runs, trainer
from qrdali.cli.main import main
from qrdali.cli.train import run_training
from qrdali.data.scan import build
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import RunError
from qrdali.lock import held
from qrdali.settings import read, validated

Call = Callable[..., "Result"]
NAMES = ["shared", "baseline", "fixed-paired-epochs-crop"]


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def called(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["qrdali", "reproduce", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return Result(exit.value.code, captured.out, captured.err)

    return called


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Path], list[Path]]]:
    """What each report was made of."""
    from qrdali.cli import report

    made: list[tuple[list[Path], list[Path]]] = []
    make = report.make

    def noted(of: list[Path], mepis: list[Path], out: Path) -> Path:
        made.append((of, mepis))
        return make(of, mepis, out)

    monkeypatch.setattr(report, "make", noted)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    generate(root / "images", ShapesSpec(classes=2, train=8, val=3, test=3, size=(40, 32)), workers=1)
    build(root / "images", root / "data")
    return root / "data"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return written(tmp_path, data)


def written(folder: Path, dataset: Path, /, **changes: Any) -> Path:
    """shared, baseline and fixed crop of one network, an epoch or two each."""
    values: dict[str, Any] = {
        "out": str(folder / "out"), "data": {"folder": str(dataset)},
        "train": {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 1, "max_epochs": 2},
        "network": [{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        "runs": {"methods": ["baseline", "fixed"], "reductions": ["crop"]}}
    for table, own in changes.items():
        values[table] = {**values.get(table, {}), **own} if isinstance(own, dict) else own
    file = folder / "matrix.toml"
    file.write_text(tomli_w.dumps(values))
    return file


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def states(call: Call, config: Path, *words: str) -> dict[str, str]:
    shown = call(config, "--dry-run", "--json", *words)
    assert (shown.status, shown.err) == (0, "")
    return {f"{task['kind']} {task['name']}".rstrip(): task["state"] for task in json.loads(shown.out)["tasks"]}


def test_a_whole_matrix_from_pictures_to_the_report(call: Call, tmp_path: Path, data: Path, reports: list[Any]) -> None:
    shapes = {"classes": 2, "train": 8, "val": 3, "test": 3, "size": "40x32"}
    asked: dict[str, Any] = {"evaluate": {"sets": {"mine": str(data.parent / "images" / "val")}},
                             "mepi": {"runs": ["baseline"], "limit": 2, "step": 0.25, "reductions": ["crop", "color"]}}
    config = written(tmp_path, data, data={"folder": "", "shapes": shapes}, **asked)
    before = states(call, config)
    assert list(before) == ["data", *(f"{kind} test_resnet/{name}" for kind in ("train", "evaluate") for name in NAMES),
                            "mepi test_resnet/baseline", "report"]
    assert set(before.values()) == {"waiting"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.toml"]

    result = call(config)
    assert result.status == 0, result.err
    assert [line for line in result.err.splitlines() if line.startswith("[")] == [
        f"[{number}/9] {task}" for number, task in enumerate(before, 1)]
    out = tmp_path / "out"
    for name in NAMES:
        for rows in ("test", "mine"):
            assert pq.read_table(out / "runs" / "test_resnet" / name / "predictions" / f"{rows}.parquet").num_rows == 6
        assert any(line.split()[0] == f"test_resnet/{name}" and line.split()[3] == "done"
                   for line in result.err.splitlines() if len(line.split()) == 5)
    assert set(json.loads((out / "mepi/test_resnet/baseline/summary.json").read_text())) == {"crop", "color"}
    assert reports == [([out / "runs/test_resnet" / name for name in NAMES], [out / "mepi/test_resnet/baseline"])]
    assert not list(out.rglob("*.partial"))

    kept = stamps(out)
    again = call(config)
    assert again.status == 0
    assert not any(line.startswith("[") for line in again.err.splitlines())
    assert stamps(out) == kept
    assert set(states(call, config).values()) == {"done"}
    assert json.loads(call(config, "--dry-run", "--json").out)["seconds"] == [0, 0]
    assert stamps(out) == kept

    (out / "runs/test_resnet/baseline/predictions/test.parquet").unlink()
    again = call(config)
    assert [line for line in again.err.splitlines() if line.startswith("[")] == ["[6/9] evaluate test_resnet/baseline"]
    os.utime(out / "runs/test_resnet/baseline/best/model.safetensors")  # other weights, for all one knows
    again = call(config)
    assert [line for line in again.err.splitlines() if line.startswith("[")] == [
        "[6/9] evaluate test_resnet/baseline", "[8/9] mepi test_resnet/baseline", "[9/9] report"]
    assert "crop is finished; nothing to do" in again.err
    refused = call(written(tmp_path, data, data={"folder": "", "shapes": {**shapes, "train": 9}}, **asked))
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "train 8 → 9" in refused.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_in_a_run_and_continued(call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int,
                                        status: int) -> None:
    whole = runs.append_metrics

    def stopping(folder: Path, row: dict[str, Any]) -> None:
        whole(folder, row)
        if folder.name == "baseline" and row["epoch"] == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(runs, "append_metrics", stopping)
    heard = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopped = call(config)
    assert stopped.status == status
    assert "[2/7] train test_resnet/baseline was stopped: the same command goes on with it" in stopped.err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == heard
    monkeypatch.setattr(runs, "append_metrics", whole)
    folder = tmp_path / "out" / "runs" / "test_resnet"
    assert list(states(call, config).values()) == ["done", "begun", *["waiting"] * 5]
    kept = stamps(folder / "shared")
    result = call(config)
    assert result.status == 0, result.err
    assert "continuing after epoch 1" in result.err
    assert {path: stamp for path, stamp in stamps(folder / "shared").items() if "test.parquet" not in path.name} == kept
    rows = [json.loads(line)["epoch"] for line in (folder / "baseline" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [0, 1, 2]
    # What came of it is what the same settings give by hand, uninterrupted.
    run_training(validated({**read(folder / "baseline" / "config.toml")}), tmp_path / "alone", False)
    one, other = (load_file(run / "last" / "model.safetensors") for run in (folder / "baseline", tmp_path / "alone"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_stopped_between_two_safe_points(call: Call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.cli.evaluate import Evaluator

    def stopping(self: Evaluator, *_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Evaluator, "split", stopping)
    stopped = call(config)
    assert stopped.status == 143
    assert "[4/7] evaluate test_resnet/shared was stopped" in stopped.err


def test_a_failed_run_is_named_and_tried_again(call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               reports: list[Any]) -> None:
    fit = trainer.Trainer.fit

    def failing(self: trainer.Trainer, resume: bool) -> object:
        if self.settings.method == "baseline":
            raise RunError("the loss is \x1bnan")
        if self.settings.method == "fixed":
            raise ValueError("a library's")
        return fit(self, resume)

    monkeypatch.setattr(trainer.Trainer, "fit", failing)
    failed = call(config)
    assert failed.status == 1
    lines = failed.err.splitlines()
    assert lines[-5:] == [
        "failed: train test_resnet/baseline: the loss is ?nan",
        "failed: train test_resnet/fixed-paired-epochs-crop: ValueError: a library's",
        "waiting for train test_resnet/baseline: evaluate test_resnet/baseline",
        "waiting for train test_resnet/fixed-paired-epochs-crop: evaluate test_resnet/fixed-paired-epochs-crop",
        "qrdali: error: 2 of 7 tasks failed and 2 wait for them: the same command tries them again"]
    notes = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert "trace" not in notes["train test_resnet/baseline"]
    assert "failing" in notes["train test_resnet/fixed-paired-epochs-crop"]["trace"]
    listed = json.loads(call(config, "--dry-run", "--json").out)["tasks"]
    assert [(task["state"], task["why"]) for task in listed][1:5:3] == [
        ("failed", "the loss is ?nan"), ("waiting", "for train test_resnet/baseline")]
    assert [len(of) for of, _ in reports] == [1]
    monkeypatch.setattr(trainer.Trainer, "fit", fit)
    assert call(config).status == 0
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == {}
    assert [len(of) for of, _ in reports] == [1, 3]


def test_what_starts_from_a_failed_run_is_not_tried(call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: trainer.Trainer, resume: bool) -> object:
        raise RunError("no")

    monkeypatch.setattr(trainer.Trainer, "fit", failing)
    failed = call(config)
    assert failed.status == 1
    assert "waiting for train test_resnet/shared: train test_resnet/baseline" in failed.err
    assert "failed: report: no run is evaluated yet: there is nothing to report" in failed.err
    assert not (tmp_path / "out/runs/test_resnet/baseline").exists()


def test_a_report_that_fails_is_a_failure(call: Call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.cli import report

    def broken(of: list[Path], mepis: list[Path], out: Path) -> Path:
        raise ModuleNotFoundError("no fonts")

    monkeypatch.setattr(report, "make", broken)
    failed = call(config, "--only", "shared")
    assert failed.status == 1
    assert "failed: report: ModuleNotFoundError: no fonts" in failed.err


def test_only_and_changed_settings(call: Call, config: Path, tmp_path: Path, data: Path) -> None:
    assert list(states(call, config, "--only", "fixed-*")) == [
        *(f"{kind} test_resnet/{name}" for kind in ("train", "evaluate") for name in ("shared", "fixed-paired-epochs-crop")), "report"]
    assert "--only 'fixed' names no run" in call(config, "--only", "fixed").err
    assert call(config, "--only", "shared").status == 0
    assert [path.name for path in (tmp_path / "out/runs/test_resnet").iterdir()] == ["shared"]
    kept = stamps(tmp_path / "out")
    for words in ((), ("--dry-run",)):
        refused = call(written(tmp_path, data, train={"lr": 0.5}), *words)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "runs/test_resnet/shared was begun with other settings than the file now says: lr 0.001 → 0.5" in refused.err
    assert stamps(tmp_path / "out") == kept
    more = written(tmp_path, data, evaluate={"splits": ["test", "val"]})
    assert list(states(call, more, "--only", "shared").values()) == ["done", "waiting", "waiting"]
    threads = written(tmp_path, data, train={"device": "cpu", "threads": 2, "batch_size": 8, "patience": 1, "max_epochs": 2})
    assert states(call, threads)["train test_resnet/shared"] == "done"


@pytest.mark.parametrize(("changes", "words", "said"), [
    ({"surprise": 1}, (), "surprise = 1"),
    ({"network": [{"model": "no_such_net"}]}, (), "no model is called 'no_such_net'"),
    ({"evaluate": {"sets": {"mine": "no-such-folder"}}}, (), "evaluate.sets.mine"),
    ({"data": {"folder": "no-such-data"}}, (), "holds no data set"),
    ({}, ("--data", "no-such-data"), "holds no data set"),
    ({}, ("--json",), "--json is for --dry-run"),
    ({"mepi": {"runs": ["linear-*"]}}, (), "mepi.runs 'linear-*' names no run"),
])
def test_refused_in_one_line_and_nothing_written(call: Call, data: Path, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...],
                                                 said: str) -> None:
    refused = call(written(tmp_path, data, **changes), *words)
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1), refused.err
    assert said in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.toml"]


def test_a_folder_of_something_else_is_not_touched(call: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    refused = call(config)
    assert (refused.status, "choose another out" in refused.err) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_two_processes_do_not_share_a_folder(call: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out" / ".lock", str):
        refused = call(config)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert f"being worked on by process {os.getpid()}" in refused.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


@pytest.mark.parametrize("content", ["[", "[]", '{"a": 1}', "[" * 100_000])
def test_damaged_notes_are_named(call: Call, config: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    (tmp_path / "out" / "done.json").write_text(content)
    refused = call(config)
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "done.json cannot be read" in refused.err


def test_files_that_came_with_qrdali(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo.toml", "configs/demo.toml"):
        shown = call(name, "--dry-run")
        assert shown.status == 0
        assert shown.err.startswith(f"{name} is not here: the one that came with qrdali is used, ")
        assert "# 49 tasks: 49 waiting" in shown.out
    missing = call("elsewhere/demo.toml", "--dry-run")
    assert (missing.status, "demo.toml, humanet.toml, imagenet.toml came with qrdali" in missing.err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_help_holds_an_example(call: Call) -> None:
    shown = call("--help")
    assert shown.status == 0
    assert "qrdali reproduce humanet.toml --only" in shown.out
