"""Differences over seeds: literals, permutations, and how often they are found where there are none."""

from math import sqrt

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import permutation_test, ttest_1samp

from qrdali.evaluation.noise_floor import accuracy_floor, quotient_floor
from qrdali.evaluation.seeded_differences import (
    accuracy_difference,
    least_significant,
    measured_difference,
    seeds_p_value,
    smallest_over_images,
    smallest_over_seeds,
)

Answers = npt.NDArray[np.bool_]


def right(*counts: int) -> Answers:
    """`counts` of right and wrong answers, in turn."""
    return np.concatenate([np.full(count, i % 2 == 0) for i, count in enumerate(counts)])


def test_one_seed_is_mcnemar() -> None:
    # b = 3, c = 9: fewer than 25 images differ, so the exact binomial: 2 · (1 + 12 + 66 + 220) / 4096.
    few = accuracy_difference([(right(24, 16), right(21, 3, 9, 7))])
    assert few.p_value == few.p_images == pytest.approx(2 * 299 / 4096)
    assert (few.seeds, few.images, few.p_seeds, few.difference) == (1, 40, None, pytest.approx(0.15))
    # b = 10, c = 30: χ² = 400 / 40 = 10.
    many = accuracy_difference([(right(50, 50), right(40, 10, 30, 20))])
    assert many.p_value == pytest.approx(0.0015654, abs=1e-7)
    low, high = many.interval()
    assert (low, high) == (pytest.approx(0.2 - 1.959964 * sqrt(0.4 / 100)), pytest.approx(0.2 + 0.1239589))


def test_no_difference_at_all() -> None:
    same = accuracy_difference([(right(5, 5), right(5, 5))] * 2)
    assert (same.p_images, same.p_seeds, same.p_value, same.difference) == (1, 1, 1, 0)


def seeds(gain: float, spread: float, images: int, count: int, seed: int) -> list[tuple[Answers, Answers]]:
    """Pairs of runs: images of different difficulty, and seeds that differ by `spread`."""
    draw = np.random.default_rng(seed)
    hard = draw.random(images)

    def answers(level: float) -> Answers:
        return np.asarray(hard + 0.1 * draw.standard_normal(images) < level)

    return [
        (
            answers(0.5 + spread * draw.standard_normal()),
            answers(0.5 + gain + spread * draw.standard_normal()),
        )
        for _ in range(count)
    ]


def test_several_seeds_by_other_implementations() -> None:
    pairs = seeds(0.008, 0.002, 2000, 3, seed=1)
    found = accuracy_difference(pairs)
    by_image = np.sum([second.astype(int) - first for first, second in pairs], axis=0)
    permuted = permutation_test(
        (by_image,), np.sum, permutation_type="samples", n_resamples=4000, rng=np.random.default_rng(0)
    )
    assert found.p_images == pytest.approx(permuted.pvalue, abs=0.02)
    assert 0.1 < found.p_images < 0.3  # where a wrong formula shows
    per_seed = [second.mean() - first.mean() for first, second in pairs]
    assert found.per_seed == pytest.approx(per_seed)
    assert found.p_seeds == pytest.approx(ttest_1samp(per_seed, 0).pvalue)
    assert found.p_value == max(found.p_images, found.p_seeds or 0)
    assert found.interval()[0] == pytest.approx(ttest_1samp(per_seed, 0).confidence_interval().low)


def test_an_image_counts_once_however_many_seeds_there_are() -> None:
    # Ten images that every one of 20 seeds gets right and the baseline does not: ten facts, not 200.
    pairs = [(right(50, 50), right(60, 40))] * 20
    assert accuracy_difference(pairs).p_images == pytest.approx(2 / 2**10)


def test_seeds_that_agree_to_the_image_do_not_give_p_0() -> None:
    assert seeds_p_value([0.05, 0.05], 0.01) == pytest.approx(0.08944, abs=1e-5)  # 2 ÷ π · atan(1 ÷ (5 √2))
    assert seeds_p_value([0.05, 0.05]) == pytest.approx(0.5)
    assert seeds_p_value([0.05]) is None


def test_both_tests_must_show_it() -> None:
    # The mean gain is large and every image agrees, but one seed lost: over seeds it is not shown.
    pairs = [(right(500, 500), right(700, 300)), (right(500, 500), right(480, 520))]
    found = accuracy_difference(pairs)
    assert found.p_images < 1e-6
    assert found.p_value == found.p_seeds
    assert found.p_value > 0.5


def test_chance_is_not_claimed() -> None:
    """Without an effect at most 5% are found, but for the noise of 400 trials."""
    for count in (1, 3):
        p = [accuracy_difference(seeds(0, 0, 400, count, seed)).p_value for seed in range(400)]
        assert np.mean(np.array(p) < 0.05) < 0.08


