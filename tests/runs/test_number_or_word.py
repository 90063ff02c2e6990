"""Settings that are a word or a number take the number without quotation marks, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from qrdali.errors import InputError
from qrdali.experiment.config import read
from qrdali.runs.settings import validate_settings

RUN: dict[str, Any] = {"method": "adaptive", "data": "data"}


@pytest.mark.parametrize("key", ["tail", "freeze"])
def test_a_number_is_taken_as_its_text(key: str) -> None:
    assert validate_settings({**RUN, key: 2}) == validate_settings({**RUN, key: "2"})


@pytest.mark.parametrize("value", [True, 2.0, None, [2]])
def test_other_kinds_are_refused(value: object) -> None:
    with pytest.raises(InputError, match="tail = .*: Input should be a valid string"):
        validate_settings({**RUN, "tail": value})


def test_an_experiment_takes_numbers_too(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text(
        'out = "out"\ndata.folder = "data"\n[[network]]\nmodel = "resnet18"\nothers = { tail = 3 }\n'
        "[evaluate]\ncurve_tail = 1\n[mepi]\ntail = 2\n"
    )
    matrix = read(file)
    assert (matrix.mepi.tail, matrix.evaluate.curve_tail) == ("2", "1")
