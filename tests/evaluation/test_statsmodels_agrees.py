"""The statistics of findings and noise floors beside statsmodels, where it is installed."""

import numpy as np
import pytest

from qrdali.evaluation.seeded_differences import (
    accuracy_difference,
    measured_difference,
    smallest_of_two_means,
    smallest_over_images,
    smallest_over_seeds,
)
from qrdali.evaluation.stats import holm, wilson

pytest.importorskip("statsmodels")
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestIndPower, TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW


@pytest.mark.parametrize("images", [60, 3000])
def test_mcnemar(images: int) -> None:
    draw = np.random.default_rng(images)
    first, second = draw.random(images) < 0.5, draw.random(images) < 0.52
    second[: images * 3 // 4] = first[: images * 3 // 4]
    table = [[np.sum(x & y) for y in (second, ~second)] for x in (first, ~first)]
    differing = table[0][1] + table[1][0]
    expected = mcnemar(table, exact=differing < 25, correction=False).pvalue
    assert (differing < 25) == (images == 60)
    assert accuracy_difference([(first, second)]).p_value == pytest.approx(expected)


def test_t_tests_and_their_intervals() -> None:
    draw = np.random.default_rng(0)
    values = [draw.normal(0.01, 0.1, 300) for _ in range(4)]
    found = measured_difference([(np.arange(300), one) for one in values])
    assert found.p_images == pytest.approx(DescrStatsW(np.mean(values, axis=0)).ttest_mean(0)[1])
    over_seeds = DescrStatsW([one.mean() for one in values])
    assert found.p_seeds == pytest.approx(over_seeds.ttest_mean(0)[1])
    # Over images the interval is the wider one here, and over seeds where they differ by more than chance.
    over_images = DescrStatsW(np.mean(values, axis=0)).zconfint_mean()
    assert found.interval() == (pytest.approx(over_images[0]), pytest.approx(over_images[1]))
    apart = [one + shift for one, shift in zip(values, (-0.1, 0, 0, 0.1), strict=True)]
    over_seeds = DescrStatsW([one.mean() for one in apart]).tconfint_mean()
    wider = measured_difference([(np.arange(300), one) for one in apart]).interval()
    assert wider == (pytest.approx(over_seeds[0]), pytest.approx(over_seeds[1]))


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_what_is_detectable(count: int, alpha: float) -> None:
    # The power at our answer, without the other tail, which is NaN there: statsmodels' own search ends early
    # where few seeds need large effects.
    effect = smallest_over_seeds(count, 0.02, alpha) / 0.02
    assert TTestPower().power(effect, count, alpha / 2, alternative="larger") == pytest.approx(0.8, abs=1e-6)
    effect = smallest_of_two_means(count, 0.02, alpha) / 0.02
    assert TTestIndPower().power(effect, count, alpha / 2, alternative="larger") == pytest.approx(
        0.8, abs=1e-6
    )
    over_images = NormalIndPower().solve_power(nobs1=1000 * count, alpha=alpha, power=0.8, ratio=0)
    assert smallest_over_images(1000 * count, 0.3, alpha) == pytest.approx(0.3 * over_images, rel=1e-4)


def test_holm() -> None:
    p = list(np.random.default_rng(1).random(40) ** 3)
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))


@pytest.mark.parametrize(("correct", "images"), [(0, 7), (3, 7), (7, 7), (41_234, 50_000)])
def test_intervals_of_accuracies(correct: int, images: int) -> None:
    assert wilson(correct, images) == pytest.approx(proportion_confint(correct, images, method="wilson"))
