"""Runs that are one network are not tested, and networks that are not above chance are named."""

from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from finding_runs import ADAPTIVE, FIXED, LINEAR, SHAM, answers, findings, minimal, of, parts, run, seeds
from scipy.stats import binom

from qrdali.errors import InputError
from qrdali.report.findings.finding import NOT_SEEN, SEEN, UNKNOWN
from qrdali.report.tables import Table
from qrdali.workflows.noise_floor import noise_floor

STUCK = [0.7, 0.6, 0.65, 0.6, 0.5]  # accuracies of a run whose best epoch is its start
RIGHT = answers(0.6, 1)


def table(folders: list[Path], slug: str, mepis: "list[Path] | None" = None) -> Table:
    return next(
        table for part in parts(folders, mepis or []) for table in part.filled_tables if table.slug == slug
    )


def test_runs_of_the_same_weights_are_one_network(tmp_path: Path) -> None:
    shared = run(tmp_path / "shared", RIGHT, method="shared", weights="same")
    base = run(tmp_path / "base", RIGHT, accuracies=STUCK, weights="same")
    linear = run(tmp_path / "linear", answers(0.62, 2), **LINEAR)
    found = findings(shared, base, linear)
    (one,) = of(found, "P1", "are one network")
    assert "shared (best epoch 4) and base (best epoch 0)" in one.text
    assert one.figures == {"same_network": [["shared", "base"]]}
    # The baseline is another network than linear's, and compared with it as ever.
    assert of(found, "P1", "baseline of the same seed")
    assert not of(findings(base, linear), "P1", "are one network")


def test_a_method_that_is_its_baseline_is_not_tested(tmp_path: Path) -> None:
    base = run(tmp_path / "base", RIGHT, weights="same")
    # Rows that differ, as those of another device may: the weights decide.
    linear = run(tmp_path / "linear", answers(0.62, 2), accuracies=STUCK, weights="same", **LINEAR)
    fixed = run(tmp_path / "fixed", answers(0.7, 3), **FIXED)
    found = findings(base, linear, fixed)
    (one,) = of(found, "P1", "are one network")
    assert "The same network as the baseline of its seed, wherever there is one: linear" in one.text
    (tested,) = of(found, "P1", "baseline of the same seed")
    assert [test["method"] for test in tested.figures["tests"]] == ["fixed 0.5 paired-epochs color"]
    assert tested.figures["tests"][0]["family"] == 1
    comparisons = table([base, linear, fixed], "comparisons-1")
    stars = {(row[0].text, row[1].text): (row[-1].text, row[11].text) for row in comparisons.rows}
    assert stars["test", "linear"] == ("the same network", "–")
    assert stars["test", "base"][0] == "–"
    # Holm counts the tests that are made: one on test.
    fixed_row = next(row for row in comparisons.rows if (row[0].text, row[1].text) == ("test", "fixed"))
    assert fixed_row[11].value == fixed_row[12].value
    accuracies = table([base, linear, fixed], "accuracy-1")
    assert [row[-1].text for row in accuracies.rows][1] == "the same network"


def test_a_seed_in_which_both_are_one_network_differs_by_nothing(tmp_path: Path) -> None:
    base = [run(tmp_path / f"b{i}", answers(0.6, i), seed=i, weights=f"w{i}") for i in range(3)]
    linear = [run(tmp_path / f"l{i}", answers(0.7, 9 + i), seed=i, **LINEAR) for i in range(2)]
    linear.append(run(tmp_path / "l2", answers(0.6, 2), seed=2, weights="w2", **LINEAR))
    (one,) = of(findings(*base, *linear), "P1", "baseline of the same seed")
    (test,) = one.figures["tests"]
    assert (test["seeds"], test["same_network"]) == (3, 1)
    assert "3 seeds, in 1 of them both are the same network" in one.text
    per_seed = [answers(0.7, 9 + i).mean() - answers(0.6, i).mean() for i in range(2)]
    assert test["difference"] == pytest.approx(sum(per_seed) / 3)
    row = table([*base, *linear], "accuracy-1").rows[1]
    assert row[-1].text == f"{100 * sum(per_seed) / 3:+.2f}, p < .05 in 2 of 3, 1 the same network"
    assert row[-1].value == pytest.approx(100 * sum(per_seed) / 3)


