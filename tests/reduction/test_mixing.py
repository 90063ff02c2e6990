"""Mixup and CutMix: shares, boxes and partners by (seed, epoch, step), with timm's boxes as the oracle."""

import numpy as np
import pytest
from scipy import stats
from timm.data import mixup as timm_mixup

from qrdali.reduction.mixing import Box, Mix, MixRule, cut_box


def shares(rule: MixRule, steps: int = 4000) -> list[Mix]:
    return [rule.draw(1, step, 2) for step in range(steps)]


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    drawn = [mix.share for mix in shares(MixRule(alpha, 0, 3, 32))]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_or_cutmix_or_either() -> None:
    assert not MixRule(0, 0, 0, 32).mixes
    assert all(mix.box is None for mix in shares(MixRule(0.5, 0, 0, 32), 50))
    assert all(mix.box is not None for mix in shares(MixRule(0, 0.5, 0, 32), 50))
    both = [mix.box is not None for mix in shares(MixRule(0.5, 0.5, 0, 32))]
    assert 0.47 < np.mean(both) < 0.53


@pytest.mark.parametrize("side", [1, 31, 32])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.97, 1.0])
def test_boxes_are_timms(monkeypatch: pytest.MonkeyPatch, side: int, share: float) -> None:
    for center in ((0, 0), (side - 1, 0), (side // 2, side // 3), (side - 1, side - 1)):
        given = iter(center)
        monkeypatch.setattr(np.random, "randint", lambda *bounds, given=given, **size: next(given))
        top, bottom, left, right = timm_mixup.rand_bbox((3, side, side), share)
        assert cut_box(share, side, center) == Box(top, left, bottom, right)


def test_the_share_of_cutmix_is_that_of_its_pixels() -> None:
    for mix in shares(MixRule(0, 1.0, 5, 30), 500):
        assert mix.box is not None
        top, left, bottom, right = mix.box
        assert 0 <= top <= bottom <= 30
        assert 0 <= left <= right <= 30
        assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 900)


def test_partners_are_a_permutation_that_depends_on_seed_epoch_and_step() -> None:
    rule = MixRule(1.0, 0, 3, 32)
    first = rule.draw(1, 1, 64)
    assert sorted(first.partner.tolist()) == list(range(64))
    again = rule.draw(1, 1, 64)
    assert (again.share, again.box) == (first.share, first.box)
    assert np.array_equal(again.partner, first.partner)
    for other in (rule.draw(2, 1, 64), rule.draw(1, 2, 64), MixRule(1.0, 0, 4, 32).draw(1, 1, 64)):
        assert other.share != first.share
        assert (other.partner == first.partner).mean() < 0.2
    assert rule.draw(1, 1, 1).partner.tolist() == [0]
    # Position p of step s is not position p + 1 of the step before.
    counts = np.zeros((8, 8))
    for step in range(2000):
        counts[np.arange(8), rule.draw(1, step, 8).partner] += 1
    assert 190 < counts.min() < counts.max() < 310


def test_share_and_box_are_the_same_for_parts_of_any_size() -> None:
    rule = MixRule(0.5, 0.5, 0, 32)
    for step in range(20):
        one, other = rule.draw(3, step, 4), rule.draw(3, step, 9)
        assert (one.share, one.box) == (other.share, other.box)
