"""A run that has not ended is named wherever it is judged or started from."""

from pathlib import Path
from typing import Any

import pytest

import qrdali
from qrdali.interfaces import SilentListener
from qrdali.runs.folder import lock_run_folder
from qrdali.runs.unfinished import unfinished_note

STOPPED = "was stopped before its end: its best/ is of the epochs so far, and `qrdali train --resume --run "


class Recording(SilentListener):
    """Keeps lines and warnings, and leaves at an epoch's line if it is told to."""

    def __init__(self, leave_at: str = "") -> None:
        self.said: list[str] = []
        self.leave_at = leave_at

    def line(self, text: str) -> None:
        self.said.append(text)
        if self.leave_at and self.leave_at in text:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def options(dataset: qrdali.Dataset) -> dict[str, Any]:
    return {"data": dataset, "batch_size": 8, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def runs(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stopped: left after two of three epochs. ended: has all of one."""
    folder = tmp_path_factory.mktemp("unfinished")
    start = {"model": "test_resnet", "input_size": 32, "lr": 2e-3, **options}
    with pytest.raises(KeyboardInterrupt):
        qrdali.train(
            "shared",
            run=folder / "stopped",
            epochs=3,
            progress=Recording("epoch   2"),
            save_every="1",
            **start,
        )
    qrdali.train("shared", run=folder / "ended", epochs=1, **start)
    return folder


def test_what_has_ended_or_is_no_run_has_no_note(runs: Path, tmp_path: Path) -> None:
    assert unfinished_note(runs / "ended") == ""
    assert unfinished_note(tmp_path) == ""
    assert unfinished_note(runs / "stopped", "A").startswith(f"A {STOPPED}")
    (tmp_path / "a b").symlink_to(runs / "stopped")
    assert f"--run '{tmp_path}/a b'`" in unfinished_note(tmp_path / "a b")  # a command that can be pasted


def test_a_run_that_is_being_trained(runs: Path) -> None:
    with lock_run_folder(runs / "stopped", lambda text: None):
        assert (
            unfinished_note(runs / "stopped", "A")
            == "A is still being trained: its best/ is of the epochs so far"
        )


def test_commands_name_it(runs: Path, options: dict[str, Any], tmp_path: Path) -> None:
    stopped, ended, data = runs / "stopped", runs / "ended", options["data"]
    said = Recording()
    for run in (stopped, ended):
        qrdali.evaluate(run, data, split="test", device="cpu", progress=said)
    notes = [text for text in said.said if "stopped before its end" in text]
    assert notes == [unfinished_note(stopped)]
    assert STOPPED in notes[0]
    compared = qrdali.compare(stopped, ended, set="test")
    assert [note for note in compared.notes if "before its end" in note] == [unfinished_note(stopped, "A")]
    begun = Recording()
    qrdali.train("baseline", run=tmp_path / "baseline", init=stopped, max_epochs=1, progress=begun, **options)
    assert unfinished_note(stopped) in begun.said
    report = qrdali.write_report([stopped, ended], out=tmp_path / "report")
    text = (report.page.parent / "findings.md").read_text("utf-8")
    assert "Not trained to the end: stopped (after epoch" in text
    assert "qrdali train --resume --run" in text
