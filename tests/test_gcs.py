"""An object store of Google's as a root, against `gcs.py` on loopback."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from gcs import BUCKET, Store, forget, gcs
from stores import loader_of, tar
from tiny import fill, images, jpeg, made, paths

from qrdali.cli.main import cli
from qrdali.data import storage, tree
from qrdali.data.index import SPLITS, Dataset
from qrdali.data.roots import index_root
from qrdali.data.scan import DECODED, build
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError
from qrdali.levels import FULL
from qrdali.plan import Plan

ODD = ["one two.jpg", "\"'quotes'.jpg", "émoji 🦊.jpg", "%41?x#y+&=.jpg"]


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with gcs() as store:
        yield store


@pytest.fixture
def store(server: Store) -> Store:
    server.tell()
    forget(storage)
    return server


@pytest.fixture
def pets(tmp_path: Path, store: Store, request: pytest.FixtureRequest) -> str:
    """A root in the store without objects for folders, the same as tmp_path/pets."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            fill(tmp_path / "pets" / split / name, count)
    store.put_folder(tmp_path / "pets", request.node.name[:40])
    store.tell()
    return f"gs://{BUCKET}/{request.node.name[:40]}"


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def done(*words: object) -> None:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)


def commands(data: Path, folder: Path) -> None:
    done("train", "shared", "--data", data, "--run", folder / "run", "--model", "test_resnet", "--input-size", 32, "--epochs", 1,
         "--batch-size", 4, "--device", "cpu", "--threads", 1)
    done("evaluate", "--run", folder / "run", "--data", data, "--split", "val", "--threads", 1)
    done("build-mepi", "--run", folder / "run", "--data", data, "--split", "train", "--reduction", "color", "--step", .5, "--threads", 1,
         "--limit", 2, "--out", folder / "mepi")


def test_from_index_to_mepis(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets + "/", "--out", tmp_path / "data", "--hash")
    assert store.kinds()["media"] == 12  # each object once, by one request
    assert store.kinds()["object"] <= 3  # classes.txt, and splits that are not there
    build(tmp_path / "pets", tmp_path / "plain", hashed=True)
    for split in ("train", "val"):
        assert [(path.removeprefix(pets), name) for path, name in images(tmp_path / "data", split)] == [
            (path.removeprefix(f"{tmp_path}/pets"), name) for path, name in images(tmp_path / "plain", split)]
    assert (tmp_path / "data/train.files.arrow").read_bytes() == (tmp_path / "plain/train.files.arrow").read_bytes()
    assert list(changes(Dataset.open(tmp_path / "data"), hashed=True)) == []
    commands(tmp_path / "data", tmp_path)
    commands(tmp_path / "plain", tmp_path / "local")
    first, second = ((folder / "run/metrics.jsonl").read_text().splitlines()[-1] for folder in (tmp_path, tmp_path / "local"))
    assert json.loads(first)["train_loss"] == json.loads(second)["train_loss"]
    done("preview", f"{pets}/val/cat/0.JPEG", "--out", tmp_path / "far.png")
    done("preview", tmp_path / "pets/val/cat/0.JPEG", "--out", tmp_path / "near.png")
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()
    result = run("preview", f"{pets}/val/cat/none.JPEG", "--out", tmp_path / "x.png")
    assert "cannot be decoded: no such object: gs://" in str(result.exception)


def test_an_epoch_takes_a_request_per_image_many_at_once(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    store.tell(delay=.3)
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(Plan(8, 4, FULL, 4))) == 8
    assert store.kinds() == {"media": 8}
    assert store.most == 8


def test_listings(store: Store, tmp_path: Path) -> None:
    """A thousand objects a request, splits side by side, each once for the bar and the index."""
    for i in range(25):
        for split in ("train", "val"):
            store.put(f"many/{split}/{'ab'[i % 2]}/{i}.jpg", jpeg())
    store.tell(page=10)
    made("index", f"gs://{BUCKET}/many", "--out", tmp_path / "data", "--no-verify")
    found = Counter(asked.name for asked in store.asked if asked.kind == "list")
    assert found["many/train/"] == found["many/val/"] == 3
    assert found.total() <= 11  # three of train, of val; a test that is not there, shards and classes.txt
    assert len(images(tmp_path / "data", "train")) == 25
    store.tell(delay=.2, page=10)
    tree.open_tree(f"gs://{BUCKET}/many").among(SPLITS)
    assert store.most == 3


