"""Tests of few data, zeros and ties, against enumeration; and p values as they are shown."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.stats import rankdata

from qrdali.evaluation.stats import Cluster, clustered_difference, mcnemar, p_text, paired, signed_rank


def enumerated(differences: list[float]) -> float:
    """The two-sided p of the signed-rank test by all signs."""
    values = np.array([d for d in differences if d])
    ranks = rankdata(np.abs(values))
    sums = np.array([(ranks * signs).sum() for signs in product((-1, 1), repeat=len(values))])
    return float((np.abs(sums) >= abs((ranks * np.sign(values)).sum()) - 1e-9).mean())


@pytest.mark.parametrize("zeros", [0, 1, 7, 100])
@pytest.mark.parametrize(("pairs", "p"), [(1, 1), (2, 0.5), (5, 0.0625), (6, 0.03125), (10, 2 / 1024)])
def test_few_pairs_give_no_less_than_their_signs_allow(zeros: int, pairs: int, p: float) -> None:
    differences = np.array([*range(1, pairs + 1), *[0] * zeros], float) / 64
    assert signed_rank(differences) == pytest.approx(p)
    assert signed_rank(-differences) == pytest.approx(p)
    assert paired(np.zeros(len(differences)), differences).p_value == pytest.approx(p)


@pytest.mark.parametrize(
    "differences",
    [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, -1, 1, 0, 0, 1],
        [1, 2, 2, -2, 3, 3, 0],
        [-5, 1, 1, 2, 2, 2, 3, -3, 4, 0, 0, 0],
        [3, -1, 4, -1, 5, -9, 2, 6, -5, 3, 5, -8, 9],
        [1, 2, 3, 4, 5, 6, -7, 8, 9, 10, 11, -12, 13, 14, 15],
    ],
)
def test_ties_and_zeros_are_those_of_enumeration(differences: list[float]) -> None:
    assert signed_rank(np.array(differences, float)) == pytest.approx(enumerated(differences), abs=1e-12)


def test_ties_that_floats_hide() -> None:
    # .3 - .2, .2 - .1 and .1 - 0 differ in the seventeenth digit.
    first, second = np.array([0.2, 0.1, 0, 0.5, 0.7]), np.array([0.3, 0.2, 0.1, 0.4, 0.5])
    assert len({*np.abs(second - first).tolist()}) > 2
    assert signed_rank(second - first) == pytest.approx(enumerated([1, 1, 1, -1, -2]))
    assert signed_rank(np.zeros(4)) == 1


def test_many_pairs_take_the_normal_approximation() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, 400)
    assert signed_rank(np.append(differences, np.zeros(50))) == pytest.approx(signed_rank(differences))


@pytest.mark.parametrize(
    ("p", "text", "three"),
    [
        (0.0499, "0.0499", "0.0499"),
        (0.04999, "0.04999", "0.04999"),
        (0.0496, "0.0496", "0.0496"),
        (0.049, "0.049", "0.049"),
        (0.05, "0.05", "0.05"),
        (0.0501, "0.05", "0.0501"),
        (np.nextafter(0.05, 0), "0.049999999999999996", "0.049999999999999996"),
        (0.00996, "0.00996", "0.00996"),
        (0.009999, "0.009999", "0.009999"),
        (0.01, "0.01", "0.01"),
        (0.000999, "0.000999", "0.000999"),
        (0.0009999, "0.0009999", "0.0009999"),
        (0.001, "0.001", "0.001"),
        (0.00012, "0.00012", "0.00012"),
        (0.0000123, "1.2e-05", "1.23e-05"),
        (0.31731, "0.32", "0.317"),
        (1.0, "1", "1"),
        (0.0, "<1e-300", "<1e-300"),
    ],
)
def test_no_p_value_is_shown_on_the_other_side_of_a_bound(p: float, text: str, three: str) -> None:
    assert (p_text(p), p_text(p, 3)) == (text, three)


def test_shown_p_values_have_the_stars_of_their_own() -> None:
    draw = np.random.default_rng(0)
    for bound in (0.05, 0.01, 0.001):
        for p in bound * (1 + draw.normal(0, 10.0 ** draw.integers(-12, 0, 2000))):
            for digits in (2, 3):
                assert (float(p_text(p, digits)) < bound) == (p < bound), p


def test_mcnemar_says_where_few_images_decide() -> None:
    def of(b: int, c: int) -> bool:
        return mcnemar(np.array([True] * b + [False] * c), np.array([False] * b + [True] * c)).is_doubtful

    # Four images: χ² = 4, p = .0455; by their signs .125.
    assert of(0, 4)
    assert of(0, 5)
    assert not any(of(*pair) for pair in ((0, 6), (0, 3), (5, 15), (12, 13)))
    assert of(6, 16)  # χ² = 4.55, p = .033; exact .052
    assert not of(40, 60)  # p = .0455, exact .057, of a hundred images


def clusters(block: int, *means: float, pairs: int = 3) -> list[Cluster]:
    return [Cluster(block, np.full(pairs, mean)) for mean in means]


def test_the_difference_of_differences_counts_runs_and_not_pairs() -> None:
    runs, shams = clusters(0, 0.3, 0.4, 0.5, pairs=1000), clusters(0, 0.1, pairs=1000)
    found = clustered_difference(runs, shams)
    assert found.difference == pytest.approx(0.3)
    # Of four runs each may be the sham: only the observed one lies as far from the others, .3.
    assert (found.p_value, found.arrangements) == (0.25, 4)
    assert (found.runs, found.controls, found.pairs, found.control_pairs) == (3, 1, 3000, 1000)


def test_a_rise_that_the_sham_has_too_is_none() -> None:
    runs = [c for seed in range(3) for c in clusters(seed, *[0.5 + 0.01 * i for i in range(8)])]
    shams = [c for seed in range(3) for c in clusters(seed, 0.535)]
    found = clustered_difference(runs, shams)
    assert found.difference == pytest.approx(0)
    assert found.p_value == 1
    # Against zero each of these 72 pairs is positive.
    assert all((c.differences > 0).all() for c in runs)


def test_arrangements_stay_within_their_block() -> None:
    draw = np.random.default_rng(1)
    runs, shams, observed, every = [], [], [], []
    for seed in range(3):
        means = draw.normal(10 * seed, 1, 5)
        runs += clusters(seed, *means[2:])
        shams += clusters(seed, *means[:2])
        observed.append(means[2:].mean() - means[:2].mean())
        every.append(
            [
                np.delete(means, chosen).mean() - means[[*chosen]].mean()
                for chosen in combinations(range(5), 2)
            ]
        )
    found = clustered_difference(runs, shams)
    sums = np.array([sum(parts) for parts in product(*every)])
    assert found.arrangements == len(sums) == 1000
    assert found.difference == pytest.approx(np.mean(observed))
    assert found.p_value == pytest.approx((np.abs(sums) >= abs(sum(observed)) - 1e-9).mean())


def test_many_arrangements_are_drawn() -> None:
    draw = np.random.default_rng(2)
    runs = [c for seed in range(6) for c in clusters(seed, *draw.normal(1, 0.1, 10))]
    shams = [c for seed in range(6) for c in clusters(seed, *draw.normal(0, 0.1, 2))]
    found = clustered_difference(runs, shams)
    assert found.arrangements == 200_001
    assert found.p_value == pytest.approx(1 / 200_001)
    assert clustered_difference(runs, shams) == found  # the same every time
    same = clustered_difference(shams[::2], shams[1::2])
    assert (same.arrangements, same.p_value > 0.05) == (64, True)


def test_what_cannot_be_compared_is_left_out() -> None:
    none = clustered_difference(clusters(0, 0.5), clusters(1, 0.1))
    assert (none.runs, none.p_value, none.difference) == (0, 1, 0)
    empty = Cluster(0, np.empty(0))
    found = clustered_difference([*clusters(0, 0.5), empty, *clusters(2, 9)], [*clusters(0, 0.1), empty])
    assert (found.runs, found.controls, found.difference) == (1, 1, pytest.approx(0.4))
    assert clustered_difference([], []).p_value == 1
