"""Compares two methods on the same images over several seeds, and says what such a comparison can find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import floor, log2, sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binomtest, chi2, norm, permutation_test, t, ttest_1samp

from qrdali.evaluation.stats import FEW_DISCORDANT, mcnemar

ALPHA = 0.05
POWER = 0.8
_FEW_IMAGES = 25  # below which the mean of measurements is tested by permutation
_PERMUTATIONS = 9999

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeededDifference:
    """Compares two methods on the same images, by one pair of runs for each seed.

    images: how many were compared. per_seed: the mean of second less first for each seed. p_images: of the
    test whose units are the images, these trained networks being what they are. p_seeds: of the test whose
    units are the seeds, None for one seed. image_deviation: standard deviation, about 0, of an image's mean
    difference. least: the smallest difference that a seed's figure can show, one image for an accuracy.
    """

    images: int
    per_seed: tuple[float, ...]
    p_images: float
    p_seeds: float | None
    image_deviation: float
    least: float = 0.0

    @property
    def seeds(self) -> int:
        return len(self.per_seed)

    @property
    def difference(self) -> float:
        """Returns the mean difference over seeds."""
        return float(np.mean(self.per_seed))

    @property
    def p_value(self) -> float:
        """Returns the larger of the two p values: a difference is shown only if both tests show it.

        That is an intersection-union test (Berger, Technometrics 24, 1982), whose level is that of the two.
        """
        return max(self.p_images, self.p_seeds or 0.0)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the interval (low, high) of the difference: the wider of that of the mean over seeds by
        Student's t and that of the mean over images by the normal distribution.
        """
        tail = (1 + confidence) / 2
        half = float(norm.ppf(tail)) * self.image_deviation / sqrt(self.images)
        if self.seeds > 1:
            deviation = _deviation(self.per_seed, self.least)
            half = max(half, float(t.ppf(tail, self.seeds - 1)) * deviation / sqrt(self.seeds))
        return self.difference - half, self.difference + half

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """Returns the smallest true difference that a comparison like this finds with the given power.

        It is the larger of what the test over images and that over seeds find, by the spread that was
        observed: an estimate, from few seeds a rough one.
        """
        found = smallest_over_images(self.images, self.image_deviation, alpha, power)
        if self.least:  # of answers that are right or wrong
            found = max(found, least_significant(alpha) * self.least)
        if self.seeds > 1:
            deviation = _deviation(self.per_seed, self.least)
            found = max(found, smallest_over_seeds(self.seeds, deviation, alpha, power))
        return found


def accuracy_difference(
    pairs: Sequence[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]],
) -> SeededDifference:
    """Compares right and wrong answers, bool [N] each, of a pair (first, second) of runs for each seed.

    Over images the test is McNemar's; of several seeds the one for clustered pairs, whose clusters are the
    images: χ² = (Σ d)² ÷ Σ d², d being how many more seeds of the second than of the first have an image
    right (Durkalski et al., Statistics in Medicine 22, 2003). Where fewer than 25 images differ it is the
    exact two-sided binomial of how many favour either. Over seeds it is Student's t-test of the
    differences. Raises ValueError for other shapes.
    """
    first, second = pairs[0]
    if any(one.shape != first.shape or other.shape != first.shape for one, other in pairs) or first.ndim != 1:
        raise ValueError("the answers of all runs must be of the same images")
    images = len(first)
    by_image = np.sum([other.astype(np.int64) - one for one, other in pairs], axis=0)
    per_seed = tuple(float(other.mean() - one.mean()) for one, other in pairs)
    if len(pairs) == 1:
        test = mcnemar(first, second)
        few = test.b + test.c < FEW_DISCORDANT
        p_images = test.exact_p_value if few else test.p_value
    else:
        p_images = _clustered_mcnemar(by_image)
    deviation = sqrt(float(np.mean((by_image / len(pairs)) ** 2)))
    return SeededDifference(
        images, per_seed, p_images, seeds_p_value(per_seed, 1 / images), deviation, 1 / images
    )


def _clustered_mcnemar(by_image: npt.NDArray[np.int64]) -> float:
    differing = by_image[by_image != 0]
    if not len(differing):
        return 1.0
    if len(differing) < FEW_DISCORDANT:
        return float(binomtest(int((differing > 0).sum()), len(differing)).pvalue)
    return float(chi2.sf(differing.sum() ** 2 / (differing**2).sum(), 1))


