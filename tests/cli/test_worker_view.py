"""The line of each worker: what it does, how fast, and how long it still takes."""

from pathlib import Path
from typing import Any

import pytest

from qrdali.cli import worker_view
from qrdali.cli.worker_view import LiveLines, pass_text, worker_line
from qrdali.experiment.estimate import Seconds
from qrdali.experiment.workers import Presence
from qrdali.workflows.matrix_launch import LaunchedMatrix, WorkerPlan
from qrdali.workflows.matrix_status import WorkerStatus

PASS = {"what": "epoch 3 R", "unit": "images", "done": 1200, "total": 5000, "rate": 512.34}


def worker(task: str = "train net/shared", **activity: Any) -> WorkerStatus:
    return WorkerStatus(7, "gpu 0", "host", 12, "0", 0.0, False, task, 5.0, activity)


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (worker(**PASS), "w: train net/shared, epoch 3 R: 1,200/5,000 images, 512.3 images/s, 7 s left"),
        (worker(**{**PASS, "total": 0}), "w: train net/shared, epoch 3 R: 1,200 images, 512.3 images/s"),
        (worker(**{**PASS, "rate": 0}), "w: train net/shared, epoch 3 R: 1,200/5,000 images, 0.0 images/s"),
        (worker(**{**PASS, "done": "many"}), "w: train net/shared"),
        (worker(), "w: train net/shared"),
        (worker(""), "w: waits"),
        (None, "w: begins"),
    ],
)
def test_what_a_worker_does_in_a_line(shown: WorkerStatus | None, line: str) -> None:
    assert worker_line("w", shown) == line


def test_how_a_worker_ended_stays_in_its_line() -> None:
    assert worker_line("w", worker(**PASS), "was killed by SIGKILL") == "w: was killed by SIGKILL"
    assert pass_text({}) == ""


def test_the_view_keeps_a_line_per_worker_and_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("QRDALI_WORKER", "w1")
    monkeypatch.setattr(worker_view, "_LOOK_SECONDS", 0.0)
    view = LiveLines([WorkerPlan("w1", "", 1), WorkerPlan("w2", "", 1)])
    left = Seconds(120.0, 120.0)
    view.begin(LaunchedMatrix(tmp_path, ("a", "b", "c"), lambda: 1, lambda: left))
    try:
        with Presence(tmp_path, {}):
            view.tick()
        view.line("w1", "[1/3] a\x1b[2J")
        view.ended("w2", "was killed by SIGKILL")
        view.tick()
    finally:
        view.end()
    shown = capsys.readouterr().err
    for text in ("w1: waits", "w2: begins", "1 of 3 tasks are done, 2.0 min left", "[w1] [1/3] a?[2J"):
        assert text in shown
    assert shown.index("w1: waits") < shown.index("w1: has ended")
    assert "warning: w2 was killed by SIGKILL: its task goes back" in shown
    assert "w2: was killed by SIGKILL" in shown