def test_headers_alone(pets: str, tmp_path: Path, store: Store) -> None:
    store.put(f"{pets.split('/')[3]}/train/cat/cut.jpg", jpeg((64, 48))[:-20])
    made("index", pets, "--out", tmp_path / "data", "--no-verify")
    assert len(images(tmp_path / "data", "train")) == 9
    made("index", pets, "--out", tmp_path / "verified")
    assert len(images(tmp_path / "verified", "train")) == 8
    assert "cut.jpg\t" in (tmp_path / "verified/rejected.tsv").read_text()


def test_keys_may_be_anything(store: Store, tmp_path: Path) -> None:
    for name in ODD:
        store.put(f"odd/train/a b '🦊'/{name}", jpeg())
    for name in ("b/x.jpg", "b/../up.jpg", "b/folder.jpg/x.jpg", "/nameless.jpg", "/nameless.tar"):
        store.put(f"odd/train/{name}", jpeg())
    for name in ("b/zero.jpg", "b/", ""):  # folders may have an object too
        store.put(f"odd/train/{name}", b"")
    store.put("odd/train.jpg", jpeg())
    made("index", f"gs://{BUCKET}/odd", "--out", tmp_path / "data")
    assert {path.rpartition("/")[2] for path in paths(tmp_path / "data", "train")} == {*ODD, "x.jpg"}
    assert [row.split("\t")[0] for row in (tmp_path / "data/rejected.tsv").read_text().splitlines()[1:]] == [
        f"gs://{BUCKET}/odd/train/b/zero.jpg"]
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(Plan(5, 4, FULL, 4))) == 5
    store.put("odd/train/../z.jpg", jpeg())
    with pytest.raises(RunError, match=r"class folder .*\.\.' would lead out"):
        index_root(f"gs://{BUCKET}/odd", tmp_path / "x", DECODED)
    assert not (tmp_path / "x").exists()


def test_a_flat_split_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("train/a/x.jpg", "train/b/x.jpg", "val/x.jpg", "val/y.JPEG", "val/note.txt"):
        store.put(f"flat/{name}", jpeg())
    before = len(store.asked)
    with pytest.raises(InputError, match=rf"^gs://{BUCKET}/flat/val holds 2 image file\(s\) and no class folder"):
        index_root(f"gs://{BUCKET}/flat", tmp_path / "x", DECODED)
    assert [asked.name for asked in store.asked[before:]].count("flat/val/") == 1  # listed once
    assert not (tmp_path / "x").exists()


def test_an_object_that_is_gone_is_left_out_and_named(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    key, bad = pets.split("/")[3], dict[int, str]()
    store.delete(f"{key}/train/cat/1.JPEG")
    store.put(f"{key}/train/dog/2.JPEG", b"garbage")
    seen = [s for batch in loader_of(index, 2).epoch(Plan(8, 2, FULL, 4), bad.update) for s in batch.samples.tolist()]
    assert sorted(seen) == [0, 2, 3, 4, 5, 7]
    assert f"sample 1, {pets}/train/cat/1.JPEG, is gone" in bad[1]
    assert "cannot be decoded" in bad[6]
    assert Counter(change.kind for change in changes(Dataset.open(tmp_path / "data"))) == {"missing": 1, "unreadable": 1}
    with pytest.raises(RunError, match="is gone since it was indexed"):
        list(loader_of(index, 2).epoch(Plan(8, 2, FULL, 4)))


@pytest.mark.parametrize(("fault", "match"), [
    ("403", f"gs://{BUCKET} may not be read with the credentials found here: set GOOGLE_APPLICATION_CREDENTIALS"),
    ("401", f"gs://{BUCKET} may not be read with the credentials"), ("garbage", "cannot be read: check the network"),
    ("nonsense", "cannot be read: check the network")])
@pytest.mark.parametrize("kind", ["list", "media"])
def test_what_a_server_says_instead(pets: str, tmp_path: Path, store: Store, fault: str, match: str, kind: str) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index, told = Dataset.open(tmp_path / "data").index("train"), dict[int, str]()
    store.tell(fault, kind)
    if kind == "media" and fault == "nonsense":  # an answer that is no image: of each file, as far as anybody knows
        with pytest.raises(RunError, match="cannot be decoded"):
            list(loader_of(index, 2).epoch(Plan(8, 2, FULL, 4)))
        return
    work = {"list": lambda: index_root(pets, tmp_path / "x", DECODED),
            "media": lambda: list(loader_of(index, 2).epoch(Plan(8, 2, FULL, 4), told.update))}
    with pytest.raises(storage.Unreachable, match=match) as error:
        work[kind]()
    assert "\n" not in str(error.value)
    assert told == {}
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fault", ["429", "503", "closed", "cut"])
def test_what_passes_is_asked_again(pets: str, tmp_path: Path, store: Store, fault: str) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    store.tell(fault, "media", times=1)
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(Plan(8, 4, FULL, 4))) == 8
    own = [asked for asked in store.asked if asked.name.startswith(pets.split("/")[3])]  # others are what an earlier test left under way
    assert [asked.kind for asked in own] == ["media"] * 9


