"""Cohen's kappa of which images two classifiers have right: by hand, and beside other implementations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torchmetrics.functional.classification import binary_cohen_kappa

import qrdali
from qrdali.cli.main import cli
from qrdali.evaluation.consistency import error_consistency, pairwise_right


def test_by_hand() -> None:
    # Accuracies .7 and .6: .7 · .6 + .3 · .4 = .54 by chance, .7 observed.
    found = error_consistency(50, 20, 10, 20)
    assert (found.images, found.observed) == (100, 0.7)
    assert found.expected == pytest.approx(0.54, rel=1e-12)
    assert found.kappa == pytest.approx(0.16 / 0.46, rel=1e-12)
    assert error_consistency(3, 0, 0, 5).kappa == 1
    assert error_consistency(0, 4, 4, 0).kappa == -1
    assert error_consistency(1, 1, 1, 1).kappa == 0


def test_it_is_undefined_where_both_have_everything_right_or_wrong() -> None:
    assert error_consistency(8, 0, 0, 0).kappa is None
    assert error_consistency(0, 0, 0, 8).kappa is None
    assert error_consistency(7, 1, 0, 0).kappa == 0  # one of them errs
    with pytest.raises(ValueError, match="no image"):
        error_consistency(0, 0, 0, 0)


def two(accuracies: tuple[float, float], images: int, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    hard = rng.random(images)  # shared, so that both err on the same images more often than by chance
    first, second = (0.5 * hard + 0.5 * rng.random(images) < accuracy for accuracy in accuracies)
    return first, second


@pytest.mark.parametrize("accuracies", [(0.5, 0.5), (0.9, 0.3), (0.05, 0.99)])
def test_against_torchmetrics(accuracies: tuple[float, float]) -> None:
    first, second = two(accuracies, 5000, 1)
    both = pairwise_right(np.stack([first, second]))
    assert both.tolist() == [[first.sum(), (first & second).sum()], [(first & second).sum(), second.sum()]]
    right, one, other = int(both[0, 1]), int(both[0, 0]), int(both[1, 1])
    found = error_consistency(right, one - right, other - right, 5000 - one - other + right)
    theirs = binary_cohen_kappa(torch.from_numpy(first).int(), torch.from_numpy(second).int()).item()
    assert found.kappa == pytest.approx(theirs, rel=1e-4, abs=1e-6)  # theirs is float32


def test_many_images_lose_no_digit() -> None:
    found = error_consistency(10**9 - 3, 1, 1, 1)
    # 1 - expected is 4e-9: floats would keep half of the digits.
    p = 1 - 2e-9
    assert found.kappa == pytest.approx(0.5, rel=1e-8)
    assert found.expected == pytest.approx(p * p, rel=1e-12)


def rows(run: Path, correct: "np.ndarray[Any, Any]") -> None:
    count = len(correct)
    (run / "predictions").mkdir(parents=True)
    pq.write_table(
        pa.table(
            {
                "sample": np.arange(count),
                "path": [f"/p/{i}" for i in range(count)],
                "label": np.zeros(count, np.int32),
                "prediction": np.where(correct, 0, 1).astype(np.int32),
                "correct": correct,
                "confidence": np.full(count, 0.5, np.float32),
            }
        ),
        run / "predictions" / "test.parquet",
    )


def test_compare_says_it(tmp_path: Path) -> None:
    a, b, perfect = tmp_path / "a", tmp_path / "b", tmp_path / "perfect"
    rows(a, np.repeat([True, True, False, False], [50, 20, 10, 20]))
    rows(b, np.repeat([True, False, True, False], [50, 20, 10, 20]))
    rows(perfect, np.ones(100, bool))
    comparison = qrdali.compare(a, b)
    assert comparison.consistency.kappa == pytest.approx(0.16 / 0.46, rel=1e-12)
    result = CliRunner().invoke(cli, ["compare", str(a), str(b), "--json"])
    found = json.loads(result.stdout)
    assert found["kappa"] == comparison.consistency.kappa
    assert (found["observed_agreement"], found["expected_agreement"]) == (0.7, pytest.approx(0.54))
    said = CliRunner().invoke(cli, ["compare", str(a), str(b)]).stderr
    assert "error consistency: κ = 0.3478 (alike on 70.00% of the images, 54.00% expected by chance)" in said
    same = ["compare", str(perfect), str(perfect)]
    assert json.loads(CliRunner().invoke(cli, [*same, "--json"]).stdout)["kappa"] is None
    assert "error consistency: undefined" in CliRunner().invoke(cli, same).stderr
