"""The order in which tasks are taken: the longest chain of what is left comes first."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from qrdali.experiment.config import read
from qrdali.experiment.estimate import Estimate
from qrdali.experiment.expand import expand
from qrdali.experiment.folder import ExperimentFolder
from qrdali.experiment.order import chains, in_order, task_seconds
from qrdali.experiment.tasks import Tasks


def matrix(folder: Path, *networks: dict[str, Any], **runs: Any) -> Tasks:
    values = {
        "out": str(folder / "out"),
        "data": {"shapes": {"classes": 2}},
        "train": {"max_epochs": 4, "patience": 1},
        "network": [{"input_size": 32, "epochs": 2, **network} for network in networks],
        "runs": {"methods": ["baseline"], **runs},
    }
    file = folder / "m.toml"
    file.write_text(tomli_w.dumps(values))
    read_matrix = read(file)
    out = Path(read_matrix.out)
    return Tasks(read_matrix, ExperimentFolder(out), out / "data", expand(read_matrix, out / "data"), ())


def lengths(tasks: Tasks) -> dict[str, float]:
    return chains(tasks, task_seconds(tasks, Estimate(tasks)))


def test_a_chain_is_a_task_and_the_longest_of_what_waits_for_it(tmp_path: Path) -> None:
    tasks = matrix(tmp_path, {"model": "test_resnet", "name": "a", "epoch_seconds": 10.0})
    assert lengths(tasks) == {
        "data": 70.0,  # two epochs of shared, four of the baseline, and an evaluation as long as an epoch
        "train a/shared": 70.0,
        "train a/baseline": 50.0,
        "evaluate a/shared": 10.0,
        "evaluate a/baseline": 10.0,
        "report": 0.0,
    }


def test_the_slower_network_comes_first_and_equal_ones_in_the_order_of_the_file(tmp_path: Path) -> None:
    fast = {"model": "test_resnet", "name": "fast", "epoch_seconds": 1.0}
    slow = {"model": "test_resnet", "name": "slow", "epoch_seconds": 9.0}
    tasks = matrix(tmp_path, fast, slow)
    assert [task.key for task in in_order(tasks, lengths(tasks))] == [
        "data",
        "train slow/shared",
        "train slow/baseline",
        "train fast/shared",
        "train fast/baseline",
        "evaluate fast/shared",
        "evaluate fast/baseline",
        "evaluate slow/shared",
        "evaluate slow/baseline",
        "report",
    ]


@pytest.mark.parametrize("stated", [100.0, None])
def test_an_unknown_network_is_taken_to_be_as_slow_as_the_others(
    tmp_path: Path, stated: float | None
) -> None:
    known: dict[str, Any] = {"model": "test_resnet", "name": "known"}
    if stated is not None:
        known["epoch_seconds"] = stated
    tasks = matrix(tmp_path, {"model": "test_resnet", "name": "other", "epochs": 2}, known)
    seconds = task_seconds(tasks, Estimate(tasks))
    assert seconds["train other/shared"] == (2 * stated if stated is not None else 2.0)
    assert seconds["train known/shared"] == (2 * stated if stated is not None else 2.0)
