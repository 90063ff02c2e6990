"""`qrdali completion` prints scripts that shells take, and the program answers what they ask."""

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from qrdali.cli.completion import SHELLS
from qrdali.cli.main import COMMANDS, cli


def script(shell: str) -> str:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="qrdali")
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def completed(words: str, position: int) -> list[str]:
    """Returns what the bash script is told when Tab is pressed in the word at `position`."""
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(position), "_QRDALI_COMPLETE": "bash_complete"}
    result = CliRunner().invoke(cli, [], prog_name="qrdali", env=asked, standalone_mode=False)
    return result.stdout.splitlines()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_its_script(shell: str) -> None:
    text = script(shell)
    assert f"_QRDALI_COMPLETE={shell}_complete" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_another_shell_is_refused_with_the_choices() -> None:
    result = CliRunner().invoke(cli, ["completion", "tcsh"], prog_name="qrdali")
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.output


def test_commands_options_choices_and_networks_are_completed() -> None:
    assert completed("qrdali ", 1) == [f"plain,{name}" for name in COMMANDS]
    assert completed("qrdali b", 1) == ["plain,build-mepi", "plain,bench"]
    assert completed("qrdali data in", 2) == ["plain,index", "plain,info"]
    assert completed("qrdali train linear --red", 3) == ["plain,--reduction"]
    assert completed("qrdali train linear --fit ", 4) == ["plain,whole", "plain,center"]
    assert completed("qrdali preview ", 2) == ["file,"]
    assert "plain,resnet10t" in completed("qrdali train shared --model resnet1", 4)
    assert completed("qrdali adopt resnet10t", 2) == ["plain,resnet10t"]


def test_bash_completes_by_the_script_and_the_program(tmp_path: os.PathLike[str]) -> None:
    program = os.path.join(tmp_path, "qrdali")
    with open(program, "w") as file:
        file.write(f'#!/bin/sh\nexec {sys.executable} -m qrdali "$@"\n')
    os.chmod(program, 0o755)
    press_tab = "COMP_WORDS=(qrdali rep); COMP_CWORD=1; _qrdali_completion qrdali; echo ${COMPREPLY[@]}"
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    shown = subprocess.run(
        ["bash", "-c", f"{script('bash')}\n{press_tab}"],
        env={**os.environ, **path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split() == ["report", "reproduce"]
    assert shown.stderr == ""


def test_completing_commands_imports_none_of_them() -> None:
    asked = {"COMP_WORDS": "qrdali ", "COMP_CWORD": "1", "_QRDALI_COMPLETE": "bash_complete"}
    code = (
        "import sys; from qrdali.cli.main import cli\n"
        "try: cli.main([], prog_name='qrdali')\n"
        "except SystemExit: print('qrdali.cli.train' in sys.modules, 'torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "False False"
