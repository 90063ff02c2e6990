"""An object store as a root, against an S3 server on loopback; data sets whose images moved.

Validation shares.
"""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from object_stores import BUCKET, forget_stores, loader_of, put, s3, tar
from tiny_data import commands, done, fill, images, info, jpeg, made, paths, run

from qrdali.data import object_store, storage, store_tree, tree
from qrdali.data import provenance as source
from qrdali.data.build import index_root
from qrdali.data.held_out import Shares
from qrdali.data.index import Dataset
from qrdali.data.relocation import Relocation, relocation_of
from qrdali.data.scan import DECODED, Reading, build_dataset
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan

ODD = ["one two.jpg", "\"'quotes'.jpg", "émoji 🦊.jpg", "%41?x#y+&=.jpg"]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3() as client:
        yield client


@pytest.fixture
def pets(tmp_path: Path, client: Any, request: pytest.FixtureRequest) -> str:
    """A root in the store, the same as tmp_path/pets."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            fill(tmp_path / "pets" / split / name, count)
    put(client, tmp_path / "pets", request.node.name[:40])
    return f"s3://{BUCKET}/{request.node.name[:40]}"


def test_a_store_from_index_to_mepis(pets: str, tmp_path: Path) -> None:
    made("index", pets + "/", "--out", tmp_path / "data", "--hash")
    build_dataset(tmp_path / "pets", tmp_path / "plain", hashed=True)
    for split in ("train", "val"):
        assert [(path.removeprefix(pets), name) for path, name in images(tmp_path / "data", split)] == [
            (path.removeprefix(f"{tmp_path}/pets"), name) for path, name in images(tmp_path / "plain", split)
        ]
    assert (tmp_path / "data/train.files.arrow").read_bytes() == (
        tmp_path / "plain/train.files.arrow"
    ).read_bytes()
    assert list(changes(Dataset.open(tmp_path / "data"), hashed=True)) == []
    assert source.read(tmp_path / "data")["root"] == pets
    commands(tmp_path / "data", tmp_path)
    commands(tmp_path / "plain", tmp_path / "local")
    first, second = (
        (folder / "run/metrics.jsonl").read_text().splitlines()[-1]
        for folder in (tmp_path, tmp_path / "local")
    )
    assert (
        json.loads(first)["train_loss"] == json.loads(second)["train_loss"]
    )  # the same pixels in the same order


def test_preview_and_what_is_for_folders_only(pets: str, tmp_path: Path) -> None:
    done("preview", f"{pets}/val/cat/0.JPEG", "--out", tmp_path / "far.png")
    done("preview", tmp_path / "pets/val/cat/0.JPEG", "--out", tmp_path / "near.png")
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()
    result = run("preview", f"{pets}/val/cat/none.JPEG", "--out", tmp_path / "x.png")
    assert "cannot be decoded: no such object: s3://" in str(result.exception)
    result = run("data", "imagenet", pets, "--out", tmp_path / "x")
    assert "only `data index` finds" in str(result.exception)
    made("index", pets, "--out", tmp_path / "data")
    result = run("bench", "loader", "--data", tmp_path / "data", "--rounds", 1)
    assert "which torchvision does not read" in str(result.exception)


def test_headers_alone(pets: str, tmp_path: Path, client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key=f"{pets.split('/')[3]}/train/cat/cut.jpg", Body=jpeg((64, 48))[:-20])
    made("index", pets, "--out", tmp_path / "data", "--no-verify")
    assert len(images(tmp_path / "data", "train")) == 9
    made("index", pets, "--out", tmp_path / "verified")
    assert len(images(tmp_path / "verified", "train")) == 8
    assert "cut.jpg\t" in (tmp_path / "verified/rejected.tsv").read_text()


def test_keys_may_be_anything(client: Any, tmp_path: Path) -> None:
    for name in ODD:
        client.put_object(Bucket=BUCKET, Key=f"odd/train/a b '🦊'/{name}", Body=jpeg())
    client.put_object(Bucket=BUCKET, Key="odd/train/b/x.jpg", Body=jpeg())
    client.put_object(Bucket=BUCKET, Key="odd/train/b/zero.jpg", Body=b"")
    client.put_object(Bucket=BUCKET, Key="odd/train/b/../up.jpg", Body=jpeg())
    client.put_object(Bucket=BUCKET, Key="odd/train/b/folder.jpg/x.jpg", Body=jpeg())
    client.put_object(Bucket=BUCKET, Key="odd/train/b/", Body=b"")
    made("index", f"s3://{BUCKET}/odd", "--out", tmp_path / "data")
    assert {path.rpartition("/")[2] for path in paths(tmp_path / "data", "train")} == {*ODD, "x.jpg"}
    assert [row.split("\t")[0] for row in (tmp_path / "data/rejected.tsv").read_text().splitlines()[1:]] == [
        f"s3://{BUCKET}/odd/train/b/folder.jpg/x.jpg",
        f"s3://{BUCKET}/odd/train/b/zero.jpg",
    ]
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(5, 4, FULL_QUALITY))) == 5
    client.put_object(Bucket=BUCKET, Key="odd/train/../z.jpg", Body=jpeg())
    with pytest.raises(RunError, match=r"class folder .*\.\.' would lead out"):
        index_root(f"s3://{BUCKET}/odd", tmp_path / "x", DECODED)
    assert not (tmp_path / "x").exists()


def test_what_is_left_out_is_said(client: Any, tmp_path: Path) -> None:
    fill(tmp_path / "r/train/cat", 2)
    fill(tmp_path / "r/train/dog", 2)
    fill(tmp_path / "r/train/.ipynb_checkpoints", 1)
    fill(tmp_path / "r/train/cat/@eaDir", 1)
    fill(tmp_path / "r/train/cat/more/deep", 2)
    fill(tmp_path / "r/train", 1, "loose{}.jpg")
    fill(tmp_path / "r/validation/dog", 1)
    fill(tmp_path / "r/dev/dog", 1)
    for name in ("x.gif", "x.txt", "._x.jpg", "Thumbs.db", "x"):
        (tmp_path / "r/train/dog" / name).write_bytes(b"x")
    put(client, tmp_path / "r", "left")
    said = made("index", f"s3://{BUCKET}/left", "--out", tmp_path / "data").stderr
    assert said == made("index", tmp_path / "r", "--out", tmp_path / "here").stderr.replace(
        f"{tmp_path}/here", f"{tmp_path}/data"
    ).replace("such as r/", "such as left/")
    assert said.splitlines()[1:] == [
        "left out: 1 without an ending, 1 .gif, 1 .txt",
        "left out: 1 in no class folder, such as left/train/loose0.jpg",
        "left out: 2 in folders below a class, such as more/deep/0.JPEG",
        "passed over: train/.ipynb_checkpoints/, dev/, train/cat/@eaDir/",
    ]
    assert len(images(tmp_path / "data", "train")) == 4
    assert len(images(tmp_path / "data", "val")) == 1
    rejected = [
        sorted(row.replace(root, "") for row in (tmp_path / name / "rejected.tsv").read_text().splitlines())
        for name, root in (("data", f"s3://{BUCKET}/left"), ("here", f"{tmp_path}/r"))
    ]
    assert rejected[0] == rejected[1]


def test_a_flat_split_is_refused(client: Any, tmp_path: Path) -> None:
    for name in ("train/a/x.jpg", "train/b/x.jpg", "val/x.jpg", "val/y.JPEG", "val/note.txt"):
        client.put_object(Bucket=BUCKET, Key=f"flat/{name}", Body=jpeg())
    with pytest.raises(
        InputError, match=rf"^s3://{BUCKET}/flat/val holds 2 image file\(s\) and no class folder"
    ):
        index_root(f"s3://{BUCKET}/flat", tmp_path / "x", DECODED)
    assert not (tmp_path / "x").exists()


def test_an_object_that_is_gone_is_left_out_and_named(pets: str, tmp_path: Path, client: Any) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    key = pets.split("/")[3]
    client.delete_object(Bucket=BUCKET, Key=f"{key}/train/cat/1.JPEG")
    client.put_object(Bucket=BUCKET, Key=f"{key}/train/dog/2.JPEG", Body=b"garbage")
    bad: dict[int, str] = {}
    loader = loader_of(index, 2)
    seen = [
        s for batch in loader.epoch(EpochPlan(8, 2, FULL_QUALITY), bad.update) for s in batch.samples.tolist()
    ]
    assert sorted(seen) == [0, 2, 3, 4, 5, 7]
    assert set(bad) == {1, 6}
    assert f"sample 1, {pets}/train/cat/1.JPEG, is gone" in bad[1]
    assert "cannot be decoded" in bad[6]
    assert Counter(change.kind for change in changes(Dataset.open(tmp_path / "data"))) == {
        "missing": 1,
        "unreadable": 1,
    }
    with pytest.raises(
        RunError, match="is gone since it was indexed: restore it, say by --root OLD=NEW where it is now, or"
    ):
        list(loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY)))


def test_stores_that_cannot_be_read(pets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("index", pets, "--out", tmp_path / "data")
    for root, match in (
        ("s3://no-such-bucket/x", "there is no bucket s3://no-such-bucket"),
        (f"s3://{BUCKET}/none", "none of train/"),
        ("s3://", "not a place in a store"),
        (f"s3://{BUCKET}/a/../b", "not a place in a store"),
        ("http://x/y", "only s3:// and gs://"),
        (f"s3://{BUCKET}/a//b", "not a place in a store"),
    ):
        result = run("data", "index", root, "--out", tmp_path / "x")
        assert isinstance(result.exception, (InputError, RunError)), result.exception
        assert match in str(result.exception)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        forget_stores()
        index, told = Dataset.open(tmp_path / "data").index("train"), dict[int, str]()
        for work in (
            lambda: index_root(pets, tmp_path / "x", DECODED),
            lambda: list(changes(Dataset.open(tmp_path / "data"))),
            lambda: list(loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY), told.update)),
        ):
            with pytest.raises(
                object_store.Unreachable,
                match=r"s3://pictures cannot be read: check the network, AWS_ENDPOINT_URL",
            ) as error:
                work()
            assert "\n" not in str(error.value)
        assert told == {}  # no image is at fault
    forget_stores()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "kind", "match"),
    [
        (
            "AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
            object_store.Unreachable,
            "AWS_ACCESS_KEY_ID",
        ),
        (
            "AWS Error UNKNOWN (HTTP status 403) during ListObjectsV2: InvalidAccessKeyId",
            object_store.Unreachable,
            "AWS_PROFILE",
        ),
        (
            "AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation",
            object_store.Unreachable,
            "there is no bucket s3://b:",
        ),
        ("AWS Error NO_SUCH_KEY during GetObject operation", FileNotFoundError, "no such object: s3://b/k"),
        ("AWS Error SLOW_DOWN\n during GetObject", object_store.Unreachable, "SLOW_DOWN during"),
    ],
)
def test_what_an_error_of_a_store_means(text: str, kind: type, match: str) -> None:
    found = object_store.exception_for("s3://b/k", OSError(text))
    assert type(found) is kind
    assert match in str(found)


def test_an_image_takes_two_requests(pets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow lets no length be said beforehand: it asks for that first."""
    from werkzeug.serving import WSGIRequestHandler

    made("index", pets, "--out", tmp_path / "data")
    requests: list[str] = []
    monkeypatch.setattr(WSGIRequestHandler, "log_request", lambda self, *_: requests.append(self.command))
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(8, 4, FULL_QUALITY))) == 8
    assert Counter(requests) == {"HEAD": 8, "GET": 8}


