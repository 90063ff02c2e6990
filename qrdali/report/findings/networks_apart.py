"""The slides' claim that EfficientNet improves with reduced images, and ResNet and SqueezeNet do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

from qrdali.evaluation.seeded_differences import ALPHA, seeds_p_value
from qrdali.evaluation.stats import holm
from qrdali.report.findings.cautions import runs_text
from qrdali.report.findings.finding import (
    NOT_SEEN,
    SEEN,
    UNKNOWN,
    Finding,
    names,
    p_is,
    points,
    seeds_text,
)
from qrdali.report.findings.opponents import is_reduced, methods
from qrdali.report.groups import Group
from qrdali.report.read import Run

CLAIM = "EfficientNet moves and the others do not"
WHAT = "that EfficientNet gains accuracy by reduced images and the other networks do not"
_SET = "test"


@dataclass(frozen=True)
class Gains:
    """Holds a network's gains: for each seed, the mean over its runs trained on reduced images of the test
    accuracy less that of the run they began with. least: the smallest difference that a gain can show.
    """

    network: str
    per_seed: tuple[float, ...]
    least: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.per_seed))

    @property
    def p_value(self) -> float | None:
        """Returns that of the t-test over seeds that the gain is 0; None for one seed."""
        return seeds_p_value(self.per_seed, self.least)

    @property
    def is_shown(self) -> bool:
        return self.p_value is not None and self.p_value < ALPHA and self.mean > 0

    @property
    def text(self) -> str:
        p = self.p_value
        tested = "" if p is None else f", {p_is(p)} by a t-test over seeds"
        return f"{self.network} {points(self.mean)} ({seeds_text(len(self.per_seed))}{tested})"


def _start(group: Group, run: Run) -> Run | None:
    """Returns the run that another began with, if it is in its group."""
    if not run.settings.init:
        return None
    init = Path(run.settings.init).absolute()
    return next((other for other in group.runs if other.folder.absolute() == init), None)


def gains(group: Group) -> Gains:
    """Returns the gains of a network on test, over the seeds whose runs and starts have rows of the same
    images.
    """
    by_seed: dict[int, list[float]] = {}
    for run in group.runs:
        start = _start(group, run)
        if not is_reduced(run.settings) or start is None:
            continue
        if _SET in run.sets and _SET in start.sets and run.sets[_SET].digest == start.sets[_SET].digest:
            gain = run.sets[_SET].accuracy - start.sets[_SET].accuracy
            by_seed.setdefault(run.settings.seed, []).append(gain)
    images = max((len(run.sets[_SET].correct) for run in group.runs if _SET in run.sets), default=1)
    return Gains(group.network, tuple(float(np.mean(values)) for values in by_seed.values()), 1 / images)


def is_efficientnet(group: Group) -> bool:
    return "efficientnet" in group.runs[0].trained.model.lower()


def _difference(one: Gains, other: Gains) -> float | None:
    """Returns the two-sided p value of Welch's t-test of two networks' gains; None unless both have two
    seeds.
    """
    if min(len(one.per_seed), len(other.per_seed)) < 2:
        return None
    if max(np.ptp(one.per_seed), np.ptp(other.per_seed)) < 1e-12:
        # Seeds that agree exactly, as where no run improved on its start: nothing to measure a spread by.
        return None
    return float(ttest_ind(one.per_seed, other.per_seed, equal_var=False).pvalue)


def findings(groups: list[Group], numbers: list[str]) -> list[Finding]:
    """Returns the finding of each data set on which EfficientNet was trained beside another network, if one
    of them was trained on reduced images.
    """
    by_data: dict[tuple[str, tuple[str, ...]], list[tuple[Group, str]]] = {}
    for group, number in zip(groups, numbers, strict=True):
        by_data.setdefault((group.data, group.classes), []).append((group, number))
    found = []
    for (data, _), members in by_data.items():
        ours = [(group, number) for group, number in members if is_efficientnet(group)]
        others = [group for group, _ in members if not is_efficientnet(group)]
        if ours and others and any(methods(group) for group, _ in members):
            found += [_on_data(data if len(by_data) > 1 else "", one, n, others) for one, n in ours]
    return found


def _on_data(about: str, ours: Group, number: str, others: list[Group]) -> Finding:
    own, compared = gains(ours), [gains(group) for group in others]
    figures: dict[str, Any] = {
        "claim": CLAIM,
        "gains": {one.network: list(one.per_seed) for one in (own, *compared)},
    }
    lacking = [one.network for one in (own, *compared) if not one.per_seed]
    table = f"accuracy-{number}"
    if lacking:
        text = (
            f"{CLAIM}: not known is the gain of {names(lacking)} on test over the run that its runs on "
            "reduced images began with. That takes such runs, their start among the report's runs, and "
            "rows of test of both."
        )
        return Finding("claims", about, UNKNOWN, text, figures, table)
    beginning = (
        f"{CLAIM}: mean gain on test of the runs on reduced images over the run they began with: "
        f"{names([one.text for one in (own, *compared)])}."
    )
    beginning += runs_text([run for group in (ours, *others) for run in group.runs], _SET)
    tests = [_difference(own, one) for one in compared]
    known = [p for p in tests if p is not None]
    if len(known) < len(tests):
        text = (
            f"{beginning} Comparing networks takes two seeds or more of each, and gains that vary over them: "
            "whether they differ cannot be said."
        )
        return Finding("claims", about, UNKNOWN, text, figures, table)
    corrected = holm(known)
    figures["p_holm"] = dict(zip((one.network for one in compared), corrected, strict=True))
    parts = [
        f"{points(own.mean - one.mean)} against {one.network} ({p_is(p)} after Holm)"
        for one, p in zip(compared, corrected, strict=True)
    ]
    apart = all(p < ALPHA and own.mean > one.mean for one, p in zip(compared, corrected, strict=True))
    risen = [one.network for one in compared if one.is_shown]
    text = f"{beginning} The EfficientNet's gain differs by {names(parts)}, by Welch's t-test over seeds."
    if risen:
        text += f" But {names(risen)} {'gains' if len(risen) == 1 else 'gain'} too."
    else:
        text += " That the others gain is not shown, which does not show that they do not."
    verdict = SEEN if apart and own.is_shown and not risen else NOT_SEEN
    return Finding("claims", about, verdict, text, figures, table)
