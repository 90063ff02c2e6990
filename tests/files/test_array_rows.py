"""Rows read from files that are too large to map."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qrdali.data.index import SCHEMA, Index, Writer
from qrdali.errors import RunError
from qrdali.files.array_rows import ReadFile, open_npy
from qrdali.reduction.levels import PerImageLevels
from qrdali.reduction.quality import QUARTERS

ROWS = 20_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large."""
    for module in ("qrdali.data.index_columns", "qrdali.reduction.levels"):
        monkeypatch.setattr(f"{module}.MAPPED", 0)


def written(file: Path, rows: int = ROWS) -> Path:
    writer = Writer(file)
    for i in range(rows):
        writer.add(f"/{'x' * (i % 40)}/{i}.jpg", i % 7, 100 + i % 900, 200 + i % 700)
    writer.close()
    return file


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 3)])
def test_rows_are_those_of_the_array(tmp_path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(0)
    array = draws.integers(0, 200, shape).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    rows = open_npy(tmp_path / "x.npy")
    assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (ROWS, shape, dtype, array.nbytes)
    spread, near = draws.integers(0, ROWS, 32), 500 + draws.integers(0, 90, 32)
    for pick in (
        spread,
        near,
        np.append(spread, near),
        np.sort(spread),
        np.arange(ROWS)[::-1],
        np.array([7, 7]),
        np.array([ROWS - 1]),
        np.arange(0),
    ):
        assert rows[pick].dtype == dtype
        assert np.array_equal(rows[pick], array[pick])
    assert np.array_equal(rows.part(5, 900), array[5:900])
    assert np.array_equal(np.array(rows), array)
    for pick in (np.array([-1, 3]), np.array([3, ROWS])):
        with pytest.raises(IndexError, match="outside"):
            rows[pick]


def test_what_lies_close_together_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.arange(ROWS, dtype=np.int32))
    rows = open_npy(tmp_path / "x.npy")
    reads, before = [], ReadFile.read
    monkeypatch.setattr(
        ReadFile,
        "read",
        lambda file, position, length: reads.append(length) or before(file, position, length),
    )
    rows[np.concatenate([np.arange(4000), np.arange(9000, 13000)])]
    assert reads == [16_000, 16_000]


def test_a_large_index_is_the_same_in_threads(tmp_path: Path, read: None) -> None:
    index = Index(written(tmp_path / "x.arrow"), 7)

    def asked(seed: int) -> bool:
        samples = np.random.default_rng(seed).integers(0, ROWS, 32)
        expected = [f"/{'x' * (i % 40)}/{i}.jpg" for i in samples.tolist()]
        sizes = np.stack([200 + samples % 700, 100 + samples % 900], axis=1)
        return bool(
            index.paths(samples) == expected
            and np.array_equal(index.labels(samples), samples % 7)
            and np.array_equal(index.sizes(samples), sizes)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(asked, range(200)))


def test_a_large_index_that_is_cut_short_is_named_not_fatal(tmp_path: Path, read: None) -> None:
    index = Index(written(tmp_path / "x.arrow"), 7)
    os.truncate(tmp_path / "x.arrow", 1000)
    for ask in (index.labels, index.sizes, index.paths):
        with pytest.raises(RunError, match=r"x\.arrow cannot be read any more"):
            ask(np.array([ROWS - 1]))


def test_a_large_index_replaced_while_open_is_read_as_it_was(tmp_path: Path, read: None) -> None:
    index = Index(written(tmp_path / "x.arrow"), 7)
    (tmp_path / "x.arrow").unlink()
    written(tmp_path / "x.arrow", 3)
    assert index.labels(np.array([6, 5])).tolist() == [6, 5]


def test_a_large_index_with_places_that_cannot_be_is_refused(tmp_path: Path, read: None) -> None:
    written(tmp_path / "x.arrow", 9)
    content = (tmp_path / "x.arrow").read_bytes()
    offsets = np.cumsum([0] + [len(f"/{'x' * i}/{i}.jpg") for i in range(9)]).astype(np.int32)
    for row, wrong in ((3, -5), (3, 10**6), (4, 0)):
        lying = offsets.copy()
        lying[row] = wrong
        (tmp_path / "y.arrow").write_bytes(content.replace(offsets.tobytes(), lying.tobytes()))
        index = Index(tmp_path / "y.arrow", 7)
        assert index.paths(np.array([0, 8])) == ["//0.jpg", "/xxxxxxxx/8.jpg"]
        with pytest.raises(RunError, match=r"y\.arrow holds an impossible path"):
            index.path_bytes(np.array([3, 4]))


def test_a_large_index_that_is_compressed_is_refused(tmp_path: Path, read: None) -> None:
    table = pa.table([["/x"] * 9, [0] * 9, [5] * 9, [5] * 9], schema=SCHEMA)  # no larger than its file
    with pa.ipc.new_file(
        str(tmp_path / "x.arrow"), SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_table(table)
    with pytest.raises(RunError, match="is compressed"):
        Index(tmp_path / "x.arrow", 1)


def test_large_levels_are_read_and_copied(tmp_path: Path, read: None) -> None:
    draws = np.random.default_rng(0)
    levels, places = (
        draws.integers(0, 4, (500, 3)).astype(np.uint8),
        draws.integers(0, 90, (500, 2)).astype(np.int32),
    )
    steps = draws.integers(0, 12, 500).astype(np.uint16)
    PerImageLevels(levels, places, steps).save(tmp_path, 1)
    found, some = PerImageLevels.load(tmp_path, 1, 500, QUARTERS, True, True), np.array([3, 499, 0, 3])
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert np.array_equal(found.for_samples(some), levels[some])
    assert np.array_equal(found.window_origins(some), places[some])
    own = found.copy()
    own.assign(np.array([3]), np.array([[1, 2, 3]], np.uint8), np.array([[7, 8, 9, 9]], np.int32))
    assert (own.for_samples(some)[0].tolist(), own.window_origins_or_zero(some)[0].tolist()) == (
        [1, 2, 3],
        [7, 8],
    )
    assert own.steps is not None
    assert np.array_equal(own.steps, steps)
    assert np.array_equal(found.for_samples(some), levels[some])


def test_large_levels_are_checked_where_they_are_used(tmp_path: Path, read: None) -> None:
    levels = np.zeros((50, 3), np.uint8)
    levels[20] = 0, 9, 0
    PerImageLevels(levels, None, None).save(tmp_path, 1)
    found = PerImageLevels.load(tmp_path, 1, 50, QUARTERS, False, False)
    assert found.for_samples(np.array([3, 21])).tolist() == [[0, 0, 0]] * 2
    for ask in (lambda: found.for_samples(np.array([3, 20])), found.copy):
        with pytest.raises(RunError, match=r"0001\.levels\.npy holds values outside 0\.\.3"):
            ask()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("cut", None),
        ("by columns", np.asfortranarray(np.ones((9, 3), np.uint8))),
        ("objects", np.array([object()])),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path: Path, name: str, array: Any) -> None:
    file = tmp_path / "0001.levels.npy"
    np.save(file, np.ones((9, 3), np.uint8) if array is None else array, allow_pickle=True)
    if array is None:
        os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(RunError, match=r"levels\.npy cannot be read: it (has|is stored|holds objects)"):
        PerImageLevels.load(tmp_path, 1, 9, QUARTERS, False, False)
