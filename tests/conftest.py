import os
from pathlib import Path

import pytest
from gpu_isolation import pytest_cmdline_main, pytest_collection_modifyitems  # noqa: F401  hooks of pytest

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("nightly") and not os.environ.get("QRDALI_NIGHTLY"):
        pytest.skip("a night's work: make nightly")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small generated JPEGs: 4 classes, 6 train, 3 val, 3 test each."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, ShapesSpec(classes=4, train=6, val=3, test=3, size=(96, 72), seed=3), workers=1)
    return root


@pytest.fixture(scope="session")
def dataset(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("indexed") / "data"
    build_dataset(images, out)
    return Dataset.open(out)
