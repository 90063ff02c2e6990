"""P1's findings: which methods are more accurate than their baseline, and than their own controls."""

from __future__ import annotations

import shlex
from typing import Any

from qrdali.evaluation.prediction_rows import evaluate_command_for
from qrdali.evaluation.seeded_differences import ALPHA, least_significant
from qrdali.report.accuracy import digits
from qrdali.report.findings.accuracy_tests import AccuracyTest, describe_set, tested_sets
from qrdali.report.findings.finding import (
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    UNKNOWN,
    Finding,
    counted,
    names,
    p_is,
    points,
)
from qrdali.report.findings.opponents import CONTROLS, baseline_settings, command_of, methods, opponent
from qrdali.report.groups import Group, is_baseline
from qrdali.report.read import Run
from qrdali.runs.train_command import train_command, with_method

_OF_ONE_SEED = (
    " One seed: this says that these trained networks differ on images like these, not that the methods do; "
    "another seed may turn it round."
)
_OF_SOME_ONE_SEED = (
    " Where there is one seed, this says that the trained networks differ on images like these, not that the "
    "methods do."
)
_MEANING = {
    "sham": "whether the reduction or the scheme of training makes its difference",
    "random": "whether its order of qualities does more than plain augmentation",
    "matched": "whether it does more than training as long without reductions",
}


def findings(group: Group, about: str, tests: list[AccuracyTest], number: str) -> list[Finding]:
    """Returns P1's findings on one network and data set."""
    reduced = methods(group)
    against_baseline = [test for test in tests if test.against == "baseline"]
    of_controls = [test for test in tests if test.against != "baseline"]
    found: list[Finding] = []
    for name in tested_sets(group):
        for single in (False, True):
            chosen = [
                test for test in against_baseline if test.set == name and (test.result.seeds == 1) == single
            ]
            if chosen:
                found.append(_against_baseline(group, about, name, chosen, number))
        found += _against_controls(
            group, about, name, [t for t in of_controls if t.set == name], tests, number
        )
    found += _missing(group, about, bool(reduced), number)
    if not against_baseline:
        found += _least_detectable(group, about, number)
    return found


def _figures(tests: list[AccuracyTest]) -> dict[str, Any]:
    return {
        "tests": [
            {
                "method": test.configuration.label,
                "against": test.against,
                "set": test.set,
                "seeds": test.result.seeds,
                "images": test.result.images,
                "difference": test.result.difference,
                "p_images": test.result.p_images,
                "p_seeds": test.result.p_seeds,
                "p_holm": test.holm,
                "family": test.family,
                "detectable": test.result.detectable(),
                "detectable_as_first": test.result.detectable(ALPHA / test.family),
                "also_different": list(test.also),
            }
            for test in tests
        ]
    }


def _one(test: AccuracyTest, shown: int) -> str:
    """Returns a comparison in a few words."""
    also = f"; they also differ in {', '.join(test.also)}" if test.also else ""
    return (
        f"{test.configuration.label} by {points(test.result.difference, shown)} "
        f"({p_is(test.holm)} after Holm, {test.seeds}{also})"
    )


def _detectable(tests: list[AccuracyTest], shown: int) -> str:
    """Returns what comparisons could have found."""
    alone = sorted(test.result.detectable() for test in tests)
    first = sorted(test.result.detectable(ALPHA / test.family) for test in tests)

    def span(values: list[float]) -> str:
        low, high = (
            f"{100 * value:.{shown}f}" if value <= 1 else "more than 100" for value in (values[0], values[-1])
        )
        return low if low == high else f"{low} to {high}"

    family = tests[0].family
    corrected = ""
    if family > 1:
        corrected = f", and after Holm's correction for {family} comparisons one of about {span(first)}"
    return (
        f"By the spread seen here, a single comparison like these finds in 4 of 5 cases a true difference of "
        f"about {span(alone)} points{corrected}. Smaller ones may be there unseen."
    )


