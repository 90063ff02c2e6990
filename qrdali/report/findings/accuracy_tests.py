"""The tests of accuracy that P1 rests on: every method against its baseline and controls, on every set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from qrdali.data.set_names import RESERVED
from qrdali.evaluation.seeded_differences import ALPHA, SeededDifference, accuracy_difference
from qrdali.evaluation.stats import holm
from qrdali.report.findings.finding import agreement, seeds_text
from qrdali.report.findings.opponents import OPPONENTS, also_different, methods, opponent
from qrdali.report.groups import Configuration, Group
from qrdali.report.read import Run
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words


@dataclass(frozen=True)
class AccuracyTest:
    """Holds a method's comparison with its baseline or a control on one set.

    against: "baseline" or a control's name. accuracy, of_opponent: means over the seeds compared. holm: the p
    value after Holm's correction over the family. family: its number of tests. also: in what else the runs
    differ. same_start: whether all seeds begin with the same run, so that the test over seeds says nothing of
    other starts. same_network: in how many seeds both are the same network, whose difference is 0. cautions:
    which of the two are not above chance on the set, and in how many seeds.
    """

    configuration: Configuration
    against: str
    set: str
    result: SeededDifference
    accuracy: float
    of_opponent: float
    also: tuple[str, ...] = ()
    holm: float = 1.0
    family: int = 1
    same_start: bool = False
    same_network: int = 0
    cautions: tuple[str, ...] = ()

    @property
    def seeds(self) -> str:
        """Returns the number of seeds in words, whether they share their start, and in how many of them both
        are the same network.
        """
        shared = " that begin with the same run" if self.same_start else ""
        alike = f", in {self.same_network} of them both are the same network" if self.same_network else ""
        return f"{seeds_text(self.result.seeds)}{shared}{alike}"

    @property
    def is_shown(self) -> bool:
        """Returns whether the difference is below .05 after Holm's correction."""
        return self.holm < ALPHA

    @property
    def is_gain(self) -> bool:
        return self.is_shown and self.result.difference > 0

    @property
    def is_loss(self) -> bool:
        return self.is_shown and self.result.difference < 0


def tested_sets(group: Group) -> list[str]:
    """Returns the sets that are tested: not those of train, and not those of val, on which the best epoch was
    chosen.
    """
    return [name for name in group.sets if split_of(name) not in ("val", "train")]


def split_of(name: str) -> str:
    """Returns the split that a set was made of, "" for a folder."""
    return name.split("-")[0] if RESERVED.fullmatch(name) else ""


def describe_set(group: Group, name: str) -> str:
    """Returns a set in words: its name, images, and how they were reduced, where the name says so."""
    images = max((len(run.sets[name].correct) for run in group.runs if name in run.sets), default=0)
    split, *reduced = name.partition("-mapped-")[0].split("-", 2) if RESERVED.fullmatch(name) else ("",)
    kind = f", reduced by {reduced[0]} to quality {float(reduced[1]):g}" if reduced else ""
    kind = ", full quality" if split and not reduced else kind
    return f"{name} ({images:,} images{kind})"


def compare_runs(pairs: list[tuple[Run, Run]], name: str) -> tuple[SeededDifference, list[tuple[Run, Run]]]:
    """Returns the comparison of pairs (run, opponent), one for each seed, on the images of a set, and the
    pairs that were compared: those with rows of the same images as most of them.

    Raises ValueError where no pair has such rows.
    """
    usable = [
        (run, other)
        for run, other in pairs
        if name in run.sets and name in other.sets and run.sets[name].digest == other.sets[name].digest
    ]
    if not usable:
        raise ValueError(f"no rows of {name} of the same images")
    digests = [run.sets[name].digest for run, _ in usable]
    most = max(digests, key=digests.count)
    compared = [pair for pair, digest in zip(usable, digests, strict=True) if digest == most]
    answers = [(other.sets[name].correct, run.sets[name].correct) for run, other in compared]
    return accuracy_difference(answers), compared


def compared_by_seed(
    configuration: Configuration, pairs: list[tuple[Run, Run]], against: str, name: str
) -> AccuracyTest | None:
    """Returns the test of a configuration on a set, not corrected; None where nothing can be compared, or
    both are the same network in every seed.
    """
    try:
        result, compared = compare_runs(pairs, name)
    except ValueError:
        return None
    if are_same_networks(compared):
        return None
    accuracy, other_accuracy = (
        sum(pair[i].sets[name].accuracy for pair in compared) / len(compared) for i in (0, 1)
    )
    also = dict.fromkeys(what for run, other in compared for what in also_different(run, other, against))
    starts = {run.settings.init for run, _ in compared}
    same_start = len(compared) > 1 and len(starts) == 1 and starts != {""}
    return AccuracyTest(
        configuration,
        against,
        name,
        result,
        accuracy,
        other_accuracy,
        tuple(also),
        same_start=same_start,
        same_network=sum(run.is_network_of(other) for run, other in compared),
        cautions=tuple(not_above_chance(configuration.label, against, compared, name)),
    )


