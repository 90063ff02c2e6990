"""docs/reference/metrics.md and exit-status.md say what runs write and how commands end."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from documentation_pages import ROOT

import qrdali
from qrdali.data.shapes import ShapesSpec, generate

REFERENCE = ROOT / "docs" / "reference"
# Of machines that count energy, of data sets without a source, and of runs continued by a later version.
NOT_HERE = {"energy_joules", "probe_energy_joules", "definitions"}


def first_column(page: Path) -> list[str]:
    return re.findall(r"^\| `?([\w]+)`? \|", page.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The keys that a shared and an adaptive run write."""
    folder = tmp_path_factory.mktemp("keys")
    generate(folder / "images", ShapesSpec(classes=2, train=4, val=2, test=0, size=(48, 36)), workers=1)
    qrdali.index(folder / "images", folder / "data", threads=1)
    small: dict[str, Any] = {"data": folder / "data", "batch_size": 8, "device": "cpu", "threads": 1}
    shared = qrdali.train(
        "shared", run=folder / "shared", model="test_resnet", input_size=32, epochs=1, **small
    )
    adaptive = qrdali.train(
        "adaptive",
        run=folder / "adaptive",
        init=shared,
        reduction="crop",
        max_epochs=1,
        track_reduced=0.5,
        **small,
    )
    return {key for run in (shared, adaptive) for key in run.metrics().column_names}


def test_the_page_of_metrics_has_every_key(keys: set[str]) -> None:
    assert keys - NOT_HERE == set(first_column(REFERENCE / "metrics.md")) - {"key"} - NOT_HERE


def test_the_page_of_exit_statuses_has_every_signal() -> None:
    ours = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    signals = {str(128 + number) for number in ours}
    assert {"0", "1", "2"} | signals == set(first_column(REFERENCE / "exit-status.md")) - {"status"}


def test_the_page_of_the_python_api_has_every_name() -> None:
    named = re.findall(r"^::: qrdali\.(\w+)$", (REFERENCE / "python-api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted({*qrdali.__all__, *qrdali._TYPES} - {"__version__"})
