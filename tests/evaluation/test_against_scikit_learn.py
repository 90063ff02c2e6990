"""Figures of rows beside scikit-learn's: top-k accuracy, likelihood, kappa, and the confusion matrix."""

from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from qrdali.evaluation.consistency import error_consistency
from qrdali.evaluation.prediction_rows import negative_log_likelihood, read_rows, top5_accuracy
from qrdali.report.build import build

metrics = pytest.importorskip("sklearn.metrics")

CLASSES = tuple(f"class {i:02}" for i in range(12))
IMAGES = 600


def logits(seed: int, skill: float = 1.0) -> "np.ndarray[Any, Any]":
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(IMAGES, len(CLASSES)))
    values[np.arange(IMAGES), labels()] += skill + np.random.default_rng(99).normal(size=IMAGES)
    return values


def labels() -> "np.ndarray[Any, Any]":
    return np.random.default_rng(7).integers(0, len(CLASSES), IMAGES)


def probability(seed: int) -> "np.ndarray[Any, Any]":
    return torch.from_numpy(logits(seed)).softmax(1).numpy()


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = []
    for seed in range(3):
        method = "linear" if seed == 2 else "baseline"
        run = fake_runs.run(
            tmp_path / f"run{seed}", [0.1, 0.5], {}, classes=CLASSES, method=method, seed=seed % 2
        )
        fake_runs.scored_rows(run, "test", logits(seed), labels())
        made.append(run)
    return made


def table(report: dict[str, Any], slug: str) -> list[dict[str, Any]]:
    found = report["tables"][slug]
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def test_top_k_and_likelihood(runs: list[Path]) -> None:
    every = np.arange(len(CLASSES))
    for seed, run in enumerate(runs):
        rows, own = read_rows(run, "test"), probability(seed)
        theirs = metrics.top_k_accuracy_score(labels(), own, k=5, labels=every)
        assert top5_accuracy(rows["rank"]) == pytest.approx(theirs, rel=1e-12)
        torchs = multiclass_accuracy(
            torch.from_numpy(own), torch.from_numpy(labels()), len(CLASSES), average="micro", top_k=5
        )
        assert top5_accuracy(rows["rank"]) == pytest.approx(torchs.item(), rel=1e-6)
        assert rows["correct"].mean() == metrics.accuracy_score(labels(), own.argmax(1))
        loss = metrics.log_loss(labels(), own, labels=every)
        assert negative_log_likelihood(rows["true_probability"]) == pytest.approx(loss, rel=1e-12)


def test_accuracy_per_class_and_confusions_are_the_confusion_matrix(runs: list[Path], tmp_path: Path) -> None:
    report = build(runs, [], tmp_path / "out")
    matrices = [metrics.confusion_matrix(labels(), probability(seed).argmax(1)) for seed in range(3)]
    recall = [np.diag(matrix) / matrix.sum(1) for matrix in matrices]
    found = {row["class"]: row for row in table(report, "classes-1-1")}
    assert sorted(found) == sorted(CLASSES)
    for i, name in enumerate(CLASSES):
        assert found[name]["images"] == (labels() == i).sum()
        assert found[name]["baseline"] == pytest.approx(100 * (recall[0][i] + recall[1][i]) / 2)
        linear = next(value for column, value in found[name].items() if column.startswith("linear"))
        assert linear == pytest.approx(100 * recall[2][i])
        assert found[name]["mean of the runs"] == pytest.approx(100 * np.mean([r[i] for r in recall]))
        others = sum(matrices)[i] * (np.arange(len(CLASSES)) != i)
        share = 100 * others.max() / (3 * (labels() == i).sum())
        assert found[name]["most often taken for"] == f"{CLASSES[others.argmax()]} ({share:.1f}%)"
    means = [row["mean of the runs"] for row in table(report, "classes-1-1")]
    assert means == sorted(means)
    pairs = {(row["class"], row["taken for"]): row for row in table(report, "confusions-1")}
    assert len(pairs) == sum((m > 0).sum() for m in [sum(matrices) * (1 - np.eye(len(CLASSES)))])
    for (name, other), row in pairs.items():
        i, j = CLASSES.index(name), CLASSES.index(other)
        expected = [100 * matrix[i, j] / matrix[i].sum() for matrix in matrices]
        assert row["mean of the runs"] == pytest.approx(np.mean(expected))
        assert row["baseline"] == pytest.approx(np.mean(expected[:2]))
    drawn = report["figures"]["confusion-matrix-1-2"]  # linear's
    counts = {(row[0], row[1]): row[2] for row in drawn["rows"]}
    assert counts == {
        (CLASSES[i], CLASSES[j]): matrices[2][i, j] for i, j in zip(*matrices[2].nonzero(), strict=True)
    }


def test_kappa(runs: list[Path], tmp_path: Path) -> None:
    report = build(runs, [], tmp_path / "out")
    right = [probability(seed).argmax(1) == labels() for seed in range(3)]
    found = {(row["run"], row["and run"]): row for row in table(report, "consistency-1")}
    assert len(found) == 3
    for i, j in ((0, 1), (0, 2), (1, 2)):
        row = found[f"run{i}", f"run{j}"]
        assert row["κ"] == pytest.approx(metrics.cohen_kappa_score(right[i], right[j]), rel=1e-12)
        assert row["observed %"] == pytest.approx(100 * (right[i] == right[j]).mean())
        assert row["images"] == IMAGES
        counts = metrics.confusion_matrix(right[i], right[j])
        own = error_consistency(counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])
        assert own.kappa == pytest.approx(row["κ"], rel=1e-12)
        assert 0.05 < row["κ"] < 0.9
    drawn = {(row[0], row[1]): row[-1] for row in report["figures"]["consistency-1"]["rows"]}
    assert drawn == {pair: row["κ"] for pair, row in found.items()}
