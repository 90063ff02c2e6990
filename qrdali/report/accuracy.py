"""Tables on the accuracy of runs: all of them, each comparison with the baseline, and the best five."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from qrdali.errors import printable
from qrdali.evaluation.prediction_rows import evaluate_command_for
from qrdali.evaluation.stats import FEW_DISCORDANT, McNemar, holm, mcnemar, wilson
from qrdali.report.groups import Configuration, Group, some_names
from qrdali.report.read import Run
from qrdali.report.tables import NOTHING, Cell, Table, number, probability, words


@dataclass(frozen=True)
class Comparison:
    """Holds the test of a run against its baseline on the set `name`. test: its a and b are the baseline's.

    difference: accuracy of the run less the baseline's, in 0..1. holm: the p value corrected over the group's
    runs.
    """

    run: Run
    base: Run
    name: str
    test: McNemar
    difference: float
    holm: float


def compare(group: Group, name: str) -> list[Comparison]:
    """Returns the comparison of every run of a group that has a baseline with rows of the same images of a
    set, and is not the same network.
    """
    tested = []
    for run in group.runs:
        base = group.baseline(run)
        if (
            group.is_baseline(run)
            or base is None
            or run.is_network_of(base)
            or name not in run.sets
            or name not in base.sets
            or run.sets[name].digest != base.sets[name].digest
        ):
            continue
        tested.append(
            (
                run,
                base,
                mcnemar(base.sets[name].correct, run.sets[name].correct),
                run.sets[name].accuracy - base.sets[name].accuracy,
            )
        )
    corrected = holm([test.p_value for _, _, test, _ in tested])
    return [
        Comparison(run, base, name, test, difference, p)
        for (run, base, test, difference), p in zip(tested, corrected, strict=True)
    ]


def percent(configuration: Configuration, name: str, digits: int) -> Cell:
    """Returns the cell of an accuracy in percent, mean ± standard deviation over seeds; with their number
    where some seeds have no rows.
    """
    values = configuration.values(lambda run: run.accuracy.get(name))
    mean, sd = configuration.mean(lambda run: run.accuracy.get(name))
    if mean is None:
        return NOTHING
    cell = number(100 * mean, f".{digits}f", None if sd is None else 100 * sd)
    incomplete = len(values) < len(configuration.runs)
    return (
        Cell(f"{cell.text} ({len(values)} of {len(configuration.runs)})", cell.value, cell.sd)
        if incomplete
        else cell
    )


def digits(group: Group) -> int:
    """Returns the decimals of percentages: two where the largest set has 10,000 images or more."""
    return (
        2
        if max((len(rows.correct) for run in group.runs for rows in run.sets.values()), default=0) >= 10_000
        else 1
    )


def table(group: Group, slug: str) -> Table:
    """Returns the table of accuracies, a line per configuration in the order in which the runs were given."""
    comparisons = compare(group, "test")
    shown = digits(group)
    rows = []
    for configuration in group.configurations:
        best, best_sd = configuration.mean(lambda run: run.trained.epoch)
        epochs, epochs_sd = configuration.mean(lambda run: run.last.epoch)
        rows.append(
            (
                words(configuration.method),
                words(configuration.reduction),
                words(configuration.sequence),
                number(len(configuration.runs)),
                number(best, ".0f", best_sd),
                number(epochs, ".0f", epochs_sd),
                *(percent(configuration, name, shown) for name in group.sets),
                _against(group, configuration, [c for c in comparisons if c.run in configuration.runs]),
            )
        )
    marked = frozenset(i for i, c in enumerate(group.configurations) if c.is_baseline)
    notes = [
        "Accuracy in percent; several seeds as mean ± standard deviation. Best epoch: of this run by "
        "validation, 0 are its starting weights. Against the baseline: difference on test in points, "
        "McNemar's "
        "test without continuity correction, *** p < .001, ** < .01, * < .05, not corrected (the table of "
        "comparisons has Holm's correction)."
    ]
    columns = (
        "method",
        "reduction",
        "sequence",
        "seeds",
        "best epoch",
        "epochs",
        *group.sets,
        "test against baseline",
    )
    return Table(slug, "Accuracy", columns, tuple(rows), tuple(notes + missing(group)), marked)


def _against(group: Group, configuration: Configuration, comparisons: list[Comparison]) -> Cell:
    """Returns the cell of a configuration's comparisons; a seed's run that is its baseline's network differs
    by 0.
    """
    alike = sum("test" in run.sets and _same_baseline(group, run) is not None for run in configuration.runs)
    if not comparisons:
        return words("the same network") if alike else NOTHING
    mean = 100 * sum(c.difference for c in comparisons) / (len(comparisons) + alike)
    if len(configuration.runs) == 1:
        return Cell(f"{mean:+.2f} {comparisons[0].test.stars or 'n.s.'}", mean)
    significant = sum(comparison.test.p_value < 0.05 for comparison in comparisons)
    text = f"{mean:+.2f}, p < .05 in {significant} of {len(comparisons) + alike}"
    return Cell(f"{text}, {alike} the same network" if alike else text, mean)


def _same_baseline(group: Group, run: Run) -> Run | None:
    """Returns the baseline of a run where both are the same network, and no test is made."""
    base = None if group.is_baseline(run) else group.baseline(run)
    return base if base is not None and run.is_network_of(base) else None


def missing(group: Group) -> list[str]:
    """Returns notes on what the table lacks.

    One per set that some runs have no rows of, with the command that makes them; one on rows of other images;
    one on runs without a baseline.
    """
    notes = [*group.notes]
    for name in dict.fromkeys((*group.sets, "test")):
        without = [run for run in group.runs if name not in run.sets]
        if without:
            data = shlex.quote(without[0].settings.data or "DATASET")
            notes.append(
                f"No rows of {name} for {some_names(without)}: "
                f"qrdali evaluate --run {shlex.quote(str(without[0].place))} "
                f"{evaluate_command_for(name, data)}"
            )
        if len({run.sets[name].digest for run in group.runs if name in run.sets}) > 1:
            notes.append(
                f"The rows of {name} are not of the same images in all runs, and those are not compared: "
                "evaluate all on the same data."
            )
    alone = [
        run
        for run in group.runs
        if not group.is_baseline(run) and run.adoption is None and group.baseline(run) is None
    ]
    if alone:
        notes.append(
            f"No baseline of the same seed is here for {some_names(alone)}: nothing to compare with."
        )
    otherwise = [
        run
        for run in group.runs
        if run.settings.method not in ("shared", "baseline")
        and (base := group.baseline(run))
        and base.chain.init != run.chain.init
    ]
    if otherwise:
        notes.append(
            f"The baseline that {some_names(otherwise)} is compared with began with another run or other "
            "weights: the start is part of the difference."
        )
    if any(run.settings.monitor == "phase" for run in group.runs):
        notes.append(
            "Runs with --monitor phase chose their best epoch by validation under each epoch's own quality."
        )
    return [printable(note) for note in notes]


def comparisons(group: Group, slug: str) -> Table | None:
    """Returns the table of every run and set with its interval and its comparison with the baseline; None
    without rows.
    """
    by_run_and_set = {
        (comparison.run.name, comparison.name): comparison
        for name in group.sets
        for comparison in compare(group, name)
    }
    rows: list[tuple[Cell, ...]] = []
    marked, shown = set(), digits(group)
    doubtful = [c for c in by_run_and_set.values() if c.test.is_doubtful and c.name != "val"]
    for name in group.sets:
        for run in group.runs:
            if name not in run.sets:
                continue
            correct = run.sets[name].correct
            low, high = wilson(int(correct.sum()), len(correct))
            if group.is_baseline(run):
                marked.add(len(rows))
            cells = [
                words(name),
                words(run.name),
                number(len(correct)),
                number(100 * correct.mean(), f".{shown}f"),
                number(100 * low, f".{shown}f"),
                number(100 * high, f".{shown}f"),
            ]
            if comparison := by_run_and_set.get((run.name, name)):
                test = comparison.test
                cells += [
                    words(comparison.base.name),
                    number(100 * comparison.difference, "+.2f"),
                    number(test.b),
                    number(test.c),
                    number(test.statistic, ".2f"),
                    probability(test.p_value),
                    probability(comparison.holm),
                    probability(test.exact_p_value),
                    words("descriptive" if name == "val" else test.stars or "n.s."),
                ]
            elif (base := _same_baseline(group, run)) is not None:
                cells += [words(base.name), *[NOTHING] * 7, words("the same network")]
            else:
                cells += [NOTHING] * 9
            rows.append(tuple(cells))
    if not rows:
        return None
    return Table(
        slug,
        "Comparisons with the baseline",
        (
            "set",
            "run",
            "images",
            "accuracy",
            "95% low",
            "95% high",
            "baseline",
            "difference",
            "only baseline right",
            "only run right",
            "χ²",
            "p",
            "p (Holm)",
            "p (exact)",
            "stars",
        ),
        tuple(rows),
        (
            "McNemar's test of each run and the baseline of its seed on the same images: "
            "χ² = (b − c)² ÷ (b + c) with one degree of freedom, stars by its p. Holm's correction counts "
            "all "
            "comparisons on the same set. The exact p is the two-sided binomial's. Intervals are Wilson's. "
            "On "
            "val the best epoch was chosen, so comparisons there are descriptive.",
            *_doubts(doubtful),
        ),
        frozenset(marked),
    )


def _doubts(comparisons: list[Comparison]) -> list[str]:
    """Returns a note on stars that the exact test does not confirm, if there are any."""
    if not comparisons:
        return []
    named = ", ".join(f"{c.run.name} on {c.name}" for c in comparisons[:6])
    more = f" and {len(comparisons) - 6} more" if len(comparisons) > 6 else ""
    return [
        printable(
            f"Fewer than {FEW_DISCORDANT} images tell the two apart, and p (exact) is not below .05 whatever "
            f"the stars say: {named}{more}."
        )
    ]


def top(group: Group, by: str, slug: str) -> Table | None:
    """Returns the table of the best five by mean accuracy on a set, and the baseline; None where fewer than
    two configurations have it.

    The shared run is not among them: the others start from it.
    """
    ranked = [
        c
        for c in group.configurations
        if c.method != "shared" and c.mean(lambda run: run.accuracy.get(by))[0] is not None
    ]
    ranked.sort(key=lambda c: -(c.mean(lambda run: run.accuracy.get(by))[0] or 0))
    if len(ranked) < 2:
        return None
    best = ranked[:5] + [c for c in ranked[5:] if c.is_baseline]
    rows = tuple(
        (
            words(c.method),
            words(c.sequence),
            words(c.reduction),
            *(percent(c, name, digits(group)) for name in group.sets),
        )
        for c in best
    )
    marked = frozenset(i for i, c in enumerate(best) if c.is_baseline)
    title = "The best five by validation" if by == "val" else f"The best five by {by} (descriptive)"
    note = (
        ""
        if by == "val"
        else (
            f"Chosen by {by} itself: descriptive, its figures are no estimate of what these runs reach on "
            "new images."
        )
    )
    return Table(
        slug, title, ("method", "sequence", "reduction", *group.sets), rows, (note,) if note else (), marked
    )
