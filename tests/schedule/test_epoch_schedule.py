"""Literal traces of the scheduler, on both sides of every boundary."""

import json

import pytest

from qrdali.errors import InputError
from qrdali.schedule.epoch_schedule import (
    ScheduleEvent,
    ScheduleRule,
    ScheduleState,
    begin_stage,
    judges_unit,
    longest_decay,
    longest_run,
    next_phase,
    start,
    update,
)


def run(
    rule: ScheduleRule, accuracies: list[float], first: float = 0.0, moved: list[int] | None = None
) -> tuple[str, ScheduleState, list[ScheduleEvent]]:
    """Letters with a / before each stage after the first; every state goes through JSON."""
    state, letters, events, moves = start(first), "", [], iter(moved or [])
    for accuracy in accuracies:
        if not state.begun:
            letters += "/" if state.stage > 1 else ""
            state = begin_stage(rule, state, next(moves) if moved else None)
        letter = next_phase(rule, state)
        assert letter, f"ended after {letters}"
        letters += letter
        state, event = update(rule, state, accuracy)
        events.append(event)
        again = ScheduleState.from_dict(json.loads(json.dumps(state.as_dict())))
        assert again == state
        state = again
    return letters, state, events


@pytest.mark.parametrize(
    ("pattern", "patience", "accuracies", "letters", "best", "best_epoch"),
    [
        ("C", 3, [0.3, 0.4, 0.4, 0.4, 0.4], "CCCCC", 0.4, 2),
        ("R", 3, [0.50, 0.55, 0.60, 0.60, 0.59, 0.58], "RRRRRR", 0.60, 3),
        ("C", 3, [0.61, 0.62, 0.63, 0.64, 0.64, 0.63, 0.60], "CCCCCCC", 0.64, 4),
        ("RC", 3, [0.5, 0.6, 0.4, 0.6, 0.5, 0.6, 0.7, 0.6], "RCRCRCRC", 0.6, 2),
        ("C", 1, [0.3, 0.3], "CC", 0.3, 1),
        ("C", 2, [0.3, 0.2, 0.4, 0.4, 0.1], "CCCCC", 0.4, 3),
        ("CR", 1, [0.5, 0.9, 0.5, 0.9], "CRCR", 0.5, 1),
        (
            "CCR",
            1,
            [0.9, 0.5, 0.1, 0.9, 0.5, 0.9],
            "CCRCCR",
            0.5,
            2,
        ),  # judged by the last C, not by the first, whose state is kept before the R behind it
    ],
)
def test_patterns(
    pattern: str, patience: int, accuracies: list[float], letters: str, best: float, best_epoch: int
) -> None:
    rule = ScheduleRule(pattern, patience, 300)
    seen, state, events = run(rule, accuracies)
    assert (seen, state.best, state.best_epoch) == (letters, best, best_epoch)
    assert state.ended.startswith("patience")
    assert [bool(e.stage_end_reason) for e in events] == [False] * (len(events) - 1) + [True]
    assert next_phase(rule, state) is None
    assert not run(rule, accuracies[:-1])[1].ended


def test_the_state_after_the_epoch_that_judges_is_kept_and_named() -> None:
    """Behind the judging C of CCR comes an R, after which accuracy falls: its state is not the best's."""
    accuracies = [0.61, 0.6933, 0.6333, 0.62, 0.69, 0.6, 0.66, 0.6933, 0.7]
    letters, state, events = run(ScheduleRule("CCR", 2, 300), accuracies)
    assert letters == "CCRCCRCCR"
    assert [i + 1 for i, e in enumerate(events) if e.is_best_of_stage] == [2]
    # The wait reaches 2 at epoch 8, the stage ends with its unit.
    assert events[7].stage_end_reason == ""
    assert events[8].stage_end_reason == "patience: 2 CCR repetitions did not exceed 0.6933 of epoch 2"
    assert (state.best, state.best_epoch) == (0.6933, 2)


@pytest.mark.parametrize(
    ("pattern", "starts"),
    [
        ("RC", [0, 0]),
        ("CR", [0, 0]),
        ("RRC", [0, 1, 1]),
        ("RCR", [0, 0, 2]),
        ("RCRC", [0, 0, 2, 2]),
        ("CCCCCCCR", [0, 1, 2, 3, 4, 5, 6, 6]),
        ("RR", [0, 1]),
        ("RCCR", [0, 0, 2, 2]),
    ],
)
def test_pairs_are_an_r_and_the_c_beside_it(pattern: str, starts: list[int]) -> None:
    rule = ScheduleRule(pattern, 3, 300)
    assert [rule.pair_start(position) for position in range(len(pattern))] == starts


