"""What a reader of the findings is told: the runs, one table of figures, what could not have been seen."""

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from finding_runs import FIXED, LINEAR, RANDOM, SHAM, answers, findings, minimal, of, parts, run, seeds
from scipy.stats import binom, norm, ttest_1samp

from qrdali.evaluation.seeded_differences import SeededDifference, accuracy_difference, smallest_over_seeds
from qrdali.report.build import build
from qrdali.report.findings.finding import (
    NOT_SEEN,
    UNKNOWN,
    agreeing,
    agreement,
    direction_text,
    with_common_folder,
)


def introduced(*folders: Path) -> str:
    return str(parts([*folders], [])[0].text[-1])


def on_two_sets(
    root: Path, name: str, levels: tuple[float, float], rise: float = 0.01, **more: Any
) -> list[Path]:
    """Three seeds, each better than the one before by `rise`, with rows of test and of test-crop-0.5."""
    folders = []
    for seed in range(3):
        noise = 1000 * seed + sum(map(ord, name))
        reduced = answers(levels[1] + rise * seed, noise + 7)
        test = answers(levels[0] + rise * seed, noise)
        folders.append(run(root / f"{name}-{seed}", test, seed=seed, sets={"test-crop-0.5": reduced}, **more))
    return folders


def difference(*per_seed: float) -> SeededDifference:
    return SeededDifference(100, per_seed, 0.5, 0.5, 0.1)


def test_the_introduction_names_data_runs_and_chance(tmp_path: Path) -> None:
    images = {"extra": {"images": {"train": 1234, "val": 40}}}
    folders = seeds(tmp_path, "baseline", 0.6, **images)
    folders += seeds(tmp_path, "linear", 0.7, 2, **LINEAR, **images)
    folders += seeds(tmp_path, "random", 0.6, 2, **RANDOM, **images)
    text = introduced(*folders)
    assert "shapes; 4 classes (ant, bee, cat, dog), 1,234 training images, 40 of val" in text
    assert "2,000 of test" in text
    assert "test_resnet at 32 px, a network of few layers" in text
    assert "baseline (3 seeds, 4 epochs); linear paired-rounds crop (2 seeds, 4 epochs)" in text
    beside = "Beside 2 runs of linear paired-rounds crop stand, of the same seeds: 2 baseline, no matched, "
    assert f"{beside}no sham, 2 random and" in text
    rows = [answers(0.6 + 0.004 * (seed - 1), 1000 * seed + sum(map(ord, "baseline"))) for seed in range(3)]
    assert f"Mean accuracy of the baselines: test {np.mean(rows):.1%}; always answering" in text
    assert "is right in 25.0%" in text


def test_methods_that_have_the_same_controls_share_a_sentence(tmp_path: Path) -> None:
    folders = [run(tmp_path / "base", answers(0.6, 1)), run(tmp_path / "linear", answers(0.6, 2), **LINEAR)]
    folders.append(run(tmp_path / "fixed", answers(0.6, 3), **FIXED))
    text = introduced(*folders)
    both = "Beside 1 run of linear paired-rounds crop; 1 run of fixed 0.5 paired-epochs color stand, of the "
    assert f"{both}same seeds and for each: 1 baseline" in text
    text = introduced(*folders, run(tmp_path / "sham", answers(0.6, 4), **SHAM))
    assert "crop stand, of the same seeds: 1 baseline, no matched, 1 sham, no random and no" in text
    assert "color stand, of the same seeds: 1 baseline, no matched, no sham, no random and no" in text


def test_the_introduction_stays_short(tmp_path: Path) -> None:
    classes = tuple(f"{i}-{'long' * 50}" for i in range(100))
    folders = [
        run(tmp_path / f"r{i}", None, model=f"resnet{i}", classes=classes) for i in (10, 14, 18, 26, 34)
    ]
    text = parts(folders, [])[0].text
    assert text[-1] == "1 more network and data set stands in the table of data sets."
    assert len(text[-2]) < 700
    assert "100 classes" in text[-2]


