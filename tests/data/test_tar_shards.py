"""WebDataset's tar shards as a root: read in place, refused where they are not what they seem."""

import gzip
import io
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from object_stores import header, loader_of, preprocessing, special, tar
from PIL import Image
from tiny_data import images, info, jpeg, made

from qrdali.cli.main import cli
from qrdali.data import storage, tar_headers
from qrdali.data.build import index_root
from qrdali.data.index import Dataset
from qrdali.data.scan import DECODED, Reading
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan


def samples(texts: "list[str]", start: int = 0) -> "list[tuple[str, bytes]]":
    return [
        member
        for i, text in enumerate(texts, start)
        for member in (
            (f"{i:04d}.jpg", jpeg((16 + i, 12), 20 * i)),
            (f"{i:04d}.cls", text.encode()),
            (f"{i:04d}.json", b"{}"),
        )
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a root #1"
    tar(root / "train/0 é?.tar", *samples(["cat", "dog", "cat"]))
    tar(root / "train/1.tar", *samples(["dog", "cat", "dog"], 3))
    tar(root / "val/0.tar", *samples(["dog", "cat"]))
    return root


def rejected(folder: Path) -> "dict[str, str]":
    rows = (line.split("\t") for line in (folder / "rejected.tsv").read_text("utf-8").splitlines()[1:])
    return {storage.member(path).name: reason for path, reason in rows}


def test_index_says_where_each_image_lies(root: Path, tmp_path: Path) -> None:
    made("index", root, "--out", tmp_path / "data", "--hash")
    assert info(tmp_path / "data")["classes"] == ["cat", "dog"]
    train = images(tmp_path / "data", "train")
    assert [name for _, name in train] == ["cat", "dog", "cat", "dog", "cat", "dog"]
    shard = f"tar+file://{tmp_path}/a%20root%20%231/train/0%20%C3%A9%3F.tar"
    assert train[0][0] == f"{shard}?offset=512&length={len(jpeg((16, 12)))}#0000.jpg"
    for i, (url, _) in enumerate(train):
        own = storage.member(url)
        with tarfile.open(own.shard) as archive:
            content = archive.extractfile(own.name)
            assert content is not None
            assert content.read() == storage.opened(url).whole() == jpeg((16 + i, 12), 20 * i)
    assert Dataset.open(tmp_path / "data").index("train").sizes(np.arange(6)).tolist() == [
        [12, 16 + i] for i in range(6)
    ]
    assert list(changes(Dataset.open(tmp_path / "data"), hashed=True)) == []
    assert info(tmp_path / "data")["source"] == {"made_by": "index", "root": str(root), "found": "tar shards"}


@pytest.mark.parametrize("whole_graph", [False, True])
def test_pixels_are_those_of_the_members(root: Path, tmp_path: Path, whole_graph: bool) -> None:
    made("index", root, "--out", tmp_path / "data")
    folders = tmp_path / "folders"
    for url, name in images(tmp_path / "data", "train"):
        (folders / "train" / name).mkdir(parents=True, exist_ok=True)
        (folders / "train" / name / storage.member(url).name).write_bytes(storage.opened(url).whole())
    made("index", folders, "--out", tmp_path / "plain")
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.image_reducer import open_image_reducer

    seen: list[dict[str, Any]] = []
    for data in ("data", "plain"):
        index = Dataset.open(tmp_path / data).index("train")
        names = [storage.shown(path) for path in index.paths(np.arange(6))]
        loader = loader_of(index, 2, whole_graph)
        for _ in range(2):
            found = {
                names[s]: image.numpy()
                for batch in loader.epoch(EpochPlan(6, 2, FULL_QUALITY))
                for s, image in zip(batch.samples.tolist(), batch.images, strict=True)
            }
        maker = open_image_reducer(index, preprocessing(), Engine(threads=1, whole_graph=whole_graph))
        originals = dict(maker.decode(iter(range(6)), lambda sample, why: pytest.fail(why)))
        seen.append({name: (found[name], originals[i]) for i, name in enumerate(names)})
    assert len(seen[0]) == 6
    for name, (image, original) in seen[0].items():
        assert (image == seen[1][name][0]).all()
        assert (original == seen[1][name][1]).all()


def test_shards_named_by_split_and_numbered_classes(tmp_path: Path) -> None:
    tar(tmp_path / "r/train-0.tar", *samples(["10", "9", "007"]))
    tar(tmp_path / "r/val-0.tar", *samples(["7\n", "12", "9"]))
    made("index", tmp_path / "r", "--out", tmp_path / "data")
    assert info(tmp_path / "data")["classes"] == ["7", "9", "10"]
    assert [name for _, name in images(tmp_path / "data", "train")] == ["10", "9", "7"]
    assert [name for _, name in images(tmp_path / "data", "val")] == ["7", "9"]
    assert rejected(tmp_path / "data") == {"0001.jpg": "its class '12' is none of the 3"}
    (tmp_path / "r/classes.txt").write_text("\n".join(f"kind {i}" for i in range(11)))
    made("index", tmp_path / "r", "--out", tmp_path / "named")
    assert [name for _, name in images(tmp_path / "named", "train")] == ["kind 10", "kind 9", "kind 7"]
    for text, match in (("a\na", "twice"), ("a\n\nb", "line 2"), ("x" * (17 << 20), "not a list")):
        (tmp_path / "r/classes.txt").write_text(text)
        with pytest.raises(InputError, match=match):
            index_root(str(tmp_path / "r"), tmp_path / "x", DECODED)
    assert not (tmp_path / "x").exists()


def test_members_that_are_refused(tmp_path: Path) -> None:
    good = samples(["cat", "dog"])
    hole = tarfile.TarInfo("hole.jpg")
    hole.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "hole.jpg",
        "GNU.sparse.realsize": "9999999",
    }
    tar(
        tmp_path / "r/train/0.tar",
        *good,
        ("/etc/abs.jpg", jpeg()),
        ("a/../../up.jpg", jpeg()),
        special("soft.jpg", b"2", "/etc/passwd"),
        special("hard.jpg", b"1", "0000.jpg"),
        special("pipe.png", b"6"),
        special("disk.png", b"4"),
        special("dir.jpg", b"5"),
        hole,
        ("late.cls", b"cat"),
        special("late.jpg", b"2", "0000.jpg"),
        ("alone.jpg", jpeg()),
        ("empty.jpg", jpeg()),
        ("empty.cls", b" \n"),
        ("binary.jpg", jpeg()),
        ("binary.cls", b"\xff\0"),
        ("long.jpg", jpeg()),
        ("long.cls", b"x" * 5000),
        ("two.jpg", jpeg()),
        ("two.png", jpeg()),
        ("two.cls", b"cat"),
        *good[:2],
        ("cut.jpg", jpeg()[:200]),
        ("cut.cls", b"cat"),
        ("n" * 5000 + ".jpg", jpeg()),
        ("d/" * 100 + "é 🦊\n.jpg", jpeg()),
        ("d/" * 100 + "é 🦊\n.cls", b"dog"),
        ("notes.txt", b"x"),
    )
    made("index", tmp_path / "r", "--out", tmp_path / "data")
    why = rejected(tmp_path / "data")
    patterns = {
        "/etc/abs.jpg": "absolute",
        "a/../../up.jpg": r"\.\.",
        "soft.jpg": "symbolic link",
        "hard.jpg": "hard link",
        "pipe.png": "FIFO",
        "disk.png": "device",
        "hole.jpg": "sparse",
        "late.jpg": "hard|symbolic",
        "alone.jpg": "no alone.cls",
        "empty.jpg": "empty.cls",
        "binary.jpg": "not UTF-8",
        "long.jpg": "5000 bytes",
        "two.png": "an image already",
        "0000.jpg": "come before",
        "cut.jpg": "(?i)truncated",
        "n" * 4092 + ".jpg": "more than 4096",
    }
    assert why.keys() == patterns.keys()
    for name, pattern in patterns.items():
        assert re.search(pattern, why[name]), (name, why[name])
    found = [storage.member(url).name for url, _ in images(tmp_path / "data", "train")]
    assert found == ["0000.jpg", "0001.jpg", "two.jpg", "d/" * 100 + "é 🦊\n.jpg"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:700], "cut: 0000.jpg ends"),
        (lambda data: data[: 600 + 512], "cut"),
        (lambda data: data[: data.rindex(b"0001.json") + 1024], "without an end mark"),
        (lambda data: b"", "without an end mark"),
        (lambda data: os.urandom(5120), "not a whole tar"),
        (lambda data: data[:20] + b"X" + data[21:], "not a whole tar"),
        (lambda data: header(b"a.jpg", 8 << 30) + data, "cut: a.jpg ends"),
        (lambda data: header(b"x", 1 << 30, b"x") + data, "cut"),
        (lambda data: header(b"x", 512, b"x") + b"9" * 512 + data, "extended header of it is damaged"),
        (
            lambda data: header(b"L", 512, b"x") + b"22 size=-99999999999\n".ljust(512, b"\0") + data,
            "damaged|no size",
        ),
        (lambda data: header(b"L", 512, b"x") + b"13 size=-999\n".ljust(512, b"\0") + data, "no size"),
        (lambda data: gzip.compress(bytes(data)), "not a whole tar"),
    ],
)
def test_damaged_shards_are_named_and_nothing_is_left(
    tmp_path: Path, change: "Callable[[bytes], bytes]", match: str
) -> None:
    file = tar(tmp_path / "r/train/bad\n.tar", *samples(["cat", "dog"]))
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(RunError, match=rf"(?s)bad\?\.tar is not a whole tar: .*{match}|{match}") as error:
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
    assert "\n" not in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r"]


