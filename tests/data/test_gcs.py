"""An object store of Google's as a root, against `gcs_server.py` on loopback."""

import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gcs_server import BUCKET, Store, gcs
from object_stores import forget_stores, loader_of, preprocessing, put, s3, tar
from tiny_data import commands, done, fill, images, jpeg, made, paths, run

from qrdali.data import object_store, storage, tree
from qrdali.data.build import index_root
from qrdali.data.index import SPLITS, Dataset, Index
from qrdali.data.scan import DECODED, build_dataset
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.quality import QUARTERS, Dimensions
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.training.tracked_sets import index_sets

ODD = ["one two.jpg", "\"'quotes'.jpg", "émoji 🦊.jpg", "%41?x#y+&=.jpg"]


@pytest.fixture(scope="module", autouse=True)
def silence() -> Iterator[subprocess.Popen[str]]:
    """A process whose server never answers; it waits two minutes for it while the other tests run."""
    work = (
        "import sys; from pathlib import Path; from qrdali.data.build import index_root; from "
        "qrdali.data.scan import DECODED\ntry: index_root('gs://b/x', Path(sys.argv[1]), DECODED)\nexcept "
        "Exception as error: print(type(error).__name__, error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = os.environ | {"STORAGE_EMULATOR_HOST": f"127.0.0.1:{server.getsockname()[1]}"}
        with subprocess.Popen(
            [sys.executable, "-c", work, "/nowhere/x"], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            yield process
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with gcs() as store:
        yield store


@pytest.fixture
def store(server: Store) -> Store:
    server.tell()
    forget_stores()
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


def test_from_index_to_mepis(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets + "/", "--out", tmp_path / "data", "--hash")
    assert store.kinds()["media"] == 12  # each object once, by one request
    assert store.kinds()["object"] <= 6  # classes.txt, and splits that are not there
    build_dataset(tmp_path / "pets", tmp_path / "plain", hashed=True)
    for split in ("train", "val"):
        assert [(path.removeprefix(pets), name) for path, name in images(tmp_path / "data", split)] == [
            (path.removeprefix(f"{tmp_path}/pets"), name) for path, name in images(tmp_path / "plain", split)
        ]
    assert (tmp_path / "data/train.files.arrow").read_bytes() == (
        tmp_path / "plain/train.files.arrow"
    ).read_bytes()
    assert list(changes(Dataset.open(tmp_path / "data"), hashed=True)) == []
    commands(tmp_path / "data", tmp_path)
    commands(tmp_path / "plain", tmp_path / "local")
    first, second = (
        (folder / "run/metrics.jsonl").read_text().splitlines()[-1]
        for folder in (tmp_path, tmp_path / "local")
    )
    assert json.loads(first)["train_loss"] == json.loads(second)["train_loss"]
    done("preview", f"{pets}/val/cat/0.JPEG", "--out", tmp_path / "far.png")
    done("preview", tmp_path / "pets/val/cat/0.JPEG", "--out", tmp_path / "near.png")
    assert (tmp_path / "far.png").read_bytes() == (tmp_path / "near.png").read_bytes()
    result = run("preview", f"{pets}/val/cat/none.JPEG", "--out", tmp_path / "x.png")
    assert "cannot be decoded: no such object: gs://" in str(result.exception)


def test_an_epoch_takes_a_request_per_image_many_at_once(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    store.tell(delay=0.3)
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(8, 4, FULL_QUALITY))) == 8
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
    # Three of train and of val, two of each other name that a split may have, and the root's own.
    assert found.total() <= 3 + 3 + 5 * 2 + 1
    assert len(images(tmp_path / "data", "train")) == 25
    store.tell(delay=0.2, page=10)
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
        f"gs://{BUCKET}/odd/train/b/../up.jpg",
        f"gs://{BUCKET}/odd/train/b/folder.jpg/x.jpg",
        f"gs://{BUCKET}/odd/train/b/zero.jpg",
    ]
    index = Dataset.open(tmp_path / "data").index("train")
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(5, 4, FULL_QUALITY))) == 5
    store.put("odd/train/../z.jpg", jpeg())
    with pytest.raises(RunError, match=r"class folder .*\.\.' would lead out"):
        index_root(f"gs://{BUCKET}/odd", tmp_path / "x", DECODED)
    assert not (tmp_path / "x").exists()


