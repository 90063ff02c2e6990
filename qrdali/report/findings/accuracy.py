"""P1's findings: which methods are more accurate than their baseline, and than their own controls."""

from __future__ import annotations

from typing import Any

from qrdali.evaluation.seeded_differences import ALPHA
from qrdali.report.accuracy import digits
from qrdali.report.findings import missing
from qrdali.report.findings.accuracy_tests import (
    AccuracyTest,
    are_same_networks,
    describe_set,
    opponents_of,
)
from qrdali.report.findings.cautions import cautions_text
from qrdali.report.findings.finding import (
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    Finding,
    agreeing,
    detectable_text,
    direction_text,
    how_many,
    names,
    p_is,
    points,
)
from qrdali.report.findings.opponents import CONTROLS, methods
from qrdali.report.groups import Configuration, Group

_OF_ONE_SEED = (
    " One seed: this says that these trained networks differ on images like these, not that the methods do; "
    "another seed may turn it round."
)
_OF_SOME_ONE_SEED = (
    " Where there is one seed, this says that the trained networks differ on images like these, not that the "
    "methods do."
)
_SETS_AGREE = (
    " Agreement over sets is no independent evidence: the same networks answer all of them, and sets whose "
    "names begin with test are of its images."
)
_MOST_SETS = 8


def findings(group: Group, about: str, tests: list[AccuracyTest], number: str) -> list[Finding]:
    """Returns P1's findings on one network and data set: first what is missing, then what is shown."""
    against_baseline = [test for test in tests if test.against == "baseline"]
    found = missing.missing(group, about, bool(methods(group)), number)
    for single in (False, True):
        chosen = [test for test in against_baseline if (test.result.seeds == 1) == single]
        if chosen:
            found.append(_against_baseline(group, about, chosen, number))
    if len(tests) > len(against_baseline):
        found.append(_against_controls(group, about, tests, number))
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
                "interval": list(test.result.interval()),
                "seeds_agreeing": agreeing(test.result),
                "p_images": test.result.p_images,
                "p_seeds": test.result.p_seeds,
                "p_holm": test.holm,
                "family": test.family,
                "detectable": test.result.detectable(),
                "detectable_as_first": test.result.detectable(ALPHA / test.family),
                "also_different": list(test.also),
                "same_network": test.same_network,
                "not_above_chance": list(test.cautions),
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


def _by_set(tests: list[AccuracyTest]) -> dict[str, list[AccuracyTest]]:
    return {name: [t for t in tests if t.set == name] for name in dict.fromkeys(t.set for t in tests)}


def _undecided(tests: list[AccuracyTest]) -> list[AccuracyTest]:
    """Returns the tests on those sets on which no difference is shown at all."""
    return [t for of_set in _by_set(tests).values() if not any(o.is_shown for o in of_set) for t in of_set]


def _where(group: Group, sets: list[str]) -> str:
    """Returns "On test (800 images, full quality)" or "On none of 2 sets (test, test-crop-0.5)"."""
    if len(sets) == 1:
        return f"On {describe_set(group, sets[0])}"
    more = ", …" if len(sets) > _MOST_SETS else ""
    images = {len(run.sets[name].correct) for run in group.runs for name in sets if name in run.sets}
    each = f"; {max(images):,} images each" if len(images) == 1 else ""
    return f"On none of {len(sets)} sets ({', '.join(sets[:_MOST_SETS])}{more}{each})"


def _not_shown(group: Group, tests: list[AccuracyTest], plural: str, what: str) -> str:
    """Returns that no method of tests is shown to be something on their sets. A single one has its name."""
    sets, labels = list(_by_set(tests)), list(dict.fromkeys(test.configuration.label for test in tests))
    where = _where(group, sets)
    if len(sets) > 1:
        who = labels[0] if len(labels) == 1 else f"any of {len(labels)} {plural}"
        return f"{where} is {who} shown to {what}."
    who = f"{labels[0]} is not" if len(labels) == 1 else f"none of {len(labels)} {plural} is"
    return f"{where}, {who} shown to {what}."


