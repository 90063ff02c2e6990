"""Findings on the noise floor: how far seeds alone make runs of one configuration differ."""

from __future__ import annotations

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
        found += [finding(about, one) for one in chosen]
        if not of_baseline and (run := first_to_repeat(group)) is not None:
            found.append(_missing(about, run))
    return found


def finding(about: str, one: Measured) -> Finding:
    """Returns what one noise floor says."""
    floor, accuracy = one.floor, one.kind == "accuracy"

    def shown(value: float) -> str:
        return f"{100 * value:.2f} points" if accuracy else f"{value:.4f}"

    what = f"Accuracy on {one.of}" if accuracy else f"The mean entropy quotient by {one.of}"
    low, high = floor.deviation_interval()
    text = (
        f"{what} of {counted(floor.runs, 'run')} of {one.configuration.label} that differ by the "
        "seed alone has "
        f"a standard deviation of {shown(floor.deviation)} (95% interval {shown(low)} to {shown(high)}). "
    )
    if floor.pairs:
        test = "McNemar's test" if accuracy else "The paired test"
        text += f"{test} tells {floor.rejected} of {counted(floor.pairs, 'pair')} of them apart (p < .05). "
    text += (
        f"Two single runs differ by less than {shown(floor.smallest_of_single_runs)} by chance in "
        "95% of cases. "
        f"With {floor.runs} seeds of each, a t-test of two methods' means would find a true difference of "
        f"{shown(floor.smallest_of_means)} in 4 of 5 cases."
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
    return train_command(settings, run.folder.with_name(f"{run.folder.name}-seed-{seed}"))


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
