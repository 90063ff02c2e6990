import json

import pytest

from qrdali.errors import InputError
from qrdali.schedule import Rule, State, phase, start, update


def run(rule: Rule, accuracies: list[float], first: float = 0.0) -> tuple[str, State]:
    state, letters = start(first), ""
    for accuracy in accuracies:
        letter = phase(rule, state)
        assert letter, f"ended after {letters}"
        letters += letter
        state, _ = update(rule, state, accuracy)
        state = State.from_dict(json.loads(json.dumps(state.as_dict())))
    return letters, state


@pytest.mark.parametrize(("pattern", "patience", "accuracies", "letters", "best", "best_epoch"), [
    ("C", 3, [.3, .4, .4, .4, .4], "CCCCC", .4, 2),
    ("R", 3, [.50, .55, .60, .60, .59, .58], "RRRRRR", .60, 3),
    ("C", 3, [.61, .62, .63, .64, .64, .63, .60], "CCCCCCC", .64, 4),
    ("RC", 3, [.5, .6, .4, .6, .5, .6, .7, .6], "RCRCRCRC", .6, 2),
    ("C", 1, [.3, .3], "CC", .3, 1),
    ("C", 2, [.3, .2, .4, .4, .1], "CCCCC", .4, 3),
    ("CR", 1, [.5, .9, .5, .9], "CRCR", .5, 2),
])
def test_traces(pattern: str, patience: int, accuracies: list[float], letters: str, best: float, best_epoch: int) -> None:
    rule = Rule(pattern, patience, 300)
    seen, state = run(rule, accuracies)
    assert (seen, state.best, state.best_epoch) == (letters, best, best_epoch)
    assert state.ended.startswith("patience")
    assert phase(rule, state) is None
    assert not run(rule, accuracies[:-1])[1].ended


def test_max_epochs_ends_in_the_middle_of_a_pair() -> None:
    letters, state = run(Rule("RC", 3, 3), [.1, .2, .3])
    assert letters == "RCR"
    assert state.ended == "--max-epochs 3"
    assert state.best_epoch == 2


def test_the_start_is_epoch_0_of_the_run_and_ties_keep_the_earlier() -> None:
    _, state = run(Rule("C", 3, 300), [.5, .4], first=.5)
    assert (state.run_best, state.run_best_epoch, state.best_epoch) == (.5, 0, 1)
    _, state = run(Rule("RC", 3, 300), [.7, .6], first=.5)
    assert (state.run_best, state.run_best_epoch, state.best) == (.7, 1, .6)


@pytest.mark.parametrize(("pattern", "patience", "epochs"), [("", 3, 9), ("RX", 3, 9), ("RC", 0, 9), ("RC", 3, 0)])
def test_refused(pattern: str, patience: int, epochs: int) -> None:
    with pytest.raises(InputError):
        Rule(pattern, patience, epochs)
