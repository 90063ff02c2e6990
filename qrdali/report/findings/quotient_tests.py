"""The tests of entropy quotients that P2 rests on: every method against its baseline, on every reduction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qrdali.errors import printable
from qrdali.evaluation.seeded_differences import ALPHA, SeededDifference, measured_difference
from qrdali.evaluation.stats import holm
from qrdali.report.findings.accuracy_tests import are_same_networks, not_above_chance
from qrdali.report.findings.finding import agreement
from qrdali.report.findings.opponents import also_different, methods
from qrdali.report.groups import Configuration, Group
from qrdali.report.quotients import alike, have_fingerprint, values
from qrdali.report.read import Run
from qrdali.report.read_mepis import Mepis
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words


@dataclass(frozen=True)
class AtLowest:
    """Says how many of a run's minimal images are reduced as far as can be, and of how many."""

    count: int
    images: int


@dataclass(frozen=True)
class SeedImages:
    """Says of a seed how many images were compared, and of the method's and the baseline's minimal images how
    many are at the lowest state; None where it is not recorded.
    """

    seed: int
    compared: int
    of_method: AtLowest | None
    of_baseline: AtLowest | None


@dataclass(frozen=True)
class QuotientTest:
    """Holds a method's comparison with its baseline by the mean entropy quotient of one reduction.

    holm: the p value after Holm's correction over the family. family: its number of tests. of_baseline: the
    baseline's mean quotient on the images compared. also: in what else the runs differ. per_seed: of each
    seed the images compared and the minimal images at the lowest state. same_network: in how many seeds both
    are the same network. cautions: which of the two are not above chance, on what and in how many seeds.
    """

    configuration: Configuration
    reduction: str
    result: SeededDifference
    of_baseline: float
    also: tuple[str, ...]
    per_seed: tuple[SeedImages, ...]
    holm: float = 1.0
    family: int = 1
    same_network: int = 0
    cautions: tuple[str, ...] = ()

    @property
    def is_shown(self) -> bool:
        return self.holm < ALPHA

    @property
    def detectable(self) -> float:
        """Returns the difference that is detectable at the threshold in force, that of the family's first."""
        return self.result.detectable(ALPHA / self.family)

    @property
    def can_show_less(self) -> bool:
        """Returns whether a network that needed nothing at all could be told from the baseline."""
        return self.is_shown or self.detectable < self.of_baseline


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
    measured, bases, also, per_seed = [], [], dict[str, None](), []
    compared: list[tuple[Run, Run]] = []
    for run, base, mepis, of_base in pairs:
        if reduction not in mepis.rows or reduction not in of_base.rows:
            continue
        found = _differences(of_base, mepis, reduction)
        if found is None:
            continue
        samples, differences, base_mean = found
        measured.append((samples, differences))
        bases.append(base_mean)
        lowest = (_at_lowest(one, reduction) for one in (mepis, of_base))
        per_seed.append(SeedImages(run.settings.seed, len(samples), *lowest))
        also |= dict.fromkeys(also_different(run, base, "baseline"))
        compared.append((run, base))
    if not measured or are_same_networks(compared):
        return []
    result = measured_difference(measured)
    mean = float(np.mean(bases))
    return [
        QuotientTest(
            configuration,
            reduction,
            result,
            mean,
            tuple(also),
            tuple(per_seed),
            same_network=sum(run.is_network_of(base) for run, base in compared),
            cautions=tuple(_cautions(configuration.label, compared, pairs[0][2])),
        )
    ]


def _cautions(label: str, pairs: list[tuple[Run, Run]], mepis: Mepis) -> list[str]:
    """Returns which of the two sides are not above chance on the split that was searched, or else on test."""
    split = str(mepis.options.get("split"))
    known = {name for pair in pairs for run in pair for name in run.sets}
    name = split if split in known else "test"
    usable = [pair for pair in pairs if all(name in run.sets for run in pair)]
    found = not_above_chance(label, "baseline", usable, name)
    return [f"{caution} on {printable(name)}" for caution in found]


def _at_lowest(mepis: Mepis, reduction: str) -> AtLowest | None:
    share, images = mepis.summary[reduction].get("lowest_state_share"), len(mepis.rows[reduction]["sample"])
    if not isinstance(share, float) or not 0 <= share <= 1:
        return None
    return AtLowest(round(share * images), images)


def table(tests: list[QuotientTest], slug: str) -> Table | None:
    """Returns the table of the tests behind P2's findings; None without any."""
    rows = tuple(
        (
            words(test.reduction),
            words(test.configuration.label),
            number(test.of_baseline, ".4f"),
            _with_interval(test.result),
            agreement(test.result),
            probability(test.result.p_value),
            probability(test.holm),
            number(test.detectable, ".4f"),
            number(test.result.seeds),
            number(test.result.images),
            *(number(bound, "+.4f") for bound in test.result.interval()),
            probability(test.result.p_images),
            NOTHING if test.result.p_seeds is None else probability(test.result.p_seeds),
            number(test.family),
            number(test.result.detectable(), ".4f"),
            words(", ".join(test.also) or "–"),
            number(test.same_network),
            words("; ".join(test.cautions) or "–"),
        )
        for test in tests
    )
    if not rows:
        return None
    columns = (
        "reduction",
        "method",
        "mean of baseline",
        "difference (95%)",
        "seeds that agree",
        "p",
        "p (Holm)",
        "detectable",
        "seeds",
        "images",
        "95% low",
        "95% high",
        "p over images",
        "p over seeds",
        "tests in family",
        "detectable alone",
        "also different",
        "seeds of the same network",
        "not above chance",
    )
    notes = (
        "Differences of the mean entropy quotient from the baseline of the same seed, on the images that "
        "both classify correctly; below 0 less is needed. The interval and p are those of one comparison "
        "alone, before Holm's correction, which decides.",
        "Over images: Student's t-test of an image's mean difference (below 25 images a permutation of its "
        "signs). Over seeds: Student's t-test of the seeds' differences. A difference counts as shown where "
        "the larger of the two p values is below .05 after Holm's correction over all methods and "
        "reductions of one network and data set. Images: different ones, over all seeds. Detectable: with a "
        "power of 80% at .05 ÷ the tests in the family, or alone at .05.",
    )
    return Table(slug, "The tests behind P2", columns, rows, notes, page_columns=_ON_PAGE)


def _with_interval(result: SeededDifference) -> Cell:
    low, high = result.interval()
    return Cell(f"{result.difference:+.4f} ({low:+.4f} to {high:+.4f})", result.difference)


_ON_PAGE = 8  # columns of the table