def test_a_control_that_is_the_same_network_is_there_all_the_same(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "base", RIGHT),
        run(tmp_path / "linear", answers(0.7, 2), weights="w", **LINEAR),
    ]
    folders.append(run(tmp_path / "sham", answers(0.7, 2), weights="w", **SHAM))
    folders.append(run(tmp_path / "augmented", answers(0.6, 4), auto_augment="rand-m9"))
    folders.append(run(tmp_path / "random", answers(0.6, 5), **{**LINEAR, "method": "random"}))
    matched = {"match": str(folders[1]), "match_steps": 40}
    folders.append(run(tmp_path / "matched", answers(0.6, 6), **matched))
    (one,) = of(findings(*folders), "P1", "Controls of the same seed")
    assert {test["against"] for test in one.figures["tests"]} == {"matched", "random", "randaugment"}
    # It has all of its controls, and is above all but one.
    assert "all of its controls, of 1 that has all of them: none." in one.text


def test_quotients_of_one_network_are_not_compared(tmp_path: Path) -> None:
    base, linear = run(tmp_path / "b", RIGHT, weights="w"), run(tmp_path / "l", RIGHT, weights="w", **LINEAR)
    sets = [*minimal(tmp_path, [base], 0.3), *minimal(tmp_path, [linear], 0.2)]
    (one,) = of(findings(base, linear, mepis=sets), "P2")
    assert "The same network as the baseline in every seed: linear paired-rounds crop." in one.text
    assert not one.figures
    slugs = {t.slug for part in parts([base, linear], sets) for t in part.filled_tables}
    assert "quotients-1" in slugs
    assert not [slug for slug in slugs if slug.startswith(("compared", "quotient-pairs", "quotient-tests"))]
    fixed = run(tmp_path / "f", RIGHT, **FIXED)
    (one,) = of(findings(base, linear, fixed, mepis=[*sets, *minimal(tmp_path, [fixed], 0.2)]), "P2")
    assert [test["method"] for test in one.figures["tests"]] == ["fixed 0.5 paired-epochs color"]


def test_seeds_that_are_one_network_have_no_noise_floor(tmp_path: Path) -> None:
    stuck = [run(tmp_path / f"s{i}", RIGHT, seed=i, accuracies=STUCK, weights="w") for i in range(3)]
    assert not [one for one in of(findings(*stuck), "noise") if one.figures.get("deviation") is not None]
    with pytest.raises(InputError, match="3 runs of baseline hold the same weights"):
        noise_floor(stuck)
    other = run(tmp_path / "other", answers(0.9, 7), seed=4)
    (one,) = of(findings(*stuck[:2], other), "noise")
    assert "These 3 runs are 2 different networks" in one.text
    assert (one.figures["pairs"], one.figures["rejected"]) == (2, 2)


def test_a_network_that_is_fed_otherwise_is_another(tmp_path: Path) -> None:
    """Within a group pixels are the same, but the options of a network may differ."""
    from dataclasses import replace

    from qrdali.interfaces import SilentListener
    from qrdali.report.inputs import read_inputs

    folders = [run(tmp_path / name, RIGHT, weights="w") for name in ("a", "b")]
    (one, other), _ = read_inputs(folders, [], SilentListener())
    assert one.is_network_of(other)
    options = replace(other.trained, model_options={"drop_rate": 0.1})
    assert not one.is_network_of(replace(other, trained=options))
    assert not replace(one, weights="").is_network_of(replace(other, weights=""))


def at_chance(correct: int, images: int = 120) -> "np.ndarray[Any, Any]":
    return np.arange(images) < correct


def test_a_network_that_is_not_above_chance_is_named(tmp_path: Path) -> None:
    """Four classes of 30 images: 38 right are p = .053, 39 right are p = .034."""
    assert binom.sf(37, 120, 0.25) > 0.05 > binom.sf(38, 120, 0.25)
    base = run(tmp_path / "base", at_chance(39))
    linear = run(tmp_path / "linear", at_chance(38), **LINEAR)
    found = findings(base, linear)
    (one,) = of(found, "P1", "Not above chance")
    assert (
        "linear paired-rounds crop on test: 38 of 120 right, the most frequent class is 30 of 120."
        in one.text
    )
    (figures,) = one.figures["not_above_chance"]
    assert figures["p"] == pytest.approx(binom.sf(37, 120, 0.25))
    (tested,) = of(found, "P1", "baseline of the same seed")
    assert "With caution, for they are not above chance: linear paired-rounds crop." in tested.text
    assert not of(findings(base), "P1", "chance:")