def test_a_unit_that_version_0_1_saved_behind_its_last_c_is_judged_at_its_end() -> None:
    rule = ScheduleRule("CCR", 1, 300)
    saved = ScheduleState(run_best=0.7, epoch=5, begun=True, final=True, position=2, unit_accuracy=0.7)
    saved = ScheduleState.from_dict({**saved.as_dict(), "best": 0.6, "best_epoch": 3})
    state, event = update(rule, saved, 0.1)
    assert (state.best, state.best_epoch, event.is_best_of_stage) == (0.7, 6, True)
    assert state.unit_accuracy == float("-inf")
    worse = ScheduleState.from_dict({**saved.as_dict(), "best": 0.7})
    assert update(rule, worse, 0.9)[1].stage_end_reason


R_ROUND, C_ROUND = [0.50, 0.55, 0.60, 0.60, 0.59, 0.58], [0.61, 0.62, 0.63, 0.64, 0.64, 0.63, 0.60]


def test_paired_rounds_one_stage() -> None:
    rule = ScheduleRule("paired-rounds", 3, 300)
    letters, state, events = run(rule, R_ROUND + C_ROUND)
    assert letters == "RRRRRRCCCCCCC"
    assert [i for i, e in enumerate(events) if e.stage_end_reason] == [5, 12]
    assert "0.6000 of epoch 3" in events[5].stage_end_reason
    assert "0.6400 of epoch 10" in events[12].stage_end_reason
    assert (state.run_best, state.run_best_epoch) == (0.64, 10)
    assert state.ended


def test_the_round_forgets_the_one_before() -> None:
    """Each round begins at minus infinity: a C round below the best of the R round has a best of its own."""
    _, state, events = run(ScheduleRule("paired-rounds", 1, 300), [0.9, 0.8, 0.1, 0.2, 0.2])
    assert [e.is_best_of_stage for e in events] == [True, False, True, True, False]
    assert state.run_best == 0.9


def test_linear_stages_and_the_last_level() -> None:
    letters, state, _ = run(ScheduleRule("paired-rounds", 1, 300, 3), [0.5, 0.4, 0.6, 0.5] * 3)
    assert letters == "RRCC/RRCC/RRCC"
    assert state.ended
    assert state.stage == 3
    letters, state, _ = run(ScheduleRule("RC", 1, 300, 3), [0.5, 0.6, 0.5, 0.6] * 2)
    assert letters == "RCRC/RCRC"
    assert not state.ended
    assert (state.stage, state.begun, state.best) == (3, False, float("-inf"))


@pytest.mark.parametrize(
    ("moved", "letters"), [([5, 1, 0], "RCRC/RCRC/RCRC"), ([0], "RCRC"), ([5, 0], "RCRC/RCRC")]
)
def test_adaptive_ends_after_the_stage_before_which_nothing_moved(moved: list[int], letters: str) -> None:
    rule = ScheduleRule("RC", 1, 300, None)
    seen, state, _ = run(rule, [0.5, 0.6, 0.5, 0.6] * len(moved), moved=moved)
    assert seen == letters
    assert state.ended
    if len(moved) > 1:
        assert not run(rule, [0.5, 0.6, 0.5, 0.6] * (len(moved) - 1), moved=moved)[1].ended


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_counts_units_that_do_not_improve(patience: int) -> None:
    for pattern in ("C", "RC", "CCCCCCCR"):
        rule = ScheduleRule(pattern, patience, 300)
        flat = [0.5] * len(pattern) * (1 + patience)
        assert run(rule, flat)[1].ended
        assert not run(rule, flat[:-1])[1].ended
        assert run(rule, flat)[1].best_epoch == pattern.rindex("C") + 1  # ties keep the earlier


def test_max_epochs_ends_in_the_middle_of_a_pair_and_of_a_round() -> None:
    letters, state, events = run(ScheduleRule("RC", 3, 3), [0.1, 0.2, 0.3])
    assert letters == "RCR"
    assert state.ended == "--max-epochs 3"
    assert state.best_epoch == 2
    assert not any(e.stage_end_reason for e in events)
    letters, state, _ = run(ScheduleRule("paired-rounds", 1, 3), [0.1, 0.1, 0.2])
    assert letters == "RRC"
    assert state.ended == "--max-epochs 3"
    # Both at once: the round ends by patience, the run by its bound.
    _, state, events = run(ScheduleRule("paired-rounds", 1, 2), [0.1, 0.1])
    assert events[-1].stage_end_reason
    assert state.ended == "--max-epochs 2"


