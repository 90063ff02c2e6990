"""Patience, on both sides of each boundary."""

import pytest

from qrdali.schedule.patience import (
    NEVER,
    PatienceRecord,
    after_unit,
    has_run_out,
    reason_of_end,
    scoring_position,
)


@pytest.mark.parametrize(
    ("pattern", "position"), [("C", 0), ("R", 0), ("RC", 1), ("CR", 0), ("CCR", 1), ("RRR", 2)]
)
def test_a_unit_is_scored_after_its_last_full_epoch(pattern: str, position: int) -> None:
    assert scoring_position(pattern) == position


def test_only_a_greater_accuracy_improves() -> None:
    best = PatienceRecord(0.6, 2, 1)
    assert after_unit(best, 0.6, 4) == PatienceRecord(0.6, 2, 2)
    assert after_unit(best, 0.6001, 4) == PatienceRecord(0.6001, 4, 0)
    assert after_unit(PatienceRecord(), 0.0, 1) == PatienceRecord(0.0, 1, 0)
    assert after_unit(PatienceRecord(), NEVER, 1) == PatienceRecord(NEVER, 0, 1)


def test_patience_runs_out_with_its_last_unit_and_not_before() -> None:
    assert [has_run_out(PatienceRecord(0.6, 2, wait), 3) for wait in range(5)] == [False] * 3 + [True] * 2
    assert not has_run_out(PatienceRecord(0.6, 2, 1000), None)


def test_the_reason_names_the_unit_and_the_best() -> None:
    one = PatienceRecord(0.6, 2, 1)
    assert reason_of_end(one, "C") == "patience: 1 epoch did not exceed 0.6000 of epoch 2"
    three = PatienceRecord(0.6, 2, 3)
    assert reason_of_end(three, "RC") == "patience: 3 RC repetitions did not exceed 0.6000 of epoch 2"
