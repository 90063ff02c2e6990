"""A network's classes mapped to others: rules by hand, wrong files, and `qrdali evaluate` on such data."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.errors import InputError, RunError
from qrdali.evaluation import predict
from qrdali.evaluation.class_map import ClassMap, read_class_map
from qrdali.evaluation.predict import top1
from qrdali.evaluation.prediction_rows import read_metadata, read_rows
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import validate_settings
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training

TARGET = np.array([0, 1, 0, -1, 1])
PROBABILITIES = [
    [0.30, 0.35, 0.25, 0.05, 0.05],
    [0.05, 0.15, 0.10, 0.60, 0.10],
    [0.50, 0.20, 0.20, 0.00, 0.10],
    [0.05, 0.05, 0.05, 0.05, 0.80],
]


@pytest.mark.parametrize(
    ("rule", "predictions", "confidences"),
    [
        ("argmax", [1, -1, 0, 1], [0.35, 0.60, 0.50, 0.80]),
        ("sum", [0, 1, 0, 1], [0.55, 0.25, 0.70, 0.85]),
    ],
)
def test_both_rules_by_hand(rule: Any, predictions: list[int], confidences: list[float]) -> None:
    logits = torch.from_numpy(np.log(np.maximum(PROBABILITIES, 1e-30)) + 7).float()
    prediction, confidence = ClassMap(("a", "b"), TARGET, rule).decide(logits)
    assert (prediction.dtype, confidence.dtype) == (torch.int64, torch.float32)
    assert prediction.tolist() == predictions
    np.testing.assert_allclose(confidence.numpy(), confidences, rtol=1e-5)


def test_random_logits_against_numpy() -> None:
    random = np.random.default_rng(4)
    logits, target = random.normal(0, 3, (200, 30)), random.integers(-1, 6, 30)
    target[:6] = np.arange(6)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sums = np.stack([p[:, target == d].sum(1) for d in range(6)], axis=1)
    by_sum = ClassMap(tuple("abcdef"), target, "sum").decide(torch.from_numpy(logits))
    assert by_sum[0].tolist() == sums.argmax(1).tolist()
    np.testing.assert_allclose(by_sum[1].numpy(), sums.max(1), rtol=1e-5)
    first = ClassMap(tuple("abcdef"), target, "argmax").decide(torch.from_numpy(logits))
    assert first[0].tolist() == [target[i] for i in p.argmax(1)]
    assert -1 in first[0].tolist()
    many = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    assert (
        float(ClassMap(("a",), np.zeros(1000, np.int64), "sum").decide(many)[1].max()) == 1
    )  # without rounding up past it


@pytest.mark.parametrize(
    ("rule", "answers", "confidences", "probabilities"),
    [
        ("argmax", [1, 5, 0, 1], [0.35, 0.60, 0.50, 0.80], [0.30, 0.15, 0.50, 0.80]),
        ("sum", [0, 1, 0, 1], [0.55, 0.25, 0.70, 0.85], [0.55, 0.25, 0.70, 0.85]),
    ],
)
def test_what_a_search_is_told_by_hand(
    rule: Any, answers: list[int], confidences: list[float], probabilities: list[float]
) -> None:
    logits = torch.from_numpy(np.log(np.maximum(PROBABILITIES, 1e-30)) + 7).float()
    mapping = ClassMap(("a", "b"), TARGET, rule, tuple("vwxyz"))
    judged = mapping.judge(logits, torch.tensor([0, 1, 0, 1]))
    assert judged.answer.tolist() == answers
    np.testing.assert_allclose(judged.confidence.numpy(), confidences, rtol=1e-5)
    np.testing.assert_allclose(judged.probability.numpy(), probabilities, rtol=1e-5)
    names = ["b", "y", "a", "b"] if rule == "argmax" else ["a", "b", "a", "b"]
    assert [mapping.answers[answer] for answer in answers] == names
    # It says what `decide` says, but for the names of what is not mapped.
    prediction, confidence = mapping.decide(logits)
    assert torch.equal(confidence, judged.confidence)
    assert prediction.tolist() == [answer if answer < 2 else -1 for answer in answers]


def test_a_digest_is_of_the_mapping_alone(tmp_path: Path) -> None:
    digests = []
    for i, text in enumerate(("a\tx\nb\ty\n", "# a comment\nb\ty\na\tx\n", "a\ty\nb\tx\n")):
        file = tmp_path / f"{i}.tsv"
        file.write_text(text)
        digests.append(read_class_map(file, ("a", "b", "c"), ("x", "y"), "sum").digest)
    assert digests[0] == digests[1] != digests[2]


def test_chance_is_that_of_a_uniform_guess() -> None:
    assert ClassMap(("a", "b"), TARGET, "sum").chance == 0.5
    assert ClassMap(("a", "b"), TARGET, "argmax").chance == pytest.approx(
        0.4
    )  # a, twice in five, is right in half the images; b too


RUN = ("tabby", "tiger cat", "husky", "sofa")


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "map.tsv"
    file.write_bytes(
        "\ufeff# WordNet\nrun_class\tdata_class\r\n"
        "tiger cat\tcat\r\n\n# dogs\nhusky\tdog\ntabby\tcat".encode()
    )
    found = read_class_map(file, RUN, ("dog", "cat", "cat"[::-1])[:2], "sum")
    assert (found.classes, found.target.tolist(), found.rule) == (("dog", "cat"), [1, 1, 0, -1], "sum")
    assert read_class_map(file, RUN, None, "argmax").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"tabby\tcat\nlion\tcat\n", "line 2: 'lion' is not a class of the run"),
        (b"tabby\tcat\nhusky\twolf\n", "line 2: 'wolf' is not a class of the data set"),
        (b"tabby\tcat\nhusky\tdog\n# x\ntabby\tdog\n", "line 4: 'tabby' is in an earlier line too"),
        (b"tabby\tcat\n", "maps no class of the run to 'dog' \\(1 such\\)"),
        (b"tabby\n", "line 1 is 'tabby': give a class of the run, a tab"),
        (b"tabby\tcat\tx\n", "line 1 is 'tabby.cat.x': give"),
        (b"tabby\t\n", "line 1 is 'tabby.': give"),
        (b"tabby\tcat\nrun_class\tdata_class\n", "line 2: 'run_class' is not a class of the run"),
        (b"tabby\tcat\nhus\x1b[31mky\tdog\n", "line 2 is 'hus.\\[31mky.dog': control characters"),
        (b"tabby\tcat\rhusky\tdog\n", "line 1 is .* control characters"),
        (b"tabby\tcat\n\xff\tdog\n", "line 2 is not UTF-8"),
        (b"# only\n\n", "maps no class: give lines"),
        (b"x" * 10_001, "line 1 is longer than 10,000 bytes"),
        (b"\n" * 1_000_001, "line 1000001: more than 1,000,000 lines"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "map.tsv").write_bytes(text)
    with pytest.raises(InputError, match=message) as error:
        read_class_map(tmp_path / "map.tsv", RUN, ("cat", "dog"), "argmax")
    assert str(error.value).isprintable()


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_class_map(tmp_path / "map.tsv", RUN, None, "argmax")
    with pytest.raises(InputError, match="is not a file"):
        read_class_map(tmp_path, RUN, None, "argmax")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": str(dataset.folder),
                "epochs": 3,
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 8,
                "device": "cpu",
                "threads": 2,
            }
        ),
        folder,
        False,
    )
    return folder


@pytest.fixture(scope="module")
def two(images: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns (images, data set) of four classes as two, in another order than the run's."""
    root = tmp_path_factory.mktemp("two")
    for name in dataset.classes:
        for path in sorted((images / "test" / name).iterdir()):
            target = (
                root
                / "images"
                / "test"
                / {"orange": "z-orange", "red": "red"}[name.partition("-")[0]]
                / f"{name}-{path.name}"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    build_dataset(root / "images", root / "data")
    return root / "images", root / "data"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One of the run's four classes is not mapped."""
    file = tmp_path / "map.tsv"
    file.write_text("orange-striped-disc\tz-orange\nred-striped-disc\tred\nred-striped-square\tred\n")
    return file


def evaluated(run: Path, *words: object) -> dict[str, Any]:
    result = CliRunner().invoke(
        cli, ["evaluate", "--run", str(run), "--device", "cpu", *map(str, words), "--json"]
    )
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", ["argmax", "sum"])
def test_a_run_on_data_of_other_classes(
    run: Path, two: tuple[Path, Path], table: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, data = two
    found = evaluated(
        run,
        "--data",
        data,
        "--class-map",
        table,
        "--map-rule",
        rule,
        "--set",
        f"copy={images / 'test'}",
        "--reduced",
        0.5,
        "--curve",
    )
    plain, logits = Evaluator(run, EvaluateOptions(device="cpu")), []
    monkeypatch.setattr(predict, "top1", lambda seen: (logits.append(seen), top1(seen))[1])
    plain.rows("test", Dataset.open(data).index("test"))
    p = torch.cat(logits).softmax(1).numpy()
    target = np.array(
        [1, -1, 0, 0]
    )  # orange disc, orange square, red disc, red square; red is 0 and z-orange 1
    expected = (
        target[p.argmax(1)] if rule == "argmax" else np.stack([p[:, 2] + p[:, 3], p[:, 0]], axis=1).argmax(1)
    )
    rows = read_rows(run, f"test-mapped-{rule}")
    assert rows["label"].tolist() == [0] * 6 + [1] * 6
    assert rows["prediction"].tolist() == expected.tolist()
    assert (
        found["accuracy"]
        == np.mean(expected == rows["label"])
        == found["sets"][f"copy-mapped-{rule}"]["accuracy"]
    )
    assert (found["map_rule"], found["unmapped"]) == (rule, int((expected == -1).sum()))
    assert found["set"] == f"test-mapped-{rule}"
    assert read_metadata(run, f"test-mapped-{rule}") == {
        "epoch": run_folder.describe_best(run).epoch,
        "images": Dataset.open(data).index("test").fingerprint,
        "definitions": 2,
        "classes": ["red", "z-orange"],
        "map_rule": rule,
    }
    assert not (run / "predictions" / "test.parquet").exists()  # the run's own rows are never replaced
    for reduction, own in found["reduced"].items():
        assert own["accuracy"] == read_rows(run, f"test-{reduction}-0.5-mapped-{rule}")["correct"].mean()
        curve = json.loads((run / "curves" / f"test-mapped-{rule}.json").read_text())
        assert (curve["map_rule"], curve["classes"]) == (rule, ["red", "z-orange"])
        assert curve["definitions"] == 2
        assert own["accuracy"] == curve["curves"][reduction]["accuracy"][2]
    assert found["curve"]["crop"]["accuracy"][0] == found["accuracy"]
    assert (
        CliRunner().invoke(cli, ["compare", str(run), str(run), "--set", f"test-mapped-{rule}"]).exit_code
        == 0
    )


def test_without_data_the_classes_are_the_maps(
    run: Path, two: tuple[Path, Path], table: Path, tmp_path: Path
) -> None:
    with_data = evaluated(run, "--data", two[1], "--class-map", table)
    alone = evaluated(run, "--set", f"alone={two[0] / 'test'}", "--class-map", table)
    assert alone["map_rule"] == "argmax"
    assert (alone["accuracy"], alone["unmapped"]) == (with_data["accuracy"], with_data["unmapped"])
    assert (
        read_rows(run, "alone-mapped-argmax")["prediction"].tolist()
        == read_rows(run, "test-mapped-argmax")["prediction"].tolist()
    )
    (tmp_path / "set" / "blue").mkdir(parents=True)
    for words, message in (
        (("--data", two[1]), "only in the run"),
        (("--data", two[1], "--map-rule", "sum"), "--map-rule is of a --class-map"),
        (
            ("--set", f"x={tmp_path / 'set'}", "--class-map", table),
            "'blue', which is not a class of the --class-map",
        ),
    ):
        with pytest.raises(InputError, match=message):
            evaluated(run, *words)


def test_rows_of_ordinary_sets_tell_of_no_map_and_impossible_ones_are_refused(
    run: Path, dataset: Dataset
) -> None:
    found = evaluated(run, "--data", dataset.folder, "--split", "val")
    assert "map_rule" not in found
    file = run / "predictions" / "val.parquet"
    assert read_metadata(run, "val") == {
        "epoch": run_folder.describe_best(run).epoch,
        "images": dataset.index("val").fingerprint,
        "definitions": 2,
    }
    rows = pq.read_table(file)
    for column, value in (("label", -1), ("prediction", -2)):
        values = [value] * len(rows)
        wrong = rows.set_column(rows.column_names.index(column), column, [values])
        same = [
            a == b for a, b in zip(wrong["label"].to_pylist(), wrong["prediction"].to_pylist(), strict=True)
        ]
        pq.write_table(wrong.set_column(4, "correct", [same]), file)
        with pytest.raises(RunError, match="contradicts itself"):
            read_rows(run, "val")
