"""benchmarks/recipes.py: its cells can be trained in their order, and its file is computed from its runs."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.methods import check_settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FILE = BENCHMARKS / "results" / "recipes-demo-cpu.json"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import recipes  # type: ignore[import-not-found, unused-ignore]

    return recipes


def test_each_cell_can_be_trained_after_those_before_it(recipes: ModuleType, tmp_path: Path) -> None:
    work, before = recipes.Work(tmp_path, tmp_path / "data"), list[str]()
    folders = set()
    for cell in recipes.cells():
        assert {name for name in (cell.start, cell.match) if name} <= set(before), cell.name
        before.append(cell.name)
        folders.add(recipes.run_of(cell.name, 0, work))
        if not set(cell.values) - set(
            Settings.model_fields
        ):  # else it waits for a qrdali that has the options
            check_settings(validate_settings(recipes.settings_of(cell, 1, work)))
    assert len(folders) == len(set(before)) == len(before)
    schedules = {cell.values.get("lr_schedule", "constant") for cell in recipes.cells()}
    assert schedules == {"constant", "cosine", "plateau", "stage", "wsd"}


def test_the_committed_figures_are_computed_from_the_committed_runs(recipes: ModuleType) -> None:
    recorded = json.loads(FILE.read_text())
    assert recorded["cells"] == recipes.summary(recorded["runs"])
    known = {cell.name: cell for cell in recipes.cells()}
    for run in recorded["runs"]:
        assert len(run["val_accuracy"]) == run["epochs"] + 1 == len(run["phases"])
        own = {key: value for key, value in run["settings"].items() if key in known[run["cell"]].values}
        assert own == known[run["cell"]].values, run["cell"]
    # A page names no cell of fewer seeds.
    assert [cell["seeds"] for cell in recorded["cells"].values()] == [[0, 1, 2]] * len(recorded["cells"])


def run_of(cell: str, seed: int, test: float, accuracies: list[float], **settings: Any) -> dict[str, Any]:
    figures = {"test": test, "test_cropped": test / 2, "best_val": max(accuracies)}
    counts = {"epochs": len(accuracies) - 1, "seconds": 1.0, "val_accuracy": accuracies}
    return {"cell": cell, "seed": seed, "settings": settings, **figures, **counts}


def test_figures_worked_by_hand(recipes: ModuleType) -> None:
    flat = [0.1, *[0.5] * 9, 0.6, *[0.5] * 9]  # the last tenth is .5 .5, the one before it too
    rows = [
        run_of(recipes.START, 0, 0.4, flat),
        run_of(recipes.START, 1, 0.6, [*flat[:-2], 0.7, 0.9]),
        run_of("linear", 1, 0.75, flat, init="seed-1/shared"),
    ]
    found = recipes.summary(rows)
    assert found[recipes.START]["test"] == {"mean": 0.5, "sd": 0.1414}
    assert found[recipes.START]["rise"] == {"mean": 0.15, "sd": 0.2121}
    assert "gain" not in found[recipes.START]
    assert found["linear"]["gain"] == {"mean": 0.15, "sd": 0.0}  # above the start of its own seed
    assert "| linear | 0.750 ± 0.000 | 0.375 ± 0.000 | 0.150 ± 0.000 | 19 |" in recipes.page(
        {"linear": found["linear"]}
    )
