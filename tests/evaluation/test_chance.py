"""Whether a network is above chance, and which runs hold the same weights: evaluate, compare, build-mepi."""

import json
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
import suite_trees
from click.testing import CliRunner, Result
from recording_listener import RecordingListener
from scipy.stats import binom
from suite_trees import WNIDS, picture

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.evaluation.chance import chance, chance_of_rows, most_frequent
from qrdali.interfaces import JobControl
from qrdali.runs import folder as run_folder
from qrdali.runs.same_weights import start_note
from qrdali.runs.settings import validate_settings
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.compare import compare
from qrdali.workflows.train import run_training


def shown(result: Result) -> str:
    if result.exception:
        raise result.exception
    return " ".join(result.stderr.split())


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


def test_the_p_value_is_the_binomial_tail_at_the_most_frequent_class() -> None:
    labels = np.repeat([3, 7, 1 << 40], [50, 40, 30])
    assert most_frequent(labels) == 50
    found = chance_of_rows(labels, np.arange(120) < 60)
    assert (found.correct, found.images, found.most_frequent) == (60, 120, 50)
    assert found.p_value == pytest.approx(binom.sf(59, 120, 50 / 120))


def test_both_sides_of_the_bound() -> None:
    """Of 120 images, 20 of the most frequent class: 27 right are p = .060, 28 right are p = .037."""
    below, above = chance(27, 120, 20), chance(28, 120, 20)
    assert (below.is_not_above, above.is_not_above) == (True, False)
    assert below.p_value > 0.05 >= above.p_value
    assert below.sentence("runs/a", "test") == (
        "runs/a is not above chance on test: 27 of 120 right, the most frequent class is 20 of 120 "
        "(one-sided binomial test, p = 0.06)"
    )
    assert above.sentence("runs/a", "test") == ""
    # Always answering that class is itself never above chance, and worse is not either.
    assert chance(20, 120, 20).is_not_above
    assert chance(0, 120, 20).p_value == 1


def test_a_set_of_one_class_shows_it_of_no_network() -> None:
    assert not chance(15, 20, 20).is_not_above
    assert not chance(20, 20, 20).is_not_above


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    suite_trees.answer_by_colour(monkeypatch)
    return suite_trees.run(tmp_path / "run")


def test_evaluate_says_what_is_not_above_chance(colours: Path, tmp_path: Path) -> None:
    for number in range(4):
        for i in range(6):
            picture(tmp_path / "one" / WNIDS[number] / f"{i}.png", 0)  # always the same answer
            picture(tmp_path / "all" / WNIDS[number] / f"{i}.png", number)
    sets = [f"--set={name}={tmp_path / name}" for name in ("one", "all")]
    words = ["evaluate", "--run", colours, "--device", "cpu", "--threads", 1, *sets]
    text = shown(command(*words))
    assert f"{colours} is not above chance on one: 6 of 24 right, the most frequent class is 6 of 24" in text
    assert "not above chance on all" not in text
    found = json.loads(command(*words, "--json").stdout)["sets"]
    assert found["one"]["most_frequent"] == found["all"]["most_frequent"] == 6
    assert found["one"]["p_above_chance"] == pytest.approx(binom.sf(5, 24, 0.25))
    assert [len(found[name]["notes"]) for name in ("one", "all")] == [1, 0]


def test_a_restricted_suite_counts_its_own_labels(colours: Path, tmp_path: Path) -> None:
    """Half of two classes is far above one of 200, and still what one answer to all of them has right."""
    for number in (6, 11):
        for i in range(10):
            picture(tmp_path / "a" / WNIDS[number] / f"{i}.png", 6)
    words = ["evaluate", "--run", colours, "--device", "cpu", "--threads", 1]
    text = shown(command(*words, "--suite", f"imagenet-a={tmp_path / 'a'}"))
    assert "is not above chance on imagenet-a: 10 of 20 right, the most frequent class is 10 of 20" in text


def test_a_suite_of_several_sets_names_them_in_one_sentence(colours: Path, tmp_path: Path) -> None:
    for severity in range(1, 6):
        for number in range(4):
            for i in range(6):
                file = tmp_path / "c" / "fog" / f"{severity}" / WNIDS[number] / f"{i}.JPEG"
                picture(file, number if severity < 4 else 500)
    words = ["evaluate", "--run", colours, "--device", "cpu", "--threads", 1, "--json"]
    result = command(*words, "--suite", f"imagenet-c={tmp_path / 'c'}")
    (note,) = [
        note
        for note in json.loads(result.stdout)["suites"]["imagenet-c"]["notes"]
        if "not above chance" in note
    ]
    assert "on 2 of 5 sets" in note
    assert "0 of 24 right, the most frequent class is 6 of 24" in note


