"""How long a number of workers take for a matrix, against the least time possible."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_order import matrix

from qrdali.cli.main import main
from qrdali.experiment.estimate import Estimate, Seconds
from qrdali.experiment.makespan import group_sizes, longest_chain, makespan_of, needs_of, timetable
from qrdali.experiment.order import chains, in_order, task_seconds
from qrdali.experiment.tasks import Tasks


def two_networks(folder: Path, **second: Any) -> Tasks:
    """Returns the tasks of network a, with 10 s per epoch, and b, with 30 s; each has a shared run of two
    epochs and a baseline of four at most."""
    return matrix(
        folder,
        {"model": "test_resnet", "name": "a", "epoch_seconds": 10.0},
        {"model": "test_resnet", "name": "b", "epoch_seconds": 30.0, **second},
    )


def test_workers_take_what_is_ready_in_order_and_never_before_its_needs(tmp_path: Path) -> None:
    tasks = two_networks(tmp_path)
    estimate = Estimate(tasks)
    seconds = task_seconds(tasks, estimate)
    order = [task.key for task in in_order(tasks, chains(tasks, seconds))]
    table = timetable(tasks, seconds, order, [1, 1])
    ends = {one.key: one.end for one in table.placements}
    assert ends.keys() == {task.key for task in tasks.all}
    needs = needs_of(tasks)
    assert all(one.begin >= ends[need] for one in table.placements for need in needs[one.key])
    assert needs["report"] == tuple(task.key for task in tasks.all if task.kind != "report")
    for worker in (0, 1):
        own = sorted((one for one in table.placements if one.worker == worker), key=lambda one: one.begin)
        assert all(after.begin >= before.end for before, after in pairwise(own))
    # b/shared 60, b/baseline 120 and an evaluation of 20, the mean epoch; everything else fits beside them.
    assert table.makespan == 200.0
    assert table.idle_share == pytest.approx(1 - sum(seconds.values()) / 400)


def test_one_worker_takes_the_sum_and_many_take_the_longest_chain(tmp_path: Path) -> None:
    tasks = two_networks(tmp_path)
    estimate = Estimate(tasks)
    sums = [sum(task_seconds(tasks, estimate, longest=end).values()) for end in (False, True)]
    one = makespan_of(tasks, estimate, [1])
    assert one.seconds == Seconds(*sums)
    assert one.idle_share == Seconds(0.0, 0.0)
    chain = longest_chain(tasks, estimate)
    assert chain.keys == ("train b/shared", "train b/baseline", "evaluate b/baseline")
    assert chain.seconds.high == 200.0
    assert makespan_of(tasks, estimate, [1] * 20).seconds == chain.seconds


def test_what_no_worker_has_the_gpus_for_is_named_with_what_waits_for_it(tmp_path: Path) -> None:
    tasks = two_networks(tmp_path, gpus=2)
    estimate = Estimate(tasks)
    makespan = makespan_of(tasks, estimate, [1, 1])
    assert {*makespan.impossible} == {
        "train b/shared",
        "train b/baseline",
        "evaluate b/shared",
        "evaluate b/baseline",
    }
    together = makespan_of(tasks, estimate, [2, 1])
    assert together.impossible == ()
    seconds = task_seconds(tasks, estimate)
    order = [task.key for task in in_order(tasks, chains(tasks, seconds))]
    doing = {one.key: one.worker for one in timetable(tasks, seconds, order, [2, 1]).placements}
    assert {worker for key, worker in doing.items() if " b/" in key} == {0}
    assert {doing["train a/shared"], doing["train a/baseline"]} == {1}


@pytest.mark.parametrize(
    ("count", "needed", "sizes"),
    [
        (8, [1, 1], [1] * 8),
        (8, [4], [4, 4]),
        (9, [4], [4, 4]),
        (8, [4, 1], [4, 1, 1, 1, 1]),
        (8, [4, 2], [4, 2, 2]),
        (2, [4, 1], [1, 1]),
        (2, [4], []),
        (3, [], [1, 1, 1]),
    ],
)
def test_how_gpus_are_grouped(count: int, needed: list[int], sizes: list[int]) -> None:
    assert group_sizes(count, needed) == sizes


def dry_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["qrdali", "reproduce", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out


def test_dry_run_says_makespan_and_longest_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_networks(tmp_path)
    file = str(tmp_path / "m.toml")
    said = dry_run(capsys, monkeypatch, file, "--dry-run", "--gpus", "8")
    assert "# until all is done: 2.3 min to 3.3 min with 8 workers, 80% of their time idle" in said
    assert "# longest chain: 2.3 min to 3.3 min: train b/shared, then train b/baseline, then ev" in said
    planned = json.loads(dry_run(capsys, monkeypatch, file, "--dry-run", "--workers", "2", "--json"))
    assert planned["makespan"]["workers"] == 2
    assert planned["makespan"]["seconds"][1] == planned["longest_chain"]["seconds"][1] == 200.0
    assert planned["longest_chain"]["tasks"][0] == "train b/shared"


def test_without_any_known_time_neither_is_made_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix(tmp_path, {"model": "test_resnet"})
    planned = json.loads(dry_run(capsys, monkeypatch, str(tmp_path / "m.toml"), "--dry-run", "--json"))
    assert planned["makespan"]["seconds"] is None
    assert planned["longest_chain"]["seconds"] is None
    assert len(planned["longest_chain"]["tasks"]) == 3


@pytest.mark.parametrize("gpus", ["0", "x", "1,1", "9" * 9])
def test_impossible_numbers_of_gpus_are_refused(
    gpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix(tmp_path, {"model": "test_resnet"})
    monkeypatch.setattr(
        "sys.argv", ["qrdali", "reproduce", str(tmp_path / "m.toml"), "--dry-run", "--gpus", gpus]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"--gpus {gpus}: give all, " in capsys.readouterr().err
