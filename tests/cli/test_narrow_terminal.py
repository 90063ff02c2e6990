"""What is printed for people fits into a terminal of 80 columns, and stays copyable."""

import pytest

from qrdali.cli import terminal
from qrdali.cli.main import _GROUPS, COMMANDS
from qrdali.cli.terminal import say, wrapped

EPOCH = (
    "epoch   3  C quality 1      loss 0.3014  train 0.9200  val 0.8600*    395 img/s  wait   6%  "
    "patience left 1"
)


def test_a_long_line_is_broken_between_words_and_indented() -> None:
    first, second = wrapped(EPOCH, 80).splitlines()
    assert len(first) <= 80
    assert second.startswith("    ")
    assert f"{first} {second.strip()}".split() == EPOCH.split()
    assert wrapped(f"  {EPOCH}", 80).splitlines()[1].startswith(" " * 6)


def test_a_line_that_fits_and_a_word_that_does_not_stay_whole() -> None:
    path = "/data/" + "a-very-long/" * 10
    assert wrapped("a  b", 80) == "a  b"
    assert wrapped(f"run folder: {path}", 80).splitlines()[1].strip() == path
    assert wrapped(EPOCH, None) == EPOCH


def test_only_a_terminal_gets_broken_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(EPOCH)
    assert capsys.readouterr().err == f"{EPOCH}\n"
    monkeypatch.setattr(terminal, "width", lambda: 80)
    say(EPOCH)
    assert len(capsys.readouterr().err.splitlines()) == 2
    say(EPOCH, is_whole=True)
    assert capsys.readouterr().err == f"{EPOCH}\n"


def test_every_command_stands_under_one_heading() -> None:
    names = [name for commands in _GROUPS.values() for name in commands]
    assert sorted(names) == sorted(COMMANDS)
    assert len(names) == len(set(names))
