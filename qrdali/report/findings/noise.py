"""Findings on the noise floor: how far seeds alone make runs of one configuration differ."""

from __future__ import annotations

from dataclasses import replace

from qrdali.report.findings.finding import DESCRIBED, UNKNOWN, Finding, counted, names
from qrdali.report.findings.opponents import methods
from qrdali.report.groups import Group
from qrdali.report.noise import Measured
from qrdali.report.read import Run
from qrdali.runs.train_command import train_command

SLUG = "noise-floor"


def findings(groups: list[Group], abouts: list[str], measured: list[Measured]) -> list[Finding]:
    """Returns what each network's baselines, or its runs of another configuration, say of chance."""
    found = []
    for group, about in zip(groups, abouts, strict=True):
        of_group = [one for one in measured if one.group is group]
        of_baseline = [one for one in of_group if one.is_of_baseline]
        used = of_baseline or of_group[:1]
        chosen = [one for one in used if one.of != "val"] or used
        kinds = [[one for one in chosen if one.kind == kind] for kind in ("accuracy", "quotient")]
        of_group_found = [_of_all(about, of_kind) for of_kind in kinds if of_kind]
        if of_group_found and methods(group):
            of_group_found[0] = replace(of_group_found[0], text=of_group_found[0].text + _UNPAIRED)
        found += of_group_found
        if not of_baseline and (run := first_to_repeat(group)) is not None:
            found.append(_missing(about, run))
    return found


def _of_all(about: str, ones: list[Measured]) -> Finding:
    """Returns what the noise floors of one kind say: the first in full, of the others the ranges."""
    first, *others = ones
    one = finding(about, first)
    text = one.text
    if others:
        floors = [other.floor for other in others]
        deviations = _span(first, [floor.deviation for floor in floors])
        apart = sorted({floor.rejected for floor in floors})
        of_pairs = counted(max(floor.pairs for floor in floors), "pair")
        told = f"{apart[0]}" if len(apart) == 1 else f"{apart[0]} to {apart[-1]}"
        text += (
            f" The same of {names([other.of for other in others])}: standard deviations of {deviations}; "
            f"{told} of {of_pairs} told apart; "
            f"{_span(first, [floor.smallest_of_means for floor in floors])} found with 80% power."
        )
    figures = one.figures | {"others": [other.to_json() for other in others]}
    return replace(one, text=text, figures=figures)


_UNPAIRED = (
    " What P1 and P2 call detectable is another figure: there runs are paired by seed, which takes out what "
    "the runs of a seed share and leaves fewer degrees of freedom, and the threshold is corrected for "
    "several comparisons."
)


def _shown(one: Measured, value: float) -> str:
    return f"{100 * value:.2f} points" if one.kind == "accuracy" else f"{value:.4f}"


def _span(one: Measured, values: list[float]) -> str:
    low, high = _shown(one, min(values)), _shown(one, max(values))
    return low if low == high else f"{low.removesuffix(' points')} to {high}"


def finding(about: str, one: Measured) -> Finding:
    """Returns what one noise floor says."""
    floor, accuracy = one.floor, one.kind == "accuracy"
    what = f"Accuracy on {one.of}" if accuracy else f"The mean entropy quotient by {one.of}"
    low, high = floor.deviation_interval()
    text = (
        f"{what} of {counted(floor.runs, 'run')} of {one.configuration.label} that differ by the "
        "seed alone has "
        f"a standard deviation of {_shown(one, floor.deviation)}, itself an estimate (95% interval "
        f"{_span(one, [low, high])}, by chi-square). "
    )
    if floor.pairs:
        test = "McNemar's test" if accuracy else "The test of the paired difference"
        pairs = f"{floor.rejected} of {counted(floor.pairs, 'pair')}"
        text += f"{test} of two runs, image by image, tells {pairs} of them apart (p < .05). "
    text += (
        f"A difference of two single runs below {_shown(one, floor.smallest_of_single_runs)} may be the "
        "seeds' alone (95% prediction interval, which allows for that uncertainty). "
        f"With {floor.runs} runs of each, not paired, one t-test of two methods' means has 80% power to find "
        f"a true difference of {_shown(one, floor.smallest_of_means)}."
    )
    if one.networks < floor.runs:
        text += (
            f" These {floor.runs} runs are {one.networks} different networks, as some hold the same weights: "
            "the deviation may be too small."
        )
    if one.same_start:
        text += " All began with the same run: how far starts differ is not in these figures."
    return Finding("noise", about, DESCRIBED, text, one.to_json(), SLUG)


def first_to_repeat(group: Group) -> Run | None:
    """Returns the run that another seed says most about: a baseline, else a method's, else any trained
    one.
    """
    trained = [run for run in group.runs if run.adoption is None]
    of_methods = {run.name for c in methods(group) for run in c.runs}
    trained.sort(key=lambda run: (not group.is_baseline(run), run.name not in of_methods))
    return next(iter(trained), None)


def another_seed(run: Run) -> str:
    """Returns the command that trains a run with the next seed."""
    seed = run.settings.seed + 1
    settings = run.settings.model_copy(update={"seed": seed})
    return train_command(settings, run.place.with_name(f"{run.place.name}-seed-{seed}"))


def _missing(about: str, run: Run) -> Finding:
    return Finding(
        "noise",
        about,
        UNKNOWN,
        "How far seeds alone make baselines differ is not known: that takes two or more of one "
        "configuration. "
        f"Another seed of {names([run.name])} is trained by this command, and evaluated as it was.",
        {"run": run.name},
        "",
        (another_seed(run),),
    )