def test_a_single_method_has_its_name_and_one_sentence_for_all_sets(tmp_path: Path) -> None:
    base = on_two_sets(tmp_path, "baseline", (0.60, 0.50))
    linear = on_two_sets(tmp_path, "linear", (0.61, 0.51), 0.04, **LINEAR)
    (one,) = of(findings(*base, *linear), "P1", "baseline of the same seed.")
    assert one.verdict == NOT_SEEN
    named = (
        "On none of 2 sets (test, test-crop-0.5; 2,000 images each) is linear paired-rounds crop shown to be"
    )
    assert named in one.text
    assert "one compared" not in one.text
    assert "no method" not in one.text.lower()
    tests = one.figures["tests"]
    low, high = sorted(100 * test["difference"] for test in tests)
    assert f"The difference is {low:+.1f} to {high:+.1f} points (p = " in one.text
    assert "Agreement over sets is no independent evidence" in one.text
    for test in tests:
        p = ttest_1samp(
            [per_set(linear[seed], test["set"]) - per_set(base[seed], test["set"]) for seed in range(3)],
            0,
        ).pvalue
        assert test["p_seeds"] == pytest.approx(p)
    # What is detectable is given at the threshold of the first of two tests, .025, alone.
    first = sorted(100 * test["detectable_as_first"] for test in tests)
    assert (
        f"Detectable here, at the threshold for 2 comparisons: {first[0]:.1f} to {first[1]:.1f} points."
        in one.text
    )


def per_set(folder: Path, name: str) -> float:
    import pyarrow.parquet as pq

    return float(np.mean(pq.read_table(folder / "predictions" / f"{name}.parquet")["correct"].to_numpy()))


def test_signs_that_agree_are_told_with_their_chance() -> None:
    assert [agreement(difference(*d)).text for d in ((1, 2, -1), (2,))] == ["2 of 3", "–"]
    assert [agreeing(difference(*d)) for d in ((1, 2, 3), (-1, -2), (3, -1, 0), (0, 0))] == [3, 2, 1, 0]
    assert direction_text([difference(1, -1, 1), difference(2.0)]) == ""
    text = direction_text([difference(1, 2, 3), difference(-1, -2, -3), difference(1, 1, -1)])
    assert "upwards in all seeds in 1 of 3 such comparisons and downwards in all seeds in 1 of 3" in text
    assert "which these runs do not establish" in text
    one = direction_text([difference(-1, -2, -3)])
    assert one.startswith(
        " The difference points downwards in all seeds, which these runs do not establish: "
    )
    for n in (2, 3, 5):
        chance = binom.pmf(0, n, 0.5) + binom.pmf(n, n, 0.5)
        assert f"makes {n} signs agree in 1 of {1 / chance:.0f} cases" in direction_text(
            [difference(*[1] * n)]
        )
    assert "chance" not in direction_text([difference(1, 1), difference(1, 1, 1)])


def test_a_shown_difference_is_no_mere_direction(tmp_path: Path) -> None:
    folders = [*seeds(tmp_path, "baseline", 0.6), *seeds(tmp_path, "linear", 0.7, **LINEAR)]
    (one,) = of(findings(*folders), "P1", "baseline of the same seed:")
    assert "points upwards" not in one.text


def test_sets_with_and_without_a_gain_are_told_apart(tmp_path: Path) -> None:
    base = on_two_sets(tmp_path, "baseline", (0.60, 0.50))
    linear = on_two_sets(tmp_path, "linear", (0.80, 0.50), **LINEAR)
    (one,) = of(findings(*base, *linear), "P1", "baseline of the same seed")
    assert (
        "On test (2,000 images, full quality), 1 of 1 method that trains on reduced images is shown"
        in one.text
    )
    assert "On test-crop-0.5 (2,000 images, reduced by crop to quality 0.5), linear" in one.text
    assert "crop is not shown to be more accurate" in one.text
    worse = on_two_sets(tmp_path, "worse", (0.40, 0.50), **FIXED)
    (one,) = of(findings(*base, *worse), "P1", "baseline of the same seed")
    assert one.verdict == NOT_SEEN
    assert "fixed 0.5 paired-epochs color is not shown to be more accurate" in one.text
    assert "Shown to be less accurate: fixed 0.5 paired-epochs color by -" in one.text


def test_what_is_missing_comes_first_and_matched_leads_the_controls(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.60), seeds(tmp_path, "linear", 0.61, **LINEAR)
    others = seeds(tmp_path, "random", 0.60, **RANDOM)
    for seed, method in enumerate(linear):
        more = {"match": str(method), "match_steps": 40, "init": str(tmp_path / f"shared-{seed}")}
        others.append(run(tmp_path / f"matched-{seed}", answers(0.6, seed), seed=seed, **more))
    found = [one for one in findings(*base, *linear, *others) if one.question == "P1"]
    assert [one.text.split(" control")[0] for one in found[:2]] == ["No sham", "No randaugment"]
    assert all(one.commands for one in found[:2])
    controls = found[-1]
    (matched, random) = controls.figures["tests"]
    assert (matched["against"], random["against"]) == ("matched", "random")
    assert (
        "Its differences on test: from matched (as many optimizer steps as the method) "
        f"{100 * matched['difference']:+.1f} points"
    ) in controls.text
    assert f"from random {100 * random['difference']:+.1f} points" in controls.text
    assert "is not shown to differ from its matched or random control" in controls.text
    agree = sum(test["seeds_agreeing"] == 3 for test in controls.figures["tests"])
    assert agree
    assert f"in all seeds in {agree} of 2 such comparisons" in controls.text


