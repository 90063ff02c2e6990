"""P1's findings: which methods are more accurate than their baseline, and than their own controls."""

from __future__ import annotations

from typing import Any

from qrdali.evaluation.seeded_differences import ALPHA
from qrdali.report.accuracy import digits
from qrdali.report.findings import missing
from qrdali.report.findings.accuracy_tests import AccuracyTest, describe_set, tested_sets
from qrdali.report.findings.finding import (
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    Finding,
    detectable_text,
    how_many,
    names,
    p_is,
    points,
)
from qrdali.report.findings.opponents import CONTROLS, methods
from qrdali.report.groups import Group

_OF_ONE_SEED = (
    " One seed: this says that these trained networks differ on images like these, not that the methods do; "
    "another seed may turn it round."
)
_OF_SOME_ONE_SEED = (
    " Where there is one seed, this says that the trained networks differ on images like these, not that the "
    "methods do."
)


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
    found += missing.missing(group, about, bool(reduced), number)
    if not against_baseline:
        found += missing.least_detectable(group, about, number)
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


def _one(test: AccuracyTest, shown: int, verb: str = "by") -> str:
    """Returns a comparison in a few words. verb: between method and difference."""
    also = f"; they also differ in {', '.join(test.also)}" if test.also else ""
    return (
        f"{test.configuration.label} {verb} {points(test.result.difference, shown)} "
        f"({p_is(test.holm)} after Holm, {test.seeds}{also})"
    )


def _detectable(tests: list[AccuracyTest], shown: int) -> str:
    """Returns what comparisons could have found."""

    def text(low: float, high: float) -> str:
        low_text, high_text = (
            f"{100 * value:.{shown}f}" if value <= 1 else "more than 100" for value in (low, high)
        )
        return f"{low_text if low_text == high_text else f'{low_text} to {high_text}'} points"

    return detectable_text([test.result for test in tests], tests[0].family, text)


def _against_baseline(group: Group, about: str, name: str, tests: list[AccuracyTest], number: str) -> Finding:
    shown, single = digits(group), tests[0].result.seeds == 1
    gains, losses = [t for t in tests if t.is_gain], [t for t in tests if t.is_loss]
    others = len(tests) - len(gains) - len(losses)
    noun = "network trained on reduced images" if single else "method that trains on reduced images"
    plural = noun.replace("network", "networks").replace("method that trains", "methods that train")
    text = (
        f"On {describe_set(group, name)}, {how_many(len(gains), len(tests), noun, plural)} shown "
        "to be more accurate than the baseline of the same seed"
    )
    text += f": {names([_one(test, shown) for test in gains])}." if gains else "."
    if losses:
        text += f" Shown to be less accurate: {names([_one(test, shown) for test in losses])}."
    if others:
        if others < len(tests):
            text += f" For {others} of them no difference is shown."
        if not gains:
            best = max(tests, key=lambda test: test.result.difference)
            single_one = f"The difference of {_one(best, shown, 'is')}"
            text += f" {f'The highest is {_one(best, shown)}' if len(tests) > 1 else single_one}."
    text += f" {_detectable(tests, shown)}"
    if single:
        text += _OF_ONE_SEED
    verdict = NOT_SEEN if not gains else ONE_SEED if single else SEEN
    return Finding("P1", about, verdict, text, _figures(tests), f"finding-tests-{number}")


def _any_of(words: list[str]) -> str:
    """Returns words such as "sham, random or matched"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


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
    shown, parts, apart = digits(group), [], []
    for control in CONTROLS:
        of_control = [test for test in tests if test.against == control.name]
        gains, losses = [t for t in of_control if t.is_gain], [t for t in of_control if t.is_loss]
        if of_control and not gains and not losses:
            apart.append(control.name)
            continue
        if gains:
            of = f"{len(gains)} of {len(of_control)} {'is' if len(gains) == 1 else 'are'}"
            better = names([_one(test, shown) for test in gains])
            parts.append(f"{of} shown to be more accurate than the {control.name} control: {better}.")
        if losses:
            worse = names([_one(test, shown) for test in losses])
            parts.append(f"Shown to be less accurate than the {control.name} control: {worse}.")
    if apart:
        no = "No" if parts else "no"
        parts.append(f"{no} method is shown to differ from its {_any_of(apart)} control.")
    # A control counts as there if it is there for every seed.
    complete = [
        configuration
        for configuration in methods(group)
        if sum(
            test.result.seeds == len(configuration.runs)
            for test in tests
            if test.configuration is configuration
        )
        == sum(control.applies(configuration.runs[0].settings) for control in CONTROLS)
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
            f" Shown to be above its baseline and all of its controls, of {len(complete)} that "
            f"{'has' if len(complete) == 1 else 'have'} all of them: {names(above_all)}."
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
