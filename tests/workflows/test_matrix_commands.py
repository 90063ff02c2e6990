"""`qrdali reproduce --commands` and `--task KEY`: a matrix done task by task, by other schedulers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from matrix_helpers import SHAPES, written

import qrdali
from qrdali.cli.main import main
from qrdali.errors import InputError
from qrdali.experiment.claims import Claims
from qrdali.experiment.workers import Presence
from qrdali.workflows import matrix_worker
from qrdali.workflows import reproduce as workflow

TRAIN, BASELINE = "train test_resnet/shared", "train test_resnet/baseline"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        tmp_path / "out",
        network=[{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        runs={"methods": ["baseline"]},
    )


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr("sys.argv", ["qrdali", "reproduce", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_commands_in_their_order_do_the_matrix(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, config, "--commands") == 0
    assert not (tmp_path / "out").exists()
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    before: set[str] = set()
    for entry in listed:
        assert {*entry} == {"task", "needs", "command", "gpus", "seconds", "state"}
        assert before.issuperset(entry["needs"])
        before.add(entry["task"])
    assert len(listed) == 7
    assert {*listed[-1]["needs"]} == before - {"report"}
    for entry in listed:
        name, *words = shlex.split(entry["command"])
        assert name == "qrdali"
        assert call(monkeypatch, *words[1:]) == 0, capsys.readouterr().err
        done = [*(tmp_path / "out" / "tasks").glob("*/done.json")]
        assert len(done) == listed.index(entry) + 1
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    capsys.readouterr()
    assert call(monkeypatch, config, "--task", "report") == 0
    assert "report is done already" in capsys.readouterr().err
    assert call(monkeypatch, config, "--commands", "shell") == 0
    assert capsys.readouterr().out == ""  # nothing is left


def test_options_and_names_are_quoted_in_commands(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", "a b;'c", "--only", "*/shared", "--threads", "1"]
    assert call(monkeypatch, config, "--commands", "shell", *words) == 0
    first = shlex.split(capsys.readouterr().out.splitlines()[0])
    assert first == [
        *("qrdali", "reproduce", str(config), "--only=*/shared", "--out=a b;'c"),
        *("--retries=1", "--threads=1", "--task", "data", "--wait"),
    ]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (
            ["--task", "train test_resnet/sharde"],
            2,
            "is no task of this matrix; near it: train test_resnet/sh",
        ),
        (["--task", "\x1b[2J"], 2, "is no task of this matrix; there are data, "),
        (["--task", ""], 2, "is no task of this matrix"),
        (["--task", "data", "--gpus", "1"], 2, "--task and --gpus: give one of them"),
        (["--task", "data", "--dry-run"], 2, "--dry-run and --task: give one of them"),
        (["--wait"], 2, "--wait is for --task KEY"),
        (["--task", BASELINE], 1, f"{BASELINE} needs data, {TRAIN}, not done yet"),
        (["--task", "report"], 1, "report failed: no run is evaluated yet"),
    ],
)
def test_refused_in_a_line(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    message: str,
) -> None:
    assert call(monkeypatch, config, *words) == status
    said = capsys.readouterr().err
    assert message in said
    assert "\x1b" not in said


def test_a_task_that_another_worker_has_is_refused_or_waited_for(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = workflow._open(config, workflow._Options((), None, None, None, None, None), _Silent())
    monkeypatch.setattr(matrix_worker, "POLL_SECONDS", 0.05)
    with Presence(tmp_path / "out", workflow.compared_settings(tasks)) as other:
        (tmp_path / "out" / ".lock").touch()
        claim = Claims(other).take(tasks.folder.task("data"))
        assert claim is not None
        assert call(monkeypatch, config, "--task", "data") == 1
        assert f"data is being done by worker {other.number} (process " in capsys.readouterr().err
        waited = []

        def release(seconds: float) -> None:
            waited.append(seconds)
            claim.release()

        monkeypatch.setattr(matrix_worker.time, "sleep", release)
        assert call(monkeypatch, config, "--task", "data", "--wait") == 0
        assert waited
    assert (tmp_path / "out" / "data" / "classes.tsv").is_file()


class _Silent:
    def line(self, text: str) -> None: ...


def test_a_task_that_fails_is_tried_again_as_often_as_asked_and_ends_with_1(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def fail(*_: object) -> None:
        tried.append(1)
        raise OSError("the disk is full")

    monkeypatch.setattr(matrix_worker, "perform", fail)
    assert call(monkeypatch, config, "--task", "data", "--retries", "2") == 1
    assert len(tried) == 3
    assert "error: data failed: the disk is full" in capsys.readouterr().err
    # What waits for it gives up once nobody has tried it again for a while.
    monkeypatch.setattr(matrix_worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(matrix_worker, "GIVEN_UP_SECONDS", 0.2)
    assert call(monkeypatch, config, "--task", TRAIN, "--wait") == 1
    assert f"{TRAIN} needs data, which has failed or waits" in capsys.readouterr().err


def test_what_needs_more_gpus_than_are_here_is_left_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(
        tmp_path,
        tmp_path / "out",
        network=[
            {"model": "test_resnet", "name": "large", "input_size": 32, "epochs": 1, "gpus": 2},
            {"model": "test_resnet", "name": "small", "input_size": 32, "epochs": 1},
        ],
        runs={"methods": []},
        mepi={},
        report={"make": False},
    )
    monkeypatch.setattr(workflow, "most_gpus", lambda device: 1)  # as on a host with one
    assert call(monkeypatch, config) == 1
    said = capsys.readouterr().err
    assert (
        "2 of 5 tasks are left, train large/shared among them, which waits for a worker with 2 GPUs" in said
    )
    done = {folder.parent.name for folder in (tmp_path / "out" / "tasks").glob("*/done.json")}
    assert done == {"data", "train+small+shared", "evaluate+small+shared"}
    assert call(monkeypatch, config, "--task", "train large/shared") == 1
    assert "train large/shared needs 2 GPUs, more than are here" in capsys.readouterr().err
    # While a worker that has them lives, it is waited for.
    tasks = workflow._open(config, workflow._Options((), None, None, None, None, None), _Silent())
    other = Presence(tmp_path / "out", workflow.compared_settings(tasks), 4)
    ends = iter([other.end])
    monkeypatch.setattr(matrix_worker.time, "sleep", lambda seconds: next(ends, lambda: None)())
    assert call(monkeypatch, config) == 1
    assert next(ends, None) is None
    assert "waiting for train large/shared" in capsys.readouterr().err


def test_shell_commands_run_at_once_wait_for_what_they_need(config: Path, tmp_path: Path) -> None:
    config = written(
        tmp_path,
        tmp_path / "out",
        network=[{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        runs={"methods": []},
        mepi={},
        report={"make": False},
        data={"shapes": {**SHAPES, "train": 4}},
    )
    listing = subprocess.run(
        [sys.executable, "-m", "qrdali", "reproduce", str(config), "--commands", "shell"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = listing.stdout.splitlines()
    assert len(lines) == 3  # data, train and evaluate
    started = [
        subprocess.Popen([sys.executable, "-m", *shlex.split(line)], stderr=subprocess.PIPE, text=True)
        for line in reversed(lines)
    ]
    for process in started:
        said = process.communicate(timeout=280)[1]
        assert process.returncode == 0, said
    assert len([*(tmp_path / "out" / "tasks").glob("*/done.json")]) == 3


def test_python_waits_for_a_task_only(config: Path) -> None:
    with pytest.raises(InputError, match="wait is for task"):
        qrdali.reproduce(config, wait=True)
