import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import qrdali
from qrdali.data.shapes import ShapesSpec, generate

MATRIX = """
out = "matrix"
[data]
folder = "data"
[train]
batch_size = 8
threads = 1
max_epochs = 1
[[network]]
model = "test_resnet"
input_size = 32
epochs = 1
[runs]
methods = ["baseline"]
[evaluate]
splits = ["test"]
[mepi]
runs = []
[report]
runs = ["*"]
"""


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples find: images, data, photo.jpg, matrix.toml and the run runs/shared."""
    folder = tmp_path_factory.mktemp("workplace")
    generate(
        folder / "images", ShapesSpec(classes=4, train=6, val=3, test=3, size=(96, 72), seed=3), workers=1
    )
    data = qrdali.index(folder / "images", folder / "data", threads=1)
    pictures = sorted((folder / "images").rglob("*.jpg"))
    photo = next(path for path in pictures if qrdali.read(path).shape[1] == 96)
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    qrdali.train(
        "shared",
        data=data,
        run=folder / "runs" / "shared",
        model="test_resnet",
        input_size=32,
        batch_size=8,
        epochs=2,
        lr=2e-3,
        device="cpu",
        threads=1,
    )
    (folder / "matrix.toml").write_text(MATRIX)
    return folder


@pytest.fixture
def in_workplace(workplace: Path) -> Iterator[Path]:
    """Makes that folder the current one."""
    before = Path.cwd()
    os.chdir(workplace)
    yield workplace
    os.chdir(before)