def test_the_start_is_epoch_0_of_the_run_and_ties_keep_the_earlier() -> None:
    _, state, _ = run(ScheduleRule("C", 3, 300), [0.5, 0.4], first=0.5)
    assert (state.run_best, state.run_best_epoch, state.best_epoch) == (0.5, 0, 1)
    _, state, _ = run(ScheduleRule("RC", 3, 300), [0.7, 0.6], first=0.5)
    assert (state.run_best, state.run_best_epoch, state.best) == (0.7, 1, 0.6)


def test_an_epoch_before_its_stage_or_after_the_end_is_refused() -> None:
    rule = ScheduleRule("C", 1, 300)
    with pytest.raises(ValueError, match="has not begun"):
        update(rule, start(0), 0.5)
    with pytest.raises(ValueError, match="no epoch is due"):
        update(rule, run(rule, [0.5, 0.5])[1], 0.5)


@pytest.mark.parametrize(
    ("sequence", "accuracies", "letters", "reason"),
    [
        ("C", [0.3, 0.4, 0.4, 0.3], "CCCC", "2 epochs did not exceed 0.4000 of epoch 2"),
        ("RC", [0.5, 0.6] * 3, "RCRCRC", "2 RC repetitions did not exceed 0.6000 of epoch 2"),
        ("paired-rounds", [0.5, 0.6, 0.6, 0.5, 0.3, 0.2, 0.1], "RRRRCCC", "did not exceed 0.3000 of epoch 5"),
    ],
)
def test_the_traces_of_the_modules_docstring(
    sequence: str, accuracies: list[float], letters: str, reason: str
) -> None:
    seen, state, events = run(ScheduleRule(sequence, 2, 300), accuracies)
    assert seen == letters
    assert reason in state.ended
    assert events[-1].stage_end_reason == state.ended


def test_the_longest_run_visits_every_stage() -> None:
    rule = ScheduleRule("paired-rounds", 2, 30, 3)
    rows = list(longest_run(rule))
    assert [epoch for epoch, _, _ in rows] == list(range(1, 31))
    letters = "".join(letter for _, _, letter in rows)
    assert letters == "R" * 15 + "CCC" + "RRRCCC" * 2
    assert "".join(letter for _, _, letter in longest_run(ScheduleRule("RC", 3, 5))) == "RCRCR"


@pytest.mark.parametrize(
    ("pattern", "patience", "epochs"), [("", 3, 9), ("RX", 3, 9), ("RC", 0, 9), ("RC", 3, 0)]
)
def test_refused(pattern: str, patience: int, epochs: int) -> None:
    with pytest.raises(InputError):
        ScheduleRule(pattern, patience, epochs)


@pytest.mark.parametrize(
    ("rule", "accuracies", "letters", "ended"),
    [
        # A given number of epochs follows the epoch that ended the last stage, whatever they bring.
        (ScheduleRule("C", 2, 300, 1, 3), [0.3, 0.4, 0.4, 0.3, 0.5, 0.4, 0.5], "CCCCCCC", "over 3 epochs"),
        # After an R as well: the decay is of C epochs.
        (ScheduleRule("CR", 1, 300, 1, 2), [0.5, 0.9, 0.5, 0.9, 0.1, 0.1], "CRCRCC", "over 2 epochs"),
        # 20% of the epochs so far: 1 of 4, 2 of 8.
        (ScheduleRule("C", 3, 300, 1, 0), [0.4, 0.4, 0.4, 0.4, 0.4], "CCCCC", "over 1 epoch"),
        (
            ScheduleRule("C", 3, 300, 1, 0),
            [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5, 0, 0],
            "C" * 10,
            "over 2 e",
        ),
        # Only what --max-epochs leaves; nothing of it; and patience that never ends the run.
        (ScheduleRule("C", 1, 4, 1, 3), [0.4, 0.4, 0.4, 0.4], "CCCC", "over 2 epochs"),
        (ScheduleRule("C", 1, 2, 1, 3), [0.4, 0.4], "CC", "patience: 1 epoch did not exceed"),
        (ScheduleRule("C", 2, 2, 1, 3), [0.4, 0.4], "CC", "--max-epochs 2"),
        # Only the last stage and its last round are followed by it.
        (ScheduleRule("RC", 1, 300, 2, 1), [0.5, 0.5] * 4 + [0.1], "RCRC/RCRCC", "over 1 epoch"),
        (ScheduleRule("paired-rounds", 1, 300, 2, 1), [0.5] * 9, "RRCC/RRCCC", "over 1 epoch"),
    ],
)
def test_a_decay_follows_the_end_by_patience(
    rule: ScheduleRule, accuracies: list[float], letters: str, ended: str
) -> None:
    seen, state, events = run(rule, accuracies)
    assert seen == letters
    assert ended in state.ended
    assert next_phase(rule, state) is None
    decay = state.decay_epochs
    assert state.decay_done == decay
    assert not any(e.stage_end_reason or e.is_best_of_stage for e in events[len(events) - decay :])
    if decay:
        before, last = run(rule, accuracies[:-decay])[1:]
        assert (before.ended, before.decay_epochs, before.decay_done) == ("", decay, 0)
        assert last[-1].stage_end_reason.startswith("patience")  # what is restored before the decay
        assert not run(rule, accuracies[:-1])[1].ended