def fake(folder: Path, correct: "np.ndarray[Any, Any]", **more: Any) -> Path:
    return fake_runs.run(folder, more.pop("accuracies", [0.5, 0.6]), {"test": correct}, **more)


def test_compare_names_a_network_that_is_not_above_chance(tmp_path: Path) -> None:
    one, other = (fake(tmp_path / name, np.arange(120) < right) for name, right in (("a", 31), ("b", 90)))
    text = shown(command("compare", one, other))
    assert (
        "note: A is not above chance on test: 31 of 120 right, the most frequent class is 30 of 120" in text
    )
    assert "B is not" not in text
    assert "same weights" not in text


def test_compare_says_that_two_runs_are_one_network(tmp_path: Path) -> None:
    right = np.arange(120) < 90
    one, other = fake(tmp_path / "a", right, weights="w"), fake(tmp_path / "b", right, weights="w")
    stuck = fake(tmp_path / "c", right, weights="w", accuracies=[0.6, 0.5])
    note = "A and B hold the same weights and are the same network: no difference between them comes from"
    assert f"note: {note} training" in shown(command("compare", one, other))
    (found,) = compare(one, stuck).notes
    assert found.endswith("training; B's best epoch is 0, the weights that it began with")
    # Rows alone, without a run, say nothing of weights.
    fake_runs.rows(tmp_path / "rows", "test", right)
    assert compare(one, tmp_path / "rows").notes == ()


def test_the_same_weights_under_other_pixels_are_another_network(tmp_path: Path) -> None:
    right = np.arange(120) < 90
    one, other = fake(tmp_path / "a", right, weights="w"), fake(tmp_path / "b", right, weights="w")
    state = json.loads((other / "best" / "state.json").read_text())
    state["preprocessing"]["fit"] = "center"
    (other / "best" / "state.json").write_text(json.dumps(state))
    (other / "best" / "SHA256SUMS").unlink()
    (note,) = compare(one, other).notes
    assert "same network" not in note
    assert "how an image is prepared" in note


SEARCH: dict[str, Any] = {"reduction": "color", "step": 0.5, "tail": "none", "device": "cpu", "threads": 1}
SETTINGS: dict[str, Any] = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A shared run, and one that began with it and only became worse."""
    root, more = tmp_path_factory.mktemp("trained"), {**SETTINGS, "data": str(dataset.folder), "threads": 2}
    shared = {"method": "shared", "epochs": 8, "lr": 2e-3, **more}
    run_training(validate_settings(shared), root / "shared", False)
    spoilt = {"method": "baseline", "init": str(root / "shared"), "lr": 50.0, "max_epochs": 2, **more}
    run_training(validate_settings(spoilt), root / "spoilt", False)
    return root / "shared", root / "spoilt"


def test_a_run_that_never_improved_has_the_weights_of_its_start(
    trained: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    shared, spoilt = trained
    assert run_folder.describe_best(spoilt).epoch == 0
    assert run_folder.recorded_weights(spoilt) == run_folder.weights_digest(shared)
    assert start_note(shared) == ""
    note = (
        f"the best epoch of {spoilt} is 0: best/ holds the weights that it began with, and nothing that it "
        f"trained; the run {shared} has the same weights"
    )
    assert start_note(spoilt) == note
    for run in trained:
        words = ["evaluate", "--run", run, "--data", dataset.folder, "--device", "cpu", "--threads", 1]
        assert (" ".join(note.split()) in shown(command(*words))) == (run == spoilt)
    assert "are the same network" in compare(shared, spoilt).notes[0]
    listener = RecordingListener()
    build_mepi(spoilt, dataset.folder, out=tmp_path / "mepi", control=JobControl(listener), **SEARCH)
    assert note in listener.lines


def test_build_mepi_says_that_the_run_is_not_above_chance(
    trained: tuple[Path, Path], dataset: Dataset, tmp_path: Path
) -> None:
    """Three of four images that are right, one of each class, have p = .051."""
    listener = RecordingListener()
    shared, _ = trained
    (summary,) = build_mepi(
        shared, dataset.folder, out=tmp_path / "m", limit=4, control=JobControl(listener), **SEARCH
    ).values()
    right = summary["images"] - summary["without_mepi"]
    assert right < 4
    text = f"{shared} is not above chance on val: {right} of 4 right, the most frequent class is 1 of 4 ("
    assert any(line.startswith(text) and line.endswith("say little") for line in listener.lines)


def test_what_it_began_with_may_be_gone_or_another_by_now(tmp_path: Path) -> None:
    start = fake(tmp_path / "start", np.ones(4, bool))
    run = fake(tmp_path / "run", np.ones(4, bool), init=str(start), accuracies=[0.6, 0.5])
    assert start_note(run).endswith("and nothing that it trained")
    (start / "best" / "SHA256SUMS").write_text("damaged")
    assert start_note(run).endswith("and nothing that it trained")
