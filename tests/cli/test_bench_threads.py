"""`qrdali bench` has the threads of training unless told otherwise; its result says what was asked for."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.data.index import Dataset


@pytest.mark.parametrize("command", ["loader", "train", "mepi"])
@pytest.mark.parametrize(("words", "threads"), [([], None), (["--threads", "3"], 3)])
def test_threads_are_trainings_by_default(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], threads: int | None
) -> None:
    asked: list[int | None] = []

    def measure(*_: Any, **options: Any) -> dict[str, Any]:
        asked.append(options["threads"])
        return {"images": 2, "naive_images": 1, "input_size": 32}

    monkeypatch.setattr(f"qrdali.workflows.bench_{command}.measure", measure)
    done = CliRunner().invoke(cli, ["bench", command, "--data", str(dataset.folder), "--json", *words])
    assert done.exit_code == 0, done.output
    assert asked == [threads]
    said = json.loads(done.stdout)["command"]
    assert said.startswith(f"qrdali bench {command} ")
    assert "  " not in said
    assert ("--threads 3 " in said) == ("--threads" in said) == (threads == 3)
