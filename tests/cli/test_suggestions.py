"""A mistyped command, subcommand or option is answered with the one that was probably meant."""

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["TRAIN"], "Did you mean 'train'?"),
        (["evalute"], "Did you mean 'evaluate'?"),
        (["eval"], "Did you mean 'evaluate'?"),
        (["mepi"], "Did you mean 'build-mepi'?"),
        (["build_mepi"], "Did you mean 'build-mepi'?"),
        (["train", "lienar"], "Did you mean 'linear'?"),
        (["data", "indx"], "Did you mean 'index'?"),
        (["bench", "lodaer"], "Did you mean 'loader'?"),
        (["index"], "Did you mean 'qrdali data index'?"),
        (["lienar"], "Did you mean 'qrdali train linear'?"),
        (["data", "trian"], "Did you mean 'qrdali train'?"),
        (["train", "linear", "--reducton", "crop"], "--reduction"),
        (["data", "index", ".", "--otu", "x"], "--out"),
        (["--verson"], "--version"),
    ],
)
def test_what_was_meant_is_suggested(words: list[str], hint: str) -> None:
    result = CliRunner().invoke(cli, words, prog_name="qrdali")
    assert result.exit_code == 2
    assert hint in result.output


@pytest.mark.parametrize("words", [["xyz"], ["data", "xyz"]])
def test_nothing_is_suggested_for_what_resembles_nothing(words: list[str]) -> None:
    result = CliRunner().invoke(cli, words, prog_name="qrdali")
    assert result.exit_code == 2
    assert "No such command 'xyz'." in result.output
    assert "Did you mean" not in result.output