def test_listing_a_thousand_objects_a_request(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[str] = []
    for i in range(1200):
        client.put_object(Bucket=BUCKET, Key=f"many/train/{'ab'[i % 2]}/{i}.jpg", Body=b"x")
    found, asked = tree.open_tree(f"s3://{BUCKET}/many"), store_tree.RemoteTree._listed
    monkeypatch.setattr(
        store_tree.RemoteTree, "_listed", lambda self, place: requests.append(place) or asked(self, place)
    )
    listed = [len(list(files)) for files in found.images(("train",), ["a", "b", "none"])]
    assert listed == [600, 600, 0]
    assert sorted(requests) == [("train", "a"), ("train", "b"), ("train", "none")]


def test_shards_in_a_store(client: Any, tmp_path: Path) -> None:
    members = [
        m
        for i in range(4)
        for m in ((f"{i}.jpg", jpeg((16 + i, 12), i * 40)), (f"{i}.cls", b"01"[i % 2 : i % 2 + 1]))
    ]
    tar(tmp_path / "r/train-0 é.tar", *members)
    (tmp_path / "r/classes.txt").write_text("cat\ndog\n")
    put(client, tmp_path / "r", "shards")
    made("index", f"s3://{BUCKET}/shards", "--out", tmp_path / "data")
    assert [name for _, name in images(tmp_path / "data", "train")] == ["cat", "dog", "cat", "dog"]
    for i, (url, _) in enumerate(images(tmp_path / "data", "train")):
        assert url.startswith(f"tar+s3://{BUCKET}/shards/train-0%20%C3%A9.tar?offset=")
        assert storage.opened(url).whole() == jpeg((16 + i, 12), i * 40)
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(4, 4, FULL_QUALITY))) == 4
    made("index", tmp_path / "r", "--out", tmp_path / "here")
    there = Dataset.open(tmp_path / "here", f"s3://{BUCKET}/shards").index("train")
    assert there.paths(np.arange(4)) == index.paths(np.arange(4))