def test_what_is_left_out_is_said(store: Store, tmp_path: Path) -> None:
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
    store.put_folder(tmp_path / "r", "left")
    made("index", tmp_path / "r", "--out", tmp_path / "here")
    said = made("index", f"gs://{BUCKET}/left", "--out", tmp_path / "data").stderr
    assert said.splitlines()[1:] == [
        "left out: 1 without an ending, 1 .gif, 1 .txt",
        "left out: 1 in no class folder, such as left/train/loose0.jpg",
        "left out: 2 in folders below a class, such as more/deep/0.JPEG",
        "passed over: train/.ipynb_checkpoints/, train/cat/@eaDir/",  # dev/ has no object of its own
    ]
    assert len(images(tmp_path / "data", "train")) == 4
    assert len(images(tmp_path / "data", "val")) == 1
    rejected = [
        sorted(row.replace(root, "") for row in (tmp_path / name / "rejected.tsv").read_text().splitlines())
        for name, root in (("data", f"gs://{BUCKET}/left"), ("here", f"{tmp_path}/r"))
    ]
    assert rejected[0] == rejected[1]


def test_a_flat_split_is_refused(store: Store, tmp_path: Path) -> None:
    for name in ("train/a/x.jpg", "train/b/x.jpg", "val/x.jpg", "val/y.JPEG", "val/note.txt"):
        store.put(f"flat/{name}", jpeg())
    before = len(store.asked)
    with pytest.raises(
        InputError, match=rf"^gs://{BUCKET}/flat/val holds 2 image file\(s\) and no class folder"
    ):
        index_root(f"gs://{BUCKET}/flat", tmp_path / "x", DECODED)
    assert [asked.name for asked in store.asked[before:]].count("flat/val/") == 1  # listed once
    assert not (tmp_path / "x").exists()


def test_an_object_that_is_gone_is_left_out_and_named(pets: str, tmp_path: Path, store: Store) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    key, bad = pets.split("/")[3], dict[int, str]()
    store.delete(f"{key}/train/cat/1.JPEG")
    store.put(f"{key}/train/dog/2.JPEG", b"garbage")
    seen = [
        s
        for batch in loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY), bad.update)
        for s in batch.samples.tolist()
    ]
    assert sorted(seen) == [0, 2, 3, 4, 5, 7]
    assert f"sample 1, {pets}/train/cat/1.JPEG, is gone" in bad[1]
    assert "cannot be decoded" in bad[6]
    assert Counter(change.kind for change in changes(Dataset.open(tmp_path / "data"))) == {
        "missing": 1,
        "unreadable": 1,
    }
    with pytest.raises(RunError, match="is gone since it was indexed"):
        list(loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY)))


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (
            "403",
            f"gs://{BUCKET} may not be read with the credentials found here: set "
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("401", f"gs://{BUCKET} may not be read with the credentials"),
        ("garbage", "cannot be read: check the network"),
        ("nonsense", "cannot be read: check the network"),
    ],
)
@pytest.mark.parametrize("kind", ["list", "media"])
def test_what_a_server_says_instead(
    pets: str, tmp_path: Path, store: Store, fault: str, match: str, kind: str
) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index, told = Dataset.open(tmp_path / "data").index("train"), dict[int, str]()
    store.tell(fault, kind)
    if (
        kind == "media" and fault == "nonsense"
    ):  # an answer that is no image: of each file, as far as anybody knows
        with pytest.raises(RunError, match="cannot be decoded"):
            list(loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY)))
        return
    work = {
        "list": lambda: index_root(pets, tmp_path / "x", DECODED),
        "media": lambda: list(loader_of(index, 2).epoch(EpochPlan(8, 2, FULL_QUALITY), told.update)),
    }
    with pytest.raises(object_store.Unreachable, match=match) as error:
        work[kind]()
    assert "\n" not in str(error.value)
    assert told == {}
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fault", ["429", "503", "closed", "cut"])
def test_what_passes_is_asked_again(pets: str, tmp_path: Path, store: Store, fault: str) -> None:
    made("index", pets, "--out", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    store.tell(fault, "media", times=1)
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(8, 4, FULL_QUALITY))) == 8
    own = [
        asked for asked in store.asked if asked.name.startswith(pets.split("/")[3])
    ]  # others are what an earlier test left under way
    assert [asked.kind for asked in own] == ["media"] * 9


