"""The slides' claims on single methods: which is first on HumaNet, and what is gained on ImageNet."""

from __future__ import annotations

from qrdali.evaluation.seeded_differences import ALPHA
from qrdali.report.accuracy import digits
from qrdali.report.findings.accuracy_tests import (
    AccuracyTest,
    are_same_networks,
    compared_by_seed,
    describe_set,
    opponents_of,
)
from qrdali.report.findings.cautions import cautions_text
from qrdali.report.findings.finding import (
    NOT_SEEN,
    SEEN,
    UNKNOWN,
    Finding,
    names,
    p_is,
    points,
)
from qrdali.report.findings.networks_apart import is_efficientnet
from qrdali.report.findings.opponents import methods
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run

FIRST = "Adaptive paired rounds by crop come first"
WHAT_FIRST = "that adaptive paired rounds by crop are the most accurate"
GAIN = "71.6 → 72.2"
WHAT_GAIN = (
    "that EfficientNet-B3 on ImageNet gains from 71.6% to 72.2% by linear paired rounds by combination"
)
_SET = "test"
_SLIDES = (0.71614, 0.72200)  # of EfficientNet-B3 on ImageNet's test images: baseline, linear combination
_IMAGENET_CLASSES = 1000


def _is(configuration: Configuration, method: str, reduction: str) -> bool:
    settings = configuration.runs[0].settings
    return (settings.method, settings.sequence, settings.reduction) == (method, "paired-rounds", reduction)


def first(group: Group, about: str, number: str) -> Finding | None:
    """Returns the finding on the claim that adaptive paired rounds by crop have the highest accuracy; None
    without such runs, or without another method or a baseline.

    First is shown if every other method and the baseline are shown to be lower: the largest of the p values
    decides, which needs no correction for several comparisons.
    """
    figures: dict[str, object] = {"claim": FIRST}
    own = next((c for c in methods(group) if _is(c, "adaptive", "crop")), None)
    table = f"accuracy-{number}"
    others = [c for c in group.configurations if c is not own and (c in methods(group) or c.is_baseline)]
    if own is None or not others:
        return None
    tests = [test for other in others if (test := _against(own, other))]
    if alike := [other.label for other in others if are_same_networks(_by_seed(own, other))]:
        text = f"{FIRST}: it is the same network as {names(alike)} in every seed, and so not above it."
        return Finding("claims", about, NOT_SEEN, text, figures, table)
    if not tests:
        text = f"{FIRST}: there is no other method or baseline of its seed with rows of the same test images."
        return Finding("claims", about, UNKNOWN, text, figures, table)
    shown = digits(group)
    ahead = [test for test in tests if test.result.difference <= 0]
    weakest = max(tests, key=lambda test: test.result.p_value)
    seeds = min(test.result.seeds for test in tests)
    figures |= {
        "against": {test.against: test.result.difference for test in tests},
        "largest_p": weakest.result.p_value,
        "seeds": seeds,
    }
    where = f"On {describe_set(group, _SET)}"
    if ahead:
        best = min(ahead, key=lambda test: test.result.difference)
        verdict = NOT_SEEN
        text = (
            f"{where} it has not the highest accuracy of the {len(tests) + 1} compared: {best.against} is at "
            f"{100 * best.of_opponent:.{shown}f}%, it at {100 * best.accuracy:.{shown}f}% "
            f"({p_is(best.result.p_value)}, {best.seeds})."
        )
    elif weakest.result.p_value >= ALPHA:
        verdict = NOT_SEEN
        text = (
            f"{where} it has the highest accuracy of the {len(tests) + 1} compared, but is not shown to be "
            f"above {weakest.against} ({points(weakest.result.difference, shown)}, "
            f"{p_is(weakest.result.p_value)}, {weakest.seeds})."
        )
    else:
        verdict = SEEN
        text = (
            f"{where} it is above each of the {len(tests)} others, the least certain being {weakest.against} "
            f"({points(weakest.result.difference, shown)}, {p_is(weakest.result.p_value)}, "
            f"{weakest.seeds})."
        )
    if also := dict.fromkeys(what for test in tests for what in test.also):
        text += f" Some of the runs also differ in {', '.join(also)}."
    text += cautions_text(tests)
    if seeds == 1:
        verdict = UNKNOWN if verdict == SEEN else verdict
        text += " One seed: this is of these trained networks; another seed may turn it round."
    return Finding("claims", about, verdict, f"{FIRST}: {text}", figures, table)


