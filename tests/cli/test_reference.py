"""docs/reference says what the settings and the commands say, and help fits into 80 columns."""

import subprocess
import sys
from pathlib import Path

import pytest

from qrdali.runs.setting_table import settings_table
from qrdali.runs.settings import Settings

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns the pages as a fresh process writes them. In this one, click may remember the help option of a
    command that another test called without its group, which is --help alone.
    """
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, "-m", "qrdali.cli.reference", folder], check=True, timeout=120)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["train.md", "commands.md"])
def test_the_pages_are_those_that_are_generated(written: dict[str, str], name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == written[name], "run `make reference`"
    generated = {
        path.name for path in FOLDER.iterdir() if "Made by `make reference`" in path.read_text("utf-8")
    }
    assert generated == set(written)


def test_every_setting_and_every_command_is_there(written: dict[str, str]) -> None:
    for name, setting in settings_table(Settings).items():
        rows = [line for line in written["train.md"].splitlines() if f"| `{name}` |" in line]
        assert len(rows) == 1, name
        assert setting.flag in rows[0]
    for command in ("data index", "train adaptive", "bench mepi", "build-mepi", "log"):
        assert f"\n## qrdali {command}\n" in written["commands.md"]


def test_help_fits_into_80_columns(written: dict[str, str]) -> None:
    help = written["commands.md"].partition("## qrdali\n")[2]
    assert [line for line in help.splitlines() if len(line) > 80] == []
