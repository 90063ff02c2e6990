"""What augmentations draw: torchvision's tables, even shares, and the same for every sample in whatever
batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import AugMix, RandAugment, TrivialAugmentWide, autoaugment

from qrdali.reduction.auto_augment import (
    AUGMIX_BINS,
    AUGMIX_DEPTH,
    IDENTITY,
    OPERATORS,
    OperatorDraws,
    Policy,
    erased_windows,
    parse_policy,
)
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan

# Of our operators, in our order.
TORCHVISION = [
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
]
MANY = np.arange(40_000)


def space(policy: str, side: int) -> dict[str, tuple[torch.Tensor, bool]]:
    """torchvision's magnitudes and whether they have a sign."""
    if policy == "trivial":
        return TrivialAugmentWide()._augmentation_space(31)
    if policy == "augmix":
        return AugMix()._augmentation_space(AUGMIX_BINS, (side, side))
    return RandAugment()._augmentation_space(31, (side, side))


@pytest.mark.parametrize("side", [32, 224, 299, 331])
@pytest.mark.parametrize("policy", ["rand-m9", "trivial", "augmix"])
def test_magnitudes_and_signs_are_torchvisions(policy: str, side: int) -> None:
    theirs, ours = space(policy, side), parse_policy(policy)
    if policy != "augmix":
        assert list(theirs) == TORCHVISION
    assert {*theirs, "Identity"} == {*TORCHVISION}
    table, draws = ours.magnitudes(side), ours.draw(0, 1, MANY)
    for number, name in enumerate(TORCHVISION):
        magnitudes, signed = theirs.get(name, (torch.tensor(0.0), False))
        assert table[number] == pytest.approx(
            np.broadcast_to(magnitudes.numpy(), table[number].shape), rel=1e-6
        )
        negated = draws.negative[draws.operator == number]
        assert negated.any() == signed, name
        assert not signed or 0.45 < negated.mean() < 0.55
    # Whole pixels and bits are what torchvision makes of its own; its 16 pixels are 15.999999 in float32.
    for name in ("TranslateX", "TranslateY", "Posterize"):
        theirs_whole = [int(magnitude.item() + 1e-4) for magnitude in theirs[name][0]]
        assert table[TORCHVISION.index(name)].astype(int).tolist() == theirs_whole


@pytest.mark.parametrize("policy", ["rand-m9", "trivial"])
def test_operators_are_as_likely_as_one_another(policy: str) -> None:
    draws = parse_policy(policy).draw(7, 3, MANY)
    for place in range(draws.operator.shape[1]):
        counts = np.bincount(draws.operator[:, place], minlength=len(OPERATORS))
        expected = len(MANY) / len(OPERATORS)
        assert ((counts - expected) ** 2 / expected).sum() < 34.5  # chi-square, 13 degrees, p = .001
    if policy == "trivial":
        bins = np.bincount(draws.bin[:, 0], minlength=31)
        assert len(bins) == 31
        assert ((bins - len(MANY) / 31) ** 2 / (len(MANY) / 31)).sum() < 59.7  # 30 degrees
    else:
        assert set(draws.bin.ravel().tolist()) == {9}
        # The second operator does not follow from the first.
        assert 0.06 < (draws.operator[:, 0] == draws.operator[:, 1]).mean() < 0.083


def test_the_chains_of_augmix() -> None:
    draws = parse_policy("augmix").draw(5, 2, MANY)
    assert draws.weights is not None
    assert draws.weights.sum(axis=1) == pytest.approx(1)
    assert draws.weights.min() >= 0
    # Beta(1, 1) of the image itself, Dirichlet(1, 1, 1) of the rest: means and variances.
    assert draws.weights.mean(axis=0) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=0.005)
    assert draws.weights[:, 0].var() == pytest.approx(1 / 12, rel=0.03)
    chains = draws.weights[:, 1:] / draws.weights[:, 1:].sum(axis=1, keepdims=True)
    assert chains.var(axis=0) == pytest.approx([1 / 18] * 3, rel=0.05)
    used = draws.operator.reshape(len(MANY), 3, AUGMIX_DEPTH) != IDENTITY
    assert used[..., 0].all()
    assert (used[..., 1] | ~used[..., 2]).all()  # the third only after the second
    assert np.bincount(used.sum(axis=2).ravel())[1:] / used[..., 0].size == pytest.approx(
        [1 / 3] * 3, abs=0.01
    )
    assert set(draws.bin.ravel().tolist()) == {0, 1, 2}


