"""The expected calibration error: by hand, at the limits of bins, and beside torchmetrics'."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from qrdali.evaluation.calibration import BINS, bin_edges, calibration


def found(confidence: list[float], correct: list[bool]) -> float:
    bins = calibration(np.array(confidence), np.array(correct))
    assert bins is not None
    return bins.error


def test_by_hand() -> None:
    # Two bins: .95 and .97 of which one is right (|.96 - .5|), and .5, which is right (|.5 - 1|).
    assert found([0.95, 0.97, 0.5], [True, False, True]) == pytest.approx((2 * 0.46 + 0.5) / 3, rel=1e-12)
    assert found([1.0, 1.0], [True, True]) == 0
    assert found([1.0], [False]) == 1
    # Errors in one bin cancel, in two they do not.
    assert found([0.61, 0.61], [True, False]) == pytest.approx(0.11)
    assert found([0.41, 0.81], [True, False]) == pytest.approx((0.59 + 0.81) / 2)


def test_a_confidence_at_the_limit_of_two_bins_is_of_the_lower_one() -> None:
    edges = bin_edges()
    assert len(edges) == BINS + 1
    bins = calibration(edges, np.ones(len(edges), bool))
    assert bins is not None
    assert bins.images.tolist() == [2] + [1] * (BINS - 1)  # 0 and 1/15 are of the first bin
    just_above = calibration(np.nextafter(edges[:-1], 1), np.ones(BINS, bool))
    assert just_above is not None
    assert just_above.images.tolist() == [1] * BINS


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (10, 3.0), (1000, 8.0)])
def test_against_torchmetrics(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    probability = torch.from_numpy(scale * rng.normal(size=(2000, classes))).softmax(1)
    labels = torch.from_numpy(rng.integers(0, classes, 2000))
    labels[:900] = probability[:900].argmax(1)
    confidence, prediction = probability.max(1)
    theirs = multiclass_calibration_error(probability, labels, classes, n_bins=15, norm="l1").item()
    ours = found(confidence.tolist(), (prediction == labels).tolist())
    assert ours == pytest.approx(theirs, rel=1e-5)  # theirs is float32
    assert 0.01 < ours < 0.99


def test_what_is_no_probability_has_no_calibration() -> None:
    right = np.array([True])
    assert calibration(np.array([math.nan]), right) is None
    assert calibration(np.array([1.1]), right) is None
    assert calibration(np.array([-0.1]), right) is None


def test_seeds_together_are_the_calibration_of_all_images() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(300), rng.random(300) < 0.5
    parts = [calibration(confidence[i::3], correct[i::3]) for i in range(3)]
    whole = calibration(confidence, correct)
    assert whole is not None
    together = parts[0]
    assert together is not None
    for part in parts[1:]:
        assert part is not None
        together = together + part
    assert together.images.tolist() == whole.images.tolist()
    assert together.error == pytest.approx(whole.error, rel=1e-12)
    assert whole.mean_confidence == pytest.approx(confidence.mean(), rel=1e-12)
    assert whole.accuracy == correct.mean()
