"""Says whether two classifiers err on the same images more often than chance would have it: Cohen's kappa.

Source: Geirhos, Meding & Wichmann, Beyond accuracy: quantifying trial-by-trial behaviour of CNNs and humans
by measuring error consistency, NeurIPS 2020; Cohen, Educ. Psychol. Meas. 20, 1960.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ErrorConsistency:
    """Compares on which images two classifiers are right.

    images: that both answered. observed: the share of images that both have right or both have wrong.
    expected: that share if two classifiers of their accuracies erred independently of each other. kappa:
    (observed - expected) / (1 - expected), 1 where they err on the same images, 0 where they agree as often
    as chance has it, negative where less often; None where `expected` is 1, because both have everything
    right or both have everything wrong.
    """

    images: int
    observed: float
    expected: float
    kappa: float | None


def error_consistency(both: int, first: int, second: int, neither: int) -> ErrorConsistency:
    """Compares two classifiers by how many images both, only the first, only the second and neither has
    right.

    Raises ValueError where there is no image.
    """
    images = both + first + second + neither
    if not images:
        raise ValueError("there is no image that both classified")
    right, other = both + first, both + second
    # In integers, so that kappa is exact: accuracies near 1 would lose all digits of 1 - expected.
    by_chance = right * other + (images - right) * (images - other)
    agreed = (both + neither) * images
    rest = images * images - by_chance
    kappa = (agreed - by_chance) / rest if rest else None
    return ErrorConsistency(images, agreed / images**2, by_chance / images**2, kappa)


def pairwise_right(correct: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Returns of bool [R, N] how many of the N images each two of R classifiers both have right, int64 [R,
    R].

    The diagonal says how many each has right.
    """
    right = correct.astype(np.float64)  # a product of floats, which is exact below 2^53, takes BLAS
    counts: npt.NDArray[np.int64] = np.rint(right @ right.T).astype(np.int64)
    return counts
