"""qrdali.Schedule: the rules of `qrdali train` as an iterator that waits for each epoch's accuracy."""

import json
import math
from typing import Any

import numpy as np
import pytest

import qrdali

# At patience 3: an R round that is best at its third epoch, then a C round that is best at its fourth.
R_ROUND = [0.50, 0.55, 0.60, 0.60, 0.59, 0.58]
C_ROUND = [0.61, 0.62, 0.63, 0.64, 0.64, 0.63, 0.60]


def run(schedule: qrdali.Schedule, accuracies: list[float]) -> tuple[str, list[Any]]:
    phases, events, reported = "", [], iter(accuracies)
    for epoch in schedule:
        phases += epoch.phase
        events.append(schedule.report(next(reported)))
    return phases, events


def test_paired_rounds_end_by_patience() -> None:
    schedule = qrdali.Schedule("fixed", sequence="paired-rounds", reduction="crop")
    phases, events = run(schedule, R_ROUND + C_ROUND)
    assert phases == "RRRRRRCCCCCCC"
    assert [i for i, event in enumerate(events) if event.stage_end_reason] == [5, 12]
    assert "did not exceed 0.6000 of epoch 3" in events[5].stage_end_reason
    assert [i for i, event in enumerate(events) if event.is_best_of_stage] == [0, 1, 2, 6, 7, 8, 9]
    assert [i for i, event in enumerate(events) if event.is_best_of_run] == [0, 1, 2, 6, 7, 8, 9]
    assert (schedule.best_accuracy, schedule.best_epoch) == (0.64, 10)
    assert schedule.ended.startswith("patience")


@pytest.mark.parametrize(
    ("options", "accuracies", "phases"),
    [
        ({"sequence": "paired-epochs"}, [0.5, 0.6, 0.4, 0.6, 0.5, 0.6, 0.7, 0.6], "RCRCRCRC"),
        ({"sequence": "CCR", "patience": 1}, [0.5, 0.6, 0.9, 0.5, 0.6, 0.9], "CCRCCR"),
        ({"max_epochs": 3}, [0.1, 0.2, 0.3], "RCR"),
    ],
)
def test_patterns(options: dict[str, Any], accuracies: list[float], phases: str) -> None:
    assert run(qrdali.Schedule("fixed", **options), accuracies)[0] == phases


def test_baseline_and_shared() -> None:
    assert run(qrdali.Schedule("baseline"), [0.3, 0.4, 0.4, 0.4, 0.4])[0] == "CCCCC"
    assert run(qrdali.Schedule("shared", epochs=2), [0.3, 0.2])[0] == "CC"


@pytest.mark.parametrize(("direction", "qualities"), [("down", [0.75, 0.5, 0.25]), ("up", [0.25, 0.5, 0.75])])
def test_linear_goes_one_level_further_in_each_stage(direction: Any, qualities: list[float]) -> None:
    schedule = qrdali.Schedule("linear", reduction="combination", patience=1, direction=direction)
    seen = []
    for epoch in schedule:
        if epoch.phase == "R":
            seen.append((epoch.stage, epoch.quality))
        else:
            assert epoch.quality == {"color": 1, "crop": 1, "resolution": 1}
        schedule.report(0.5)
    assert seen == [
        (stage, {"color": q, "crop": q, "resolution": q})
        for stage, q in enumerate(qualities, 1)
        for _ in range(2)
    ]


def test_linear_goes_down_the_tail_as_far_as_anything_changes() -> None:
    options: dict[str, Any] = {"reduction": "crop", "patience": 1, "sizes": [[9, 12]]}
    to_one_pixel = [1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128]  # 1x2 pixels at 1/64, of 9x12
    for tail, qualities in (("none", []), ("1", [1 / 8]), ("full", to_one_pixel)):
        schedule = qrdali.Schedule("linear", tail=tail, **options)
        reduced = [epoch.quality["crop"] for epoch in schedule if schedule.report(0.1) and epoch.phase == "R"]
        assert list(dict.fromkeys(reduced)) == [0.75, 0.5, 0.25, *qualities]


def test_only_the_dimensions_of_the_reduction_move() -> None:
    epoch = next(qrdali.Schedule("fixed", reduction="color", quality=0.3, step=0.1))
    assert (epoch.number, epoch.phase, epoch.stage) == (1, "R", 1)
    assert epoch.quality == {"color": 0.3, "crop": 1, "resolution": 1}
    sham = next(qrdali.Schedule("fixed", reduction="none"))
    assert (sham.phase, set(sham.quality.values())) == ("R", {1})


def test_the_start_counts_as_epoch_0_of_the_run() -> None:
    schedule = qrdali.Schedule("baseline", start_accuracy=0.5, patience=1)
    _, events = run(schedule, [0.4, 0.4])
    assert [(e.is_best_of_run, e.is_best_of_stage) for e in events] == [(False, True), (False, False)]
    assert (schedule.best_accuracy, schedule.best_epoch) == (0.5, 0)


