"""P2's findings: whether networks need a smaller share of an image's entropy than their baseline's."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from typing import Any

from qrdali.report.findings.accuracy_tests import are_same_networks, opponents_of
from qrdali.report.findings.cautions import cautions_text
from qrdali.report.findings.finding import (
    DESCRIBED,
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    UNKNOWN,
    Finding,
    agreeing,
    counted,
    detectable_text,
    direction_text,
    how_many,
    names,
    p_is,
    seeds_text,
)
from qrdali.report.findings.opponents import methods
from qrdali.report.findings.quotient_tests import AtLowest, QuotientTest
from qrdali.report.groups import Group
from qrdali.report.quotients import alike
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis

_MOST_SEEDS = 6


def findings(
    group: Group, about: str, tests: list[QuotientTest], sets: list[Mepis], number: str
) -> list[Finding]:
    """Returns P2's findings on one network and data set."""
    found = []
    for reduction in dict.fromkeys(test.reduction for test in tests):
        for single in (False, True):
            chosen = [
                test for test in tests if test.reduction == reduction and (test.result.seeds == 1) == single
            ]
            if chosen:
                found.append(_on_reduction(about, reduction, chosen, number))
    if found:  # once is enough
        lowest = _ABOUT_LOWEST if any(_lowest_text([test]) for test in tests) else ""
        found[0] = replace(found[0], text=found[0].text + lowest + _WITHOUT_CONTROLS)
    return [*found, *_missing(group, about, tests, sets, number)]


def _one(test: QuotientTest) -> str:
    return f"{test.configuration.label}, {_result(test)}"


def _result(test: QuotientTest) -> str:
    result = test.result
    also = f"; they also differ in {', '.join(test.also)}" if test.also else ""
    alike = f", in {test.same_network} of them both are the same network" if test.same_network else ""
    low, high = result.interval()
    return (
        f"mean {test.of_baseline + result.difference:.4f} beside the baseline's {test.of_baseline:.4f} "
        f"(difference {result.difference:+.4f}, 95% interval {low:+.4f} to {high:+.4f}, "
        f"{p_is(test.holm)} after Holm, {_images(test)}, {seeds_text(result.seeds)}{alike}{also})"
    )


def _images(test: QuotientTest) -> str:
    """Returns how many images were compared: "30 images", or of several seeds in all and in each."""
    images = counted(test.result.images, "image")
    if len(test.per_seed) < 2:
        return images
    each = [one.compared for one in test.per_seed]
    of_each = f"{each[0]}" if len(set(each)) == 1 else f"{min(each)} to {max(each)}"
    return f"{images} in all, {of_each} of them for each seed"


def _span(low: float, high: float) -> str:
    low_text, high_text = f"{low:.4f}", f"{high:.4f}"
    return low_text if low_text == high_text else f"{low_text} to {high_text}"


def _on_reduction(about: str, reduction: str, tests: list[QuotientTest], number: str) -> Finding:
    less = [test for test in tests if test.is_shown and test.result.difference < 0]
    more = [test for test in tests if test.is_shown and test.result.difference > 0]
    others = len(tests) - len(less) - len(more)
    single = tests[0].result.seeds == 1
    noun, trained = "network" if single else "method", "trained on reduced images"
    which = how_many(len(less), len(tests), f"{noun} {trained}", f"{noun}s {trained}")
    if len(tests) == 1 and not less:
        which = f"{tests[0].configuration.label} is not"
    text = (
        f"Minimal images by {reduction}, on the images that a network and the baseline of its seed both "
        f"classify correctly at full quality: {which} shown "
        "to need a smaller mean entropy quotient than the baseline"
    )
    text += f": {names([_one(test) for test in less])}." if less else "."
    if more:
        text += f" Shown to need a larger one: {names([_one(test) for test in more])}."
    if others and others < len(tests):
        text += f" For {others} of them no difference is shown."
    elif others and not less:
        best = min(tests, key=lambda test: test.result.difference)
        text += f" The lowest: {_one(best)}." if len(tests) > 1 else f" Its result: {_result(best)}."
    text += direction_text([test.result for test in tests if not test.is_shown])
    text += f" {_detectable(tests)}{_lowest_text(tests)}{cautions_text(tests)}"
    if single:
        text += (
            " One seed: this says that these trained networks differ on images like these, not that the "
            "methods do; another seed may turn it round."
        )
    verdict = NOT_SEEN if not less else ONE_SEED if single else SEEN
    if not any(test.can_show_less for test in tests):
        verdict = UNKNOWN
    return Finding("P2", about, verdict, text, _figures(reduction, tests), f"quotient-tests-{number}")


_ABOUT_LOWEST = (
    " The lowest state is that of images which are reduced as far as can be. They show nothing of the "
    "object: the network gives their class to nearly empty images, and such quotients say little of what it "
    "needs."
)
_WITHOUT_CONTROLS = (
    " Quotients are compared with the baseline's alone, not with those of controls: a difference would not "
    "tell the reductions from longer or otherwise changed training."
)