def test_what_is_said_to_be_detectable_is_detected() -> None:
    draw = np.random.default_rng(0)
    smallest = smallest_over_seeds(5, 0.01)
    trials = smallest + 0.01 * draw.standard_normal((4000, 5))
    assert np.mean(ttest_1samp(trials, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    smallest = smallest_over_images(1000, 0.4)  # 16% of the images differ
    favour = np.array([(0.16 - smallest) / 2, (0.16 + smallest) / 2, 0.84])
    b, c, _ = draw.multinomial(1000, favour, 4000).T
    assert np.mean((c - b) ** 2 / (b + c) > 3.841459) == pytest.approx(0.8, abs=0.03)


def test_the_least_that_can_be_significant() -> None:
    assert least_significant() == 6  # 2 / 2⁶ = .031, and 2 / 2⁵ = .0625
    assert accuracy_difference([(right(0, 100), right(6, 94))]).p_value < 0.05
    assert accuracy_difference([(right(0, 100), right(5, 95))]).p_value > 0.05
    # No images differ here: what six would make is the least that is detectable.
    assert accuracy_difference([(right(50, 50), right(50, 50))]).detectable() == pytest.approx(0.06)


def test_measurements_of_few_images_are_permuted() -> None:
    samples = np.arange(6)
    found = measured_difference([(samples, np.array([0.1, 0.2, 0.3, 0.15, 0.25, 0.05]))])
    assert found.p_images == pytest.approx(2 / 64)
    assert found.difference == pytest.approx(0.175)
    assert measured_difference([(samples, np.zeros(6))]).p_value == 1


def test_measurements_of_many_images() -> None:
    draw = np.random.default_rng(2)
    values = draw.normal(-0.02, 0.1, 200)
    found = measured_difference([(np.arange(200), values)])
    assert found.p_images == pytest.approx(ttest_1samp(values, 0).pvalue)
    # Over two seeds an image is one unit: its mean over the seeds that measured it.
    both = measured_difference([(np.arange(150), values[:150]), (np.arange(100, 200), values[100:])])
    assert both.images == 200
    assert both.p_images == pytest.approx(ttest_1samp(values, 0).pvalue)
    assert both.p_seeds == pytest.approx(ttest_1samp([values[:150].mean(), values[100:].mean()], 0).pvalue)


@pytest.mark.parametrize("pairs", [[(right(3), right(4))], [(right(3), right(3)), (right(4), right(4))]])
def test_other_images_are_refused(pairs: list[tuple[Answers, Answers]]) -> None:
    with pytest.raises(ValueError, match="same images"):
        accuracy_difference(pairs)


def test_the_noise_floor() -> None:
    # Accuracies .5, .6, .7: standard deviation .1. The first and the last differ in 20 images, all one way.
    floor = accuracy_floor([right(50, 50), right(60, 40), right(70, 30)])
    assert (floor.runs, floor.pairs, floor.rejected) == (3, 3, 3)
    assert floor.deviation == pytest.approx(0.1)
    # Quantiles of chi-square with two degrees of freedom are −2 ln(1 − p): 7.3778 and .0506356.
    low, high = floor.deviation_interval()
    assert (low, high) == (
        pytest.approx(0.1 * sqrt(2 / 7.377759)),
        pytest.approx(0.1 * sqrt(2 / 0.0506356)),
    )
    assert floor.smallest_of_single_runs == pytest.approx(4.302653 * sqrt(2) * 0.1)
    assert floor.smallest_of_means == pytest.approx(0.3070892, abs=1e-6)  # 3.0709 by G*Power's definition
    # Five images that differ, all one way: χ² = 5 has p = .025, but the exact binomial is .0625.
    assert accuracy_floor([right(50, 50), right(55, 45)]).rejected == 0
    same = accuracy_floor([right(50, 50)] * 3)
    assert (same.rejection_rate, same.deviation, same.smallest_of_means) == (0, 0, 0)
    with pytest.raises(ValueError, match="two or more"):
        accuracy_floor([right(5, 5)])


def test_the_noise_floor_of_one_configuration_is_about_5_percent() -> None:
    """Pairs of networks that differ in random images only are told apart in 5% of cases."""
    draw = np.random.default_rng(3)
    rates = [accuracy_floor([draw.random(500) < 0.6 for _ in range(4)]).rejection_rate for _ in range(100)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.025)


def test_the_noise_floor_of_quotients() -> None:
    one = {i: 0.2 + 0.001 * (i % 2) for i in range(30)}
    two = {i: 0.3 + 0.001 * (i % 3) for i in range(10, 40)}
    floor = quotient_floor([one, two])
    assert floor.values == (pytest.approx(0.2005), pytest.approx(0.301))
    assert (floor.pairs, floor.rejected) == (1, 1)
    apart = quotient_floor([one, {100: 0.5}])
    assert (apart.pairs, apart.rejection_rate) == (0, 0)
