"""The main job end to end, through the commands' own functions, on a few small JPEGs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from qrdali.cli.main import cli
from qrdali.cli.terminal import TerminalListener
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import InputError, RunError
from qrdali.interfaces import JobControl
from qrdali.runs import checkpoint
from qrdali.runs.settings import Settings, read_toml, validate_settings
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    generate(root / "images", ShapesSpec(classes=3, train=11, val=4, test=4, size=(80, 60)), workers=1)
    build_dataset(root / "images", root / "data")
    return root / "data"


def settings(data: Path, method: str, **values: object) -> Settings:
    return validate_settings(
        {
            "method": method,
            "data": str(data),
            "model": "test_resnet",
            "input_size": 64,
            "batch_size": 8,
            "device": "cpu",
            "threads": 1,
            **values,
        }
    )


def metrics(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            k: v
            for k, v in row.items()
            if not any(measured in k for measured in ("second", "time", "memory_mb", "energy"))
        }
        for row in rows
    ]


@pytest.fixture(scope="module")
def shared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "shared"
    run_training(settings(data, "shared", epochs=2), run, False)
    return run


def test_shared_leaves_a_whole_run(data: Path, shared: Path) -> None:
    rows = metrics(shared)
    assert [(row["epoch"], row["phase"]) for row in rows] == [(0, "start"), (1, "full"), (2, "full")]
    best = max(range(3), key=lambda e: (rows[e]["val_accuracy"], -e))
    state = json.loads((shared / "best" / "state.json").read_text())
    assert (state["epoch"], state["val_accuracy"]) == (best, rows[best]["val_accuracy"])
    table = pq.read_table(shared / "predictions" / "val.parquet")
    described = ["sample", "path", "label", "prediction", "correct", "confidence"]
    assert table.column_names == [*described, "rank", "true_probability"]
    assert sum(table["correct"].to_pylist()) / table.num_rows == rows[best]["val_accuracy"]
    assert read_toml(shared / "config.toml")["lr"] == 1e-3
    result = Evaluator(shared, EvaluateOptions(device="cpu")).split(Path(data), "test")
    assert result["images"] == 12
    assert pq.read_table(shared / "predictions" / "test.parquet")["sample"].to_pylist() == list(range(12))


def test_fixed_alternates_and_restores_the_best(data: Path, shared: Path, tmp_path: Path) -> None:
    run = tmp_path / "fixed"
    run_training(
        settings(
            data,
            "fixed",
            init=str(shared),
            reduction="combination",
            quality=0.5,
            sequence="paired-epochs",
            patience=1,
            max_epochs=20,
        ),
        run,
        False,
    )
    rows = metrics(run)[1:]
    assert [row["phase"] for row in rows] == ["reduced", "full"] * (len(rows) // 2)
    assert rows[0]["quality"] == {"color": 0.5, "crop": 0.5, "resolution": 0.5}
    assert rows[1]["quality"] == {"color": 1.0, "crop": 1.0, "resolution": 1.0}
    state = json.loads((run / "last" / "state.json").read_text())["schedule"]
    assert state["ended"].startswith("patience")
    assert state["best_epoch"] == len(rows) - 2
    unit, last = (load_file(run / folder / "model.safetensors") for folder in ("unit", "last"))
    assert all(torch.equal(unit[key], last[key]) for key in unit)


def test_start_of_a_run_is_the_best_of_its_init(data: Path, shared: Path, tmp_path: Path) -> None:
    run_training(settings(data, "baseline", init=str(shared), max_epochs=1), tmp_path / "b", False)
    assert (
        metrics(tmp_path / "b")[0]["val_accuracy"]
        == json.loads((shared / "best/state.json").read_text())["val_accuracy"]
    )


def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "qrdali",
        "train",
        "fixed",
        "--data",
        str(data),
        "--model",
        "test_resnet",
        "--device",
        "cpu",
        "--input-size",
        "64",
        "--batch-size",
        "4",
        "--max-epochs",
        "3",
        "--threads",
        "1",
        "--save-every",
        "3",
        "--sequence",
        "RC",
        "--reduction",
        "crop",
    ]
    once, twice = tmp_path / "once", tmp_path / "twice"
    subprocess.run([*command, "--run", str(once)], check=True, capture_output=True)
    for kill in (True, False):
        process = subprocess.Popen(
            [*command, "--run", str(twice), "--resume"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr
        if kill:
            while not (twice / "last" / "state.json").exists() and process.poll() is None:
                pass
            os.kill(process.pid, signal.SIGTERM)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == (143 if kill else 0), error
    assert metrics(once) == metrics(twice)
    for folder in ("best", "last"):
        a, b = (load_file(run / folder / "model.safetensors") for run in (once, twice))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_refusals(data: Path, shared: Path, tmp_path: Path) -> None:
    before = sorted(p.stat().st_mtime_ns for p in shared.rglob("*"))
    with pytest.raises(InputError, match="already holds a run"):
        run_training(settings(data, "shared", epochs=2), shared, False)
    with pytest.raises(InputError, match="epochs 2 → 5"):
        run_training(settings(data, "shared", epochs=5), shared, True)
    run_training(settings(data, "shared", epochs=2), shared, True)  # finished: says so
    assert before == sorted(p.stat().st_mtime_ns for p in shared.rglob("*"))
    with pytest.raises(InputError, match="near it: .*squeezenet1_1"):
        run_training(settings(data, "shared", model="squeezenet11"), tmp_path / "x", False)
    with pytest.raises(InputError, match="trained test_resnet"):
        run_training(settings(data, "baseline", model="resnet10t", init=str(shared)), tmp_path / "x", False)
    with pytest.raises(InputError, match="surprise"):
        settings(data, "shared", surprise=1)
    with pytest.raises(InputError, match="lrr = 0.1: there is no such setting; near it: lr"):
        settings(data, "shared", lrr=0.1)
    with pytest.raises(InputError, match="outside|less than or equal to 1"):
        run_training(settings(data, "fixed", quality=1.5), tmp_path / "x", False)
    assert not (tmp_path / "x").exists()
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(InputError, match="TOML"):
        read_toml(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optimizer": "adamww"}, "adamww.*near it: .*adamw"),
        ({"optimizer": "lbfgs"}, "lbfgs"),
        ({"model": "vit_tiny_patch16_224"}, "--input-size is 64.*does not take it.*own is 224"),
        ({"batch_size": 3_000_000_000}, "batch_size"),
        ({"probe_batch_size": 10**20}, "probe_batch_size"),
        ({"init": "RUN", "pretrained": True}, "--init and --pretrained"),
    ],
)
def test_what_could_not_begin_leaves_no_folder(
    data: Path, shared: Path, tmp_path: Path, values: dict[str, object], words: str
) -> None:
    if "init" in values:
        values = {**values, "init": str(shared)}
    run = tmp_path / "run"
    with pytest.raises(InputError, match=words):
        run_training(settings(data, "shared", **values), run, False)
    assert not run.exists()


def test_a_folder_of_something_else_is_no_place_for_a_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for resume in (False, True):
        with pytest.raises(InputError, match="holds 'cats'"):
            run_training(settings(data, "shared"), tmp_path / "images", resume)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["cats"]


def test_a_configuration_of_another_method_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('method = "linear"\n')
    result = CliRunner().invoke(
        cli,
        [
            "train",
            "shared",
            "--data",
            str(data),
            "--run",
            str(tmp_path / "run"),
            "--config",
            str(tmp_path / "c.toml"),
        ],
    )
    assert isinstance(result.exception, InputError)
    assert "train linear" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_every_file_of_a_run_may_be_read_by_those_who_may_read_one(shared: Path) -> None:
    modes = {
        file.name: oct(file.stat().st_mode & 0o777)
        for file in shared.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }
    assert (
        len({modes["model.safetensors"], modes["state.json"], modes["config.toml"], modes["metrics.jsonl"]})
        == 1
    ), modes


def test_the_one_class_that_is_always_answered_is_said_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(
        settings(data, "shared", epochs=3, lr=1e-9), tmp_path / "run", False, JobControl(TerminalListener())
    )
    said = capsys.readouterr().err
    assert said.count("for every validation image") == 1, said


def test_other_classes_are_shown(shared: Path, tmp_path: Path) -> None:
    generate(tmp_path / "images", ShapesSpec(classes=4, train=2, val=1, test=1, size=(40, 32)), workers=1)
    build_dataset(tmp_path / "images", tmp_path / "data")
    with pytest.raises(InputError, match="only here"):
        Evaluator(shared, EvaluateOptions(device="cpu")).split(tmp_path / "data", "test")


def test_checkpoints_are_whole_or_named(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    tensors, rest = checkpoint.flatten(optimizer.state_dict())
    checkpoint.save(tmp_path / "c", {"a": 1, "rest": rest}, optimizer=tensors)
    state, (back,) = checkpoint.load(tmp_path / "c", "optimizer")
    again = checkpoint.unflatten(back, state["rest"])
    assert torch.equal(again["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    (tmp_path / "c").rename(tmp_path / "c.old")  # as a kill between the two renames leaves it
    assert checkpoint.load(tmp_path / "c")[0]["a"] == 1
    (tmp_path / "c.old" / "optimizer.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(RunError, match="optimizer.safetensors is damaged"):
        checkpoint.load(tmp_path / "c", "optimizer")