def _detectable(tests: list[QuotientTest]) -> str:
    """Returns what the comparisons could have found, and for which that is more than there is to find."""
    text = detectable_text([test.result for test in tests], tests[0].family, _span)
    blind = [test for test in tests if not test.can_show_less]
    if not blind:
        return text
    whose = "" if len(blind) == len(tests) else f" of {names([test.configuration.label for test in blind])}"
    means = _span(min(test.of_baseline for test in blind), max(test.of_baseline for test in blind))
    return (
        f"{text} That is{whose} no less than the baseline's own mean ({means}): not even a network that "
        "needed nothing at all would be shown in 4 of 5 repetitions, so whether less is needed cannot be "
        "said."
    )


def _lowest_text(tests: list[QuotientTest]) -> str:
    """Returns of which networks how many minimal images are at the lowest state, "" if none is."""
    parts, baselines = [], dict[str, None]()
    for test in tests:
        of_method = {f"seed {one.seed}": one.of_method for one in test.per_seed}
        parts += _lowest_of(test.configuration.label, of_method)
        baselines |= dict.fromkeys(
            _lowest_of("the baseline", {f"seed {one.seed}": one.of_baseline for one in test.per_seed})
        )
    parts += baselines
    if not parts:
        return ""
    return f" Minimal images at the lowest state: {names(parts)}."


def _lowest_of(label: str, by_seed: dict[str, AtLowest | None]) -> list[str]:
    known = {seed: one for seed, one in by_seed.items() if one is not None}
    if not any(one.count for one in known.values()):
        return []
    each = [f"{one.count} of {one.images} ({seed})" for seed, one in known.items()]
    return [f"{label} {', '.join(each[:_MOST_SEEDS])}{', …' if len(each) > _MOST_SEEDS else ''}"]


def _figures(reduction: str, tests: list[QuotientTest]) -> dict[str, Any]:
    return {
        "reduction": reduction,
        "tests": [
            {
                "method": test.configuration.label,
                "seeds": test.result.seeds,
                "seeds_agreeing": agreeing(test.result),
                "images": test.result.images,
                "difference": test.result.difference,
                "interval": list(test.result.interval()),
                "mean_of_baseline": test.of_baseline,
                "p_images": test.result.p_images,
                "p_seeds": test.result.p_seeds,
                "p_holm": test.holm,
                "family": test.family,
                "detectable": test.result.detectable(),
                "detectable_as_first": test.detectable,
                "per_seed": [asdict(one) for one in test.per_seed],
                "same_network": test.same_network,
                "not_above_chance": list(test.cautions),
            }
            for test in tests
        ],
    }


def _missing(
    group: Group, about: str, tests: list[QuotientTest], sets: list[Mepis], number: str
) -> list[Finding]:
    """Returns the finding on runs without a set of minimal images; none where every method was compared."""
    compared = {test.configuration.label for test in tests}
    alike = [c for c in methods(group) if are_same_networks(opponents_of(group, c, "baseline"))]
    lacking = [c for c in methods(group) if c.label not in compared and c not in alike]
    if alike and not tests and not lacking:
        text = (
            f"The same network as the baseline in every seed: {names([c.label for c in alike])}. Both need "
            "the same."
        )
        return [Finding("P2", about, DESCRIBED, text, {}, f"accuracy-{number}")]
    if tests and not lacking:
        return []
    of_sets = {mepis.run.name for mepis in sets if mepis.run is not None}
    wanted = [run for c in lacking for run in c.runs]
    bases = [base for run in wanted if (base := group.baseline(run)) is not None]
    without = [
        run for run in {run.name: run for run in (*bases, *wanted)}.values() if run.name not in of_sets
    ]
    if not methods(group):
        why = "no run here was trained on reduced images by a method"
    elif not bases:
        why = f"no baseline of the same seed stands beside {names([run.name for run in wanted])}"
    elif without:
        why = f"there are no minimal images of {names([run.name for run in without])}"
    else:
        why = f"the minimal images of {names([c.label for c in lacking])} were not searched as the baseline's"
    commands = tuple(_command(run) for run in without)
    figures = {"without": [run.name for run in without]}
    return [
        Finding(
            "P2",
            about,
            UNKNOWN,
            f"Entropy quotients are not compared with the baseline's{' for all methods' if tests else ''}: "
            f"{why}.",
            figures,
            _table_of(group, sets) or f"accuracy-{number}",
            commands,
        )
    ]


def _table_of(group: Group, sets: list[Mepis]) -> str:
    """Returns the slug of the table of quotients that has a set of the group, "" without any."""
    of_group = {run.name for run in group.runs}
    for i, (_, comparable) in enumerate(alike(sets), 1):
        if any(mepis.run is not None and mepis.run.name in of_group for mepis in comparable):
            return f"quotients-{i}"
    return ""


def _command(run: Run) -> str:
    out = run.place.with_name(f"{run.place.name}-mepi")
    return shlex.join(
        [
            *("qrdali", "build-mepi", "--run", str(run.place), "--data", run.settings.data or "DATASET"),
            *("--split", "val", "--reduction", "all", "--out", str(out)),
        ]
    )
