"""The slides' claim that validation accuracy rises with a full-quality epoch after a reduced one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qrdali.evaluation.seeded_differences import ALPHA, seeds_p_value, smallest_over_seeds
from qrdali.evaluation.stats import Cluster, ClusteredDifference, clustered_difference
from qrdali.report.findings.cautions import runs_text
from qrdali.report.findings.finding import (
    NOT_SEEN,
    SEEN,
    UNKNOWN,
    Finding,
    counted,
    p_is,
    points,
    seeds_text,
)
from qrdali.report.findings.opponents import is_reduced, is_sham
from qrdali.report.groups import Group
from qrdali.report.read import Epoch, Run

CLAIM = "C after R rises"
WHAT = "that validation accuracy rises with a full-quality (C) epoch after a reduced (R) one"


@dataclass(frozen=True)
class Rises:
    """Holds the rises of a run: the validation accuracy after each C epoch that follows an R epoch, less that
    after the R epoch (of rounds that restore, after the best of the round).
    """

    run: Run
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


def rises(run: Run) -> Rises:
    """Returns a run's rises; none of a run that validates R epochs on reduced images."""
    if run.settings.monitor == "phase":
        return Rises(run, ())
    found = []
    for i in range(1, len(run.epochs)):
        before, after = run.epochs[i - 1], run.epochs[i]
        if (before.phase, after.phase) == ("reduced", "full") and before.stage == after.stage:
            found.append(after.val_accuracy - _state_before(run, i))
    return Rises(run, tuple(found))


def _state_before(run: Run, i: int) -> float:
    """Returns the accuracy of the weights that epoch i begins with: the R epoch's before it, or where a round
    has ended and restored its best, the best of the round.
    """
    if run.settings.sequence != "paired-rounds" or not run.settings.restore_best:
        return run.epochs[i - 1].val_accuracy
    stage, best = run.epochs[i].stage, 0.0
    for epoch in reversed(run.epochs[:i]):
        if not _is_reduced_of(epoch, stage):
            break
        best = max(best, epoch.val_accuracy)
    return best


def _is_reduced_of(epoch: Epoch, stage: int) -> bool:
    return epoch.phase == "reduced" and epoch.stage == stage


def _clusters(found: list[Rises], shams: list[Rises]) -> tuple[list[Cluster], list[Cluster]]:
    """Returns the clusters of runs and of shams: a block is a seed and a sequence."""
    keys = sorted({_block(one) for one in (*found, *shams)})
    number = {key: i for i, key in enumerate(keys)}
    runs, controls = (
        [Cluster(number[_block(one)], np.array(one.values)) for one in kind] for kind in (found, shams)
    )
    return runs, controls


def _block(one: Rises) -> tuple[int, str]:
    return one.run.settings.seed, one.run.settings.sequence


def finding(group: Group, about: str, number: str) -> Finding | None:
    """Returns the finding on one network and data set; None without a full-quality epoch that follows a
    reduced one within a stage, validated on full quality.
    """
    found = [one for run in group.runs if is_reduced(run.settings) and (one := rises(run)).values]
    shams = [one for run in group.runs if is_sham(run.settings) and (one := rises(run)).values]
    if not found:
        return None
    by_seed: dict[int, list[float]] = {}
    for one in found:
        by_seed.setdefault(one.run.settings.seed, []).append(one.mean)
    per_seed = [float(np.mean(means)) for means in by_seed.values()]
    mean, p = float(np.mean(per_seed)), seeds_p_value(per_seed, _least(found))
    every = [value for one in found for value in one.values]
    up = sum(value > 0 for value in every)
    text = (
        f"{CLAIM}: after a full-quality (C) epoch that follows a reduced (R) one, validation accuracy was "
        f"higher than with the weights before it in {up} of {counted(len(every), 'pair')} of "
        f"{counted(len(found), 'run')}, by "
        f"{points(mean)} on average (each run and each seed has the same weight; {seeds_text(len(per_seed))}"
    )
    text += ")." if p is None else f"; {p_is(p)} by a t-test over seeds)."
    detectable = None
    if len(per_seed) > 1:
        deviation = max(float(np.std(per_seed, ddof=1)), _least(found))
        detectable = smallest_over_seeds(len(per_seed), deviation)
        text += f" Detectable here: {points(detectable, sign='')}."
    if p is None:
        verdict = UNKNOWN
        text += " One seed: there is no test of it over seeds, and pairs of one run are not independent."
    else:
        verdict = SEEN if p < ALPHA and mean > 0 else NOT_SEEN
    against = clustered_difference(*_clusters(found, shams))
    text += _sham_text(against) + runs_text([one.run for one in (*found, *shams)], "val")
    figures = {
        "claim": CLAIM,
        "runs": len(found),
        "pairs": len(every),
        "pairs_up": up,
        "seeds": len(per_seed),
        "mean_rise": mean,
        "p": p,
        "detectable": detectable,
        "sham": {
            "runs": against.runs,
            "shams": against.controls,
            "difference": against.difference,
            "p": against.p_value,
            "arrangements": against.arrangements,
        },
    }
    return Finding("claims", about, verdict, text, figures, f"accuracy-{number}")


def _least(found: list[Rises]) -> float:
    """Returns one image of val as a share, 0 where its number of images is not known."""
    images = [len(one.run.sets["val"].correct) for one in found if "val" in one.run.sets]
    return 1 / min(images) if images else 0.0


def _sham_text(against: ClusteredDifference) -> str:
    """Returns what the comparison with sham runs says: whether it is the reduction that makes the rise."""
    if not against.controls:
        return (
            " Whether the reduction makes the rise, or any further epoch would, cannot be said: no sham "
            "run of the same seed and sequence has such pairs."
        )
    shown = against.p_value < ALPHA
    compared = (
        f"{counted(against.controls, 'sham run')} of the same seeds and sequences, which "
        f"{'has' if against.controls == 1 else 'have'} no reduction"
    )
    start = (
        f" Beside {compared}, the rise of {counted(against.runs, 'run')} is {points(against.difference)} "
        f"{'higher' if against.difference > 0 else 'lower' if against.difference < 0 else 'apart'} "
        f"({p_is(against.p_value)} by permutation of {counted(against.arrangements, 'arrangement')})"
    )
    if shown:
        return f"{start}: the reduction makes a difference to it."
    if 1 / against.arrangements >= ALPHA:
        return f"{start}: so few runs cannot show a difference by this test."
    return f"{start}: that the reduction makes a difference to it is not shown."
