"""`qrdali noise-floor`: runs that differ by their seeds alone."""

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from click.testing import CliRunner, Result

from qrdali.cli.main import cli
from qrdali.errors import InputError, RunError
from qrdali.workflows.noise_floor import noise_floor

VAL = np.arange(40) % 2 == 0


def right(*counts: int) -> "np.ndarray[Any, Any]":
    """`counts` of right and wrong answers, in turn."""
    return np.concatenate([np.full(count, i % 2 == 0) for i, count in enumerate(counts)])


def baselines(root: Path, *corrects: int, **more: Any) -> list[Path]:
    """Baselines of one configuration, with so many of 100 test images right."""
    return [
        fake_runs.run(
            root / f"b{seed}", [0.5, 0.6], {"val": VAL, "test": right(n, 100 - n)}, seed=seed, **more
        )
        for seed, n in enumerate(corrects)
    ]


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["noise-floor", *map(str, words)])


def test_the_object_on_stdout(tmp_path: Path) -> None:
    runs = baselines(tmp_path, 50, 60, 70)
    other = fake_runs.run(tmp_path / "l", [0.5, 0.6], {"val": VAL}, method="linear", reduction="crop")
    done = invoke(*runs, other, "--json")
    assert done.exit_code == 0, done.output
    floors = {floor["of"]: floor for floor in json.loads(done.stdout)["floors"]}
    assert set(floors) == {"val", "test"}
    test = floors["test"]
    assert test["values"] == [0.5, 0.6, 0.7]
    assert test["deviation"] == pytest.approx(0.1)
    assert (test["configuration"], test["runs"], test["pairs"], test["rejected"]) == ("baseline", 3, 3, 3)
    assert test["smallest_of_single_runs"] == pytest.approx(0.608487, abs=1e-6)
    assert test["rejection_rate"] == 1
    assert floors["val"]["rejection_rate"] == 0


def test_the_sentences_and_the_csv(tmp_path: Path) -> None:
    runs = baselines(tmp_path, 60, 61, init=str(tmp_path / "start"))
    file = tmp_path / "noise.csv"
    done = invoke(*runs, "--csv", file)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "McNemar's test of two runs, image by image, tells 0 of 1 pair of them apart" in done.stderr
    assert "All began with the same run" in done.stderr
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["figure"] for row in rows] == ["accuracy on val", "accuracy on test"]
    assert float(rows[1]["standard deviation"]) == pytest.approx(100 * 0.01 / 2**0.5)
    for place in (tmp_path / "missing" / "noise.csv", tmp_path, "/"):
        with pytest.raises(RunError, match="cannot be written"):
            noise_floor(runs, csv=Path(place))


def test_quotients_vary_too(tmp_path: Path) -> None:
    runs = baselines(tmp_path, 60, 61)
    sets = [
        fake_runs.mepis(tmp_path / f"m{i}", run, {"crop": dict.fromkeys(range(20), 0.2 + 0.1 * i)}, 20)
        for i, run in enumerate(runs)
    ]
    floors = noise_floor(runs, mepi=sets).floors
    (quotient,) = (floor for floor in floors if floor["kind"] == "quotient")
    assert quotient["values"] == pytest.approx([0.2, 0.3])
    assert (quotient["of"], quotient["rejected"], quotient["images"]) == ("crop", 1, 20)


def test_one_run_says_what_to_train(tmp_path: Path) -> None:
    (run,) = baselines(tmp_path / "it's here", 60)
    with pytest.raises(InputError) as refused:
        noise_floor([run])
    text = str(refused.value)
    assert "\n" not in text
    command = text[text.index("`") + 1 : text.rindex("`")]
    words = shlex.split(command)
    assert words[:3] == ["qrdali", "train", "baseline"]
    assert words[words.index("--run") + 1] == f"{run}-seed-1"
    assert words[words.index("--seed") + 1] == "1"
    assert CliRunner().invoke(cli, [*words[1:], "--dry-run"]).exit_code == 0


def test_other_settings_are_no_seeds(tmp_path: Path) -> None:
    one, two = baselines(tmp_path / "a", 60)[0], baselines(tmp_path / "b", 60, 61, lr=0.5)[1]
    with pytest.raises(InputError, match="every configuration has one"):
        noise_floor([one, two])


def test_rows_of_other_images_are_no_pair(tmp_path: Path) -> None:
    runs = [
        fake_runs.run(tmp_path / f"b{seed}", [0.5, 0.6], {"test": right(30 + seed, 30)}, seed=seed)
        for seed in range(2)
    ]
    with pytest.raises(InputError, match="no rows of the same images"):
        noise_floor(runs)


def test_no_run(tmp_path: Path) -> None:
    assert invoke().exit_code == 2
    with pytest.raises(InputError, match="not a run folder"):
        noise_floor([tmp_path])
