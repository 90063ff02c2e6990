"""benchmarks/photographs/evidence.py on rows made for this test, beside sums done by hand."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

FILE = Path(__file__).resolve().parents[2] / "benchmarks/photographs/evidence.py"
# Two images of each of ten things. The baseline has each first one right, the method also six of the second.
BASELINE = np.tile([True, False], 10)
METHOD = BASELINE | np.repeat([True, False], [12, 8])


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photographs_evidence", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, sets: tuple[str, ...], correct: np.ndarray) -> None:  # type: ignore[type-arg]
    (folder / "predictions").mkdir(parents=True)
    (folder / "best").mkdir()
    (folder / "best" / "state.json").write_text('{"epoch": 2}')
    (folder / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 5}\n')
    paths = [f"/elsewhere/test/bird/{sample:04d}.jpg" for sample in range(len(correct))]
    table = pa.table({"sample": np.arange(len(correct)), "path": paths, "correct": correct})
    for name in sets:
        pq.write_table(table, folder / "predictions" / f"{name}.parquet")


@pytest.fixture(scope="module")
def experiment(evidence: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence")
    (root / "images").mkdir()
    lines = [
        {"file": f"test/bird/{sample:04d}.jpg", "object": f"thing-{sample // 2}"}
        for sample in range(len(METHOD))
    ]
    (root / "images" / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for seed in (0, 1):
        runs = root / "out" / "runs" / "small" / f"seed-{seed}"
        write_run(runs / "shared", evidence.SETS, BASELINE & False)
        write_run(runs / "baseline", evidence.SETS, BASELINE)
        write_run(runs / "linear-paired-rounds-crop", evidence.SETS, METHOD if seed else BASELINE)
        write_run(runs / "random-paired-epochs-crop", evidence.SETS, METHOD)
        write_run(runs / "begun", (), BASELINE)
        for run, quotients in (("baseline", [0.5, 0.25]), ("linear-paired-rounds-crop", [0.25, 0.25])):
            folder = root / "out" / "mepi" / "small" / f"seed-{seed}" / run
            folder.mkdir(parents=True)
            paths = ["/elsewhere/test/bird/0000.jpg", "/elsewhere/test/bird/0002.jpg"]
            columns = {"sample": [0, 2], "path": paths, "reduction": ["crop"] * 2, "quotient": quotients}
            pq.write_table(pa.table(columns), folder / "manifest.parquet")
    return root


def test_figures_are_those_of_the_rows(evidence: ModuleType, experiment: Path) -> None:
    said: list[str] = []
    words = [str(experiment / "out"), "--images", str(experiment / "images"), "--network", "small"]
    words += ["--out", str(experiment / "results"), "--experiment", "other.toml"]
    evidence.main(words, said.append)
    file = experiment / "results" / "small.json"
    found = json.loads(file.read_text())
    assert found["command"] == "qrdali reproduce benchmarks/photographs/other.toml --workers 2"
    assert found["accuracies"]["baseline"]["test"] == [0.5, 0.5]
    assert found["accuracies"]["linear-paired-rounds-crop"]["test-crop-0.5"] == [0.5, 0.8]
    assert found["schedules"]["baseline"] == [{"epochs": 5, "best_epoch": 2}] * 2
    assert "begun" not in found["accuracies"]
    (row, random) = found["differences"]["full against baseline"]
    assert (row["run"], random["run"]) == ("linear-paired-rounds-crop", "random-paired-epochs-crop")
    # A seed gains 6 of 20 images, the other none; six of ten things gain a quarter of their images and seeds.
    assert (row["difference"], row["by_seed"], row["things"], row["images"]) == (0.15, [0.0, 0.3], 10, 20)
    assert row["interval"][0] < 0.15 < row["interval"][1]
    assert row["p"] == pytest.approx(2 / 2**6, abs=0.02)  # all six signs alike, both ways round
    assert row["p_holm"] == pytest.approx(2 * row["p"], abs=1e-3)
    (other,) = found["differences"]["full against random"]
    assert (other["difference"], other["by_seed"]) == (-0.15, [-0.3, 0.0])
    assert "full against sham" not in found["differences"]  # there is no such run
    (quotient,) = found["differences"]["quotient against baseline"]
    assert (quotient["difference"], quotient["images"]) == (-0.125, 2)
    # The committed rows give the same figures again.
    before = file.read_text()
    words = ["--from-rows", "--network", "small", "--out", str(experiment / "results")]
    evidence.main(words, said.append)
    assert file.read_text() == before


def test_runs_of_another_experiment_join_those_that_are_there(
    evidence: ModuleType, experiment: Path, tmp_path: Path
) -> None:
    more = tmp_path / "out" / "runs" / "more"
    for seed in (0, 1):
        write_run(more / f"seed-{seed}" / "baseline", evidence.SETS, BASELINE)
        write_run(more / f"seed-{seed}" / "random-paired-rounds-crop", evidence.SETS, BASELINE)
    words = ["--images", str(experiment / "images"), "--out", str(tmp_path / "results")]
    evidence.main([str(experiment / "out"), *words, "--network", "small", "--note", "one"], lambda _: None)
    file = tmp_path / "results" / "small.json"
    first = json.loads(file.read_text())
    added = [str(tmp_path / "out"), *words, "--network", "more", "--add-to", "small"]
    evidence.main([*added, "--experiment", "more.toml", "--note", "two"], lambda _: None)
    found = json.loads(file.read_text())
    assert found["accuracies"].keys() == {*first["accuracies"], "random-paired-rounds-crop"}
    assert found["schedules"].keys() == found["accuracies"].keys()
    assert found["accuracies"]["baseline"] == first["accuracies"]["baseline"]
    assert found["quotients"] == first["quotients"]
    assert found["note"] == "one; two"
    assert [command.split()[2] for command in found["command"].split("; ")] == [
        "benchmarks/photographs/experiment.toml",
        "benchmarks/photographs/more.toml",
    ]
    (row,) = found["differences"]["full against random"]
    assert row["against"] == "random-paired-rounds-crop"  # nearer than that in paired epochs
    assert not (tmp_path / "results" / "more.json").exists()


def test_a_run_with_other_answers_does_not_join(
    evidence: ModuleType, experiment: Path, tmp_path: Path
) -> None:
    words = ["--images", str(experiment / "images"), "--out", str(tmp_path / "results")]
    evidence.main([str(experiment / "out"), *words, "--network", "small"], lambda _: None)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()}
    write_run(tmp_path / "out" / "runs" / "more" / "seed-1" / "baseline", evidence.SETS, METHOD)
    with pytest.raises(SystemExit, match="baseline, seed 1, test: other values than those of before"):
        evidence.main(
            [str(tmp_path / "out"), *words, "--network", "more", "--add-to", "small"], lambda _: None
        )
    assert {file.name: file.read_bytes() for file in (tmp_path / "results").iterdir()} == kept


def test_runs_of_another_machine_do_not_join(evidence: ModuleType) -> None:
    kept = {"machine": {"cpu": "one"}, "command": "a", "note": "", "schedules": {}}
    with pytest.raises(SystemExit, match="runs of another machine: {'cpu': 'other'}"):
        evidence._joined_facts(kept, kept | {"machine": {"cpu": "other"}})


def test_a_small_p_value_is_not_rounded_to_nothing(evidence: ModuleType) -> None:
    assert evidence.rounded({"p": [0.0000213, 0.0, 0.12345678]}) == {"p": [2e-5, 0.0, 0.1235]}


def test_the_random_control_is_that_of_the_same_sequence_where_there_is_one(evidence: ModuleType) -> None:
    run, epochs, rounds = (
        f"{name}-crop" for name in ("linear-paired-rounds", "random-paired-epochs", "random-paired-rounds")
    )
    assert evidence.controls_of(run, [run, epochs])["random"] == epochs
    assert evidence.controls_of(run, [run, epochs, rounds])["random"] == rounds
    other = "random-paired-rounds-color"
    assert evidence.controls_of(rounds, [run, epochs, rounds]) == {
        "baseline": "baseline",
        "sham": "sham-paired-rounds",
        "matched": "baseline-matched",
    }
    assert evidence.controls_of(run, [run, epochs, other])["random"] == epochs


def test_every_image_of_every_seed_counts_the_same(evidence: ModuleType) -> None:
    """Seed 0 has one image of thing a, seed 1 both and one of thing b: the mean is of four values."""
    values = {
        ("baseline", 0): {0: 0.5},
        ("baseline", 1): {0: 0.5, 1: 0.5, 2: 0.5},
        ("linear-paired-rounds-crop", 0): {0: 0.1, 3: 0.9},
        ("linear-paired-rounds-crop", 1): {0: 0.5, 1: 0.5, 2: 0.3},
    }
    lines = [
        {"run": run, "seed": seed, "measure": "quotient crop", "sample": sample, "thing": "aabb"[sample]}
        | {"value": value}
        for (run, seed), of_seed in values.items()
        for sample, value in of_seed.items()
    ]
    rows = evidence.Rows(pa.Table.from_pylist(lines, evidence.SCHEMA))
    found = rows.difference("linear-paired-rounds-crop", "baseline", "quotient crop")
    assert found["by_seed"] == [-0.4, -0.0667]
    assert found["difference"] == -0.15
    assert (found["images"], found["things"]) == (3, 2)


def test_an_interval_resamples_things(evidence: ModuleType) -> None:
    """Forty images that are alike within four things tell as much as four images."""
    alike, counts = np.array([10.0, 0, 10, 0]), np.full(4, 10.0)
    low, high = evidence.interval(alike, counts)
    assert high - low > 0.8
    assert evidence.interval(np.full(4, 3.0), counts) == (0.3, 0.3)
    assert evidence.p_value(np.zeros(4)) == 1
    assert evidence.p_value(np.array([2.0, 2, 2, 2])) == 2 / 2**4


@pytest.mark.parametrize("network", ["small", "lite0"])
def test_committed_figures_follow_from_committed_rows(
    network: str, evidence: ModuleType, tmp_path: Path
) -> None:
    committed = FILE.parents[1] / "results" / "photographs"
    for name in (f"{network}.json", f"{network}-rows.parquet"):
        shutil.copy(committed / name, tmp_path)
    evidence.main(["--from-rows", "--network", network, "--out", str(tmp_path)], lambda _: None)
    expected, found = (
        json.loads((folder / f"{network}.json").read_text()) for folder in (committed, tmp_path)
    )
    for key in ("accuracies", "mean_accuracies", "quotients", "schedules"):
        assert found[key] == expected[key]
    assert found["differences"].keys() == expected["differences"].keys()
    for family, rows in expected["differences"].items():
        for row, again in zip(rows, found["differences"][family], strict=True):
            exact = ("run", "against", "measure", "images", "things", "difference", "by_seed")
            assert [again[key] for key in exact] == [row[key] for key in exact]
            assert again["interval"] == pytest.approx(row["interval"], abs=0.005)
            assert again["p"] == pytest.approx(row["p"], abs=0.03)
