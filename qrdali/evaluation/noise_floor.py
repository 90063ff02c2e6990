"""The noise floor: how far runs of one configuration differ by nothing but their seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, t

from qrdali.evaluation.seeded_differences import ALPHA, POWER, measured_difference, smallest_of_two_means
from qrdali.evaluation.stats import FEW_DISCORDANT, mcnemar

Measured = dict[int, float]


@dataclass(frozen=True)
class NoiseFloor:
    """Holds how far a figure varies over runs of one configuration, and what that hides.

    values: the figure of each run. pairs, rejected: the A/A pairs, every two of the runs, and those of them
    that the test of two runs tells apart (p < .05) although they differ by their seeds alone.
    """

    values: tuple[float, ...]
    pairs: int
    rejected: int

    @property
    def runs(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Returns the standard deviation over runs (n − 1)."""
        return float(np.std(self.values, ddof=1))

    @property
    def rejection_rate(self) -> float:
        """Returns the share of A/A pairs that the test tells apart. The pairs share runs, so that they are
        not independent trials.
        """
        return self.rejected / self.pairs if self.pairs else 0.0

    def deviation_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the interval (low, high) of the standard deviation, for normal figures by chi-square."""
        freedom, tail = self.runs - 1, (1 - confidence) / 2
        low, high = chi2.ppf([1 - tail, tail], freedom)
        return self.deviation * sqrt(freedom / low), self.deviation * sqrt(freedom / high)

    @property
    def smallest_of_single_runs(self) -> float:
        """Returns the difference that a single run must exceed to stand out from another of these runs: the
        half-width of the 95% prediction interval of the difference of two, t(.975, n − 1) · √2 · deviation.
        """
        return float(t.ppf(1 - ALPHA / 2, self.runs - 1)) * sqrt(2) * self.deviation

    @property
    def smallest_of_means(self) -> float:
        """Returns the smallest true difference that a t-test (α = .05) of the means of two configurations
        finds with a power of 80%, each with as many runs as there are here.
        """
        return smallest_of_two_means(self.runs, self.deviation, ALPHA, POWER)


def accuracy_floor(
    answers: Sequence[npt.NDArray[np.bool_]], networks: Sequence[int] | None = None
) -> NoiseFloor:
    """Returns the noise floor of accuracies of two or more runs, bool [N] each, of the same images.

    networks: a number for each run, the same for runs of the same weights, which are no A/A pair; None where
    all differ. The test of a pair is McNemar's, the exact one where fewer than 25 images differ. Raises
    ValueError for fewer runs or other shapes.
    """
    _require_several(len(answers))
    tests = [mcnemar(answers[i], answers[j]) for i, j in _pairs(len(answers), networks)]
    p_values = [test.exact_p_value if test.b + test.c < FEW_DISCORDANT else test.p_value for test in tests]
    values = tuple(float(correct.mean()) for correct in answers)
    return NoiseFloor(values, len(tests), sum(p < ALPHA for p in p_values))


def quotient_floor(quotients: Sequence[Measured], networks: Sequence[int] | None = None) -> NoiseFloor:
    """Returns the noise floor of mean quotients of two or more runs, each by its images' sample numbers.

    The figure of a run is its mean over its own images; the test of a pair is the paired one of the mean
    difference on the images that both have (`measured_difference`), and a pair without such an image is left
    out. networks: as of `accuracy_floor`. Raises ValueError for fewer runs or one without an image.
    """
    _require_several(len(quotients))
    if not all(quotients):
        raise ValueError("every run needs an image with a quotient")
    p_values = []
    for i, j in _pairs(len(quotients), networks):
        one, other = quotients[i], quotients[j]
        common = sorted(one.keys() & other.keys())
        if common:
            differences = np.array([other[sample] - one[sample] for sample in common])
            p_values.append(measured_difference([(np.array(common), differences)]).p_images)
    values = tuple(float(np.mean(list(measured.values()))) for measured in quotients)
    return NoiseFloor(values, len(p_values), sum(p < ALPHA for p in p_values))


def _pairs(runs: int, networks: Sequence[int] | None) -> list[tuple[int, int]]:
    """Returns the A/A pairs of runs by their numbers: every two of different networks."""
    numbers = range(runs) if networks is None else networks
    return [(i, j) for i, j in combinations(range(runs), 2) if numbers[i] != numbers[j]]


def _require_several(runs: int) -> None:
    if runs < 2:
        raise ValueError(f"{runs} run: a noise floor takes two or more of one configuration")
