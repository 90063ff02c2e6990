import math
import tracemalloc
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare

from qrdali.models import Preprocessing
from qrdali.reduction.counter_rng import Purpose, philox, uniform
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.schedule.epoch_plan import EpochPlan, permute, small_order


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [
        (0, (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, (2**32 - 1,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers_of_random123(key: int, counter: tuple[int, int, int, int], words: str) -> None:
    assert " ".join(f"{int(word):08x}" for word in philox(key, counter)) == words


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 4096, 4097, 10007])
def test_a_shuffle_is_a_bijection(count: int) -> None:
    order = permute(np.arange(count), count, 5, 1)
    assert sorted(order.tolist()) == list(range(count))
    if count > 16:
        assert (order != np.arange(count)).mean() > 0.9
        assert (order != permute(np.arange(count), count, 5, 2)).mean() > 0.9
        assert (order != permute(np.arange(count), count, 6, 1)).mean() > 0.9


def test_every_place_of_a_shuffle_is_as_likely_for_a_sample() -> None:
    places = np.array([np.flatnonzero(permute(np.arange(6), 6, seed, 1) == 2)[0] for seed in range(3000)])
    expected = 500
    assert (
        (np.bincount(places, minlength=6) - expected) ** 2 / expected
    ).sum() < 20.5  # chi-square, 5 df, p = .001


def stream(count: int, batch_size: int, world: int, first: int = 0) -> list[int]:
    plans = [
        EpochPlan(
            count, batch_size, FULL_QUALITY, seed=9, epoch=4, training=True, rank=rank, world_size=world
        )
        for rank in range(world)
    ]
    return [s for b in range(first, plans[0].batches) for plan in plans for s in plan.batch(b).tolist()]


@pytest.mark.parametrize("count", [1, 31, 64, 4096 * 2 + 77])
def test_the_stream_depends_on_neither_batch_size_nor_ranks(count: int) -> None:
    reference = stream(count, 32, 1)
    assert sorted(reference) == list(range(count))
    for batch_size in (7, 32):
        for world in (1, 2, 3):
            assert stream(count, batch_size, world) == reference
    assert stream(count, 7, 2, first=3) == reference[21:]


def test_ranks_of_large_batches_see_what_one_process_sees() -> None:
    """They permute their own places only, one process whole blocks."""
    reference = stream(10_000, 4096, 1)
    assert sorted(reference) == list(range(10_000))
    assert stream(10_000, 4096, 7) == stream(10_000, 4096, 2) == reference


def test_the_last_batch_is_partial() -> None:
    plan = EpochPlan(65, 32, FULL_QUALITY)
    assert [len(plan.batch(b)) for b in range(plan.batches)] == [32, 32, 1]
    assert plan.batch(2).tolist() == [64]


def test_ten_to_the_eight_samples_start_in_bounded_memory() -> None:
    tracemalloc.start()
    batch = EpochPlan(10**8, 32, FULL_QUALITY, training=True).batch(10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(batch.tolist())) == 32
    assert batch.max() > 2**24
    assert peak < 20e6


def test_draws_belong_to_seed_epoch_sample_and_purpose() -> None:
    samples = np.arange(100)
    draws = uniform(1, 2, samples, Purpose.CROP)
    assert np.array_equal(draws[[7, 3]], uniform(1, 2, np.array([7, 3]), Purpose.CROP))
    for other in (
        uniform(2, 2, samples, Purpose.CROP),
        uniform(1, 3, samples, Purpose.CROP),
        uniform(1, 2, samples, Purpose.FLIP),
        uniform(1, 2, samples + 1, Purpose.CROP),
        uniform(1, 2, samples, Purpose.CROP, 1),
    ):
        assert (draws == other).mean() < 0.01
    assert draws.min() >= 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.05


@pytest.mark.parametrize("augment", ["flip", "rrc", "none"])
def test_views_stay_inside(augment: str) -> None:
    sizes = np.array([[1, 1], [1, 50], [50, 1], [37, 91]] * 25, np.int32)
    plan = EpochPlan(100, 100, FULL_QUALITY, training=True, augment=augment)
    pre = Preprocessing(8, "whole", 1, "bilinear", (0.5,) * 3, (0.5,) * 3)
    view = plan.view(np.arange(100), sizes, pre)
    assert (view.region[:, :2] >= 0).all()
    assert (view.region[:, 2:] <= sizes).all()
    assert (view.region[:, 2:] > view.region[:, :2]).all()
    assert (augment == "none") == (not view.flip.any())
    assert (augment == "rrc") == bool((view.region[:, 2:] - view.region[:, :2] < sizes).any())


@pytest.mark.parametrize("count", [3, 4, 5])
def test_any_order_of_few_images_is_as_likely_as_any_other(count: int) -> None:
    orders = [tuple(small_order(count, seed, epoch)) for seed in range(40) for epoch in range(120)]
    seen = Counter(orders)
    assert len(seen) == math.factorial(count)
    assert chisquare(list(seen.values())).pvalue > 1e-4


def test_orders_change_their_kind_at_4096_images() -> None:
    def order(count: int, definitions: int) -> npt.NDArray[np.int64]:
        plan = EpochPlan(count, count, FULL_QUALITY, seed=3, epoch=2, training=True, definitions=definitions)
        return plan.batch(0)

    assert np.array_equal(order(4095, 2), small_order(4095, 3, 2))
    assert np.array_equal(order(4096, 2), order(4096, 1))
    assert not np.array_equal(order(4095, 2), order(4095, 1))
    assert np.array_equal(order(4095, 1), permute(np.arange(4095), 4095, 3, 2))
    assert sorted(order(4095, 2)) == list(range(4095))


@pytest.mark.parametrize("definitions", [1, 2])
def test_training_windows_fall_on_every_place_alike(definitions: int) -> None:
    """Definitions 1 gave both borders half the chance of the other places."""
    count, side = 20_000, 8  # at quality .25 a window of 4: 5 places along each side
    plan = EpochPlan(
        count, 32, ConstantLevels(crop=3), seed=1, epoch=1, training=True, definitions=definitions
    )
    window = plan.parameters(np.arange(count), np.full((count, 2), side, np.int32)).window
    assert window[0, 2:].tolist() == [4, 4]
    for axis in (0, 1):
        places = np.bincount(window[:, axis], minlength=5)
        assert len(places) == 5
        pvalue = chisquare(places).pvalue
        assert pvalue > 1e-4 if definitions == 2 else pvalue < 1e-9