def test_images_that_moved(pets: str, tmp_path: Path) -> None:
    made("index", tmp_path / "pets", "--out", tmp_path / "data", "--hash")
    first = tmp_path / "first"
    first.mkdir()
    done(
        "train",
        "shared",
        "--data",
        tmp_path / "data",
        "--run",
        first / "run",
        "--model",
        "test_resnet",
        "--input-size",
        32,
        "--epochs",
        1,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--threads",
        1,
    )
    (tmp_path / "pets").rename(tmp_path / "new place")
    assert len(list(changes(Dataset.open(tmp_path / "data")))) == 12
    for root in (
        str(tmp_path / "new place"),
        f"{tmp_path}/pets={tmp_path}/new place/",
        f"{tmp_path}/pets={pets}",
        pets,
    ):
        assert "12 files are what was indexed" in done(
            "data", "verify", tmp_path / "data", "--hash", "--root", root
        )
    commands(tmp_path / "data", tmp_path, "--root", str(tmp_path / "new place"))
    assert "is finished" in done(
        "train",
        "shared",
        "--data",
        tmp_path / "data",
        "--run",
        first / "run",
        "--model",
        "test_resnet",
        "--input-size",
        32,
        "--epochs",
        1,
        "--batch-size",
        4,
        "--device",
        "cpu",
        "--threads",
        1,
        "--resume",
        "--root",
        tmp_path / "new place",
    )
    done(
        "evaluate",
        "--run",
        first / "run",
        "--data",
        tmp_path / "data",
        "--split",
        "val",
        "--root",
        pets,
        "--threads",
        1,
    )
    import pyarrow.parquet as pq

    # Rows tell images apart by where they were indexed, so that runs before and after a move can be compared.
    assert set(pq.read_table(first / "run/predictions/val.parquet")["path"].to_pylist()) == paths(
        tmp_path / "data", "val"
    )