def test_seeds_that_are_not_above_chance_are_counted(tmp_path: Path) -> None:
    base = [run(tmp_path / f"b{i}", at_chance(20 + 30 * i), seed=i) for i in range(3)]
    linear = seeds(tmp_path, "linear", 0.7, **LINEAR)
    linear = [run(tmp_path / f"l{i}", at_chance(70), seed=i, **LINEAR) for i in range(3)]
    found = findings(*base, *linear)
    (one,) = of(found, "P1", "Not above chance")
    assert "baseline on test in 1 of 3 seeds: 20 of 120 right" in one.text
    (tested,) = of(found, "P1", "baseline of the same seed")
    assert "With caution, for they are not above chance: its baseline in 1 of 3 seeds." in tested.text
    sets = [*minimal(tmp_path, base, 0.3), *minimal(tmp_path, linear, 0.2)]
    (quotients,) = of(findings(*base, *linear, mepis=sets), "P2")
    assert "With caution" not in quotients.text  # val, of which the images are, is above chance


def test_quotients_carry_the_caution_of_their_split(tmp_path: Path) -> None:
    base = run(tmp_path / "base", at_chance(60), sets={"val": at_chance(12, 40)})
    linear = run(tmp_path / "linear", at_chance(60), **LINEAR)
    sets = [*minimal(tmp_path, [base], 0.3), *minimal(tmp_path, [linear], 0.2)]
    (one,) = of(findings(base, linear, mepis=sets), "P2")
    assert "With caution, for they are not above chance: its baseline on val." in one.text
    assert one.figures["tests"][0]["not_above_chance"] == ["its baseline on val"]


def test_claims_carry_the_cautions(tmp_path: Path) -> None:
    adaptive = run(tmp_path / "adaptive", at_chance(30), **ADAPTIVE)
    linear = run(tmp_path / "linear", at_chance(28), **LINEAR)
    (one,) = of(findings(adaptive, linear), "claims", "come first")
    assert "With caution, for they are not above chance: adaptive paired-rounds crop" in one.text
    same = run(tmp_path / "same", at_chance(30), weights="w", **{**ADAPTIVE, "seed": 3})
    other = run(tmp_path / "other", at_chance(30), weights="w", **{**LINEAR, "seed": 3})
    (one,) = of(findings(same, other), "claims", "come first")
    assert one.verdict == NOT_SEEN
    assert "it is the same network as linear paired-rounds crop in every seed" in one.text


def test_rises_and_gains_carry_the_cautions(tmp_path: Path) -> None:
    rows = {"val": at_chance(11, 40)}
    fixed = [run(tmp_path / f"f{i}", at_chance(90), seed=i, sets=rows, **FIXED) for i in range(2)]
    (one,) = of(findings(*fixed), "claims", "C after R rises")
    assert "With caution, for they are not above chance on val: f0; f1." in one.text
    folders = []
    for name, right in (("efficientnet_b3", 90), ("resnet152", 20)):
        shared = run(tmp_path / name / "shared", at_chance(80), method="shared", model=name)
        more = {"init": str(shared), "model": name}
        folders += [shared, run(tmp_path / name / "linear", at_chance(right), **LINEAR, **more)]
    (one,) = of(findings(*folders), "claims", "EfficientNet moves")
    assert "With caution, for they are not above chance on test: resnet152/linear." in one.text


def test_the_gain_of_one_network_is_nothing(tmp_path: Path) -> None:
    more = {"model": "efficientnet_b3", "classes": tuple(f"n{i:08}" for i in range(1000)), "weights": "w"}
    base = run(tmp_path / "base", RIGHT, **more)
    linear = run(tmp_path / "linear", RIGHT, **{**LINEAR, "reduction": "combination"}, **more)
    (one,) = of(findings(base, linear), "claims", "71.6 → 72.2")
    assert one.verdict == NOT_SEEN
    assert "the same network as its baseline in every seed" in one.text
    assert {SEEN, UNKNOWN}.isdisjoint({one.verdict})


def test_agreement_says_which_runs_are_one_network(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, RIGHT, weights="w") for name in ("a", "b")]
    folders.append(run(tmp_path / "c", answers(0.7, 2), **LINEAR))
    notes = " ".join(table(folders, "consistency-1").notes)
    assert "a and b" in notes
    assert "a and c" not in notes


def test_weights_are_known_by_their_recorded_sum(tmp_path: Path) -> None:
    """They are not read where SHA256SUMS stands beside them, and are where an old checkpoint has none."""
    from qrdali.runs.folder import recorded_weights

    folder = run(tmp_path / "a", RIGHT)
    digest = fake_runs.digest(folder)
    assert recorded_weights(folder) == digest
    (folder / "best" / "model.safetensors").unlink()
    assert recorded_weights(folder) == digest
    (folder / "best" / "SHA256SUMS").unlink()
    assert recorded_weights(folder) == ""
    (folder / "best" / "model.safetensors").write_bytes(b"x")
    assert recorded_weights(folder) == fake_runs.digest(folder)
