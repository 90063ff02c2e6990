"""The line of each worker: what it does, how fast, and how long it still takes."""

from typing import Any

import pytest

from qrdali.cli.worker_view import pass_text, worker_line
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
