"""Tests whether classifiers differ on the same images: McNemar, Holm, intervals, and paired measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap, chi2, wilcoxon

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
FEW_DISCORDANT = 25  # images, below which the chi-square of McNemar's test is a rough approximation
_SMALLEST_P = 1e-300


@dataclass(frozen=True)
class McNemar:
    """Compares two classifiers on the same images.

    a: images that both have right, b: only the first, c: only the second, d: neither.

    statistic = (b - c)² / (b + c) without continuity correction; p_value by chi-square with one degree of
    freedom (McNemar, Psychometrika 12, 1947); exact_p_value: two-sided binomial of b among b + c. Without
    discordant pairs they are 0, 1, 1.
    """

    a: int
    b: int
    c: int
    d: int
    statistic: float
    p_value: float
    exact_p_value: float

    @property
    def stars(self) -> str:
        """Returns "***" for a p_value below .001, "**" below .01, "*" below .05, otherwise ""."""
        return next((stars for bound, stars in STARS if self.p_value < bound), "")

    @property
    def is_doubtful(self) -> bool:
        """Returns whether few images are discordant, and the exact test does not share a star's verdict."""
        few = self.b + self.c < FEW_DISCORDANT
        return few and self.p_value < STARS[-1][0] <= self.exact_p_value


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """Tests two classifiers by bool [N] arrays of whether each image is right.

    Raises ValueError for other shapes.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"the rows have shapes {first.shape} and {second.shape}: they must be of the same images"
        )
    a, b, c, d = (
        int(np.sum(x & y))
        for x, y in ((first, second), (first, ~second), (~first, second), (~first, ~second))
    )
    if b + c == 0:
        return McNemar(a, b, c, d, 0.0, 1.0, 1.0)
    statistic = (b - c) ** 2 / (b + c)
    return McNemar(a, b, c, d, statistic, float(chi2.sf(statistic, 1)), float(binomtest(b, b + c).pvalue))


def wilson(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval (low, high) of an accuracy (Wilson, JASA 22, 1927).

    Raises ValueError unless 0 <= correct <= images and images >= 1.
    """
    interval = binomtest(correct, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def holm(p_values: list[float]) -> list[float]:
    """Returns the p values of one family of tests, corrected by Holm's step-down method, in their order.

    Source: Holm, Scand. J. Statist. 6, 1979.
    """
    count, running, corrected = len(p_values), 0.0, [1.0] * len(p_values)
    for rank, i in enumerate(sorted(range(count), key=p_values.__getitem__)):
        running = max(running, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = running
    return corrected


_RESAMPLES = 2000  # bootstrap samples
_VALUES_AT_ONCE = 1 << 22  # drawn together, which bounds the memory


def bootstrap_mean(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Returns the 95% interval (low, high) of the mean of float64 [N], N >= 1.

    It is the percentiles of 2,000 resamples (Efron & Tibshirani, 1993). Values that are all the same give
    that value twice.
    """
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _VALUES_AT_ONCE // len(values)),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


@dataclass(frozen=True)
class Paired:
    """Compares two measurements of the same images.

    difference: mean of second less first. low, high: its paired bootstrap's 95% interval. p_value: that of
    `signed_rank`.
    """

    images: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> Paired:
    """Compares float64 [N] arrays of the same images, N >= 1. Raises ValueError for other shapes."""
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"the values have shapes {first.shape} and {second.shape}: they must be of the same images"
        )
    differences = second - first
    low, high = bootstrap_mean(differences)
    return Paired(len(first), float(differences.mean()), low, high, signed_rank(differences))


def signed_rank(differences: npt.NDArray[np.float64]) -> float:
    """Returns the two-sided p value of Wilcoxon's signed-rank test of float64 [N] (Biometrics Bulletin 1,
    1945).

    Differences of zero are left out first. Of the others, of which n remain, it is exact for n up to 50
    without ties and up to 13 with ties, otherwise by the normal approximation with the correction for ties.
    1 where none remains. Differences that agree to twelve decimals are ties: what tells them apart is the
    rounding of floats.
    """
    rounded = np.round(differences, 12)
    remaining = rounded[rounded != 0]
    return float(wilcoxon(remaining, method="auto").pvalue) if len(remaining) else 1.0


def p_text(p: float, digits: int = 2) -> str:
    """Returns a p value with `digits` significant digits, and more where it would otherwise seem to lie on
    the other side of a bound of `STARS`: .0499 is never shown as 0.05.
    """
    if p < _SMALLEST_P:
        return f"<{_SMALLEST_P:.0e}"
    for precision in range(digits, 17):
        text = f"{p:.{precision}g}" if p >= 1e-4 else f"{p:.{precision - 1}e}"
        if all((p < bound) == (float(text) < bound) for bound, _ in STARS):
            return text
    return repr(float(p))


@dataclass(frozen=True)
class Cluster:
    """Holds the differences of one run's pairs, such as the accuracy after a C epoch less that after the R
    epoch before it.

    block: what runs share that are compared with one another, such as their seed. differences: float64 [N].
    """

    block: int
    differences: npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClusteredDifference:
    """Compares the pairs of runs with those of control runs.

    runs, controls, pairs, control_pairs: how many were compared. difference: the mean over blocks of the mean
    of the runs' means less that of the controls'. p_value: two-sided; 1 where nothing can be compared.
    arrangements: of which the p value is a share, so that it is at least 1 ÷ arrangements.
    """

    runs: int
    controls: int
    pairs: int
    control_pairs: int
    difference: float
    p_value: float
    arrangements: int


class _Block(NamedTuple):
    """Holds the clusters of a block: the runs, and the controls."""

    runs: list[Cluster]
    controls: list[Cluster]

    def contrast(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns the difference [A] if the clusters `chosen` [A, controls] were the controls; the first
        clusters are.
        """
        means = np.array([cluster.differences.mean() for cluster in (*self.controls, *self.runs)])
        of_chosen = means[chosen].sum(1)
        contrast = (means.sum() - of_chosen) / len(self.runs) - of_chosen / len(self.controls)
        return np.asarray(contrast, np.float64)


_ARRANGEMENTS = 200_000


def clustered_difference(
    runs: Sequence[Cluster], controls: Sequence[Cluster], seed: int = 0
) -> ClusteredDifference:
    """Tests whether the pairs of runs differ from those of controls, a difference of differences.

    The pairs of one run share its weights and its validation images and are not independent, so a run counts
    once, by the mean of its pairs. The test permutes which runs of a block are called the controls: without
    an effect any of them might be, for they share data, start and seed. It assumes no distribution, where a
    t-test of two or three controls would rest on their being normal (Fisher, The Design of Experiments, 1935;
    Edgington & Onghena, Randomization Tests, 2007). Two-sided: the share of arrangements whose difference is
    at least as far from 0; of all of them up to 200,000, else of so many drawn by `seed` and the one
    observed. Blocks without both kinds, and runs without pairs, are left out.
    """
    blocks = []
    for number in sorted({cluster.block for cluster in runs}):
        block = _Block(
            *([c for c in kind if c.block == number and len(c.differences)] for kind in (runs, controls))
        )
        if block.runs and block.controls:
            blocks.append(block)
    if not blocks:
        return ClusteredDifference(0, 0, 0, 0, 0.0, 1.0, 1)
    sizes = [(len(block.runs) + len(block.controls), len(block.controls)) for block in blocks]
    count = prod(comb(*size) for size in sizes)
    observed, sums = 0.0, np.zeros(1)
    rng = np.random.default_rng(seed)
    for block, (clusters, chosen) in zip(blocks, sizes, strict=True):
        observed += float(block.contrast(np.arange(chosen)[None])[0])
        if count <= _ARRANGEMENTS:
            every = np.array(list(combinations(range(clusters), chosen)))
            sums = np.add.outer(sums, block.contrast(every)).ravel()
        else:
            drawn = rng.random((_ARRANGEMENTS, clusters)).argsort(axis=1)[:, :chosen]
            sums = sums + block.contrast(drawn)
    as_far = int((np.abs(sums) >= abs(observed) * (1 - 1e-9)).sum()) + (count > _ARRANGEMENTS)
    arrangements = len(sums) + (count > _ARRANGEMENTS)
    return ClusteredDifference(
        sum(len(block.runs) for block in blocks),
        sum(len(block.controls) for block in blocks),
        sum(len(cluster.differences) for block in blocks for cluster in block.runs),
        sum(len(cluster.differences) for block in blocks for cluster in block.controls),
        observed / len(blocks),
        as_far / arrangements,
        arrangements,
    )