def test_roots_that_say_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "pets/train/cat", 2)
    fill(tmp_path / "pets/train/dog", 2)
    build_dataset(tmp_path / "pets", tmp_path / "old")
    (tmp_path / "old" / "source.json").unlink()  # as by earlier versions
    (tmp_path / "new=place").mkdir()
    with pytest.raises(InputError, match="does not say where its images were: give --root OLD=NEW"):
        Dataset.open(tmp_path / "old", str(tmp_path / "new=place"))
    with pytest.raises(InputError, match="is not a folder"):
        Dataset.open(tmp_path / "old", f"{tmp_path}/pets={tmp_path}/none")
    with pytest.raises(InputError, match="several ="):
        Dataset.open(tmp_path / "old", "/a=/b=/c")
    index = Dataset.open(tmp_path / "old", f"{tmp_path}/pet={tmp_path}/new=place").index("train")
    with pytest.raises(RunError, match="does not lie below .*/pet, the root"):
        index.paths(np.arange(1))
    with pytest.raises(RunError, match="does not lie below"):
        list(
            loader_of(Dataset.open(tmp_path / "old", f"{tmp_path}/pet={tmp_path}").index("train"), 2).epoch(
                EpochPlan(4, 2, FULL_QUALITY)
            )
        )
    index = Dataset.open(tmp_path / "old", f"{tmp_path}/pets={tmp_path}/new=place").index("train")
    assert index.paths(np.arange(1)) == [f"{tmp_path}/new=place/train/cat/0.JPEG"]
    assert relocation_of(f"{tmp_path}/new=place", {"root": "/x"}, tmp_path) == Relocation(
        "/x", f"{tmp_path}/new=place"
    )


def test_val_share(tmp_path: Path) -> None:
    for name, count in (("cat", 10), ("dog", 20), ("owl", 2)):
        fill(tmp_path / "pets/train" / name, count)
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        made("index", tmp_path / "pets", "--out", tmp_path / folder, "--val-share", 0.2, "--seed", seed)
    assert Counter(name for _, name in images(tmp_path / "a", "val")) == {"cat": 2, "dog": 4, "owl": 1}
    assert Counter(name for _, name in images(tmp_path / "a", "train")) == {"cat": 8, "dog": 16, "owl": 1}
    assert not paths(tmp_path / "a", "val") & paths(tmp_path / "a", "train")
    assert paths(tmp_path / "a", "val") == paths(tmp_path / "b", "val") != paths(tmp_path / "c", "val")
    assert info(tmp_path / "a")["source"]["minival"] == {"share": 0.2, "seed": 0, "images": 7}
    assert list(changes(Dataset.open(tmp_path / "a"))) == []
    for share in (0, 1, -0.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            index_root(str(tmp_path / "pets"), tmp_path / "x", Reading(), shares=Shares(share))
    with pytest.raises(RunError, match="'owl' has 2 images: too few for train and --val-share 0.9"):
        index_root(str(tmp_path / "pets"), tmp_path / "x", Reading(), shares=Shares(0.9))
    fill(tmp_path / "pets/val/cat", 1)
    with pytest.raises(InputError, match="has a val already"):
        index_root(str(tmp_path / "pets"), tmp_path / "x", Reading(), shares=Shares(0.2))
    assert not (tmp_path / "x").exists()
