"""Runs `qrdali reproduce` on tiny pictures: whole, stopped and continued, failed and tried again."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from qrdali.cli.main import main
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import RunError
from qrdali.files.lock import acquire
from qrdali.interfaces import JobControl
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import read_toml, validate_settings
from qrdali.training import trainer
from qrdali.workflows import tasks as task_workflows
from qrdali.workflows.report import WrittenReport
from qrdali.workflows.train import run_training

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
    """Returns what each report is made of: its runs and MEPI sets."""
    made: list[tuple[list[Path], list[Path]]] = []
    write_report = task_workflows.write_report

    def noting(runs: list[Path], out: Path, *, mepi: list[Path], control: JobControl) -> WrittenReport:
        made.append((runs, mepi))
        return write_report(runs, out, mepi=mepi, control=control)

    monkeypatch.setattr(task_workflows, "write_report", noting)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    generate(root / "images", ShapesSpec(classes=2, train=8, val=3, test=3, size=(40, 32)), workers=1)
    build_dataset(root / "images", root / "data")
    return root / "data"


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return written(tmp_path, data)


def written(folder: Path, dataset: Path, /, **changes: Any) -> Path:
    """shared, baseline and fixed crop of one network, an epoch or two each."""
    values: dict[str, Any] = {
        "out": str(folder / "out"),
        "data": {"folder": str(dataset)},
        "train": {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 1, "max_epochs": 2},
        "network": [{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        "runs": {"methods": ["baseline", "fixed"], "reductions": ["crop"]},
    }
    for table, own in changes.items():
        values[table] = {**values.get(table, {}), **own} if isinstance(own, dict) else own
    file = folder / "matrix.toml"
    file.write_text(tomli_w.dumps(values))
    return file


def stamps(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def states(call: Call, config: Path, *words: str) -> dict[str, str]:
    shown = call(config, "--dry-run", "--json", *words)
    assert (shown.status, shown.err) == (0, "")
    return {
        f"{task['kind']} {task['name']}".rstrip(): task["state"] for task in json.loads(shown.out)["tasks"]
    }


def test_a_whole_matrix_from_pictures_to_the_report(
    call: Call, tmp_path: Path, data: Path, reports: list[Any]
) -> None:
    shapes = {"classes": 2, "train": 8, "val": 3, "test": 3, "size": "40x32"}
    asked: dict[str, Any] = {
        "evaluate": {
            "sets": {"mine": str(data.parent / "images" / "val")},
            "suites": {"human": str(data.parent / "images" / "val")},
        },
        "mepi": {"runs": ["baseline"], "limit": 2, "step": 0.25, "reductions": ["crop", "color"]},
    }
    config = written(tmp_path, data, data={"folder": "", "shapes": shapes}, **asked)
    before = states(call, config)
    assert list(before) == [
        "data",
        *(f"{kind} test_resnet/{name}" for kind in ("train", "evaluate") for name in NAMES),
        "mepi test_resnet/baseline",
        "report",
    ]
    assert set(before.values()) == {"waiting"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["matrix.toml"]

    result = call(config)
    assert result.status == 0, result.err
    assert [line for line in result.err.splitlines() if line.startswith("[")] == [
        f"[{number}/9] {task}" for number, task in enumerate(before, 1)
    ]
    out = tmp_path / "out"
    for name in NAMES:
        for rows in ("test", "mine", "human"):
            assert (
                pq.read_table(
                    out / "runs" / "test_resnet" / name / "predictions" / f"{rows}.parquet"
                ).num_rows
                == 6
            )
        assert any(
            line.split()[0] == f"test_resnet/{name}" and line.split()[3] == "done"
            for line in result.err.splitlines()
            if len(line.split()) == 5
        )
    assert set(json.loads((out / "mepi/test_resnet/baseline/summary.json").read_text())) == {"crop", "color"}
    assert reports == [
        ([out / "runs/test_resnet" / name for name in NAMES], [out / "mepi/test_resnet/baseline"])
    ]
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
    assert [line for line in again.err.splitlines() if line.startswith("[")] == [
        "[6/9] evaluate test_resnet/baseline",
        "[9/9] report",
    ]
    (out / "runs/test_resnet/baseline/predictions/human.parquet").unlink()
    again = call(config)
    assert "[6/9] evaluate test_resnet/baseline" in again.err.splitlines()
    assert "Published suites" in (out / "report/report.html").read_text()
    os.utime(out / "runs/test_resnet/baseline/best/model.safetensors")  # other weights, for all one knows
    again = call(config)
    begun = [line for line in again.err.splitlines() if line.startswith("[")]
    # The one that took longer the time before is taken first.
    assert sorted(begun[:2]) == ["[6/9] evaluate test_resnet/baseline", "[8/9] mepi test_resnet/baseline"]
    assert begun[2:] == ["[9/9] report"]
    assert "crop is finished; nothing to do" in again.err
    refused = call(written(tmp_path, data, data={"folder": "", "shapes": {**shapes, "train": 9}}, **asked))
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "train 8 → 9" in refused.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_in_a_run_and_continued(
    call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    append_metrics = run_folder.append_metrics

    def stopping(folder: Path, row: dict[str, Any]) -> None:
        append_metrics(folder, row)
        if folder.name == "baseline" and row["epoch"] == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(run_folder, "append_metrics", stopping)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopped = call(config)
    assert stopped.status == status
    assert "[2/7] train test_resnet/baseline was stopped: the same command goes on with it" in stopped.err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    monkeypatch.setattr(run_folder, "append_metrics", append_metrics)
    folder = tmp_path / "out" / "runs" / "test_resnet"
    assert list(states(call, config).values()) == ["done", "begun", *["waiting"] * 5]
    kept = stamps(folder / "shared")
    result = call(config)
    assert result.status == 0, result.err
    assert "continuing after epoch 1" in result.err
    assert {
        path: stamp for path, stamp in stamps(folder / "shared").items() if "test.parquet" not in path.name
    } == kept
    rows = [
        json.loads(line)["epoch"] for line in (folder / "baseline" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == [0, 1, 2]
    # What came of it is what the same settings give by hand, uninterrupted.
    run_training(
        validate_settings({**read_toml(folder / "baseline" / "config.toml")}), tmp_path / "alone", False
    )
    one, other = (
        load_file(run / "last" / "model.safetensors") for run in (folder / "baseline", tmp_path / "alone")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_stopped_between_two_safe_points(call: Call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qrdali.workflows.evaluate import Evaluator

    split = Evaluator.split

    def stopping(self: Evaluator, *arguments: Any) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return split(self, *arguments)

    monkeypatch.setattr(Evaluator, "split", stopping)
    stopped = call(config)
    assert stopped.status == 143
    assert "[4/7] evaluate test_resnet/shared was stopped" in stopped.err


def test_a_failed_run_is_named_and_tried_again(
    call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: list[Any]
) -> None:
    train = trainer.Trainer.train

    def failing(self: trainer.Trainer, resume: bool) -> object:
        if self.settings.method == "baseline":
            raise RunError("the loss is \x1bnan")
        if self.settings.method == "fixed":
            raise ValueError("a library's")
        return train(self, resume)

    monkeypatch.setattr(trainer.Trainer, "train", failing)
    failed = call(config)
    assert failed.status == 1
    lines = failed.err.splitlines()
    assert lines[-5:] == [
        "failed: train test_resnet/baseline: the loss is ?nan",
        "failed: train test_resnet/fixed-paired-epochs-crop: ValueError: a library's",
        "waiting for train test_resnet/baseline: evaluate test_resnet/baseline",
        "waiting for train test_resnet/fixed-paired-epochs-crop: evaluate "
        "test_resnet/fixed-paired-epochs-crop",
        "qrdali: error: 2 of 7 tasks failed and 2 wait for them: the same command tries them again",
    ]
    notes = tmp_path / "out" / "tasks"
    baseline, fixed = (
        json.loads((notes / f"train+test_resnet+{name}" / "failed.json").read_text()) for name in NAMES[1:]
    )
    assert "trace" not in baseline
    assert "failing" in fixed["trace"]
    # Each was tried again once, and every reason is kept.
    assert [attempt["reason"] for attempt in baseline["attempts"]] == ["the loss is ?nan"] * 2
    assert "failed: the loss is ?nan" in (notes / "train+test_resnet+baseline" / "log.txt").read_text()
    listed = json.loads(call(config, "--dry-run", "--json").out)["tasks"]
    assert [(task["state"], task["why"]) for task in listed][1:5:3] == [
        ("failed", "the loss is ?nan"),
        ("waiting", "for train test_resnet/baseline"),
    ]
    assert [len(of) for of, _ in reports] == [1]
    monkeypatch.setattr(trainer.Trainer, "train", train)
    assert call(config).status == 0
    assert not list(notes.glob("*/failed.json"))
    done = json.loads((notes / "train+test_resnet+baseline" / "done.json").read_text())
    assert done["failed_before"] == ["the loss is ?nan"] * 2
    assert [len(of) for of, _ in reports] == [1, 3]


def test_what_starts_from_a_failed_run_is_not_tried(
    call: Call, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: trainer.Trainer, resume: bool) -> object:
        raise RunError("no")

    monkeypatch.setattr(trainer.Trainer, "train", failing)
    failed = call(config)
    assert failed.status == 1
    assert "waiting for train test_resnet/shared: train test_resnet/baseline" in failed.err
    assert "failed: report: no run is evaluated yet: there is nothing to report" in failed.err
    assert not (tmp_path / "out/runs/test_resnet/baseline").exists()


def test_a_report_that_fails_is_a_failure(call: Call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(runs: list[Path], out: Path, **_: object) -> WrittenReport:
        raise ModuleNotFoundError("no fonts")

    monkeypatch.setattr(task_workflows, "write_report", broken)
    failed = call(config, "--only", "shared")
    assert failed.status == 1
    assert "failed: report: ModuleNotFoundError: no fonts" in failed.err


def test_only_and_changed_settings(call: Call, config: Path, tmp_path: Path, data: Path) -> None:
    assert list(states(call, config, "--only", "fixed-*")) == [
        *(
            f"{kind} test_resnet/{name}"
            for kind in ("train", "evaluate")
            for name in ("shared", "fixed-paired-epochs-crop")
        ),
        "report",
    ]
    assert "--only 'fixed' names no run" in call(config, "--only", "fixed").err
    assert call(config, "--only", "shared").status == 0
    assert [path.name for path in (tmp_path / "out/runs/test_resnet").iterdir()] == ["shared"]
    kept = stamps(tmp_path / "out")
    for words in ((), ("--dry-run",)):
        refused = call(written(tmp_path, data, train={"lr": 0.5}), *words)
        assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert (
            "runs/test_resnet/shared was begun with other settings than the file now says: lr 0.001 → 0.5"
            in refused.err
        )
    assert stamps(tmp_path / "out") == kept
    more = written(tmp_path, data, evaluate={"splits": ["test", "val"]})
    assert list(states(call, more, "--only", "shared").values()) == ["done", "waiting", "waiting"]
    threads = written(
        tmp_path, data, train={"device": "cpu", "threads": 2, "batch_size": 8, "patience": 1, "max_epochs": 2}
    )
    assert states(call, threads)["train test_resnet/shared"] == "done"


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"surprise": 1}, (), "surprise = 1"),
        ({"network": [{"model": "no_such_net"}]}, (), "no model is called 'no_such_net'"),
        ({"evaluate": {"sets": {"mine": "no-such-folder"}}}, (), "evaluate.sets.mine"),
        ({"evaluate": {"suites": {"human": "no-such-folder"}}}, (), "evaluate.suites.human"),
        ({"data": {"folder": "no-such-data"}}, (), "is not a data set"),
        ({}, ("--data", "no-such-data"), "is not a data set"),
        ({}, ("--json",), "--json is for --dry-run"),
        ({"mepi": {"runs": ["linear-*"]}}, (), "mepi.runs 'linear-*' names no run"),
    ],
)
def test_refused_in_one_line_and_nothing_written(
    call: Call, data: Path, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    refused = call(written(tmp_path, data, **changes), *words)
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1), refused.err
    assert message in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.toml"]


def test_a_folder_of_something_else_is_not_touched(call: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    refused = call(config)
    assert (refused.status, "choose another out" in refused.err) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_two_processes_do_not_share_a_folder(call: Call, config: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with acquire(tmp_path / "out" / ".lock", str):
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
    assert (
        missing.status,
        "demo.toml, humanet-study.toml, humanet.toml, imagenet.toml came with qrdali" in missing.err,
    ) == (
        2,
        True,
    )
    assert not list(tmp_path.iterdir())


def test_help_holds_an_example(call: Call) -> None:
    shown = call("--help")
    assert shown.status == 0
    assert "qrdali reproduce humanet.toml --only" in shown.out


def test_a_run_whose_start_was_replaced_is_refused(call: Call, config: Path, tmp_path: Path) -> None:
    assert call(config).status == 0
    folder = tmp_path / "out" / "runs" / "test_resnet"
    copied = shutil.copytree(folder / "shared", tmp_path / "copy")  # other times, the same weights
    shutil.rmtree(folder / "shared")
    shutil.move(copied, folder / "shared")
    assert "fixed" not in call(config, "--dry-run").err
    weights = load_file(folder / "shared" / "best" / "model.safetensors")
    save_file(
        {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()},
        folder / "shared" / "best" / "model.safetensors",
    )
    refused = call(config)
    assert refused.status == 2
    assert (
        "was trained from others than are there now: the weights of test_resnet/shared changed since. Remove "
        "that run" in refused.err
    )


def test_a_mepi_set_of_other_options_is_refused_at_once(call: Call, data: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"runs": ["shared"], "limit": 2, "step": 0.25, "reductions": ["color"]}
    assert call(written(tmp_path, data, mepi=asked), "--only", "shared").status == 0
    refused = call(written(tmp_path, data, mepi={**asked, "step": 0.5}), "--only", "shared")
    assert refused.status == 2
    assert "was built with other options than the file now says: step 0.25 → 0.5" in refused.err


def test_rows_of_somebody_else_are_made_again(call: Call, config: Path, tmp_path: Path) -> None:
    assert call(config).status == 0
    file = tmp_path / "out/runs/test_resnet/shared/predictions/test.parquet"
    pq.write_table(pq.read_table(file).slice(0, 3), file)
    again = call(config)
    assert "[4/7] evaluate test_resnet/shared" in again.err
    assert pq.read_table(file).num_rows == 6
    # The page is the last line, whether it was made anew or is there.
    assert (
        again.err.splitlines()[-1]
        == call(config).err.splitlines()[-1]
        == str(tmp_path / "out/report/report.html")
    )


def test_stopped_as_a_run_ends(call: Call, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that nobody asks for any more in that run still stops the matrix."""
    train = trainer.Trainer.train

    def late(self: trainer.Trainer, resume: bool) -> object:
        state = train(self, resume)
        os.kill(os.getpid(), signal.SIGTERM)
        return state

    monkeypatch.setattr(trainer.Trainer, "train", late)
    stopped = call(config)
    assert stopped.status == 143
    assert "[1/7] train test_resnet/shared was stopped" in stopped.err
    monkeypatch.setattr(trainer.Trainer, "train", train)
    assert states(call, config)["train test_resnet/shared"] == "done"


