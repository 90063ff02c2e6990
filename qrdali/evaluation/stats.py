"""Tests whether classifiers differ on the same images: McNemar, Holm, intervals, and paired measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap, chi2, wilcoxon

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


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

    difference: mean of second less first. low, high: its paired bootstrap's 95% interval. p_value: Wilcoxon's
    signed-rank test, two-sided, zeros left out; 1 where all are zero.
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
    p = float(wilcoxon(differences, zero_method="wilcox").pvalue) if differences.any() else 1.0
    return Paired(len(first), float(differences.mean()), low, high, p)