def _by_seed(own: Configuration, other: Configuration) -> list[tuple[Run, Run]]:
    """Returns the runs of two configurations, paired by their seed."""
    by_seed = {run.settings.seed: run for run in other.runs}
    return [(run, by_seed[run.settings.seed]) for run in own.runs if run.settings.seed in by_seed]


def _against(own: Configuration, other: Configuration) -> AccuracyTest | None:
    """Returns the comparison of two configurations on test, their runs paired by seed."""
    return compared_by_seed(own, _by_seed(own, other), other.label, _SET)


def gain(groups: list[Group], numbers: list[str]) -> Finding | None:
    """Returns the finding on the slides' gain of EfficientNet-B3 on ImageNet; None without such a run of an
    EfficientNet with 1,000 classes.
    """
    figures: dict[str, object] = {"claim": GAIN, "slides": list(_SLIDES)}
    what = (
        f"{GAIN}: the slides give EfficientNet-B3 on ImageNet's test images {_SLIDES[0]:.2%} as a baseline "
        f"and {_SLIDES[1]:.2%} after linear paired rounds by combination, "
        f"{points(_SLIDES[1] - _SLIDES[0], 2)}."
    )
    for group, number in zip(groups, numbers, strict=True):
        if not is_efficientnet(group) or len(group.classes) != _IMAGENET_CLASSES:
            continue
        own = next((c for c in methods(group) if _is(c, "linear", "combination")), None)
        if own is None:
            continue
        pairs = opponents_of(group, own, "baseline")
        if are_same_networks(pairs):
            text = (
                f"{what} Here the run is the same network as its baseline in every seed, and gains nothing."
            )
            return Finding("claims", "", NOT_SEEN, text, figures, f"accuracy-{number}")
        test = compared_by_seed(own, pairs, "baseline", _SET)
        if test is None:
            text = f"{what} Here its baseline, or rows of the same test images of both, are missing."
            return Finding("claims", "", UNKNOWN, text, figures, f"accuracy-{number}")
        return _measured(group, number, test, what, figures)
    return None


def _measured(
    group: Group, number: str, test: AccuracyTest, what: str, figures: dict[str, object]
) -> Finding:
    result = test.result
    low, high = result.interval()
    inside = low <= _SLIDES[1] - _SLIDES[0] <= high
    text = (
        f"{what} Here, {group.network} on {group.data}: {test.of_opponent:.2%} and {test.accuracy:.2%}, "
        f"{points(result.difference, 2)} (95% interval {points(low, 2)} to {points(high, 2)}, "
        f"{p_is(result.p_value)}, {test.seeds}). The slides' difference lies "
        f"{'inside' if inside else 'outside'} this interval."
    )
    if test.also:
        text += f" The runs also differ in {', '.join(test.also)}."
    text += cautions_text([test])
    shown = result.p_value < ALPHA and result.difference > 0
    verdict = SEEN if shown else NOT_SEEN
    if result.seeds == 1:
        verdict = UNKNOWN if shown else NOT_SEEN
        text += " One seed: this is of these two trained networks; another seed may turn it round."
    figures |= {
        "baseline": test.of_opponent,
        "method": test.accuracy,
        "difference": result.difference,
        "interval": [low, high],
        "p": result.p_value,
        "seeds": result.seeds,
    }
    return Finding("claims", "", verdict, text, figures, f"finding-tests-{number}")
