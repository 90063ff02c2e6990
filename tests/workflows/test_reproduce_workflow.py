"""`reproduce` and `plan` without a command line: what they return, raise and report, and where they stop."""

import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from recording_listener import RecordingListener

from qrdali.data.index import Dataset
from qrdali.errors import InputError, Interrupted, RunError
from qrdali.experiment.estimate import Seconds
from qrdali.interfaces import JobControl, SilentListener
from qrdali.workflows import matrix_worker
from qrdali.workflows import reproduce as workflow
from qrdali.workflows.stop_requests import stopping_at_progress


@pytest.fixture
def config(dataset: Dataset, tmp_path: Path) -> Path:
    """A matrix of two runs on tiny pictures."""
    values: dict[str, Any] = {
        "out": str(tmp_path / "out"),
        "data": {"folder": str(dataset.folder)},
        "train": {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 1, "max_epochs": 2},
        "network": [{"model": "test_resnet", "input_size": 32, "epochs": 1, "epoch_seconds": 2}],
        "runs": {"methods": ["baseline"]},
    }
    file = tmp_path / "matrix.toml"
    file.write_text(tomli_w.dumps(values))
    return file


def test_a_plan_names_tasks_and_times_and_writes_nothing(config: Path, tmp_path: Path) -> None:
    plan = workflow.plan(config, threads=2)
    assert [(task.kind, task.name, task.state) for task in plan.tasks] == [
        ("train", "test_resnet/shared", "waiting"),
        ("train", "test_resnet/baseline", "waiting"),
        ("evaluate", "test_resnet/shared", "waiting"),
        ("evaluate", "test_resnet/baseline", "waiting"),
        ("report", "", "waiting"),
    ]
    assert plan.training == Seconds(6.0, 6.0)  # an epoch of shared and two of the baseline, two seconds each
    assert plan.as_json()["tasks"][0]["epochs"] == (1, 1)
    assert not (tmp_path / "out").exists()


def test_a_result_holds_runs_and_the_page(
    config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = RecordingListener()
    result = workflow.reproduce(config, only=["shared"], control=JobControl(listener))
    (shared,) = result.runs
    assert (shared.name, shared.state, result.split) == ("test_resnet/shared", "done", "test")
    assert shared.val is not None
    assert shared.accuracy is not None
    assert shared.seconds is not None
    assert (result.failed, result.waiting) == ({}, {})
    assert result.page == tmp_path / "out" / "report" / "report.html"
    assert "[1/3] train test_resnet/shared" in listener.lines
    assert workflow.plan(config, only=["shared"]).training == Seconds(0.0, 0.0)


def test_failed_tasks_are_raised_with_the_result(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RunError("no memory")

    monkeypatch.setattr(matrix_worker, "perform", fail)
    with pytest.raises(workflow.TasksFailed, match="2 of 5 tasks failed and 3 wait for them") as failure:
        workflow.reproduce(config)
    assert failure.value.result.failed == {
        "train test_resnet/shared": "no memory",
        "report": "no memory",
    }
    assert failure.value.result.waiting["train test_resnet/baseline"] == "train test_resnet/shared"


def test_a_signal_before_a_task_keeps_it_from_beginning(config: Path, tmp_path: Path) -> None:
    control = JobControl(SilentListener(), lambda: signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"\[1/5\] train test_resnet/shared was stopped: the same") as stop:
        workflow.reproduce(config, control=control)
    assert stop.value.signum == signal.SIGTERM
    assert not (tmp_path / "out" / "runs").exists()


def test_a_folder_keeps_the_levels_that_it_was_begun_with(config: Path) -> None:
    at_once = JobControl(SilentListener(), lambda: signal.SIGTERM)
    with pytest.raises(Interrupted):
        workflow.reproduce(config, control=at_once)
    with config.open("a") as file:
        file.write('[mepi]\nruns = ["*"]\ntail = "none"\n')
    with pytest.raises(InputError, match="was begun with mepi.tail = 'full', not 'none': give that"):
        workflow.reproduce(config, control=at_once)


def test_a_signal_in_a_task_that_does_not_look_for_it_stops_the_matrix_after_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals: list[int] = []
    monkeypatch.setattr(matrix_worker, "perform", lambda *_: signals.append(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"\[1/5\]"):
        workflow.reproduce(config, control=JobControl(stop=lambda: signals[0] if signals else 0))
    assert len(signals) == 1


def test_work_that_does_not_look_for_signals_is_stopped_at_its_next_progress() -> None:
    signals = [0, 0, signal.SIGTERM]
    listener = stopping_at_progress(JobControl(stop=lambda: signals.pop(0))).listener
    listener.advance(1, lambda: "")
    listener.advance(1, lambda: "")
    with pytest.raises(Interrupted):
        listener.advance(1, lambda: "")


def test_a_config_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="humanet.toml, imagenet.toml came with qrdali"):
        workflow.plan(tmp_path / "none.toml")
