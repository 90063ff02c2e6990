"""docs/performance.md: its tables and plots are those of the committed results."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pinned_versions import is_newest_pinned

ROOT = Path(__file__).parents[2]


@pytest.fixture
def performance_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import performance_page  # type: ignore[import-not-found, unused-ignore]

    return performance_page


def test_writing_the_page_again_changes_nothing(performance_page: ModuleType) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert performance_page.page() == text, "run python benchmarks/performance_page.py"


def test_drawing_the_plots_again_changes_nothing(performance_page: ModuleType) -> None:
    plots = performance_page.plots()
    assert set(plots) == {"performance-peers.svg", "performance-curves.svg"}
    for name, svg in plots.items():
        assert performance_page.plots()[name] == svg  # no date, no random names
        # Another matplotlib may place a label elsewhere.
        if is_newest_pinned("matplotlib"):
            assert (ROOT / "docs" / "images" / name).read_text() == svg, name


def test_every_region_of_the_page_is_filled(performance_page: ModuleType) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert {match[1] for match in performance_page.REGION.finditer(text)} == set(performance_page.tables())
    assert "has not been measured yet" not in text


@pytest.fixture
def with_gpu(performance_page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script over copies of the results, with one of a GPU that was made up for this test."""
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    train: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "train-cpu.json").read_text())
    train["machine"]["gpu"] = "Example GPU"
    train["over_full"]["crop"] = 7.654
    (tmp_path / "benchmarks" / "results" / "train-gpu.json").write_text(json.dumps(train))
    monkeypatch.setattr(performance_page, "ROOT", tmp_path)
    return performance_page


def test_the_column_of_a_gpu_is_filled_from_its_file(
    performance_page: ModuleType, with_gpu: ModuleType
) -> None:
    (table,) = with_gpu.tables()["train"]
    written = with_gpu.render(table)
    (crop,) = [line for line in written.splitlines() if line.startswith("| epoch, crop |")]
    assert crop == "| epoch, crop | 0.98 | 7.65 | 1.02 |"
    assert "Example GPU" in written
    assert "<!-- figures of benchmarks/results/train-gpu.json\n" in written
    assert "7.65 = over_full > crop\n" in written


def test_without_its_file_the_column_of_a_gpu_is_empty(performance_page: ModuleType) -> None:
    (table,) = performance_page.tables()["train"]
    written = performance_page.render(table)
    assert "| epoch, crop | 0.98 | – | 1.02 |" in written
    assert "train-gpu.json" not in written


def test_a_spread_shows_what_it_ranges_over(performance_page: ModuleType) -> None:
    column = performance_page.Column("time", "a > {row} * 1e-3", 1, spread=True)
    marks: dict[str, list[str]] = {}
    data = {"a": {"b": {"median": 1234.0, "min": 1000.0, "max": 2250000.0}}}
    assert performance_page.cell(column, "a > b * 1e-3", "cpu", data, marks) == "1.2 (1.0 to 2,250.0)"
    assert marks == {
        "cpu": [
            "1.2 = a > b > median * 1e-3",
            "1.0 = a > b > min * 1e-3",
            "2,250.0 = a > b > max * 1e-3",
        ]
    }
    assert performance_page.cell(column, "a > c", "cpu", data, {}) == "–"


def test_a_region_that_nobody_fills_is_refused(performance_page: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n<!-- begin: speed -->\n<!-- end: speed -->\n")
    with pytest.raises(ValueError, match="page.md has the region 'speed': there are train"):
        performance_page.filled(page, {"train": "a table"})
    page.write_text("text\n<!-- begin: train -->\nold\n<!-- end: train -->\n")
    expected = "text\n<!-- begin: train -->\na table\n<!-- end: train -->\n"
    assert performance_page.filled(page, {"train": "a table"}) == expected


def test_writing_changes_only_what_has_changed(
    performance_page: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(performance_page, "ROOT", tmp_path)
    same, other = tmp_path / "same.md", tmp_path / "other.md"
    same.write_text("same")
    other.write_text("old")
    wanted = {same: "same", other: "new"}
    assert performance_page.write(["--check"], "help", wanted) == 1
    assert (other.read_text(), capsys.readouterr().out) == ("old", "other.md would change\n")
    assert performance_page.write([], "help", wanted) == 0
    assert (other.read_text(), capsys.readouterr().out) == ("new", "other.md written\n")
    assert performance_page.write(["--check"], "help", wanted) == 0
