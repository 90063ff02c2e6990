"""The report's findings: planted effects are found, chance is not claimed, what is missing is named."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from finding_runs import (
    ADAPTIVE,
    FIXED,
    LINEAR,
    RANDOM,
    SHAM,
    answers,
    findings,
    minimal,
    of,
    parts,
    run,
    seeds,
)
from scipy.stats import ttest_1samp

from qrdali.cli.main import cli
from qrdali.report.build import build
from qrdali.report.findings import networks_apart
from qrdali.report.findings.finding import NOT_COMPARED, NOT_SEEN, ONE_SEED, SEEN, UNKNOWN, Finding
from qrdali.report.findings.section import linked
from qrdali.runs.settings import validate_settings
from qrdali.runs.train_command import with_method


def test_a_planted_gain_is_found_and_no_other_is_claimed(tmp_path: Path) -> None:
    base = seeds(tmp_path, "baseline", 0.6)
    linear, fixed = seeds(tmp_path, "linear", 0.7, **LINEAR), seeds(tmp_path, "fixed", 0.6, **FIXED)
    (found,) = of(findings(*base, *linear, *fixed), "P1", "baseline of the same seed:")
    assert found.verdict == SEEN
    assert "On test (2,000 images, full quality), 1 of 2 methods" in found.text
    assert "linear paired-rounds crop by +9" in found.text or "crop by +10" in found.text
    assert "3 seeds" in found.text
    assert "For 1 of them no difference is shown." in found.text
    assert "One seed" not in found.text
    by_method = {test["method"]: test for test in found.figures["tests"]}
    gain, none = by_method["linear paired-rounds crop"], by_method["fixed 0.5 paired-epochs color"]
    differences = [
        answers(0.7 + shift, 1000 * seed + sum(map(ord, "linear"))).mean()
        - answers(0.6 + shift, 1000 * seed + sum(map(ord, "baseline"))).mean()
        for seed, shift in enumerate((-0.004, 0, 0.004))
    ]
    assert gain["difference"] == pytest.approx(np.mean(differences))
    assert gain["p_seeds"] == pytest.approx(ttest_1samp(differences, 0).pvalue)
    # Two tests are one family: the smaller p counts twice.
    assert gain["p_holm"] == pytest.approx(2 * max(gain["p_seeds"], gain["p_images"]))
    assert gain["family"] == none["family"] == 2
    assert none["p_holm"] > 0.05


def test_chance_is_not_claimed(tmp_path: Path) -> None:
    """Ten methods without an effect, three seeds: 60 comparisons of two networks, none is a finding."""
    base = seeds(tmp_path, "baseline", 0.6)
    others: list[Path] = []
    for i in range(10):
        others += seeds(tmp_path, f"m{i}", 0.6, **FIXED, step=0.1, quality=0.5, lr=0.1 * i + 0.1)
    (found,) = of(findings(*base, *others), "P1", "baseline of the same seed.")
    assert found.verdict == NOT_SEEN
    assert "none of 10 methods that train on reduced images is shown to be more accurate" in found.text
    assert "The highest is" in found.text
    # And they are trained otherwise than the baseline, which a reader is told.
    assert "they also differ in lr" in found.text


def test_one_seed_says_so(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6, 1), seeds(tmp_path, "linear", 0.7, 1, **LINEAR)
    found = findings(*base, *linear)
    (one,) = of(found, "P1", "baseline of the same seed:")
    assert one.verdict == ONE_SEED
    assert "1 of 1 network trained on reduced images is shown" in one.text
    assert "another seed may turn it round" in one.text
    assert one.figures["tests"][0]["p_seeds"] is None
    assert not [finding for finding in found if finding.verdict == SEEN]


def test_holm_decides(tmp_path: Path) -> None:
    """b = 10, c = 22: χ² = 4.5, p = .0339. As one of two comparisons that is .0678, and not shown."""
    right = np.arange(100) < 50
    better = right.copy()
    better[:10], better[60:82] = False, True
    base, linear = run(tmp_path / "base", right), run(tmp_path / "linear", better, **LINEAR)
    (one,) = of(findings(base, linear), "P1", "1 of 1 network trained on reduced images is shown")
    assert one.figures["tests"][0]["p_holm"] == pytest.approx(0.033895, abs=1e-6)
    fixed = run(tmp_path / "fixed", right, **FIXED)
    (one,) = of(findings(base, linear, fixed), "P1", "none of 2 networks trained on reduced images is shown")
    assert [test["p_holm"] for test in one.figures["tests"]] == [pytest.approx(0.067790, abs=1e-6), 1]
    assert "The highest is linear paired-rounds crop by +12.0 points (p = 0.068 after Holm" in one.text


def test_a_loss_is_said(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.7), seeds(tmp_path, "linear", 0.6, **LINEAR)
    (one,) = of(findings(*base, *linear), "P1", "Shown to be less accurate: linear")
    assert one.verdict == NOT_SEEN


def test_val_is_no_test(tmp_path: Path) -> None:
    """The best epoch was chosen on val: a difference there is not a finding, and so on reduced val."""
    right, half = np.ones(40, bool), np.arange(40) % 2 == 0
    base = run(tmp_path / "b", None, sets={"val": half, "val-crop-0.5": half})
    linear = run(tmp_path / "l", None, sets={"val": right, "val-crop-0.5": right}, **LINEAR)
    found = findings(base, linear)
    assert {one.verdict for one in of(found, "P1")} == {UNKNOWN}
    (missing,) = of(found, "P1", "no rows of test")
    assert f"qrdali evaluate --run {base} --data /data/shapes --split test" in missing.commands


def with_controls(root: Path, sham: float, others: float) -> list[Path]:
    shared = seeds(root, "shared", 0.5, method="shared", epochs=4)
    linear = seeds(root, "linear", 0.7, **LINEAR)
    folders = [*shared, *seeds(root, "baseline", 0.6), *linear]
    folders += [*seeds(root, "sham", sham, **SHAM), *seeds(root, "random", others, **RANDOM)]
    folders += seeds(root, "augmented", others, auto_augment="rand-m9")
    for seed, matched in enumerate(linear):
        more = {"match": str(matched), "match_steps": 40, "init": str(root / f"shared-{seed}")}
        test = answers(others + 0.004 * (seed - 1), 7000 + seed)
        folders.append(run(root / f"matched-{seed}", test, seed=seed, **more))
    return folders


def test_a_method_is_held_against_its_own_controls(tmp_path: Path) -> None:
    found = findings(*with_controls(tmp_path / "a", 0.6, 0.6))
    (one,) = of(found, "P1", "Controls of the same seed")
    assert one.verdict == SEEN
    for control in ("sham", "random", "matched", "randaugment"):
        assert f"1 of 1 is shown to be more accurate than the {control} control: linear" in one.text
    assert "all of its controls, of 1 that has all of them: linear paired-rounds crop." in one.text
    assert not of(found, "P1", "stands beside")
    # A sham that is as good: the reduction is not what makes the gain.
    (one,) = of(findings(*with_controls(tmp_path / "b", 0.7, 0.6)), "P1", "Controls of the same seed")
    assert "linear paired-rounds crop is not shown to differ from its sham control." in one.text
    assert "all of its controls, of 1 that has all of them: none." in one.text


def test_one_control_serves_every_run_that_it_is_of(tmp_path: Path) -> None:
    kinds = [LINEAR, ADAPTIVE, {**LINEAR, "reduction": "color"}]
    found = findings(*[run(tmp_path / f"r{i}", answers(0.6, i), **kind) for i, kind in enumerate(kinds)])
    # A sham for linear and one for adaptive; a random control for crop and one for color.
    assert len(of(found, "P1", "No sham control")[0].commands) == 2
    assert len(of(found, "P1", "No random control")[0].commands) == 2
    assert len(of(found, "P1", "No matched control")[0].commands) == 3
    assert len(of(found, "P1", "No randaugment control")[0].commands) == 1


def test_an_augmented_run_has_no_augmented_control(tmp_path: Path) -> None:
    policy = {"auto_augment": "rand-m9"}
    base = run(tmp_path / "base", answers(0.6, 1), **policy)
    found = findings(base, run(tmp_path / "linear", answers(0.7, 2), **LINEAR, **policy))
    assert of(found, "P1", "baseline of the same seed: linear")
    assert not of(found, "P1", "randaugment control")


def test_a_matched_baseline_that_is_augmented_is_the_augmented_control(tmp_path: Path) -> None:
    linear = run(tmp_path / "linear", answers(0.7, 2), **LINEAR)
    matched = {"match": str(linear), "match_steps": 40, "auto_augment": "rand-m9"}
    found = findings(
        linear,
        run(tmp_path / "base", answers(0.6, 1)),
        run(tmp_path / "rand", answers(0.6, 3), **matched),
    )
    assert not of(found, "P1", "No randaugment control")
    assert of(found, "P1", "No matched control"), "it differs in more than the length of training"
    # Matched to the steps of another run it is no control of this one.
    elsewhere = {**matched, "match": "/another/run", "match_steps": 30}
    found = findings(
        linear,
        run(tmp_path / "base2", answers(0.6, 1)),
        run(tmp_path / "rand2", answers(0.6, 3), **elsewhere),
    )
    assert of(found, "P1", "No randaugment control")


def test_a_control_counts_if_it_is_there_for_every_seed(tmp_path: Path) -> None:
    folders = with_controls(tmp_path, 0.6, 0.6)
    shams = [folder for folder in folders if folder.name.startswith("sham")]
    found = findings(*[folder for folder in folders if folder not in shams[1:]])
    (one,) = of(found, "P1", "Controls of the same seed")
    assert "It has not all of its controls for every seed" in one.text
    assert "Where there is one seed, this says that the trained networks differ" in one.text
    assert len(of(found, "P1", "No sham control")[0].commands) == 2


def test_rows_of_other_images_are_named(tmp_path: Path) -> None:
    base = run(tmp_path / "base", answers(0.6, 1, 1000))
    found = findings(base, run(tmp_path / "linear", answers(0.7, 2), **LINEAR))
    assert of(found, "P1", "The rows of test of linear and of the baseline are not of the same images")


@pytest.mark.parametrize(
    ("control", "kind"),
    [
        ("sham", {**SHAM, "sequence": "paired-epochs"}),
        ("sham", {**SHAM, "seed": 1}),
        ("random", {**RANDOM, "reduction": "color"}),
        ("random", {**RANDOM, "sequence": "paired-epochs"}),
        ("matched", {"match": "/another/run", "match_steps": 30}),
        ("matched", {"match": "/another/run", "match_steps": 40}),
    ],
)
def test_what_is_no_control_of_a_run(tmp_path: Path, control: str, kind: dict[str, Any]) -> None:
    linear = run(tmp_path / "linear", answers(0.7, 1), **LINEAR)
    found = findings(linear, run(tmp_path / "control", answers(0.6, 2), **kind))
    assert of(found, "P1", f"No {control} control of the same seed", "beside linear paired-rounds crop:")
    assert not of(found, "P1", "Controls of the same seed.")


def test_a_control_of_another_start_says_so(tmp_path: Path) -> None:
    starts = [run(tmp_path / f"start-{lr}", None, method="shared", lr=lr) for lr in (0.1, 0.2)]
    linear = run(tmp_path / "linear", answers(0.7, 1), init=str(starts[0]), **LINEAR)
    sham = run(tmp_path / "sham", answers(0.6, 2), init=str(starts[1]), **{**SHAM, "method": "fixed"})
    (one,) = of(findings(linear, sham), "P1", "Controls of the same seed.")
    assert "they also differ in the number of stages, the run they began with" in one.text


def test_seeds_of_one_start_say_so(tmp_path: Path) -> None:
    start = {"init": str(run(tmp_path / "start", None, method="shared"))}
    folders = []
    for seed in range(2):
        folders.append(run(tmp_path / f"b{seed}", answers(0.6, seed), seed=seed, **start))
        folders.append(run(tmp_path / f"l{seed}", answers(0.7, 9 + seed), seed=seed, **start, **LINEAR))
    found = findings(*folders)
    assert of(found, "P1", "2 seeds that begin with the same run)")
    assert of(found, "noise", "All began with the same run")


def dry_run(monkeypatch: pytest.MonkeyPatch, command: str) -> Any:
    """The settings that a command trains with, after it has printed its sequence."""
    words = shlex.split(command)
    assert words[:2] == ["qrdali", "train"]
    printed = CliRunner().invoke(cli, [*words[1:], "--dry-run"])
    assert printed.exit_code == 0, printed.output
    assert "epoch   1" in printed.output
    kept: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("qrdali.cli.train.show_sequence", kept.append)
        CliRunner().invoke(cli, [*words[1:], "--dry-run"])
    return kept[0]


@pytest.mark.parametrize("method", [LINEAR, FIXED, ADAPTIVE])
def test_the_command_of_a_missing_control_makes_it(
    tmp_path: Path, method: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    unusual = {
        "lr": 0.003,
        "batch_size": 16,
        "optimizer": "sgd",
        "optimizer_options": {"momentum": 0.8},
        "restore_best": False,
        "patience": 2,
        "max_epochs": 12,
        "seed": 5,
        "label_smoothing": 0.1,
        "ema": 0.99,
        "ema_warmup": True,
        "fit": "center",
        "init": "/runs/a start",
    }
    made = run(tmp_path / "it's a run", answers(0.6, 1), **method, **unusual)
    found = findings(made)
    texts = {control: f"No {control} control" for control in ("sham", "random", "matched", "randaugment")}
    for control, text in {"baseline": "No baseline", **texts}.items():
        (one,) = of(found, "P1", text)
        (command,) = one.commands
        settings = dry_run(monkeypatch, command)
        for name, value in unusual.items():
            if name not in ("patience", "max_epochs", "restore_best") or control != "matched":
                assert getattr(settings, name) == value, (control, name)
        assert (settings.data, settings.model) == ("/data/shapes", "test_resnet")
        reduced = control in ("sham", "random")
        assert settings.sequence == (method["sequence"] if reduced else "C")
        assert settings.reduction == (method["reduction"] if control == "random" else "none")
        assert settings.method == {"sham": method["method"], "random": "random"}.get(control, "baseline")
        assert settings.auto_augment == ("rand-m9" if control == "randaugment" else "")
        assert settings.match == (str(made) if control == "matched" else "")


def test_shared_runs_alone_have_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = run(tmp_path / "shared", answers(0.5, 1), method="shared", epochs=4, lr=0.01)
    shown = parts([shared], [])
    assert [part.title for part in shown][:2] == ["Findings", "Accuracy"]
    slugs = {table.slug for part in shown for table in part.filled_tables}
    assert {one.table for one in shown[0].findings} <= {*slugs, ""}
    found = list(shown[0].findings)
    assert {one.verdict for one in found} == {UNKNOWN, NOT_COMPARED}
    assert {one.question for one in found} == {"P1", "P2", "claims", "noise"}
    (least,) = of(found, "P1", "at least 6 images")
    assert "0.30% of test's 2,000 images" in least.text
    (nothing,) = of(found, "P1", "No run here was trained on reduced images")
    for command, method in zip(nothing.commands, ("baseline", "linear"), strict=True):
        settings = dry_run(monkeypatch, command)
        assert (settings.method, settings.lr) == (method, 0.01)
    # What follows the shared run begins with it.
    assert all(f"--init {shared}" in command for command in nothing.commands)


def test_several_networks_are_told_apart(tmp_path: Path) -> None:
    def network(name: str, gain: float) -> list[Path]:
        root, more = tmp_path / name, {"model": name}
        shared = seeds(root, "shared", 0.5, method="shared", **more)
        base = seeds(root, "baseline", 0.6, **more)
        return [*shared, *base, *seeds(root, "linear", 0.5 + gain, **LINEAR, **more)]

    found = findings(*network("efficientnet_b3", 0.2), *network("resnet152", 0.0))
    abouts = {one.about for one in of(found, "P1")}
    assert abouts == {"efficientnet_b3 at 32 px on shapes", "resnet152 at 32 px on shapes"}
    (claim,) = of(found, "claims", "EfficientNet moves")
    assert claim.verdict == SEEN
    assert "does not show that they do not" in claim.text
    # Where the other network gains too, if less, it is not seen.
    found = findings(
        *[tmp_path / "efficientnet_b3" / f"{name}-{i}" for name in ("shared", "linear") for i in range(3)],
        *network("squeezenet1_1", 0.1),
    )
    (claim,) = of(found, "claims", "EfficientNet moves")
    assert claim.verdict == NOT_SEEN
    assert "But squeezenet1_1 at 32 px gains too." in claim.text


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [
        ((0.10, 0.11, 0.12), (0.0, 0.01, -0.01), SEEN),
        ((0.10, 0.11, 0.12), (0.0, 0.2, -0.2), NOT_SEEN),  # the other's gain may be anything
        ((0.10, -0.11, 0.12), (-0.3, -0.31, -0.32), NOT_SEEN),  # it does not gain itself
        ((0.10, 0.11, 0.12), (0.05, 0.051, 0.052), NOT_SEEN),  # the other gains too
        ((-0.10, -0.11, -0.12), (0.0, 0.01, -0.01), NOT_SEEN),
        ((0.10, 0.11, 0.12), (0.0,), UNKNOWN),
        ((0.10, 0.10), (0.0, 0.0), UNKNOWN),
        ((0.10, 0.11, 0.12), (), UNKNOWN),
    ],
)
def test_gains_of_two_networks(
    tmp_path: Path, own: Any, other: Any, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"efficientnet_b3 at 32 px": own, "resnet152 at 32 px": other}
    gains = {name: networks_apart.Gains(name, per_seed, 0.001) for name, per_seed in known.items()}
    monkeypatch.setattr(networks_apart, "gains", lambda group: gains[group.network])
    folders = [run(tmp_path / name, None, model=name, **LINEAR) for name in ("efficientnet_b3", "resnet152")]
    (claim,) = of(findings(*folders), "claims", "EfficientNet moves")
    assert claim.verdict == verdict


def test_one_seed_of_two_networks_cannot_be_compared(tmp_path: Path) -> None:
    folders = []
    for name, level in (("efficientnet_b3", 0.7), ("resnet152", 0.5)):
        root, more = tmp_path / name, {"model": name}
        folders += seeds(root, "shared", 0.5, 1, method="shared", **more)
        folders += seeds(root, "linear", level, 1, **LINEAR, **more)
    (claim,) = of(findings(*folders), "claims", "EfficientNet moves")
    assert claim.verdict == UNKNOWN
    assert "two seeds or more" in claim.text
    assert not of(findings(*folders[:2]), "claims", "EfficientNet moves")
    # Without a run on reduced images there is no gain to compare either.
    assert not of(findings(folders[0], folders[2]), "claims", "EfficientNet moves")


def test_the_rise_after_a_reduced_epoch(tmp_path: Path) -> None:
    def rising(seed: int, kind: dict[str, Any], up: float, name: str) -> Path:
        values = [0.5, 0.5, 0.5 + up, 0.4, 0.4 + up + 0.04 * seed]
        return run(tmp_path / f"{name}{seed}", None, accuracies=values, seed=seed, **kind)

    reduced = [rising(seed, FIXED, 0.1, "fixed") for seed in range(4)]
    (one,) = of(findings(*reduced), "claims", "C after R rises")
    assert one.verdict == SEEN
    assert "in 8 of 8 pairs of 4 runs, by +13.0 points" in one.text
    assert one.figures["mean_rise"] == pytest.approx(0.13)
    assert one.figures["p"] == pytest.approx(ttest_1samp([0.1, 0.12, 0.14, 0.16], 0).pvalue)
    assert "no sham run of the same seed and sequence" in one.text
    # A sham that rises as much: it is not the reduction.
    shams = [rising(seed, {**FIXED, "reduction": "none"}, 0.1, "sham") for seed in range(4)]
    (one,) = of(findings(*reduced, *shams), "claims", "C after R rises")
    assert "is not shown" in one.text or "so few runs" in one.text
    assert one.figures["sham"]["difference"] == pytest.approx(0)
    (one,) = of(findings(reduced[0]), "claims", "C after R rises")
    assert one.verdict == UNKNOWN
    assert "One seed" in one.text


def test_shams_show_that_the_reduction_makes_the_rise(tmp_path: Path) -> None:
    folders = []
    for seed in range(6):
        for name, kind, up in (("f", FIXED, 0.1), ("s", {**FIXED, "reduction": "none"}, 0.0)):
            values = [0.5, 0.5, 0.5 + up + 0.001 * seed]
            folders.append(run(tmp_path / f"{name}{seed}", None, accuracies=values, seed=seed, **kind))
    (one,) = of(findings(*folders), "claims", "C after R rises")
    assert "the reduction makes a difference to it" in one.text
    assert one.figures["sham"]["p"] == pytest.approx(2 / 64)  # of six signs all agree


def test_rounds_begin_with_the_best_of_the_round(tmp_path: Path) -> None:
    """Letters RRRC: the weights after the best R epoch, .6, are restored before the C epoch of .58."""
    values = [0.5, 0.6, 0.55, 0.5, 0.58]
    lines = {"accuracies": values, **LINEAR, "letters": "RRRC", "extra": {}}
    folders = [run(tmp_path / f"l{seed}", None, seed=seed, **lines) for seed in range(2)]
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps({**row, "stage": 1}) + "\n" for row in rows))
    (one,) = of(findings(*folders), "claims", "C after R rises")
    assert one.verdict == NOT_SEEN
    assert one.figures["mean_rise"] == pytest.approx(-0.02)
    assert one.figures["pairs_up"] == 0


def test_epochs_validated_on_reduced_images_are_no_pairs(tmp_path: Path) -> None:
    watched = [run(tmp_path / f"f{seed}", None, monitor="phase", seed=seed, **FIXED) for seed in range(2)]
    assert not of(findings(*watched), "claims", "C after R rises")


@pytest.mark.parametrize(
    ("adaptive", "verdict", "words"),
    [
        (0.75, SEEN, "above each of the 2 others"),
        (0.715, NOT_SEEN, "has the highest accuracy of the 3 compared, but is not shown to be above linear"),
        (0.6, NOT_SEEN, "has not the highest accuracy"),
    ],
)
def test_which_method_is_first(tmp_path: Path, adaptive: float, verdict: str, words: str) -> None:
    folders = [*seeds(tmp_path, "baseline", 0.6), *seeds(tmp_path, "linear", 0.7, **LINEAR)]
    folders += seeds(tmp_path, "adaptive", adaptive, **ADAPTIVE)
    (one,) = of(findings(*folders), "claims", "come first")
    assert one.verdict == verdict
    assert words in one.text


def test_claims_on_runs_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    """Adaptive runs by crop, EfficientNet beside another network, R and C epochs, 1,000 classes."""
    base, linear = seeds(tmp_path, "baseline", 0.6, 2), seeds(tmp_path, "linear", 0.7, 2, **LINEAR)
    rise, absent = of(findings(*base, *linear), "claims")
    assert rise.text.startswith("C after R rises")
    assert absent.verdict == NOT_COMPARED
    assert len(absent.figures["claims"]) == 3
    for words in ("EfficientNet gains", "crop are the most accurate", "71.6% to 72.2%"):
        assert words in absent.text
    (absent,) = of(findings(*base), "claims")
    assert (absent.verdict, len(absent.figures["claims"])) == (NOT_COMPARED, 4)
    # Adaptive alone is first of nothing; beside another method the claim is looked at.
    adaptive = seeds(tmp_path, "adaptive", 0.7, 2, **ADAPTIVE)
    assert not of(findings(*adaptive), "claims", "come first")
    assert of(findings(*adaptive, *linear), "claims", "come first")


def test_the_gain_on_imagenet(tmp_path: Path) -> None:
    classes = tuple(f"n{i:08}" for i in range(1000))
    more = {"model": "efficientnet_b3", "classes": classes}
    combination = {**LINEAR, "reduction": "combination"}
    folders = seeds(tmp_path, "baseline", 0.6, **more)
    folders += seeds(tmp_path, "linear", 0.7, **combination, **more)
    (one,) = of(findings(*folders), "claims", "71.6 → 72.2")
    assert one.verdict == SEEN
    assert "outside this interval" in one.text
    low, high = one.figures["interval"]
    assert low < one.figures["difference"] < high
    (one,) = of(findings(folders[0], folders[3]), "claims", "71.6 → 72.2")
    assert one.verdict == UNKNOWN
    assert "One seed" in one.text
    assert not of(findings(*seeds(tmp_path, "other", 0.6)), "claims", "71.6 → 72.2")
    (one,) = of(findings(folders[3]), "claims", "71.6 → 72.2")
    assert one.verdict == UNKNOWN
    assert "its baseline, or rows of the same test images of both, are missing" in one.text
    assert not of(findings(*folders[:3]), "claims", "71.6 → 72.2")


def test_quotients_are_compared_with_the_baseline(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6), seeds(tmp_path, "linear", 0.6, **LINEAR)
    fixed = seeds(tmp_path, "fixed", 0.6, **FIXED)
    sets = [*minimal(tmp_path, base, 0.3), *minimal(tmp_path, linear, 0.2), *minimal(tmp_path, fixed, 0.3)]
    (one,) = of(findings(*base, *linear, *fixed, mepis=sets), "P2")
    assert one.verdict == SEEN
    assert "1 of 2 methods trained on reduced images is shown to need a smaller" in one.text
    assert "linear paired-rounds crop, mean 0.2" in one.text
    assert "both classify correctly at full quality" in one.text
    none = next(test for test in one.figures["tests"] if test["method"].startswith("fixed"))
    assert none["p_holm"] > 0.05
    # One seed; and without sets, the commands that make them.
    (one,) = of(findings(base[0], linear[0], mepis=[sets[0], sets[3]]), "P2")
    assert (one.verdict, "another seed may turn it round" in one.text) == (ONE_SEED, True)
    (one,) = of(findings(base[0], linear[0]), "P2")
    assert one.verdict == UNKNOWN
    for command, made_of in zip(one.commands, (base[0], linear[0]), strict=True):
        words = shlex.split(command)
        assert words[words.index("--run") + 1] == str(made_of)
        assert cli.get_command(None, words[1]) is not None  # type: ignore[arg-type]


def test_quotients_are_found_under_their_own_number(tmp_path: Path) -> None:
    """The parts of MEPI sets are not numbered as the networks are."""
    first = seeds(tmp_path / "a", "linear", 0.6, 1, **LINEAR)
    second = seeds(tmp_path / "b", "linear", 0.6, 1, **LINEAR, model="resnet152")
    part = parts([*first, *second], minimal(tmp_path, second, 0.2))[0]
    (one,) = [one for one in of(part.findings, "P2") if one.about.startswith("resnet152")]
    assert one.table == "quotients-1"


def test_a_finding_is_safe_to_show() -> None:
    one = Finding("P1", "a\x1b[31m", UNKNOWN, "b\x1b[31m\n", {}, "nowhere", ("c\x07", "c\x07"))
    assert not {"\x1b", "\n", "\x07"} & {*one.about, *one.text, *one.commands[0]}
    assert len(one.commands) == 1
    many = Finding("P1", "", UNKNOWN, "", commands=tuple(f"c {i}" for i in range(203)))
    assert (len(many.commands), many.commands[-1]) == (201, "# and 3 more")
    assert linked((one,), {"elsewhere"})[0].table == ""
    assert linked((one,), {"nowhere"})[0].table == "nowhere"


def test_a_run_of_another_method_is_matched_to_nothing() -> None:
    matched = validate_settings(
        {"method": "baseline", "data": "d", "match": "r", "match_steps": 9, "patience": 2}
    )
    for method in ("linear", "baseline"):
        other = with_method(matched, method=method)
        assert (other.match, other.match_steps, other.patience) == ("", 0, 2)


def test_chance_has_a_section(tmp_path: Path) -> None:
    found = findings(*seeds(tmp_path, "baseline", 0.6), *seeds(tmp_path, "linear", 0.7, **LINEAR))
    (one,) = of(found, "noise")
    assert "Accuracy on test of 3 runs of baseline that differ by the seed alone" in one.text
    assert one.figures["pairs"] == 3
    assert one.table == "noise-floor"
    assert one.figures["deviation"] == pytest.approx(np.std(one.figures["values"], ddof=1))
    (one,) = of(findings(*seeds(tmp_path / "x", "baseline", 0.6, 1)), "noise")
    assert one.verdict == UNKNOWN
    assert "--seed 1" in one.commands[0]


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)<b>`|[x](y)\x1b[31m"
    base = run(tmp_path / "baseline", answers(0.6, 1), data=f"/data/{name}")
    linear = run(tmp_path / name, answers(0.7, 2), data=f"/data/{name}", **LINEAR)
    other = run(tmp_path / "other", answers(0.7, 3), data=f"/data/{name}", classes=("a", "b"), **LINEAR)
    report = build([base, linear, other], [], tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    section = page[page.index('<section id="findings"') : page.index('<section id="accuracy-1"')]
    assert "&lt;script&gt;alert(1)" in section
    assert "<script>alert" not in page
    text = (tmp_path / "out/findings.md").read_text()
    assert "\x1b" not in page + text + json.dumps(report)
    sentences = [line for line in text.splitlines() if line.startswith("- ")]
    assert any("\\<script\\>alert" in line for line in sentences)
    assert not any(re.search(r"(?<!\\)<script", line) for line in sentences)


def test_the_page_the_files_and_their_links(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6, 2), seeds(tmp_path, "linear", 0.7, 2, **LINEAR)
    out = tmp_path / "out"
    report = build([*base, *linear], minimal(tmp_path, [*base, *linear], 0.3), out)
    page = (out / "report.html").read_text()
    sections = re.findall(r'<section id="([^"]+)"', page)
    assert sections[:2] == ["findings", "accuracy-1"]
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r'id="([^"]+)"', page))
    for question in ("P1: Which", "P2: Do", "slides claim", "How large is chance"):
        assert question in page
    found = json.loads((out / "report.json").read_text())["findings"]
    assert found == report["findings"]
    assert all(one["table"] in {*report["tables"], ""} for one in found)
    text = (out / "findings.md").read_text()
    links = re.findall(r"\]\((tables/[^)]+)\)", text)
    assert links
    assert all((out / link).is_file() for link in links)
    assert 'id="table-findings"' not in page
    assert (out / "tables" / "findings.csv").read_text().count("\n") == len(found) + 1
    build([*base], [], out)  # a report may be made again in the same folder