def test_places_that_are_not_there(store: Store, tmp_path: Path) -> None:
    store.put("there/x.txt", b"")
    for root, match in (
        ("gs://no-such-bucket/x", "there is no bucket gs://no-such-bucket: check its name"),
        (f"gs://{BUCKET}/none", "none of train/"),
        ("gs://", "not a place in a store"),
    ):
        assert match in str(run("data", "index", root, "--out", tmp_path / "x").exception)


def test_credentials_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    (tmp_path / "bad.json").write_text("{}")
    for file in ("none.json", "bad.json"):
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / file))
        object_store._gcs.cache_clear()
        with pytest.raises(object_store.Unreachable, match="GOOGLE_APPLICATION_CREDENTIALS") as error:
            index_root("gs://x/y", tmp_path / "x", DECODED)
        assert "\n" not in str(error.value)
    object_store._gcs.cache_clear()


def test_shards(store: Store, tmp_path: Path) -> None:
    members = [
        m
        for i in range(4)
        for m in ((f"{i}.jpg", jpeg((16 + i, 12), i * 40)), (f"{i}.cls", b"01"[i % 2 : i % 2 + 1]))
    ]
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
    assert sum(len(batch.samples) for batch in loader_of(index, 4).epoch(EpochPlan(4, 4, FULL_QUALITY))) == 4
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
        assert file.read(start, length) == data[start : start + length]
    assert store.kinds() == {"object": 1, "media": 3}
    assert storage.shard(url).read(300_000, 5) == b""
    assert io.BytesIO(storage.whole(url, 300_000)).getvalue() == data
    with pytest.raises(ValueError, match="more than 299999 bytes"):
        storage.whole(url, 299_999)