def test_the_table_carries_the_figures(tmp_path: Path) -> None:
    base = on_two_sets(tmp_path, "baseline", (0.60, 0.50))
    linear = on_two_sets(tmp_path, "linear", (0.61, 0.53), **LINEAR)
    shams = on_two_sets(tmp_path, "sham", (0.60, 0.52), **SHAM)
    report = build([*base, *linear, *shams], [], tmp_path / "out")
    text = (tmp_path / "out" / "findings.md").read_text()
    p1 = text[text.index("## P1") : text.index("## P2")]
    shown = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in p1.splitlines() if line[:1] == "|"
    ]
    assert shown[0] == [
        *("set", "method", "against", "difference (95%)", "seeds that agree", "p", "p (Holm)", "detectable")
    ]
    figures = [
        test
        for one in report["findings"]
        if one["question"] == "P1"
        for test in one["figures"].get("tests", [])
    ]
    with open(tmp_path / "out" / "tables" / "finding-tests-1.csv", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(shown) - 2 == len(figures) == len(rows) == 4
    for line, figure, row in zip(shown[2:], figures, rows, strict=True):
        low, high = figure["interval"]
        assert line[:3] == [figure["set"], figure["method"], figure["against"]]
        assert line[3] == f"{100 * figure['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        assert line[4] == f"{figure['seeds_agreeing']} of 3"
        assert float(line[7]) == pytest.approx(100 * figure["detectable_as_first"], abs=0.051)
        assert float(row["difference (95%)"]) == pytest.approx(100 * figure["difference"])
        assert float(row["95% low"]) == pytest.approx(100 * low)
        assert float(row["p"]) == pytest.approx(max(figure["p_images"], figure["p_seeds"]))
        assert float(row["detectable alone"]) == pytest.approx(100 * figure["detectable"])


def test_a_long_table_says_what_is_left_out(tmp_path: Path) -> None:
    folders = [run(tmp_path / "base", answers(0.6, 0))]
    for i in range(43):
        folders.append(run(tmp_path / f"r{i}", answers(0.6, i), **FIXED, lr=0.001 * (i + 1)))
    build(folders, [], tmp_path / "out")
    p1 = (tmp_path / "out" / "findings.md").read_text().partition("## P2")[0]
    assert sum(line.startswith("|") for line in p1.splitlines()) == 40 + 2
    assert "3 more rows: tables/finding-tests-1.md." in p1


def test_a_difference_that_nothing_could_show_cannot_be_said(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6), seeds(tmp_path, "linear", 0.6, **LINEAR)

    def sets(runs: list[Path], means: tuple[float, ...]) -> list[Path]:
        return [minimal(tmp_path / f"m{mean}", [one], mean)[0] for one, mean in zip(runs, means, strict=True)]

    unsteady = [*sets(base, (0.1, 0.11, 0.3)), *sets(linear, (0.3, 0.12, 0.13))]
    (one,) = of(findings(*base, *linear, mepis=unsteady), "P2")
    (test,) = one.figures["tests"]
    assert test["detectable_as_first"] > test["mean_of_baseline"]
    assert one.verdict == UNKNOWN
    assert f"no less than the baseline's own mean ({test['mean_of_baseline']:.4f})" in one.text
    assert "cannot be said" in one.text
    steady = [*sets(base, (0.31, 0.32, 0.33)), *sets(linear, (0.315, 0.316, 0.336))]
    (one,) = of(findings(*base, *linear, mepis=steady), "P2")
    (test,) = one.figures["tests"]
    assert test["detectable_as_first"] < test["mean_of_baseline"]
    assert one.verdict == NOT_SEEN
    assert "cannot be said" not in one.text


def test_minimal_images_are_counted_by_seed(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6, 2), seeds(tmp_path, "linear", 0.6, 2, **LINEAR)
    sets = []
    for i, made_of in enumerate((*base, *linear)):
        images = range(i, 30)  # each network has other images right
        folder = fake_runs.mepis(
            tmp_path / f"m{i}", made_of, {"crop": {n: 0.2 + 0.001 * n for n in images}}, 40
        )
        summary = json.loads((folder / "summary.json").read_text())
        summary["crop"]["lowest_state_share"] = i / len(images)
        (folder / "summary.json").write_text(json.dumps(summary))
        sets.append(folder)
    (one,) = of(findings(*base, *linear, mepis=sets), "P2")
    # Seed 0: sets 0 and 2, seed 1: sets 1 and 3.
    assert "28 images in all, 27 to 28 of them for each seed, 2 seeds" in one.text
    assert "linear paired-rounds crop 2 of 28 (seed 0), 3 of 27 (seed 1)" in one.text
    assert "the baseline 0 of 30 (seed 0), 1 of 29 (seed 1)" in one.text
    assert "a difference would not tell the reductions from longer or otherwise changed training" in one.text
    summary["crop"]["lowest_state_share"] = 7.5  # nonsense is not counted
    (sets[3] / "summary.json").write_text(json.dumps(summary))
    (one,) = of(findings(*base, *linear, mepis=sets), "P2")
    assert "linear paired-rounds crop 2 of 28 (seed 0); the baseline" in one.text


def test_the_rise_says_what_was_detectable(tmp_path: Path) -> None:
    rises = (0.02, -0.05, 0.06)
    folders = [
        run(tmp_path / f"f{seed}", None, accuracies=[0.5, 0.5, 0.5 + up], seed=seed, **FIXED)
        for seed, up in enumerate(rises)
    ]
    (one,) = of(findings(*folders), "claims", "C after R rises")
    expected = smallest_over_seeds(3, float(np.std(rises, ddof=1)))
    assert one.figures["detectable"] == pytest.approx(expected)
    assert f"Detectable here: {100 * expected:.1f} points." in one.text
    (one,) = of(findings(folders[0]), "claims", "C after R rises")
    assert one.figures["detectable"] is None
    assert "Detectable" not in one.text


def test_noise_is_one_finding_for_all_sets(tmp_path: Path) -> None:
    base = on_two_sets(tmp_path, "baseline", (0.60, 0.50))
    (one,) = of(findings(*base), "noise")
    assert "Accuracy on test of 3 runs of baseline" in one.text
    assert "The same of test-crop-0.5: standard deviations of " in one.text
    (other,) = one.figures["others"]
    assert other["deviation"] == pytest.approx(np.std(other["values"], ddof=1))
    assert f"standard deviations of {100 * other['deviation']:.2f} points" in one.text
    assert "may be the seeds' alone (95% prediction interval" in one.text
    assert "paired by seed" not in one.text  # there is no P1 to tell it from
    linear = on_two_sets(tmp_path, "linear", (0.61, 0.51), **LINEAR)
    (one,) = of(findings(*base, *linear), "noise")
    assert "there runs are paired by seed" in one.text


def test_commands_name_their_common_folder_once() -> None:
    commands = [
        shlex.join(["echo", "--run", "/data/all runs/it's", "--init", "/data/all/x y", "plain word"]),
        "echo /data/all/z",
        "# and 3 more",
    ]
    assert with_common_folder(commands) == commands  # /data alone is no shorter
    commands = [command.replace("/data/all", "/data/of/all") for command in commands]
    shown = with_common_folder(commands)
    assert shown[0] == "ROOT=/data/of"
    assert shown[-1] == "# and 3 more"
    assert "/data/of" not in "".join(shown[1:])
    said = [
        subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
        for lines in (commands, shown)
    ]
    assert said[0] == said[1]
    assert "it's" in said[0]
    for odd in (["echo '/data/of/x /data/of/y"], ["echo /one/path/only"], ["echo '/a b/c/d' '/a b/c/e'"], []):
        assert with_common_folder(odd) == odd


def test_power_is_what_detectable_says() -> None:
    """At the first threshold of a family of seven; of one seed, images decide."""
    draw = np.random.default_rng(0)
    first, second = draw.random(2000) < 0.6, draw.random(2000) < 0.62
    result = accuracy_difference([(first, second)])
    found = result.detectable(0.05 / 7)
    error = result.image_deviation / np.sqrt(2000)
    power = norm.sf(norm.ppf(1 - 0.05 / 14) - found / error)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_paths_of_runs_stand_in_commands_alone(tmp_path: Path) -> None:
    base, linear = seeds(tmp_path, "baseline", 0.6), seeds(tmp_path, "linear", 0.61, **LINEAR)
    build([*base, *linear], [], tmp_path / "out")
    text = (tmp_path / "out" / "findings.md").read_text()
    sentences = [line for line in text.splitlines() if not line.startswith("      ")]
    assert not any(str(tmp_path) in line for line in sentences)
    assert re.search(rf"^      qrdali train .*--run {re.escape(str(tmp_path))}", text, re.MULTILINE)