def test_the_best_of_a_decay_is_that_of_the_run() -> None:
    _, state, events = run(ScheduleRule("C", 1, 300, 1, 2), [0.4, 0.3, 0.6, 0.5])
    assert (state.run_best, state.run_best_epoch, state.best, state.best_epoch) == (0.6, 3, 0.4, 1)
    assert [e.is_best_of_run for e in events] == [True, False, True, False]


def test_an_adaptive_run_decays_after_the_stage_that_moves_nothing() -> None:
    rule = ScheduleRule("C", 1, 300, None, 2)
    letters, state, _ = run(rule, [0.5] * 6, moved=[3, 0])
    assert (letters, state.stage, state.decay_done) == ("CC/CCCC", 2, 2)


def test_the_epochs_that_judge_a_unit() -> None:
    rule, state, judging = ScheduleRule("CR", 1, 300, 1, 1), start(0.0), []
    for accuracy in [0.5, 0.5, 0.4, 0.5, 0.5]:
        state = begin_stage(rule, state) if not state.begun else state
        judging.append(judges_unit(rule, state))
        state, _ = update(rule, state, accuracy)
    assert judging == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("rule", "letters", "decay"),
    [
        (ScheduleRule("RC", 3, 20, 1, 5), "RC" * 7 + "C" * 5, 5),
        (ScheduleRule("C", 3, 12, 1, 0), "C" * 12, 2),
        (ScheduleRule("paired-rounds", 1, 12, 2, 3), "RRRCC" + "RRCC" + "CCC", 3),
        (ScheduleRule("paired-rounds", 1, 9, 2, 3), "RRCC" + "RRCC" + "C", 1),  # what is left of three
        (ScheduleRule("paired-rounds", 1, 7, 2, 3), "RRCC" + "RRC", 0),
    ],
)
def test_the_longest_run_with_a_decay(rule: ScheduleRule, letters: str, decay: int) -> None:
    rows = list(longest_run(rule))
    assert [epoch for epoch, _, _ in rows] == list(range(1, len(letters) + 1))
    assert "".join(letter for _, _, letter in rows) == letters
    assert longest_decay(rule) == decay


def test_a_decay_needs_patience_and_its_state_is_checked() -> None:
    with pytest.raises(InputError, match="3 epochs of decay need patience"):
        ScheduleRule("C", None, 10, 1, 3)
    data = start(0.0).as_dict()
    with pytest.raises(ValueError, match="a count below 0"):
        ScheduleState.from_dict({**data, "decay_epochs": 1, "decay_done": 2})
    without = {key: value for key, value in data.items() if not key.startswith("decay")}
    assert ScheduleState.from_dict(without) == start(0.0)  # as saved before there was one


def test_a_decay_that_was_never_planned_ends_with_the_run() -> None:
    rule = ScheduleRule("C", 1, 3, 1, 1)
    forged = ScheduleState.from_dict(
        {**start(0.0).as_dict(), "begun": True, "epoch": 2, "decay_epochs": 10**18}
    )
    assert update(rule, forged, 0.5)[0].ended == "--max-epochs 3"
