"""Generates pictures and indexes them, with progress: for the demo, the benchmarks and a matrix without
images of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.interfaces import ProgressListener


def generate_pictures(folder: Path, spec: ShapesSpec, listener: ProgressListener) -> None:
    """Writes the pictures of `spec` into `folder`. Raises InputError if that already holds splits."""
    listener.begin("generate", spec.total, "files")
    try:
        generate(folder, spec, progress=lambda files: listener.advance(files, lambda: ""))
    finally:
        listener.end()


def index_pictures(folder: Path, dataset: Path, total: int, listener: ProgressListener) -> None:
    """Indexes `folder`, which holds `total` pictures, into the new folder `dataset`."""
    listener.begin("index", total, "files")
    try:
        build_dataset(
            folder, dataset, progress=lambda split, files: listener.advance(files, lambda: str(split))
        )
    finally:
        listener.end()


@contextmanager
def dataset_or_pictures(data: Path | None, per_class: int, listener: ProgressListener) -> Iterator[Dataset]:
    """Yields the data set in the folder `data`; for None one of 16 classes with `per_class` generated
    training pictures each.

    The generated one is removed at the end. Raises InputError if `data` is not a data set.
    """
    if data is not None:
        yield Dataset.open(data)
        return
    with TemporaryDirectory() as scratch:
        images, dataset = Path(scratch) / "images", Path(scratch) / "data"
        generate_pictures(images, ShapesSpec(classes=16, train=per_class, val=0, test=0), listener)
        build_dataset(images, dataset)
        yield Dataset.open(dataset)