def test_the_next_epoch_waits_for_a_report() -> None:
    schedule = qrdali.Schedule("baseline")
    with pytest.raises(qrdali.InputError, match="no epoch is due"):
        schedule.report(0.5)
    next(schedule)
    with pytest.raises(qrdali.InputError, match=r"epoch 1 has no report: call report\(val_accuracy\)"):
        next(schedule)
    schedule.report(0.5)
    with pytest.raises(qrdali.InputError, match="no epoch is due"):
        schedule.report(0.5)
    assert next(schedule).number == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "high"])
def test_an_accuracy_is_a_number(value: Any) -> None:
    schedule = qrdali.Schedule("baseline")
    next(schedule)
    with pytest.raises(qrdali.InputError, match="val_accuracy"):
        schedule.report(value)
    schedule.report(0.5)  # the epoch is still due


@pytest.mark.parametrize("interrupted", range(14))
def test_continued_from_its_state_it_goes_the_same_way(interrupted: int) -> None:
    options: dict[str, Any] = {"sequence": "paired-rounds", "reduction": "crop"}
    whole = qrdali.Schedule("fixed", **options)
    phases, events = run(whole, R_ROUND + C_ROUND)
    first, accuracies = qrdali.Schedule("fixed", **options), [*R_ROUND, *C_ROUND]
    for accuracy in accuracies[:interrupted]:
        next(first)
        first.report(accuracy)
    next(first, None)  # an epoch in hand is not part of the state
    text = json.dumps(first.state_dict(), allow_nan=False)
    second = qrdali.Schedule("fixed", **options)
    second.load_state_dict(json.loads(text))
    rest, later = run(second, accuracies[interrupted:])
    assert (rest, later) == (phases[interrupted:], events[interrupted:])
    assert second.state_dict() == whole.state_dict()


def test_a_state_of_something_else_is_refused() -> None:
    schedule = qrdali.Schedule("fixed", reduction="crop")
    state = schedule.state_dict()
    with pytest.raises(qrdali.InputError, match=r"other options: quality 0.5 → 0.75"):
        qrdali.Schedule("fixed", reduction="crop", quality=0.75).load_state_dict(state)
    for wrong in ({}, {"options": {}, "state": {"epoch": -1}}, {"options": {}, "state": 3}, {"state": {}}):
        with pytest.raises(qrdali.InputError, match="not a state"):
            schedule.load_state_dict(wrong)
    beyond = {**state, "state": {**state["state"], "position": 9}}
    with pytest.raises(qrdali.InputError, match="not a state"):
        schedule.load_state_dict(beyond)


def test_the_sizes_of_the_images_are_part_of_a_state() -> None:
    options: dict[str, Any] = {"reduction": "crop", "tail": "full"}
    small, large, unknown = (
        qrdali.Schedule("linear", **options, sizes=sizes) for sizes in ([[9, 12]], [[900, 1200]], None)
    )
    state = json.loads(json.dumps(small.state_dict()))
    qrdali.Schedule("linear", **options, sizes=np.array([[9, 12]], np.uint8)).load_state_dict(state)
    with pytest.raises(qrdali.InputError, match=r"sizes of 1 image \(SHA-256 \w+\) → of 1 image \("):
        large.load_state_dict(state)
    with pytest.raises(qrdali.InputError, match=r"sizes of 1 image \(SHA-256 \w+\) → none"):
        unknown.load_state_dict(state)
    with pytest.raises(qrdali.InputError, match=r"sizes none → of 1 image"):
        small.load_state_dict(unknown.state_dict())
    earlier = {**state, "options": {k: v for k, v in state["options"].items() if k != "sizes"}}
    small.load_state_dict(earlier)


@pytest.mark.parametrize("sizes", [3, "x", [], [[1, 2, 3]], [[1, 2], [3]], [[0, 5]], [[1.5, 2]], [9, 12]])
def test_sizes_are_pairs_of_pixels(sizes: Any) -> None:
    with pytest.raises(qrdali.InputError, match="sizes"):
        qrdali.Schedule("linear", reduction="crop", sizes=sizes)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("adaptive", {}, r"use qrdali\.train"),
        ("random", {}, r"use qrdali\.train"),
        ("linaer", {}, "choose one of shared, baseline, fixed, linear"),
        ("fixed", {"quality": 0.6}, "use 0.75 or 0.5"),
        ("fixed", {"sequence": "CX"}, "neither paired-epochs nor paired-rounds"),
        ("fixed", {"sequence": "CC"}, "no R epoch"),
        ("fixed", {"patience": 0}, "patience"),
        ("linear", {"step": 0.3}, "not 1/n"),
        ("fixed", {"reduction": "colour"}, "reduction"),
        ("baseline", {"start_accuracy": math.nan}, "start_accuracy"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.Schedule(method, **options)