def _against_baseline(group: Group, about: str, name: str, tests: list[AccuracyTest], number: str) -> Finding:
    shown, single = digits(group), tests[0].result.seeds == 1
    gains, losses = [t for t in tests if t.is_gain], [t for t in tests if t.is_loss]
    others = len(tests) - len(gains) - len(losses)
    noun = "network trained on reduced images" if single else "method that trains on reduced images"
    plural = noun.replace("network", "networks").replace("method that trains", "methods that train")
    verb = "is" if len(gains) == 1 else "are"
    text = (
        f"On {describe_set(group, name)}, {len(gains)} of {counted(len(tests), noun, plural)} {verb} shown "
        "to be more accurate than the baseline of the same seed"
    )
    text += f": {names([_one(test, shown) for test in gains])}." if gains else "."
    if losses:
        text += f" Shown to be less accurate: {names([_one(test, shown) for test in losses])}."
    if others:
        best = max(tests, key=lambda test: test.result.difference)
        text += f" For {others} of them no difference is shown, which does not mean that there is none."
        if not gains:
            text += f" The highest is {_one(best, shown)}."
    text += f" {_detectable(tests, shown)}"
    if single:
        text += _OF_ONE_SEED
    verdict = NOT_SEEN if not gains else ONE_SEED if single else SEEN
    return Finding("P1", about, verdict, text, _figures(tests), f"finding-tests-{number}")


def _against_controls(
    group: Group,
    about: str,
    name: str,
    tests: list[AccuracyTest],
    every: list[AccuracyTest],
    number: str,
) -> list[Finding]:
    """Returns the finding on the comparisons with controls on a set, if there are any."""
    if not tests:
        return []
    shown, parts = digits(group), []
    for control in CONTROLS:
        of_control = [test for test in tests if test.against == control.name]
        if not of_control:
            continue
        gains, losses = [t for t in of_control if t.is_gain], [t for t in of_control if t.is_loss]
        part = f"{len(gains)} of {len(of_control)} {'is' if len(gains) == 1 else 'are'} shown to be more "
        part += f"accurate than their {control.name} control"
        part += f": {names([_one(test, shown) for test in gains])}" if gains else ""
        if losses:
            part += f"; less accurate: {names([_one(test, shown) for test in losses])}"
        parts.append(f"{part}.")
    # A control counts as there if it is there for every seed.
    complete = [
        configuration
        for configuration in methods(group)
        if sum(
            test.result.seeds == len(configuration.runs)
            for test in tests
            if test.configuration is configuration
        )
        == len(CONTROLS)
    ]
    above_all = [
        configuration.label
        for configuration in complete
        if all(test.is_gain for test in every if test.configuration is configuration and test.set == name)
        and any(t.against == "baseline" and t.set == name and t.configuration is configuration for t in every)
    ]
    text = f"Controls of the same seed, on {describe_set(group, name)}: {' '.join(parts)}"
    if complete:
        text += (
            f" Of {len(complete)} with all {len(CONTROLS)} controls, above its baseline and all of them: "
            f"{names(above_all)}."
        )
    else:
        text += (
            " No method has all of its controls for every seed here, so none is shown to gain by its "
            "reductions alone."
        )
    text += f" {_detectable(tests, shown)}"
    several = any(test.result.seeds > 1 for test in tests if test.is_gain)
    single = [test.result.seeds == 1 for test in tests]
    if any(single):
        text += _OF_ONE_SEED if all(single) else _OF_SOME_ONE_SEED
    gain = any(test.is_gain for test in tests)
    verdict = NOT_SEEN if not gain else SEEN if several else ONE_SEED
    return [Finding("P1", about, verdict, text, _figures(tests), f"finding-tests-{number}")]


def _missing(group: Group, about: str, any_reduced: bool, number: str) -> list[Finding]:
    """Returns findings on what is missing, with the commands that make it."""
    found = []
    without = [run for c in methods(group) for run in c.runs if opponent(group, run, "baseline") is None]
    if without:
        found.append(
            Finding(
                "P1",
                about,
                UNKNOWN,
                f"No baseline of the same seed stands beside {names([run.name for run in without])}: whether "
                "they gain by training on reduced images cannot be said.",
                {"runs": [run.name for run in without]},
                f"accuracy-{number}",
                tuple(command_of(run, "baseline") for run in without),
            )
        )
    for control in CONTROLS:
        lacking = [
            run for c in methods(group) for run in c.runs if opponent(group, run, control.name) is None
        ]
        if lacking:
            found.append(
                Finding(
                    "P1",
                    about,
                    UNKNOWN,
                    f"No {control.name} control of the same seed stands beside "
                    f"{names([run.name for run in lacking])}: {_MEANING[control.name]} cannot be said.",
                    {"control": control.name, "runs": [run.name for run in lacking]},
                    f"accuracy-{number}",
                    _commands(lacking, control.name),
                )
            )
    if not any_reduced:
        found += _nothing_reduced(group, about, number)
    return [*found, *_unevaluated(group, about, number)]


