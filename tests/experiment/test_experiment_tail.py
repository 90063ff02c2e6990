"""An experiment's folder keeps the tail of levels that it was begun with."""

import json
from pathlib import Path

import pytest

from qrdali.errors import InputError
from qrdali.experiment.folder import ExperimentFolder


def test_a_new_folder_notes_its_tail_and_refuses_another(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path / "new")
    assert folder.tail is None
    (tmp_path / "new").mkdir()
    folder.begin("full")
    (tmp_path / "new" / ".lock").touch()
    again = ExperimentFolder(tmp_path / "new")
    assert again.tail == "full"
    again.begin("full")
    with pytest.raises(InputError, match=r"was begun with mepi.tail = 'full', not '3': give that"):
        again.begin("3")


def test_a_folder_of_version_0_1_has_none(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "done.json").write_text(json.dumps({"evaluate baseline": {"weights": [1, 2]}}))
    folder = ExperimentFolder(tmp_path)
    assert folder.tail == "none"
    folder.begin("none")
    with pytest.raises(InputError, match="'none', not 'full'"):
        folder.begin("full")


@pytest.mark.parametrize(("options", "tail"), [({"tail": "full"}, "full"), ({"step": 0.05}, "none")])
def test_without_the_note_it_is_that_of_a_mepi_set(tmp_path: Path, options: object, tail: str) -> None:
    """The folder is as it is after somebody has removed a damaged done.json, as its error advises."""
    (tmp_path / ".lock").touch()
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "mepi" / "squeezenet1_1" / "baseline"
    folder.mkdir(parents=True)
    (folder / "options.json").write_text(json.dumps(options))
    assert ExperimentFolder(tmp_path).tail == tail
