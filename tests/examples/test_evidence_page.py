"""docs/evidence.md: its tables and plots are those of the committed results."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from pinned_versions import is_newest_pinned

ROOT = Path(__file__).parents[2]
RESULT = {
    "machine": {"cpu": "Example", "cores": 2, "gpu": None, "python": "3.1", "torch": "2.1", "dali": "2.2"},
    "command": "qrdali reproduce experiment.toml",
    "accuracies": {
        "linear-paired-rounds-crop": {"test": [0.5, 0.75]},
        "baseline": {"test": [0.25, 0.5]},
    },
    "mean_accuracies": {
        "linear-paired-rounds-crop": {"test": 0.625, "test-crop-0.5": 0.41},
        "baseline": {"test": 0.375, "test-crop-0.5": 0.3},
    },
    "differences": {
        "full against baseline": [
            {
                "run": "linear-paired-rounds-crop",
                "difference": 0.25,
                "interval": [-0.0001, 0.5],
                "p_holm": 0.04,
            }
        ],
        "quotient against baseline": [
            {
                "run": "linear-paired-rounds-crop",
                "measure": "quotient crop",
                "difference": -0.0126,
                "interval": [-0.02, 0.001],
                "p_holm": 0.06,
                "images": 88,
            }
        ],
    },
}


@pytest.fixture
def evidence_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import evidence_page  # type: ignore[import-not-found, unused-ignore]

    return evidence_page


@pytest.fixture
def made_up(evidence_page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script over the result of a network that was made up for this test."""
    folder = tmp_path / "benchmarks" / "results" / "photographs"
    folder.mkdir(parents=True)
    (folder / "small.json").write_text(json.dumps(RESULT))
    monkeypatch.setattr(evidence_page, "ROOT", tmp_path)
    return evidence_page


def test_writing_the_page_again_changes_nothing(evidence_page: ModuleType) -> None:
    text = (ROOT / "docs" / "evidence.md").read_text()
    assert evidence_page.page() == text, "run python benchmarks/evidence_page.py"


def test_drawing_the_plots_again_changes_nothing(evidence_page: ModuleType) -> None:
    plots = evidence_page.plots()
    assert set(plots) == {"evidence-small.svg", "evidence-lite0.svg"}
    for name, svg in plots.items():
        assert evidence_page.plots()[name] == svg  # no date, no random names
        # Another matplotlib may place a label elsewhere.
        if is_newest_pinned("matplotlib"):
            assert (ROOT / "docs" / "images" / name).read_text() == svg, name


def test_every_table_of_a_committed_result_is_on_the_page(evidence_page: ModuleType) -> None:
    text = (ROOT / "docs" / "evidence.md").read_text()
    regions = set(re.findall(r"<!-- begin: (\S+) -->", text))
    assert regions == set(evidence_page.tables())
    assert len(regions) == 8


def test_accuracies_are_in_percent_with_each_seed(made_up: ModuleType) -> None:
    lines = made_up.tables()["small-accuracy"].splitlines()
    assert lines[2] == "| baseline | 37.5 | (25.0, 50.0) | – | 30.0 | – | – |"
    assert lines[3] == "| linear-paired-rounds-crop | 62.5 | (50.0, 75.0) | – | 41.0 | – | – |"
    assert "37.5 = mean_accuracies > baseline > test * 100" in lines


def test_differences_are_in_points_and_bold_where_they_are_significant(made_up: ModuleType) -> None:
    tables = made_up.tables()
    row = tables["small-full"].splitlines()[2]
    assert row == "| linear-paired-rounds-crop | **+25.0** (0.0 to +50.0) | – | – | – |"
    row = tables["small-quotient"].splitlines()[2]
    expected = "| crop | linear-paired-rounds-crop | -0.013 (-0.020 to +0.001) | 0.060 | 88 |"
    assert row == expected


def test_without_a_result_there_is_no_table(made_up: ModuleType) -> None:
    assert not any(name.startswith("lite0") for name in made_up.tables())