def _commands(runs: list[Run], control: str) -> tuple[str, ...]:
    """Returns the commands of missing controls, one for all runs that one control serves."""
    commands: dict[tuple[Any, ...], str] = {}
    for run in runs:
        settings = run.settings
        key: tuple[Any, ...] = (run.name,)
        if control == "sham":  # the sham of every reduction is the same
            key = (settings.method, settings.sequence, settings.seed, settings.init)
        commands.setdefault(key, command_of(run, control))
    return tuple(commands.values())


def _nothing_reduced(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the finding on a group without any run trained on reduced images."""
    trained = [run for run in group.runs if run.adoption is None]
    commands: list[str] = []
    if trained:
        base = next((run for run in trained if is_baseline(run.settings)), None)
        first = base or trained[0]
        start = first.folder if first.settings.method == "shared" else None
        settings = baseline_settings(first.settings, start)
        if base is None:
            commands.append(train_command(settings, first.folder.with_name("baseline")))
        linear = with_method(settings, method="linear", reduction="crop", sequence="paired-rounds")
        commands.append(train_command(linear, first.folder.with_name("linear-paired-rounds-crop")))
    kinds = names(list(dict.fromkeys(c.method for c in group.configurations)))
    return [
        Finding(
            "P1",
            about,
            UNKNOWN,
            f"No run here was trained on reduced images by a method (fixed, linear or adaptive): of "
            f"{kinds} nothing can be said about them. Such runs are made, for instance, by these commands.",
            {"methods": [c.method for c in group.configurations]},
            f"accuracy-{number}",
            tuple(commands),
        )
    ]


def _unevaluated(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the findings on runs without rows of test, or with rows of other images than the baseline's."""
    apart = [
        run
        for c in methods(group)
        for run in c.runs
        if (base := opponent(group, run, "baseline")) is not None
        and {"test"} <= run.sets.keys() & base.sets.keys()
        and run.sets["test"].digest != base.sets["test"].digest
    ]
    found = []
    if apart:
        text = (
            f"The rows of test of {names([run.name for run in apart])} and of the baseline are not of the "
            "same images: they are not compared. Evaluate all on the same data."
        )
        figures = {"runs": [run.name for run in apart]}
        found.append(Finding("P1", about, UNKNOWN, text, figures, f"accuracy-{number}"))
    without = [run for run in group.runs if "test" not in run.sets]
    if not without:
        return found
    commands = []
    for run in without:
        data = shlex.quote(run.settings.data or "DATASET")
        folder = shlex.quote(str(run.folder))
        commands.append(f"qrdali evaluate --run {folder} {evaluate_command_for('test', data)}")
    return [
        *found,
        Finding(
            "P1",
            about,
            UNKNOWN,
            f"There are no rows of test of {names([run.name for run in without])}: on images that chose no "
            "epoch nothing can be said of them.",
            {"runs": [run.name for run in without]},
            f"accuracy-{number}",
            tuple(commands),
        ),
    ]


def _least_detectable(group: Group, about: str, number: str) -> list[Finding]:
    """Returns the finding on what these sets could show at best, where nothing was compared."""
    least = least_significant()
    sizes = {
        name: max(len(run.sets[name].correct) for run in group.runs if name in run.sets)
        for name in tested_sets(group)
        if any(name in run.sets for run in group.runs)
    }
    if not sizes:
        return []
    shown = [f"{least / images:.2%} of {name}'s {images:,} images" for name, images in sizes.items()]
    figures: dict[str, Any] = {
        "least_images": least,
        "sets": {name: {"images": images, "least": least / images} for name, images in sizes.items()},
    }
    return [
        Finding(
            "P1",
            about,
            UNKNOWN,
            "Nothing is compared here. Whatever is trained, a difference of two networks is significant "
            f"only if at least {least} images tell them apart, all in favour of one: that is "
            f"{names(shown)}. How much it takes beyond that depends on how many images two networks "
            "disagree on.",
            figures,
            f"accuracy-{number}",
        )
    ]