def measured_difference(per_seed: Sequence[tuple[npt.NDArray[np.int64], Floats]]) -> SeededDifference:
    """Compares measurements of images: for each seed the images' numbers, int64 [N], and the differences of
    the second's measurement less the first's, float64 [N]. Seeds may have measured different images.

    Over images the test is Student's t-test of an image's mean difference; below 25 images a permutation of
    its signs, exact up to 13 images. Over seeds it is Student's t-test of the seeds' mean differences. Both
    are tests of a mean. Raises ValueError without a measurement for some seed.
    """
    if not per_seed or not all(len(differences) for _, differences in per_seed):
        raise ValueError("every seed needs a measurement")
    numbers = np.concatenate([samples for samples, _ in per_seed])
    images, place = np.unique(numbers, return_inverse=True)
    sums = np.bincount(place, np.concatenate([differences for _, differences in per_seed]))
    by_image = sums / np.bincount(place)
    means = tuple(float(differences.mean()) for _, differences in per_seed)
    deviation = float(by_image.std(ddof=1)) if len(images) > 1 else 0.0
    return SeededDifference(len(images), means, _mean_p_value(by_image), seeds_p_value(means), deviation)


def _mean_p_value(values: Floats) -> float:
    """Returns the two-sided p value of a mean of 0."""
    if len(values) < 2 or not np.round(values, 12).any():
        return 1.0
    if len(values) < _FEW_IMAGES:
        test = permutation_test(
            (values,),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=_PERMUTATIONS,
            rng=np.random.default_rng(0),
        )
        return float(test.pvalue)
    if np.ptp(values) < 1e-12:  # Student's t would be infinite
        return float(binomtest(len(values), len(values)).pvalue)
    return float(ttest_1samp(values, 0.0).pvalue)


def _deviation(values: Sequence[float], least: float) -> float:
    """Returns the standard deviation of several values, or `least` if that is more."""
    return max(float(np.std(values, ddof=1)), least)


def seeds_p_value(values: Sequence[float], least: float = 0.0) -> float | None:
    """Returns the two-sided p value of Student's t-test that the seeds' values have mean 0; None for one.

    It assumes that seeds differ normally; without that assumption no test of fewer than six seeds reaches
    .05. least: a standard deviation below it counts as it. Seeds that happen to agree to the image would
    otherwise give p = 0.
    """
    if len(values) < 2:
        return None
    mean, deviation = float(np.mean(values)), _deviation(values, least)
    if abs(mean) < 1e-12:
        return 1.0
    if deviation < 1e-12:
        return float(binomtest(len(values), len(values)).pvalue)
    return float(2 * t.sf(abs(mean) / (deviation / sqrt(len(values))), len(values) - 1))


def smallest_over_images(images: int, deviation: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Returns the smallest true mean difference over `images` that a two-sided test finds with `power`.

    deviation: standard deviation of an image's difference. (z(1 − α/2) + z(power)) · deviation ÷ √images.
    """
    return float(norm.ppf(1 - alpha / 2) + norm.ppf(power)) * deviation / sqrt(images)


def smallest_over_seeds(seeds: int, deviation: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Returns the smallest true mean over seeds (two or more) that the two-sided t-test finds with `power`.

    deviation: standard deviation of a seed's difference. Solved with the noncentral t distribution.
    """
    return deviation * _smallest_effect(seeds - 1, 1 / sqrt(seeds), alpha, power)


def smallest_of_two_means(seeds: int, deviation: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Returns the smallest true difference of two methods' means that the two-sided t-test of two
    independent samples of `seeds` (two or more) runs each finds with `power`.

    deviation: standard deviation of a run's figure.
    """
    return deviation * _smallest_effect(2 * seeds - 2, sqrt(2 / seeds), alpha, power)


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Returns nodes and weights of Gauss and Legendre's quadrature on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return (nodes + 1) / 2, weights / 2


@cache
def _smallest_effect(freedom: int, standard_error: float, alpha: float, power: float) -> float:
    """Returns the smallest effect, in standard deviations, that a t-test finds. standard_error: in them.

    The noncentral t distribution is integrated here over the estimate of the deviation: scipy's own is NaN
    far out, where the bounds of corrected tests of few seeds lie.
    """
    bound = float(t.ppf(1 - alpha / 2, freedom))
    nodes, weights = _quadrature()
    estimates = np.sqrt(chi2.ppf(nodes, freedom) / freedom) * bound

    def missing(shift: float) -> float:
        found = norm.sf(estimates - shift) + norm.cdf(-estimates - shift)
        return float(np.sum(found * weights)) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(brentq(missing, 0.0, high, rtol=1e-10)) * standard_error


def least_significant(alpha: float = ALPHA) -> int:
    """Returns how many images must differ, all in one direction, for the exact test to be below `alpha`.

    Of n images that favour one side its p is 2 · 2⁻ⁿ: at α = .05 that takes 6.
    """
    return floor(log2(2 / alpha)) + 1