def are_same_networks(pairs: list[tuple[Run, Run]]) -> bool:
    """Returns whether there are pairs, and all of them are two runs that hold the same network."""
    return bool(pairs) and all(run.is_network_of(other) for run, other in pairs)


def not_above_chance(label: str, against: str, pairs: list[tuple[Run, Run]], name: str) -> list[str]:
    """Returns which of the two sides of a comparison are not above chance on a set."""
    whose = "its baseline" if against == "baseline" else f"its {against} control"
    sides = {label: [run for run, _ in pairs], whose: [other for _, other in pairs]}
    counts = {side: sum(run.sets[name].chance.is_not_above for run in runs) for side, runs in sides.items()}
    several = len(pairs) > 1
    return [
        f"{side}{f' in {count} of {len(pairs)} seeds' if several else ''}"
        for side, count in counts.items()
        if count
    ]


def corrected(tests: Iterable[AccuracyTest]) -> list[AccuracyTest]:
    """Returns the tests of one family with Holm's correction."""
    family = list(tests)
    return [
        replace(test, holm=p, family=len(family))
        for test, p in zip(family, holm([test.result.p_value for test in family]), strict=True)
    ]


def opponents_of(group: Group, configuration: Configuration, against: str) -> list[tuple[Run, Run]]:
    """Returns (run, what it is compared with under the name `against`) for each run that has one."""
    return [
        (run, other) for run in configuration.runs if (other := opponent(group, run, against)) is not None
    ]


def accuracy_tests(group: Group) -> list[AccuracyTest]:
    """Returns P1's tests of one network and data set.

    Two families, each corrected by Holm over all methods and sets: the comparisons with the baseline, and
    those with controls.
    """
    tests = []
    for against in OPPONENTS:
        for configuration in methods(group):
            pairs = opponents_of(group, configuration, against)
            for name in tested_sets(group):
                tests.append(compared_by_seed(configuration, pairs, against, name))
    known = [test for test in tests if test is not None]
    return [
        *corrected(test for test in known if test.against == "baseline"),
        *corrected(test for test in known if test.against != "baseline"),
    ]


def table(tests: list[AccuracyTest], slug: str) -> Table | None:
    """Returns the table of the tests behind P1's findings; None without any."""
    rows = []
    for test in tests:
        result = test.result
        low, high = result.interval()
        shown = f"{100 * result.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        rows.append(
            (
                words(test.set),
                words(test.configuration.label),
                words(test.against),
                Cell(shown, 100 * result.difference),
                agreement(result),
                probability(result.p_value),
                probability(test.holm),
                _detectable(result, ALPHA / test.family),
                number(result.seeds),
                number(result.images),
                number(100 * test.accuracy, ".2f"),
                number(100 * test.of_opponent, ".2f"),
                number(100 * low, "+.2f"),
                number(100 * high, "+.2f"),
                probability(result.p_images),
                NOTHING if result.p_seeds is None else probability(result.p_seeds),
                number(test.family),
                _detectable(result, ALPHA),
                words(", ".join(test.also) or "–"),
                number(test.same_network),
                words("; ".join(test.cautions) or "–"),
            )
        )
    if not rows:
        return None
    columns = (
        "set",
        "method",
        "against",
        "difference (95%)",
        "seeds that agree",
        "p",
        "p (Holm)",
        "detectable",
        "seeds",
        "images",
        "accuracy",
        "of the other",
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
    return Table(slug, "The tests behind P1", columns, tuple(rows), _NOTES, page_columns=_ON_PAGE)


def _detectable(result: SeededDifference, alpha: float) -> Cell:
    """Returns a cell of the detectable difference in points; no accuracies differ by more than 100."""
    points = 100 * result.detectable(alpha)
    return number(points, ".1f") if points <= 100 else Cell("> 100", points)


_ON_PAGE = 8  # columns of the table
_NOTES = (
    "Accuracies in percent, differences and what is detectable in points; runs are paired by their seed. "
    "The interval and p are those of one comparison alone, before Holm's correction, which decides. Seeds "
    "that agree: those whose difference has the sign of the mean.",
    "Over images: McNemar's test, of several seeds the one for clustered pairs; the exact binomial where "
    "fewer than 25 images differ. Over seeds: Student's t-test of the seeds' differences. A difference "
    "counts as shown where the larger of the two p values is below .05 after Holm's correction; the "
    "comparisons with the baseline of one network and data set are one family, those with controls "
    "another. Detectable: the true difference that such a comparison finds with a power of 80% as the first "
    "of its family, at .05 ÷ its tests, or alone, at .05; estimated from the spread seen here.",
)
