"""Whether two classifiers differ on the same images: McNemar's test, and intervals of their accuracies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, chi2

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images. a: both right, b: only the first, c: only the second, d: both wrong.

    statistic = (b - c)² / (b + c) without continuity correction, p_value by chi-square with one degree of freedom (McNemar,
    Psychometrika 12, 1947); exact_p_value: two-sided binomial of b among b + c. Without discordant pairs 0, 1 and 1.
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
        """*** below .001, ** below .01, * below .05, by p_value."""
        return next((stars for bound, stars in STARS if self.p_value < bound), "")


def mcnemar(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    """first, second: bool [N], whether each image is classified correctly. Raises ValueError for other shapes."""
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"the rows have shapes {first.shape} and {second.shape}: they must be of the same images")
    a, b, c, d = (int(np.sum(x & y)) for x, y in ((first, second), (first, ~second), (~first, second), (~first, ~second)))
    if b + c == 0:
        return McNemar(a, b, c, d, 0.0, 1.0, 1.0)
    statistic = (b - c) ** 2 / (b + c)
    return McNemar(a, b, c, d, statistic, float(chi2.sf(statistic, 1)), float(binomtest(b, b + c).pvalue))


def wilson(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of an accuracy (Wilson, JASA 22, 1927). Raises ValueError unless 0 <= correct <= images, images >= 1."""
    interval = binomtest(correct, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
