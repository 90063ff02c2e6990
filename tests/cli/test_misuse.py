"""What is given in the place of something else: the message says what belongs there."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.errors import InputError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("preview {folder} --out {folder}/a.png", "{folder} is not a file: give an image"),
        ("preview {folder}/no.jpg --out {folder}/a.png", "{folder}/no.jpg is not a file: give an image"),
        ("reproduce {folder}", "{folder} is not a file: give one of TOML"),
        (
            "train shared --config {folder} --data {folder} --run {folder}/run",
            "{folder} is not a file: give one of TOML",
        ),
        (
            "data index {folder}/no --out {folder}/data",
            "{folder}/no is not a folder: give the one that holds the images",
        ),
        (
            "data humanet {folder} --mapping {folder} --out {folder}/data",
            "{folder} is not a file: give one of text",
        ),
    ],
)
def test_the_message_says_what_to_give(words: str, message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, [word.format(folder=tmp_path) for word in words.split()])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == message.format(folder=tmp_path)
