"""benchmarks/experiment.py: all of its table is computed from its rows."""

import json
import runpy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RESULTS = BENCHMARKS / "results"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts find one another, as where they are started from their folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("experiment", "experiment_table"):
        sys.modules.pop(name, None)


def row(run: str, seed: int, phases: str, accuracies: list[float], test: float = 0.5) -> dict[str, Any]:
    return {
        "run": run,
        "seed": seed,
        "val": max(accuracies),
        "test": test,
        **{f"test {reduction} .5": test for reduction in ("color", "crop", "resolution", "combination")},
        "epochs": len(phases) - 1,
        "seconds": 1.5,
        "phases": phases,
        "val_accuracies": accuracies,
    }


def test_figures_worked_by_hand() -> None:
    import experiment_table

    rows = [
        row("sham epochs", 0, "SRCRC", [0.1, 0.2, 0.3, 0.3, 0.4], 0.4),  # rises .1, .1
        row("fixed epochs crop", 0, "SRCR", [0.1, 0.1, 0.5, 0.3], 0.6),  # .4; the last R has no C
        row("linear epochs color", 0, "SRCRC", [0.1, 0.2, 0.2, 0.2, 0.4]),  # 0, .2
        row("fixed rounds crop", 0, "SRRCC", [0.1, 0.2, 0.2, 0.9, 0.9]),  # no pairs
        row("sham epochs", 1, "SRC", [0.1, 0.2, 0.5], 0.5),
        row("baseline", 1, "SCC", [0.1, 0.2, 0.5]),
    ]
    found = experiment_table.summary(rows, {"test": "50", "shuffled": "False"})
    every = found["pairs"]["all"]
    # Seed 1 has a sham and no run to compare it with. Of three runs each may be the sham: .1, or .4, or .1.
    assert (every["runs"], every["controls"], every["pairs"], every["control_pairs"]) == (2, 1, 3, 2)
    assert every["difference"] == pytest.approx(100 * ((0.4 + 0.1) / 2 - 0.1))
    assert every["p_value"] == pytest.approx(1)
    assert every["rise"] == pytest.approx(100 * (0.4 + 0 + 0.2) / 3, abs=1e-4)
    assert found["pairs"]["crop"]["difference"] == pytest.approx(30)
    assert set(found["pairs"]) == {"all", "crop", "color"}
    assert found["runs"]["sham epochs"]["test"] == {
        "mean": 0.45,
        "sd": round(statistics.stdev([0.4, 0.5]), 4),
    }
    assert "| sham epochs | 2 | " in experiment_table.markdown(found["runs"])


def test_runs_are_compared_with_the_sham_of_their_seed_and_sequence() -> None:
    import experiment_table

    rows = [
        row("sham epochs", 0, "SC", [0, 0], 0.4),
        row("sham epochs", 1, "SC", [0, 0], 0.6),
        row("sham rounds", 0, "SC", [0, 0], 0.9),
        row("linear epochs crop", 0, "SC", [0, 0], 0.5) | {"test crop .5": 0.7},  # +.3
        row("linear epochs crop", 1, "SC", [0, 0], 0.5) | {"test crop .5": 0.5},  # -.1
        row("fixed rounds crop", 0, "SC", [0, 0], 0.9),  # equal is not above
        row("fixed rounds crop", 1, "SC", [0, 0], 0.9),  # has no sham
    ]
    assert experiment_table.against_sham(rows) == {
        "crop": {
            "runs": 3,
            "above": 1,
            "gain": {"linear": 0.1, "fixed": 0},
            "full": {"0": 0.1, "1": -0.1},
        }
    }


def test_chance_is_that_of_the_classes() -> None:
    import experiment_table

    rows = [
        row("baseline", i, "SC", [0.1, 0.2], test) | {"test last": 0.25} for i, test in enumerate((0.9, 0.3))
    ]
    settings = {"test": "10", "classes": "4", "shuffled": "True"}
    found = experiment_table.summary(rows, settings)["above chance"]
    assert [found[c]["p < .05"] for c in ("test", "test last")] == [1, 0]
    assert [found[c]["after Holm"] for c in ("test", "test last")] == [1, 0]


def test_a_small_experiment_can_be_recomputed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import experiment
    import experiment_table

    words = ["--out", str(tmp_path), "--small", "--seeds", "0", "--max-epochs", "2"]
    only = ["--only", "^(sham epochs|fixed epochs crop)$"]
    assert experiment.main([*words, *only]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    rows = experiment_table.read_rows(tmp_path)
    assert [r["run"] for r in rows] == ["shared", "sham epochs", "fixed epochs crop"]
    assert [r["phases"] for r in rows] == ["SCC", "SRC", "SRC"]
    assert all(len(r["val_accuracies"]) == 3 for r in rows)
    assert table["pairs"]["all"]["runs"] == table["pairs"]["all"]["controls"] == 1
    assert {**table, **experiment_table.summary(rows, table["settings"])} == table
    # The table is made anew from the rows alone, and what is done is not done again.
    written = {name: (tmp_path / name).read_bytes() for name in ("table.json", "table.md")}
    (tmp_path / "table.md").unlink()
    monkeypatch.setattr(sys, "argv", ["experiment_table.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(BENCHMARKS / "experiment_table.py"), run_name="__main__")
    assert {name: (tmp_path / name).read_bytes() for name in written} == written
    assert experiment.main([*words, *only]) == 0
    assert experiment_table.read_rows(tmp_path) == rows


@pytest.mark.parametrize("name", ["experiment", "experiment-shuffled"])
def test_the_committed_tables_are_those_of_their_rows(name: str) -> None:
    import experiment_table

    rows = experiment_table.read_rows(RESULTS / name)
    if not rows:
        pytest.skip("its rows are not committed")
    table = json.loads((RESULTS / name / "table.json").read_text())
    assert {**table, **experiment_table.summary(rows, table["settings"])} == table
    assert (RESULTS / name / "table.md").read_text() == experiment_table.markdown(table["runs"])