def _against_baseline(group: Group, about: str, tests: list[AccuracyTest], number: str) -> Finding:
    """Returns the finding on the comparisons with the baseline on all sets: of one seed, or of several."""
    shown, single = digits(group), tests[0].result.seeds == 1
    noun = "network trained on reduced images" if single else "method that trains on reduced images"
    plural = noun.replace("network", "networks").replace("method that trains", "methods that train")
    parts, undecided = [], _undecided(tests)
    for name, of_set in _by_set(tests).items():
        gains, losses = [t for t in of_set if t.is_gain], [t for t in of_set if t.is_loss]
        if not gains and not losses:
            continue
        which = how_many(len(gains), len(of_set), noun, plural)
        if len(of_set) == 1 and not gains:
            which = f"{of_set[0].configuration.label} is not"
        text = f"On {describe_set(group, name)}, {which} shown to be more accurate than the baseline of the "
        text += "same seed"
        text += f": {names([_one(test, shown) for test in gains])}." if gains else "."
        if losses:
            text += f" Shown to be less accurate: {names([_one(test, shown) for test in losses])}."
        if others := len(of_set) - len(gains) - len(losses):
            text += f" For {others} of them no difference is shown."
        parts.append(text)
    if undecided:
        parts.append(_no_gain(group, undecided, plural))
    text = " ".join(parts) + direction_text([test.result for test in tests if not test.is_shown])
    if len(_by_set(tests)) > 1:
        text += _SETS_AGREE
    text += f" {_detectable(tests, shown)}{cautions_text(tests)}"
    if single:
        text += _OF_ONE_SEED
    verdict = NOT_SEEN if not any(test.is_gain for test in tests) else ONE_SEED if single else SEEN
    return Finding("P1", about, verdict, text, _figures(tests), f"finding-tests-{number}")


def _no_gain(group: Group, tests: list[AccuracyTest], plural: str) -> str:
    """Returns the sentences on sets on which no method is shown to differ from its baseline."""
    shown = digits(group)
    text = _not_shown(group, tests, plural, "be more accurate than the baseline of the same seed")
    if len({test.configuration.label for test in tests}) == 1:
        return f"{text} The difference is {_spans(tests, shown)}."
    best = max(tests, key=lambda test: test.result.difference)
    at = f" on {best.set}" if len(_by_set(tests)) > 1 else ""
    return f"{text} The highest is {_one(best, shown)}{at}."


def _spans(tests: list[AccuracyTest], shown: int) -> str:
    """Returns the smallest and the largest difference of one method, with their p values."""
    differences = sorted(test.result.difference for test in tests)
    p_values = sorted(test.holm for test in tests)
    low, high = points(differences[0], shown), points(differences[-1], shown)
    span = low if low == high else f"{low.removesuffix(' points')} to {high}"
    p = p_is(p_values[0])
    if p != (last := p_is(p_values[-1])):
        p = f"{p} to {last.removeprefix('p = ')}"
    also = dict.fromkeys(what for test in tests for what in test.also)
    differing = f"; they also differ in {', '.join(also)}" if also else ""
    seeds = " or ".join(dict.fromkeys(test.seeds for test in tests))
    return f"{span} ({p} after Holm, {seeds}{differing})"