def test_the_time_of_evaluations_is_that_of_those_done(call: Call, config: Path) -> None:
    assert call(config, "--only", "baseline").status == 0
    tasks = {
        f"{t['kind']} {t['name']}": t for t in json.loads(call(config, "--dry-run", "--json").out)["tasks"]
    }
    assert tasks["evaluate test_resnet/baseline"]["seconds"] == [0, 0]
    low, high = tasks["evaluate test_resnet/fixed-paired-epochs-crop"]["seconds"]
    assert 0 < low <= high
    assert "evaluation and MEPIs left:" in call(config, "--dry-run").out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"evaluate": {"sets": {"test-crop-0.5": "x"}}},
            "evaluate.sets.test-crop-0.5 has the name 'test-crop-0.5'",
        ),
        ({"evaluate": {"sets": {"mine": ""}}}, "evaluate.sets.mine is empty"),
        ({"evaluate": {"suites": {"real": ""}}}, "evaluate.suites.real is empty"),
        ({"evaluate": {"suites": {"imagenet-x": "x"}}}, "evaluate.suites.imagenet-x is no suite"),
        (
            {"evaluate": {"sets": {"human-crop": "x"}, "suites": {"human": "x"}}},
            "evaluate.sets.human-crop would have the name of rows of a suite",
        ),
        ({"out": "a\x00b"}, "NUL character"),
        ({"mepi": {"runs": ["baseline"], "step": 1e-320}}, "is not 1/n"),
    ],
)
def test_more_that_is_refused(
    call: Call, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refused = call(written(tmp_path, data, **changes))
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.toml"]


def test_sets_of_unknown_classes_and_folders_of_something_else(
    call: Call, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "set" / "zebra").mkdir(parents=True)
    refused = call(written(tmp_path, data, evaluate={"sets": {"mine": str(tmp_path / "set")}}))
    assert (refused.status, "evaluate.sets.mine: 'zebra' is no class of" in refused.err) == (2, True)
    (tmp_path / "out").mkdir()
    for name in (".lock", "options.json"):  # a MEPI set has a lock too
        (tmp_path / "out" / name).write_text("{}")
    refused = call(written(tmp_path, data))
    assert (refused.status, "is not a matrix' folder" in refused.err) == (2, True)
