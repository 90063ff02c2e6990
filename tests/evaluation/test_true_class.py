"""Rank and probability of the true class: against oracles, in ties, under class maps, on disk."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from torchmetrics.functional.classification import binary_calibration_error

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import RunError
from qrdali.evaluation.class_map import ClassMap
from qrdali.evaluation.predict import top1
from qrdali.evaluation.prediction_rows import (
    has_true_class,
    negative_log_likelihood,
    read_rows,
    top5_accuracy,
)
from qrdali.evaluation.true_class import true_class
from qrdali.runs.settings import validate_settings
from qrdali.workflows.train import run_training


def ranked(logits: torch.Tensor, labels: list[int]) -> tuple[list[int], list[float]]:
    ranks, probability = true_class(logits.double().softmax(1), torch.tensor(labels), top1(logits)[0])
    assert (ranks.dtype, probability.dtype) == (torch.int64, torch.float64)
    return ranks.tolist(), probability.tolist()


def test_against_sorting_and_cross_entropy() -> None:
    random = np.random.default_rng(1)
    logits, labels = random.normal(0, 3, (300, 40)).astype(np.float32), random.integers(0, 40, 300)
    ranks, probability = ranked(torch.from_numpy(logits), labels.tolist())
    order = np.argsort(-logits, axis=1, kind="stable")
    assert ranks == [1 + row.tolist().index(label) for row, label in zip(order, labels, strict=True)]
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert negative_log_likelihood(np.array(probability)) == pytest.approx(loss.item(), rel=1e-12)
    top5 = np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)])
    assert top5_accuracy(np.array(ranks)) == top5


@pytest.mark.parametrize(
    ("logits", "ranks"),
    [
        ([0.0, 0.0, 0.0, 0.0], [1, 2, 3, 4]),  # a network that says nothing: by number
        ([1.0, 2.0, 2.0, 0.0], [3, 1, 2, 4]),
        ([math.nan] * 4, [1, 2, 3, 4]),  # its prediction is class 0
        ([200.0, 0.0, 100.0, -200.0], [1, 3, 2, 4]),  # float32 has 0 for all but the first
        ([-900.0, 0.0, -901.0, -2000.0], [2, 1, 3, 4]),  # float64 has, too: by number again
    ],
)
def test_ties(logits: list[float], ranks: list[int]) -> None:
    found, _ = ranked(torch.tensor([logits] * 4), [0, 1, 2, 3])
    assert found == ranks
    assert int(top1(torch.tensor([logits]))[0]) == ranks.index(1)


def test_a_tie_of_float32_alone_does_not_contradict_the_prediction() -> None:
    logits = torch.tensor([[0.0, 1e-9, -5.0]] * 2)
    assert logits[0, 1] > logits[0, 0]
    assert top1(logits)[0].tolist() == [0, 0]  # equal probabilities in float32
    assert ranked(logits, [0, 1])[0] == [1, 2]


def test_a_likelihood_stays_finite_unless_the_network_is_nan() -> None:
    assert negative_log_likelihood(np.array([1.0, 0.0])) == pytest.approx(708.3964 / 2)
    assert negative_log_likelihood(np.array([1.0, math.nan])) is None


TARGET = np.array([0, 1, 0, -1, 1, -1])
MAPPED = [
    # probabilities by class of the network; label, and its rank and probability by argmax, by sum
    ([0.30, 0.35, 0.25, 0.04, 0.03, 0.03], 0, (2, 0.30), (1, 0.55)),
    ([0.30, 0.35, 0.25, 0.04, 0.03, 0.03], 1, (1, 0.35), (2, 0.38)),
    ([0.05, 0.15, 0.10, 0.50, 0.02, 0.18], 1, (3, 0.15), (1, 0.17)),
    ([0.05, 0.15, 0.10, 0.50, 0.02, 0.18], 0, (4, 0.10), (2, 0.15)),
    ([0.35, 0.02, 0.36, 0.20, 0.01, 0.06], 1, (4, 0.02), (2, 0.03)),  # 0.35 and 0.36 are one answer
]


@pytest.mark.parametrize("rule", ["argmax", "sum"])
def test_mapped_classes_by_hand(rule: Any) -> None:
    mapping = ClassMap(("a", "b", "nothing is mapped to c"), TARGET, rule)
    for values, label, *expected in MAPPED:
        logits = torch.from_numpy(np.log([values]) + 3)
        predictions, confidence = mapping.decide(logits)
        answers = mapping.probability(logits)
        assert answers.shape == (1, 5 if rule == "argmax" else 3)
        ranks, probability = true_class(answers, torch.tensor([label]), predictions)
        rank, of_label = expected[rule == "sum"]
        assert (int(ranks), float(probability)) == (rank, pytest.approx(of_label))
        assert (int(predictions) == label) == (rank == 1)
        assert float(answers.max()) == pytest.approx(float(confidence))
        assert float(answers[0, 2]) == 0


def test_many_classes_of_one_answer_against_numpy() -> None:
    random = np.random.default_rng(2)
    target = random.choice([-1, 0, 0, 0, 0, 1, 2], 200)
    logits = torch.from_numpy(random.normal(0, 2, (50, 200)))
    answers = ClassMap(("a", "b", "c"), target, "argmax").probability(logits).numpy()
    p = logits.softmax(1).numpy()
    expected = [p[:, target == label].max(1) for label in range(3)] + list(p[:, target == -1].T)
    np.testing.assert_array_equal(answers, np.stack(expected, 1))


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = {"method": "shared", "data": str(dataset.folder), "epochs": 1, "model": "test_resnet"}
    small = {"input_size": 32, "batch_size": 8, "device": "cpu", "threads": 1}
    run_training(validate_settings({**settings, **small}), folder, False)
    return folder


def evaluated(run: Path, data: Path, *words: str) -> Any:
    options = ["--data", str(data), "--split", "val", "--device", "cpu", "--threads", "1", *words]
    result = CliRunner().invoke(cli, ["evaluate", "--run", str(run), *options])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stderr


def test_rows_and_json_have_them(run: Path, dataset: Dataset) -> None:
    found = evaluated(run, dataset.folder, "--json")
    table = pq.read_table(run / "predictions" / "val.parquet")
    assert table.schema.field("rank").type == pa.int32()
    assert table.schema.field("true_probability").type == pa.float64()
    rows = read_rows(run, "val")
    right = rows["correct"]
    assert right.any()
    assert not right.all()
    assert ((rows["rank"] == 1) == right).all()
    np.testing.assert_allclose(rows["true_probability"][right], rows["confidence"][right], rtol=1e-5)
    assert (rows["true_probability"][~right] < rows["confidence"][~right]).all()
    assert found["top5_accuracy"] == np.mean(rows["rank"] <= 5) == found["sets"]["val"]["top5_accuracy"]
    assert found["negative_log_likelihood"] == pytest.approx(-np.log(rows["true_probability"]).mean())
    theirs = binary_calibration_error(
        torch.tensor(rows["confidence"].astype(float)), torch.tensor(right.astype(int)), n_bins=15
    )
    assert found["expected_calibration_error"] == pytest.approx(theirs.item(), rel=1e-5)  # theirs is float32
    said = evaluated(run, dataset.folder)
    assert f"expected calibration error {found['expected_calibration_error']:.4f}" in said
    assert "the network may answer 4 classes: top-5 accuracy is 1 whatever it answers" in said
    assert f"top-5 {found['top5_accuracy']:.4f}" in said
    assert f"negative log-likelihood {found['negative_log_likelihood']:.4f}" in said
    # Lines with paths, which stay whole, and sentences on chance are broken only where there is a terminal.
    figures = [line for line in said.splitlines() if str(run) not in line and "above chance" not in line]
    assert max(map(len, figures)) <= 80


def rewritten(run: Path, copy: Path, **columns: Any) -> Path:
    """A run of one file of rows, of which columns are replaced; None leaves one out."""
    table = pq.read_table(run / "predictions" / "val.parquet")
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.remove_column(at) if values is None else table.set_column(at, name, pa.array(values))
    (copy / "predictions").mkdir(parents=True)
    pq.write_table(table, copy / "predictions" / "val.parquet")
    return copy


def test_rows_of_before_have_neither(run: Path, dataset: Dataset, tmp_path: Path) -> None:
    evaluated(run, dataset.folder, "--json")
    count = len(read_rows(run, "val"))
    for i, columns in enumerate([{"rank": None, "true_probability": None}, {"rank": None}]):
        old = rewritten(run, tmp_path / str(i), **columns)
        assert not has_true_class(read_rows(old, "val"))
    assert has_true_class(read_rows(run, "val"))
    for i, columns in enumerate(
        [
            {"rank": np.zeros(count, np.int32)},
            {"rank": np.ones(count, np.int32)},
            {"true_probability": np.full(count, 1.5)},
            {"true_probability": np.full(count, -0.1)},
        ],
        2,
    ):
        with pytest.raises(RunError, match="contradicts itself"):
            read_rows(rewritten(run, tmp_path / str(i), **columns), "val")