def _any_of(words: list[str]) -> str:
    """Returns words such as "sham, random or matched"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _against_controls(group: Group, about: str, every: list[AccuracyTest], number: str) -> Finding:
    """Returns the finding on the comparisons with controls on all sets. every: also those with baselines."""
    shown, tests = digits(group), [test for test in every if test.against != "baseline"]
    labels = list(dict.fromkeys(test.configuration.label for test in tests))
    parts, undecided = [], _undecided(tests)
    for name, of_set in _by_set(tests).items():
        if any(test.is_shown for test in of_set):
            parts.append(f"On {describe_set(group, name)}: {_of_controls(of_set, shown, labels)}")
    if undecided:
        apart = [c.name for c in CONTROLS if any(test.against == c.name for test in undecided)]
        differ = f"differ from its {_any_of(apart)} control"
        parts.append(_not_shown(group, undecided, "methods", differ))
    if not any(test.is_shown for test in tests) and len(labels) == 1:
        parts.append(_first_set(tests, shown))
    parts[-1] += direction_text([test.result for test in tests if not test.is_shown])
    text = (
        f"Controls of the same seed. {' '.join(parts)}{_above_all(every, group)} {_detectable(tests, shown)}"
        f"{cautions_text(tests)}"
    )
    single = [test.result.seeds == 1 for test in tests]
    if any(single):
        text += _OF_ONE_SEED if all(single) else _OF_SOME_ONE_SEED
    gains = [test for test in tests if test.is_gain]
    verdict = NOT_SEEN if not gains else SEEN if any(t.result.seeds > 1 for t in gains) else ONE_SEED
    return Finding("P1", about, verdict, text, _figures(tests), f"finding-tests-{number}")


def _of_controls(tests: list[AccuracyTest], shown: int, labels: list[str]) -> str:
    """Returns what is shown of each control on one set."""
    parts, apart = [], []
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
        who = f"{labels[0]} is not" if len(labels) == 1 else "No method is"
        parts.append(f"{who} shown to differ from its {_any_of(apart)} control.")
    return " ".join(parts)


def _first_set(tests: list[AccuracyTest], shown: int) -> str:
    """Returns the differences of one method from each of its controls on the first set, such as test."""
    of_set = [test for test in tests if test.set == tests[0].set]
    meaning = {"matched": " (as many optimizer steps as the method)"}
    differences = [f"{test.against}{meaning.get(test.against, '')} {_brief(test, shown)}" for test in of_set]
    return f"Its differences on {tests[0].set}: from {', from '.join(differences)}."


def _brief(test: AccuracyTest, shown: int) -> str:
    also = f"; they also differ in {', '.join(test.also)}" if test.also else ""
    return f"{points(test.result.difference, shown)} ({p_is(test.holm)} after Holm, {test.seeds}{also})"


def _same_network_as(group: Group, configuration: Configuration) -> list[str]:
    """Returns the controls that a method is the same network as, in every one of its seeds."""
    pairs = {control.name: opponents_of(group, configuration, control.name) for control in CONTROLS}
    seeds = len(configuration.runs)
    return [name for name, of_name in pairs.items() if len(of_name) == seeds and are_same_networks(of_name)]


def _above_all(tests: list[AccuracyTest], group: Group) -> str:
    """Returns which methods are shown to be above their baseline and all of their controls, and where."""
    # A control counts as there if it is there for every seed.
    sets = list(_by_set(tests))
    complete: dict[str, list[str]] = {}
    for configuration in methods(group):
        wanted = sum(control.applies(configuration.runs[0].settings) for control in CONTROLS)
        of_method = [test for test in tests if test.configuration is configuration]
        for name in sets:
            of_set = [test for test in of_method if test.set == name]
            controls = [test for test in of_set if test.against != "baseline"]
            alike = _same_network_as(group, configuration)
            if sum(test.result.seeds == len(configuration.runs) for test in controls) + len(alike) < wanted:
                continue
            above = len(of_set) > len(controls) and all(test.is_gain for test in of_set) and not alike
            complete.setdefault(configuration.label, []).extend([name] if above else [])
    if not complete:
        labels = [configuration.label for configuration in methods(group)]
        if len(labels) == 1:
            return (
                " It has not all of its controls for every seed, so it is not shown to gain by its "
                "reductions alone."
            )
        return (
            " No method has all of its controls for every seed here, so none is shown to gain by its "
            "reductions alone."
        )
    above_all = [
        label + (f" on {', '.join(where)}" if len(sets) > 1 else "")
        for label, where in complete.items()
        if where
    ]
    return (
        f" Shown to be above its baseline and all of its controls, of {len(complete)} that "
        f"{'has' if len(complete) == 1 else 'have'} all of them: {names(above_all)}."
    )
