"""The demo ends with what to look at and three commands, which work when they are pasted."""

import os
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.interfaces import JobControl
from qrdali.workflows import demo
from qrdali.workflows.demo import DemoResult


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """The folder of a demo whose name has a space, with its pictures, and the lines that it ends with."""

    def pretend(folder: Path, control: JobControl) -> DemoResult:
        images = folder / "images"
        generate(images, ShapesSpec(classes=2, train=8, val=4, test=2, size=(64, 48)), workers=1)
        picture = min((images / "test").glob("*/*.jpg"))
        sheet = folder / "mepi" / "baseline" / "combination.png"
        return DemoResult(folder / "report" / "report.html", (sheet,), folder / "runs", images, picture)

    monkeypatch.setattr(demo, "run_demo", pretend)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["demo", "--out", "my demo"], prog_name="qrdali")
    assert result.exit_code == 0, result.output
    return tmp_path / "my demo", result.stderr.splitlines()


def test_it_names_the_report_last_and_the_pictures(ended: tuple[Path, list[str]]) -> None:
    _, lines = ended
    assert lines[-1] == os.path.join("my demo", "report", "report.html")
    assert "  my demo/mepi/baseline/combination.png" in lines
    assert "  qrdali runs 'my demo/runs'" in lines


@pytest.mark.slow
def test_its_three_commands_work_as_they_stand(ended: tuple[Path, list[str]]) -> None:
    folder, lines = ended
    commands = [line.strip() for line in lines if line.startswith("  qrdali ") and "qrdali runs" not in line]
    assert [shlex.split(command)[1] for command in commands] == ["data", "train", "minimal"]
    for command in commands:
        result = CliRunner().invoke(cli, shlex.split(command)[1:], prog_name="qrdali")
        assert result.exit_code == 0, result.output
    assert list((folder / "own" / "minimal").glob("*-combination.png"))