def equal(one: OperatorDraws, other: OperatorDraws) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("policy", ["rand-m9", "trivial", "augmix"])
def test_neighbouring_keys_draw_otherwise(policy: str) -> None:
    drawn = parse_policy(policy)
    first = drawn.draw(1, 1, MANY[:100])
    assert equal(first, drawn.draw(1, 1, MANY[:100]))
    for other in (drawn.draw(2, 1, MANY[:100]), drawn.draw(1, 2, MANY[:100]), drawn.draw(1, 1, MANY[1:101])):
        assert (first.operator == other.operator).mean() < 0.6


def augmentations(batch_size: int, rank: int, world_size: int, first_batch: int = 0) -> dict[int, Any]:
    """By sample what is done to it, of one rank's part of an epoch."""
    plan = EpochPlan(
        samples=50,
        batch_size=batch_size,
        levels=FULL_QUALITY,
        seed=3,
        epoch=4,
        training=True,
        auto_augment="rand-m9",
        erase=0.5,
        rank=rank,
        world_size=world_size,
        first_batch=first_batch,
    )
    found = {}
    for number in range(first_batch, plan.batches):
        samples = plan.batch(number)
        augmentation = plan.augmentation(samples, 32)
        assert augmentation is not None
        assert augmentation.draws is not None
        assert augmentation.erased is not None
        for i, sample in enumerate(samples.tolist()):
            draws = [field[i].tolist() for field in augmentation.draws[:3]]  # type: ignore[index]
            found[sample] = (draws, augmentation.erased[i].tolist())
    return found


def test_samples_are_augmented_alike_in_any_batch_on_any_rank_and_after_a_resume() -> None:
    whole = augmentations(50, 0, 1)
    assert len(whole) == 50
    assert augmentations(7, 0, 1) == whole
    ranks = [augmentations(8, rank, 3) for rank in range(3)]
    assert {sample: done for part in ranks for sample, done in part.items()} == whole
    resumed = augmentations(7, 0, 1, first_batch=4)
    assert len(resumed) == 22
    assert all(whole[sample] == done for sample, done in resumed.items())


def test_nothing_is_augmented_in_an_evaluation() -> None:
    for values in ({"auto_augment": "trivial"}, {"erase": 1.0}):
        plan = EpochPlan(50, 10, FULL_QUALITY, **values)  # type: ignore[arg-type]
        assert plan.augmentation(np.arange(10), 32) is None
        assert plan.policy is None
        assert not plan.erases
    assert EpochPlan(50, 10, FULL_QUALITY, training=True).augmentation(np.arange(10), 32) is None


def test_erased_windows() -> None:
    side = 100
    windows = erased_windows(0.25, 0, 1, MANY, side)
    erased = windows[windows[:, 2] > 0]
    assert 0.24 < len(erased) / len(MANY) < 0.26
    assert (windows[windows[:, 2] == 0] == 0).all()
    top, left, height, width = erased.T
    assert min(top.min(), left.min(), height.min(), width.min()) >= 0
    assert (height < side).all()
    assert (width < side).all()
    assert (top + height).max() == side
    assert (left + width).max() == side
    area, ratio = height * width / side**2, height / width
    assert 0.018 < area.min() < 0.021
    assert 0.32 < area.max() < 0.335
    assert 0.27 < ratio.min() < 0.33
    assert 3.0 < ratio.max() < 3.7
    # As often wider as higher, anywhere.
    assert 0.48 < (height > width).mean() < 0.52
    assert 0.45 < (top / np.maximum(1, side - height)).mean() < 0.55
    assert (erased_windows(0, 0, 1, MANY, side) == 0).all()
    assert (erased_windows(1, 0, 1, MANY, side)[:, 2] > 0).all()


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("rand-m0", Policy("rand-m0", "rand", 0)),
        ("rand-m9", Policy("rand-m9", "rand", 9)),
        ("rand-m30", Policy("rand-m30", "rand", 30)),
        ("trivial", Policy("trivial", "trivial")),
        ("augmix", Policy("augmix", "augmix")),
    ],
)
def test_names_of_policies(name: str, policy: Policy) -> None:
    assert parse_policy(name) == policy


@pytest.mark.parametrize(
    "name",
    ["rand", "rand-m", "rand-m31", "rand-m09", "rand-m-1", "rand-m9-mstd0.5", "RAND-M9", "autoaugment", ""],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="rand-mM with M from 0 to 30"):
        parse_policy(name)


def test_torchvision_has_the_operators_of_before() -> None:
    """A version of torchvision with others would not be the oracle that these tests take it for."""
    assert {name for name in TORCHVISION if f'"{name}"' in _source(autoaugment._apply_op)} == {*TORCHVISION}


def _source(function: Any) -> str:
    import inspect

    return inspect.getsource(function)