@pytest.fixture
def trained(dataset: Dataset, images: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and the folder of its classes."""
    done(
        "train",
        "shared",
        "--data",
        dataset.folder,
        "--run",
        tmp_path / "run",
        "--model",
        "test_resnet",
        "--input-size",
        32,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--device",
        "cpu",
        "--threads",
        1,
    )
    return tmp_path / "run", images / "test"


def in_s3(folder: Path) -> Iterator[str]:
    with s3() as client:
        put(client, folder, "mine")
        yield f"s3://{BUCKET}/mine"


def in_gcs(folder: Path) -> Iterator[str]:
    with gcs() as store:
        store.put_folder(folder, "mine")
        yield f"gs://{BUCKET}/mine"


@pytest.mark.parametrize("place", [in_s3, in_gcs])
def test_sets_in_a_store(
    trained: tuple[Path, Path], dataset: Dataset, tmp_path: Path, place: Callable[[Path], Iterator[str]]
) -> None:
    """The same figures as those of the same folder on the disk; the same refusals."""
    run_folder, folder = trained
    for url in place(folder):
        words = ["evaluate", "--run", run_folder, "--threads", 1, "--json"]
        result = run(*words, "--set", f"near={folder}", "--set", f"far={url}", "--set", f"slash={url}/")
        assert result.exit_code == 0, result.exception
        found = json.loads(result.stdout)["sets"]
        assert found["near"]["images"] == found["far"]["images"] == found["slash"]["images"] == 12
        near, far = (pq.read_table(run_folder / f"predictions/{name}.parquet") for name in ("near", "far"))
        assert near.drop_columns("path").equals(far.drop_columns("path"))
        assert far["path"][0].as_py().startswith(f"{url}/")
        tracking = [
            "train",
            "baseline",
            "--data",
            dataset.folder,
            "--run",
            tmp_path / "b",
            "--init",
            run_folder,
            "--max-epochs",
            1,
            "--batch-size",
            8,
            "--device",
            "cpu",
            "--threads",
            1,
        ]
        done(*tracking, "--track-set", f"near={folder}", "--track-set", f"far={url}/")
        tracked = json.loads((tmp_path / "b/metrics.jsonl").read_text().splitlines()[-1])["tracked"]
        assert tracked["near"] == tracked["far"]
        index_sets(tmp_path / "b", {"far": f"{url}/", "near": str(folder)}, dataset.classes, pytest.fail)
        for other in ({"far": str(folder)}, {"near": url}, {"far": f"{url}/none"}):
            with pytest.raises(InputError, match="give the other folder another NAME"):
                index_sets(tmp_path / "b", other, dataset.classes, pytest.fail)
        for bad, match in (
            (f"{url}/none", "holds no readable image"),
            (url.rpartition("/")[0], "which is not a class"),
            (url.replace(BUCKET, "nobody"), "there is no bucket"),
            ("http://x", "is not a folder"),
        ):
            assert match in str(run(*words, "--set", f"x={bad}").exception), bad


def test_tar_shards_are_no_set(trained: tuple[Path, Path], store: Store) -> None:
    store.put("tars/0.tar", b"")
    result = run("evaluate", "--run", trained[0], "--set", f"x=gs://{BUCKET}/tars", "--threads", 1)
    assert "holds tar shards: a set holds class folders of images; index the shards" in str(result.exception)


@pytest.fixture
def long(store: Store, tmp_path: Path) -> tuple[Index, Index]:
    """80 images in the store and on the disk."""
    for name in ("cat", "dog"):
        fill(tmp_path / "long/train" / name, 40)
    store.put_folder(tmp_path / "long", "long")
    made("index", f"gs://{BUCKET}/long", "--out", tmp_path / "far")
    made("index", tmp_path / "long", "--out", tmp_path / "near")
    return Dataset.open(tmp_path / "far").index("train"), Dataset.open(tmp_path / "near").index("train")


@pytest.mark.parametrize("gone", [False, True])
def test_a_search_reads_ahead(long: tuple[Index, Index], store: Store, gone: bool) -> None:
    """The next originals are asked for while those before them are searched.

    They are the same, in the same order.
    """
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.image_reducer import open_image_reducer

    told: list[int] = []
    far, near = (
        open_image_reducer(index, preprocessing(), Engine(threads=1)).decode(
            iter(range(80)), lambda sample, why: told.append(sample)
        )
        for index in long
    )
    if gone:
        store.delete("long/train/cat/12.JPEG")  # sorted by name, it is within the first pictures
    store.tell(delay=0.1)
    found = [next(far)]
    time.sleep(1)
    begun = store.kinds()["media"]
    assert (
        begun >= 24 or gone
    )  # two chunks of 8 are decoded ahead, the third is here before anybody asks for it
    assert store.most >= 8
    store.tell()
    found += list(far)
    expected = [(sample, pixels) for sample, pixels in near if sample not in told]
    assert [sample for sample, _ in found] == [sample for sample, _ in expected]
    assert len(found) == 80 - gone
    assert all((one == other).all() for (_, one), (_, other) in zip(found, expected, strict=True))


@pytest.mark.parametrize("whole_graph", [False, True])
def test_a_probe_reads_ahead(long: tuple[Index, Index], store: Store, whole_graph: bool) -> None:
    from qrdali.distributed import SINGLE_PROCESS
    from qrdali.reduction.levels import PerImageLevels
    from qrdali.reduction.neighbors import DescentRule
    from qrdali.training.probe import ProbeOptions, candidate_requests
    from qrdali.training.run_spec import Split

    store.tell(delay=0.1)
    shown = []
    for index in long:
        loader = loader_of(index, 2, whole_graph)
        options = ProbeOptions(DescentRule(Dimensions(True, False, True), QUARTERS), batch_size=4)
        asked = candidate_requests(
            Split(loader, index),
            PerImageLevels.at_full_quality(80, False, False),
            options,
            lambda *_: None,
            SINGLE_PROCESS,
        )
        stream = loader.candidates(asked, 2, (0, 2), False)
        first = next(stream)
        time.sleep(1)
        if index is long[0]:
            assert 64 <= store.kinds()["media"] < 80
            assert store.most >= 16
            store.tell()
        shown.append([first, *stream])
    assert [ask.samples.tolist() for ask in (s.request for s in shown[0])] == [
        ask.samples.tolist() for ask in (s.request for s in shown[1])
    ]
    assert sum(len(s.request.samples) for s in shown[0]) == 80
    assert all((one.images == other.images).all() for one, other in zip(*shown, strict=True))


@pytest.mark.nightly
def test_a_server_that_never_answers(silence: subprocess.Popen[str]) -> None:
    said = silence.communicate(timeout=200)[0]
    assert said.startswith("Unreachable gs://b cannot be read: check the network, STORAGE_EMULATOR_HOST (")
    assert said.count("\n") == 1
