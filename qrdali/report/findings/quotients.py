"""P2's findings: whether networks need a smaller share of an image's entropy than their baseline's."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qrdali.evaluation.seeded_differences import ALPHA, SeededDifference, measured_difference
from qrdali.evaluation.stats import holm
from qrdali.report.findings.finding import (
    NOT_SEEN,
    ONE_SEED,
    SEEN,
    UNKNOWN,
    Finding,
    counted,
    detectable_text,
    how_many,
    names,
    p_is,
    seeds_text,
)
from qrdali.report.findings.opponents import also_different, methods
from qrdali.report.groups import Configuration, Group
from qrdali.report.quotients import alike, have_fingerprint, values
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import NOTHING, Table, number, probability, words


@dataclass(frozen=True)
class QuotientTest:
    """Holds a method's comparison with its baseline by the mean entropy quotient of one reduction.

    holm: the p value after Holm's correction over the family. family: its number of tests. of_baseline: the
    baseline's mean quotient on the images compared. also: in what else the runs differ. at_lowest: the
    largest share of a set's minimal images that are at the lowest state, in 0 to 1.
    """

    configuration: Configuration
    reduction: str
    result: SeededDifference
    of_baseline: float
    also: tuple[str, ...]
    at_lowest: float
    holm: float = 1.0
    family: int = 1

    @property
    def is_shown(self) -> bool:
        return self.holm < ALPHA


def _differences(
    one: Mepis, other: Mepis, reduction: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], float] | None:
    """Returns samples, differences (other less one) and the mean of `one` on the images that both have."""
    first, second = one.rows[reduction], other.rows[reduction]
    samples, i, j = np.intersect1d(first["sample"], second["sample"], return_indices=True)
    if not len(samples):
        return None
    if not have_fingerprint(one) and not bool((first["path"][i] == second["path"][j]).all()):
        return None
    of_first = values(one, reduction)[i]
    return samples.astype(np.int64), values(other, reduction)[j] - of_first, float(of_first.mean())


def quotient_tests(group: Group, sets: list[Mepis]) -> list[QuotientTest]:
    """Returns P2's tests of one network and data set, corrected by Holm over all methods and reductions.

    Only sets that searched the same images in the same way are compared.
    """
    tests = []
    for _, comparable in alike(sets):
        by_run = {mepis.run.name: mepis for mepis in comparable if mepis.run is not None}
        for configuration in methods(group):
            pairs = _pairs(group, configuration, by_run)
            reductions = dict.fromkeys(r for _, _, mepis, _ in pairs for r in mepis.rows)
            for reduction in reductions:
                tests += _test(configuration, reduction, pairs)
    corrected = holm([test.result.p_value for test in tests])
    return [replace(test, holm=p, family=len(tests)) for test, p in zip(tests, corrected, strict=True)]


_Pair = tuple[Run, Run, Mepis, Mepis]


def _pairs(group: Group, configuration: Configuration, by_run: dict[str, Mepis]) -> list[_Pair]:
    """Returns (run, baseline, the run's set, the baseline's) for each seed that has both sets."""
    found = []
    for run in configuration.runs:
        base = group.baseline(run)
        if base is not None and run.name in by_run and base.name in by_run:
            found.append((run, base, by_run[run.name], by_run[base.name]))
    return found


def _test(configuration: Configuration, reduction: str, pairs: list[_Pair]) -> list[QuotientTest]:
    measured, bases, also, at_lowest = [], [], dict[str, None](), [0.0]
    for run, base, mepis, of_base in pairs:
        if reduction not in mepis.rows or reduction not in of_base.rows:
            continue
        found = _differences(of_base, mepis, reduction)
        if found is None:
            continue
        samples, differences, base_mean = found
        measured.append((samples, differences))
        bases.append(base_mean)
        shares = (one.summary[reduction].get("lowest_state_share") for one in (mepis, of_base))
        at_lowest += [share for share in shares if isinstance(share, float)]
        also |= dict.fromkeys(also_different(run, base, "baseline"))
    if not measured:
        return []
    result = measured_difference(measured)
    return [
        QuotientTest(configuration, reduction, result, float(np.mean(bases)), tuple(also), max(at_lowest))
    ]


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
    return [*found, *_missing(group, about, tests, sets, number)]


def _one(test: QuotientTest) -> str:
    result = test.result
    also = f"; they also differ in {', '.join(test.also)}" if test.also else ""
    return (
        f"{test.configuration.label}, mean {test.of_baseline + result.difference:.4f} beside "
        f"the baseline's {test.of_baseline:.4f} (difference {result.difference:+.4f}, "
        f"{p_is(test.holm)} after Holm, {counted(result.images, 'image')}, {seeds_text(result.seeds)}{also})"
    )


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
        text += f" {'The lowest' if len(tests) > 1 else 'Its result'}: {_one(best)}."
    text += f" {detectable_text([test.result for test in tests], tests[0].family, _span)}"
    if at_lowest := max(test.at_lowest for test in tests):
        text += (
            f" Of a network's minimal images up to {at_lowest:.0%} are reduced as far as can be and "
            "show nothing "
            "of the object: the network gives their class to nearly empty images, and such "
            "quotients say little "
            "of what it needs."
        )
    if single:
        text += (
            " One seed: this says that these trained networks differ on images like these, not that the "
            "methods do; another seed may turn it round."
        )
    verdict = NOT_SEEN if not less else ONE_SEED if single else SEEN
    figures = {
        "reduction": reduction,
        "tests": [
            {
                "method": test.configuration.label,
                "seeds": test.result.seeds,
                "images": test.result.images,
                "difference": test.result.difference,
                "mean_of_baseline": test.of_baseline,
                "p_images": test.result.p_images,
                "p_seeds": test.result.p_seeds,
                "p_holm": test.holm,
                "family": test.family,
                "detectable": test.result.detectable(),
                "at_lowest_state": test.at_lowest,
            }
            for test in tests
        ],
    }
    return Finding("P2", about, verdict, text, figures, f"quotient-tests-{number}")


def _missing(
    group: Group, about: str, tests: list[QuotientTest], sets: list[Mepis], number: str
) -> list[Finding]:
    """Returns the finding on runs without a set of minimal images; none where every method was compared."""
    compared = {test.configuration.label for test in tests}
    lacking = [c for c in methods(group) if c.label not in compared]
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
    out = run.folder.with_name(f"{run.folder.name}-mepi")
    return shlex.join(
        [
            *("qrdali", "build-mepi", "--run", str(run.folder), "--data", run.settings.data or "DATASET"),
            *("--split", "val", "--reduction", "all", "--out", str(out)),
        ]
    )


def table(tests: list[QuotientTest], slug: str) -> Table | None:
    """Returns the table of the tests behind P2's findings; None without any."""
    rows = tuple(
        (
            words(test.reduction),
            words(test.configuration.label),
            number(test.result.seeds),
            number(test.result.images),
            number(test.of_baseline, ".4f"),
            number(test.result.difference, "+.4f"),
            *(number(bound, "+.4f") for bound in test.result.interval()),
            probability(test.result.p_images),
            NOTHING if test.result.p_seeds is None else probability(test.result.p_seeds),
            probability(test.holm),
            number(test.family),
            number(test.result.detectable(), ".4f"),
            words(", ".join(test.also) or "–"),
        )
        for test in tests
    )
    if not rows:
        return None
    columns = (
        "reduction",
        "method",
        "seeds",
        "images",
        "mean of baseline",
        "difference",
        "95% low",
        "95% high",
        "p over images",
        "p over seeds",
        "p (Holm)",
        "tests in family",
        "detectable alone",
        "also different",
    )
    note = (
        "Differences of the mean entropy quotient from the baseline of the same seed, on the images that "
        "both classify correctly; below 0 less is needed. Over images: Student's t-test of an image's mean "
        "difference (below 25 images a permutation of its signs). Over seeds: Student's t-test of the "
        "seeds' differences. A difference counts as shown where the larger of the two p values is below "
        ".05 after Holm's correction over all methods and reductions of one network and data set."
    )
    return Table(slug, "The tests behind P2", columns, rows, (note,))
