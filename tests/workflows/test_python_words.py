"""What is raised from Python names parameters; the same message on the command line names options."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import qrdali
from qrdali.cli.main import cli
from qrdali.workflows.python_words import python_words


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("--max-epochs 3", "max_epochs 3"),
        ("continue with --resume, or another --run", "continue with resume=True, or another run"),
        ("the same command with --resume continues", "the same call with resume=True continues"),
        ("give --no-deterministic", "give deterministic=False"),
        ("--no-verify indexes without decoding", "verify=False indexes without decoding"),
        ("leave --no-restore-best out", "leave restore_best=False out"),
        ("--init and --pretrained both say", "init and pretrained=True both say"),
        ("give it with --weights FILE, or", "give it with weights=FILE, or"),
        ("give --root OLD=NEW", "give root OLD=NEW"),
        ("--model-option width=2: no", "model_options width=2: no"),
        ("give --data, --set NAME=FOLDER", "give data, sets NAME=FOLDER"),
        ("use --device auto (in a container: --gpus all)", "use device auto (in a container: --gpus all)"),
        ("`qrdali data index ROOT --out DATA` makes one", "`qrdali data index ROOT --out DATA` makes one"),
        ("do it with qrdali evaluate --run r --data d", "do it with qrdali evaluate --run r --data d"),
        ("a file called x--run", "a file called x--run"),
        ("nothing of ours: --frobnicate", "nothing of ours: --frobnicate"),
    ],
)  # fmt: skip
def test_options_become_parameters(message: str, expected: str) -> None:
    assert python_words(message) == expected
    assert python_words(expected) == expected


def test_a_function_has_its_own_names() -> None:
    assert python_words("--set is ''", frozenset({"set"})) == "set is ''"
    assert python_words("--set is ''") == "sets is ''"


@pytest.mark.parametrize(
    ("method", "options", "words", "message", "printed"),
    [
        (
            "baseline",
            {"freeze": "1"},
            ["--freeze", "1"],
            "freeze 1 keeps weights as they are, and these would be random: start from trained ones with "
            "init or pretrained=True",
            "--freeze 1 keeps weights as they are, and these would be random: start from trained ones with "
            "--init or --pretrained",
        ),
        (
            "fixed",
            {"sequence": "CC"},
            ["--sequence", "CC"],
            "sequence 'CC' has no R epoch: nothing would be reduced; add an R, or use reduction none for the "
            "sham control",
            "sequence 'CC' has no R epoch: nothing would be reduced; add an R, or use --reduction none for "
            "the sham control",
        ),
    ],
    ids=["freeze", "sequence"],
)  # fmt: skip
def test_the_command_line_keeps_its_words(
    method: Any, options: dict[str, Any], words: list[str], message: str, printed: str, in_workplace: Path
) -> None:
    with pytest.raises(qrdali.InputError) as error:
        qrdali.train(method, data="data", run="r", **options)
    assert str(error.value) == message
    result = CliRunner().invoke(cli, ["train", method, "--data", "data", "--run", "r", *words])
    assert str(result.exception) == printed


def test_a_schedule_speaks_of_its_arguments() -> None:
    with pytest.raises(qrdali.InputError, match=r"reduction none for the sham control") as error:
        qrdali.Schedule("fixed", reduction="color", quality=0.95, step=0.05)
    assert "--" not in str(error.value)
    schedule = qrdali.Schedule("fixed", max_epochs=1)
    for _ in schedule:
        schedule.report(0.5)
    assert schedule.ended == "max_epochs 1"
