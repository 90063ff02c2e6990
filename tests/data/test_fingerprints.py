"""The fingerprint of a split: the same images agree wherever they are mounted, others do not."""

import hashlib
import shutil
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
import tiny_data

from qrdali.data import provenance
from qrdali.data.fingerprints import content_fingerprint, file_fingerprint
from qrdali.data.index import SCHEMA, Dataset, Index, Writer
from qrdali.errors import RunError

Row = tuple[str, int, int, int]
ROWS: list[Row] = [("/mnt/a/train/cat/1.jpg", 0, 40, 30), ("/mnt/a/train/dög/2.jpg", 1, 41, 31)]


def written(folder: Path, rows: list[Row], split: str = "train", root: str | None = "/mnt/a") -> Index:
    folder.mkdir(exist_ok=True)
    writer = Writer(folder / f"{split}.arrow")
    for row in rows:
        writer.add(*row)
    writer.close()
    if root is not None:
        provenance.write(folder, {"root": root})
    return Index(folder / f"{split}.arrow", 10)


def test_the_bytes_are_those_of_the_definition(tmp_path: Path) -> None:
    expected = "train\0train/cat/1.jpg\x000\x0040\x0030\0train/dög/2.jpg\x001\x0041\x0031\0"
    assert written(tmp_path / "d", ROWS).fingerprint == hashlib.sha256(expected.encode()).hexdigest()
    none = hashlib.sha256(b"test\0").hexdigest()
    assert written(tmp_path / "d", [], "test").fingerprint == none


def test_the_same_images_below_another_root_agree(tmp_path: Path) -> None:
    first = written(tmp_path / "a", ROWS).fingerprint
    for i, root in enumerate(("/b", "/", "/with space/ü", "s3://bucket", "gs://bucket/some/prefix", "/b/")):
        rows = [(path.replace("/mnt/a", root.rstrip("/")), *rest) for path, *rest in ROWS]
        assert written(tmp_path / f"r{i}", rows, root=root).fingerprint == first, root
    # Without a root, and for what lies outside it, the whole path counts.
    assert written(tmp_path / "n", ROWS, root=None).fingerprint != first
    assert written(tmp_path / "o", ROWS, root="/mnt/ab").fingerprint != first
    assert written(tmp_path / "p", ROWS, root="/mnt").fingerprint != first
    outside = [ROWS[0], ("/else/2.jpg", *ROWS[1][1:])]
    moved = [("/b/train/cat/1.jpg", *ROWS[0][1:]), outside[1]]
    mixed = written(tmp_path / "m", outside).fingerprint
    assert written(tmp_path / "m2", moved, root="/b").fingerprint == mixed != first


def test_members_of_shards_count_by_their_place_below_the_root(tmp_path: Path) -> None:
    def rows(scheme: str, root: str) -> list[Row]:
        shard = f"tar+{scheme}{quote(root)}/train/0.tar"
        return [(f"{shard}?offset={512 * i}&length=9#a%20{i}.jpg", i, 8, 9) for i in range(3)]

    here = written(tmp_path / "a", rows("file://", "/my data"), root="/my data").fingerprint
    assert written(tmp_path / "b", rows("file://", "/n"), root="/n").fingerprint == here
    assert written(tmp_path / "c", rows("s3://", "bucket/x"), root="s3://bucket/x").fingerprint == here


@pytest.mark.parametrize(
    "other",
    [
        [(ROWS[0][0], 0, 40, 30), (ROWS[1][0], 2, 41, 31)],  # a label
        [(ROWS[0][0], 0, 30, 40), ROWS[1]],  # sides exchanged
        [("/mnt/a/train/cat/10.jpg", 0, 40, 30), ROWS[1]],  # a name
        [ROWS[1], ROWS[0]],  # the order
        [ROWS[0]],
        [*ROWS, ROWS[1]],
    ],
)
def test_other_images_differ(tmp_path: Path, other: list[Row]) -> None:
    first = written(tmp_path / "a", ROWS).fingerprint
    assert written(tmp_path / "b", other).fingerprint != first
    assert written(tmp_path / "c", ROWS, "val").fingerprint != first


def test_every_row_counts_however_the_file_is_cut(tmp_path: Path) -> None:
    rows: list[Row] = [(f"/mnt/a/{i}.jpg", i % 10, 1 + i % 7, 1 + i % 5) for i in range(40_000)]
    index = written(tmp_path / "a", rows)
    encoded = "".join(f"{p.removeprefix('/mnt/a/')}\0{x}\0{w}\0{h}\0" for p, x, w, h in rows)
    assert index.fingerprint == hashlib.sha256(b"train\0" + encoded.encode()).hexdigest()
    parts = [rows[:1], rows[1:30_000], [], rows[30_000:]]
    with pa.ipc.new_file(str(tmp_path / "cut.arrow"), SCHEMA) as writer:
        for part in parts:
            columns = [pa.array([row[i] for row in part], SCHEMA.field(i).type) for i in range(4)]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    assert content_fingerprint(tmp_path / "cut.arrow", "train", "/mnt/a") == index.fingerprint
    for changed in (0, 20_000, 39_999):
        others = [*rows]
        others[changed] = (rows[changed][0] + "x", *rows[changed][1:])
        assert written(tmp_path / "b", others).fingerprint != index.fingerprint


def test_a_tree_that_is_mounted_elsewhere(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog")):
        tiny_data.fill(tmp_path / "here" / "train" / name, 3 + i)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    tiny_data.made("index", tmp_path / "here", "--out", tmp_path / "one")
    tiny_data.made("index", tmp_path / "there", "--out", tmp_path / "two")
    one, two = (Dataset.open(tmp_path / name)["train"] for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    assert file_fingerprint(one.file) != file_fingerprint(two.file)
    # `--root` says where the images are now, and changes nothing about which they are.
    moved = Dataset.open(tmp_path / "one", str(tmp_path / "there"))["train"]
    assert moved.fingerprint == one.fingerprint
    assert moved.paths(np.zeros(1, np.int64)) == two.paths(np.zeros(1, np.int64))
    # What version 0.1 recorded of an index still means that index, and no other.
    before = file_fingerprint(one.file)
    assert one.fingerprint_like(before) == before
    assert [two.fingerprint_like(recorded) for recorded in (before, None, "x")] == [one.fingerprint] * 3


def test_an_index_that_cannot_be_read(tmp_path: Path) -> None:
    index = written(tmp_path / "a", ROWS)
    index.file.write_bytes(index.file.read_bytes()[:200])
    with pytest.raises(RunError, match=r"train\.arrow cannot be read"):
        _ = index.fingerprint