def test_places_that_are_not_there(store: Store, tmp_path: Path) -> None:
    store.put("there/x.txt", b"")
    for root, match in (("gs://no-such-bucket/x", "there is no bucket gs://no-such-bucket: check its name"),
                        (f"gs://{BUCKET}/none", "none of train/"), ("gs://", "no place in a store")):
        assert match in str(run("data", "index", root, "--out", tmp_path / "x").exception)


def test_credentials_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    (tmp_path / "bad.json").write_text("{}")
    for file in ("none.json", "bad.json"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / file))
        storage._gcs.cache_clear()
        with pytest.raises(storage.Unreachable, match="GOOGLE_APPLICATION_CREDENTIALS") as error:
            index_root("gs://x/y", tmp_path / "x", DECODED)
        assert "\n" not in str(error.value)
    storage._gcs.cache_clear()


def test_shards(store: Store, tmp_path: Path) -> None:
    members = [m for i in range(4) for m in ((f"{i}.jpg", jpeg((16 + i, 12), i * 40)), (f"{i}.cls", b"01"[i % 2:i % 2 + 1]))]
    tar(tmp_path / "r/train-0 é.tar", *members)
    tar(tmp_path / "s/train/0.tar", *members)
    (tmp_path / "r/classes.txt").write_text("cat\ndog\n")
    store.put_folder(tmp_path / "r", "shards")
    store.put_folder(tmp_path / "s", "folders")
    made("index", f"gs://{BUCKET}/shards", "--out", tmp_path / "data")
    made("index", f"gs://{BUCKET}/folders", "--out", tmp_path / "other")
    assert len(images(tmp_path / "other", "train")) == 4
    assert [name for _, name in images(tmp_path / "data", "train")] == ["cat", "dog", "cat", "dog"]
    store.tell()
    for i, (url, _) in enumerate(images(tmp_path / "data", "train")):
        assert url.startswith(f"tar+gs://{BUCKET}/shards/train-0%20%C3%A9.tar?offset=")
        assert storage.opened(url).whole() == jpeg((16 + i, 12), i * 40)
    assert store.kinds() == {"media": 4}  # the shard is open
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(Plan(4, 4, FULL, 4))) == 4
    made("index", tmp_path / "r", "--out", tmp_path / "here")
    there = Dataset.open(tmp_path / "here", f"gs://{BUCKET}/shards").index("train")
    assert there.paths(np.arange(4)) == index.paths(np.arange(4))


def test_reads_in_any_order_of_any_length(store: Store) -> None:
    data = bytes(np.random.default_rng(0).integers(0, 256, 300_000, np.uint8))
    store.put("any", data)
    url = f"gs://{BUCKET}/any"
    store.tell()
    file = storage.opened(url)
    for start, length in ((0, 10), (10, 70_000), (200_000, 5), (100, 5), (299_990, 50), (300_000, 5), (0, 0)):
        assert file.read(start, length) == data[start:start + length]
    assert store.kinds() == {"object": 1, "media": 3}
    assert storage.shard(url).read(300_000, 5) == b""
    assert io.BytesIO(storage.whole(url, 300_000)).getvalue() == data
    with pytest.raises(ValueError, match="more than 299999 bytes"):
        storage.whole(url, 299_999)