def test_a_class_of_a_gigabyte_and_a_million_names_cost_little(tmp_path: Path) -> None:
    file = tmp_path / "r/train/0.tar"
    file.parent.mkdir(parents=True)
    with open(file, "wb") as out:
        with tarfile.open(fileobj=(begin := io.BytesIO()), mode="w") as archive:
            for name, data in samples(["cat", "dog"]):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        out.write(begin.getvalue()[: begin.getvalue().rindex(b"0001.json") + 1024])  # all but the end mark
        out.write(
            header(b"bomb.jpg", len(jpeg()))
            + jpeg()
            + bytes(-len(jpeg()) % 512)
            + header(b"bomb.cls", 1 << 30)
        )
        out.seek(1 << 30, os.SEEK_CUR)  # a hole
        out.write(header(b"dir", 0, b"5") * 100_000 + bytes(1024))
    begun = time.monotonic()
    index_root(str(tmp_path / "r"), tmp_path / "data", Reading(threads=1))
    assert time.monotonic() - begun < 30
    assert rejected(tmp_path / "data") == {
        "bomb.jpg": f"bomb.cls beside it has {1 << 30} bytes: that is not a class"
    }
    assert len(images(tmp_path / "data", "train")) == 2


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_headers, "_MAX_MEMBERS", 5)
    tar(tmp_path / "r/train/0.tar", *samples(["cat", "dog"]))
    with pytest.raises(RunError, match="more than 5 members"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


def test_roots_that_cannot_be_shards(root: Path, tmp_path: Path) -> None:
    (root / "train/cat").mkdir()
    with pytest.raises(InputError, match="2 shards and 1 folders beside them"):
        index_root(str(root), tmp_path / "data", DECODED)
    tar(tmp_path / "r/shard0.tar", *samples(["cat", "dog"]))
    with pytest.raises(InputError, match="none of them named train"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
    (tmp_path / "r/shard0.tar").rename(tmp_path / "r/train-0.tar")
    tar(tmp_path / "r/train-0.tar", *samples(["cat", "cat"]))
    with pytest.raises(RunError, match="have 1 class"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
    (tmp_path / "r/train-0.tar").unlink()
    os.mkfifo(tmp_path / "r/train-0.tar")
    with pytest.raises(RunError, match="not a regular file"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


def test_a_shard_that_went_bad_is_told(root: Path, tmp_path: Path) -> None:
    from qrdali.pipelines.diagnose import why_unreadable

    made("index", root, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    shard = root / "train/1.tar"
    data = bytearray(shard.read_bytes())
    data[512:700] = bytes(188)
    shard.write_bytes(data)
    bad: dict[int, str] = {}
    loader = loader_of(index, 2)
    seen = [
        s for batch in loader.epoch(EpochPlan(6, 2, FULL_QUALITY), bad.update) for s in batch.samples.tolist()
    ]
    assert sorted(seen) == [0, 1, 2, 4, 5]
    assert list(bad) == [3]
    assert "cannot be decoded" in bad[3]
    assert [change.kind for change in changes(Dataset.open(tmp_path / "data"))] == ["unreadable"]
    shard.unlink()
    assert "is gone" in str(why_unreadable(index, 4))
    assert [change.kind for change in changes(Dataset.open(tmp_path / "data"))] == ["missing"] * 3


@pytest.mark.parametrize(
    "url",
    [
        "tar+file:///x",
        "tar+file:///x?offset=1#a",
        "tar+http:///x?offset=1&length=1#a",
        "tar+file:///x?offset=-1&length=1#a",
        f"tar+file:///x?offset={'9' * 30}&length=1#a",
        "tar+file:///x?length=1&offset=1#a",
        "tar+",
    ],
)
def test_urls_that_name_nothing(url: str) -> None:
    with pytest.raises(ValueError, match="does not name a member"):
        storage.opened(url)


def test_a_member_that_its_shard_cannot_hold(root: Path) -> None:
    with pytest.raises(ValueError, match="ends at"):
        storage.opened(storage.Member(str(root / "val/0.tar"), 1 << 40, 5, "x.jpg").url)


def test_shards_with_extended_names_and_sizes(tmp_path: Path) -> None:
    """As GNU tar and as PAX write them."""
    long = "d/" * 90 + "x"
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        folder = tmp_path / str(kind)
        tar(
            folder / "train/0.tar",
            (f"{long}.jpg", jpeg()),
            (f"{long}.cls", b"a"),
            ("y.jpg", jpeg()),
            ("y.cls", b"b"),
            format=kind,
        )
        made("index", folder, "--out", folder / "data")
        assert [storage.member(url).name for url, _ in images(folder / "data", "train")] == [
            f"{long}.jpg",
            "y.jpg",
        ]


def test_training_evaluation_and_mepis(root: Path, tmp_path: Path) -> None:
    made("index", root, "--out", tmp_path / "data")
    for words in (
        [
            "train",
            "shared",
            "--data",
            tmp_path / "data",
            "--run",
            tmp_path / "run",
            "--model",
            "test_resnet",
            "--input-size",
            32,
            "--epochs",
            1,
            "--batch-size",
            2,
            "--device",
            "cpu",
            "--threads",
            1,
        ],
        [
            "evaluate",
            "--run",
            tmp_path / "run",
            "--data",
            tmp_path / "data",
            "--split",
            "val",
            "--threads",
            1,
        ],
        [
            "build-mepi",
            "--run",
            tmp_path / "run",
            "--data",
            tmp_path / "data",
            "--split",
            "train",
            "--reduction",
            "color",
            "--out",
            tmp_path / "mepi",
            "--step",
            0.5,
            "--threads",
            1,
        ],
    ):
        result = CliRunner().invoke(cli, [str(word) for word in words])
        assert result.exit_code == 0, (result.output, result.exception)
    assert (tmp_path / "run/predictions/val.parquet").exists()
    assert Image.open(tmp_path / "mepi/color.png").size[0] > 1
