"""What lies in a root and is no image of a class: passed over, left out or refused, and always said."""

import gzip
import shutil
import unicodedata
from pathlib import Path

import pytest
from object_stores import tar
from tiny_data import fill, images, info, jpeg, made, paths

from qrdali.data.build import index_root
from qrdali.data.class_names import KnownNames, check_alike
from qrdali.data.file_names import ending, is_hidden, is_image, is_noise, unpacker
from qrdali.data.index import Dataset
from qrdali.data.left_out import LeftOut, Where
from qrdali.data.scan import DECODED, build_dataset, index_folder
from qrdali.errors import InputError, RunError

NFC = "Caf\u00e9"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            fill(tmp_path / "root" / split / name, 2)
    return tmp_path / "root"


def rejected(folder: Path) -> "dict[str, str]":
    """The reasons by the files' own names."""
    rows = (line.split("\t") for line in (folder / "rejected.tsv").read_text("utf-8").splitlines()[1:])
    return {path.rpartition("/")[2]: reason for path, reason in rows}


HIDDEN = (
    ".ipynb_checkpoints",
    ".Trash-1000",
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "#recycle",
    "__pycache__",
)


@pytest.mark.parametrize("has_images", [True, False])
def test_hidden_folders_are_never_classes(root: Path, tmp_path: Path, has_images: bool) -> None:
    for name in HIDDEN:
        for place in (root, root / "train", root / "val", root / "train/cat"):
            (place / name).mkdir()
            if has_images:
                fill(place / name, 1)
                fill(place / name / "deeper", 1)
    said = made("index", root, "--out", tmp_path / "data").stderr
    assert info(tmp_path / "data")["classes"] == ["cat", "dog"]
    assert [name for _, name in images(tmp_path / "data", "train")] == ["cat", "cat", "dog", "dog"]
    assert len(images(tmp_path / "data", "val")) == 4
    assert "passed over: train/#recycle/, train/$RECYCLE.BIN/, " in said
    assert f" and {4 * len(HIDDEN) - 3} more\n" in said
    assert rejected(tmp_path / "data") == {}


def test_files_of_systems_are_passed_over_without_a_word(root: Path, tmp_path: Path) -> None:
    for name in ("._0.JPEG", ".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep", "Icon\r"):
        (root / "train/cat" / name).write_bytes(b"x")
        (root / "train" / name).write_bytes(b"x")
    result = made("index", root, "--out", tmp_path / "data")
    assert result.stderr == f"train 4, val 4 images of 2 classes in {tmp_path}/data\n"
    assert rejected(tmp_path / "data") == {}


def test_a_hidden_image_is_not_one_without_a_word(root: Path, tmp_path: Path) -> None:
    (root / "train/cat/.x.jpg").write_bytes(jpeg())
    assert "left out: 1 hidden\n" in made("index", root, "--out", tmp_path / "data").stderr
    assert rejected(tmp_path / "data") == {".x.jpg": "hidden files are not read as images"}


@pytest.mark.parametrize("end", ["jfif", "jpe", "ppm", "pgm", "JFIF", "Jpe", "TIF", "webp"])
def test_endings_that_are_read(root: Path, tmp_path: Path, end: str) -> None:
    (root / f"train/cat/x.{end}").write_bytes(jpeg())
    result = made("index", root, "--out", tmp_path / "data")
    assert str(root / f"train/cat/x.{end}") in paths(tmp_path / "data", "train")
    assert "left out" not in result.stderr


def test_other_endings_are_counted_and_listed(root: Path, tmp_path: Path) -> None:
    for i in range(3):
        (root / f"train/cat/{i}.gif").write_bytes(b"GIF89a")
        (root / f"train/dog/{i}.jpg?itok=a{i}.b").write_bytes(jpeg())
    for i in range(2):
        (root / f"val/dog/img{i}").write_bytes(jpeg())
        (root / f"val/dog/{i}.xml").write_text("<boxes/>")
    (root / "val/dog/\x1b[2J.My Photo").write_bytes(jpeg())
    result = made("index", root, "--out", tmp_path / "data")
    first, second = result.stderr.splitlines()
    data = tmp_path / "data"
    assert first == f"train 4, val 4 images of 2 classes in {data}; 11 left out, see {data}/rejected.tsv"
    assert second == "left out: 3 .gif, 3 .jpg?…, 2 .xml, 2 without an ending, 1 '.my photo'"
    assert rejected(tmp_path / "data") == {
        **{f"{i}.gif": "files ending in .gif are not read as images" for i in range(3)},
        **{f"{i}.jpg?itok=a{i}.b": "files ending in .jpg?… are not read as images" for i in range(3)},
        "img0": "names without an ending are not read as images",
        "img1": "names without an ending are not read as images",
        "\\x1b[2J.My Photo": "files ending in .my photo are not read as images",
    }
    assert info(tmp_path / "data")["rejected"] == 9


def test_images_in_folders_below_a_class_and_beside_them(root: Path, tmp_path: Path) -> None:
    fill(root / "train/cat/more", 3)
    fill(root / "train/cat/more/deep", 2)
    fill(root / "train", 1, "loose{}.jpg")
    (root / "train/dog/again").symlink_to(root / "train")
    result = made("index", root, "--out", tmp_path / "data")
    assert len(images(tmp_path / "data", "train")) == 4
    assert result.stderr.splitlines()[1:] == [
        "left out: 1 in no class folder, such as root/train/loose0.jpg",
        "left out: 6 in folders below a class, such as cat/more/0.JPEG",
    ]
    below = "it lies in a folder below its class folder, where nothing is read"
    reasons = rejected(tmp_path / "data")
    assert reasons.pop("again") == "a link to a folder below a class folder is not followed"
    assert reasons.pop("loose0.jpg") == "it lies in no class folder"
    assert set(reasons.values()) == {below}
    assert len((tmp_path / "data/rejected.tsv").read_text().splitlines()) == 8


def test_a_class_of_which_all_is_left_out_is_an_error_with_the_reason(root: Path, tmp_path: Path) -> None:
    for file in (root / "val/dog").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(RunError, match=r"val/dog holds no readable image; .*/1.gif: files ending in .gif"):
        build_dataset(root, tmp_path / "data")


def test_many_endings_are_counted_in_bounded_memory() -> None:
    left_out = LeftOut()
    for i in range(10_000):
        left_out.add_file(f"/x/y.{i:05d}", Where.BELOW)
    left_out.add_file("/x/" + "y." + "z" * 5000, Where.BELOW)
    (line,) = left_out.lines()
    assert line.startswith("left out: 1 .00000, 1 .00001, ")
    assert line.endswith(" 9,995 of other endings")
    assert len(line) < 120


def test_names_of_files() -> None:
    assert [ending(name) for name in ("a.GIF", "a", "a.b.jpg?x=1.y", ".jpg", "a.0123456789abcdef")] == [
        ".gif",
        "",
        ".jpg?…",
        "",
        ".0123456789a…",
    ]
    assert [is_image(name) for name in ("a.JPG", ".a.jpg", "._a.jpg", "a.jpg ", ".jpg", "a.jpg.gz")] == [
        True,
        *[False] * 5,
    ]
    assert not is_hidden("..")
    assert is_hidden("__macosx")
    assert not is_noise(".x.png")
    assert [unpacker(name) for name in ("a.tar", "a.TGZ", "a.tar.xz", "._a.tgz")] == [
        None,
        "gunzip",
        "unxz",
        None,
    ]


# --- splits


@pytest.mark.parametrize(
    ("name", "split"),
    [("validation", "val"), ("valid", "val"), ("testing", "test"), ("training", "train")],
)
def test_other_names_of_splits(root: Path, tmp_path: Path, name: str, split: str) -> None:
    if split == "test":
        shutil.copytree(root / "val", root / name)
    else:
        (root / split).rename(root / name)
    made("index", root, "--out", tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    assert split in dataset.splits
    assert {Path(path).parents[1].name for path in paths(tmp_path / "data", split)} == {name}
    assert {"train", "val"} <= set(dataset.splits)


def test_two_names_of_one_split_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "val", root / "valid")
    with pytest.raises(
        InputError, match=r"holds val/ and valid/, which are names of one split: remove or re"
    ):
        build_dataset(root, tmp_path / "data")
    tar_of(tmp_path / "s/val-0.tar")
    tar_of(tmp_path / "s/validation/0.tar")
    with pytest.raises(
        InputError, match=r"the folder validation/ and the shard val-0.tar: give one of the two"
    ):
        index_root(str(tmp_path / "s"), tmp_path / "data", DECODED)


def test_folders_that_are_no_splits_are_named(root: Path, tmp_path: Path) -> None:
    for name in ("dev", "Train", "eval"):
        shutil.copytree(root / "val", root / name)
    assert "\npassed over: Train/, dev/, eval/\n" in made("index", root, "--out", tmp_path / "data").stderr
    for name in ("train", "val"):
        shutil.rmtree(root / name)
    with pytest.raises(InputError, match=r"none of train/, .*\(there are Train/, dev/, eval/\)"):
        build_dataset(root, tmp_path / "x")


def tar_of(file: Path, texts: "tuple[str, ...]" = ("cat", "dog")) -> Path:
    return tar(
        file,
        *(
            member
            for i, text in enumerate(texts)
            for member in ((f"{i}.jpg", jpeg(colour=10 * i)), (f"{i}.cls", text.encode()))
        ),
    )


def test_shards_of_splits_by_other_names(tmp_path: Path) -> None:
    tar_of(tmp_path / "r/training-0.tar")
    tar_of(tmp_path / "r/train_1.tar")
    tar_of(tmp_path / "r/validation-00.tar")
    tar_of(tmp_path / "r/testing-00.tar")
    tar_of(tmp_path / "r/dev-00.tar")
    said = made("index", tmp_path / "r", "--out", tmp_path / "data").stderr
    assert said.startswith("train 4, val 2, test 2 images of 2 classes")
    assert "\npassed over: dev-00.tar\n" in said


@pytest.mark.parametrize(
    ("end", "program"),
    [
        (".tar.gz", "gunzip"),
        (".tgz", "gunzip"),
        (".TGZ", "gunzip"),
        (".tar.zst", "unzstd"),
        (".tar.xz", "unxz"),
        (".tar.bz2", "bunzip2"),
    ],
)
def test_compressed_shards_stop_the_command(tmp_path: Path, end: str, program: str) -> None:
    tar_of(tmp_path / "r/val/000.tar")
    for place in ("train/000", "train-000"):
        file = tmp_path / f"r/{place}{end}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(b"x"))
        with pytest.raises(
            InputError, match=rf"{place}{end} is a compressed tar, .* plain .tar, .*`{program} "
        ):
            index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)
        file.unlink()
        if place.startswith("train/"):
            file.parent.rmdir()
    assert not (tmp_path / "data").exists()


def test_a_shard_that_is_compressed_under_a_plain_name(tmp_path: Path) -> None:
    file = tar_of(tmp_path / "r/train/0.tar")
    file.write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(RunError, match=r"0.tar is not a whole tar: it is compressed: unpack it .* gunzip"):
        index_root(str(tmp_path / "r"), tmp_path / "data", DECODED)


def test_no_split_is_lost_beside_another_of_another_kind(root: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, str]] = [
        ("train/0.tar", r"holds tar shards of train, and val/ without any"),
        ("train-0.tar", r"holds tar shards of train, and val/ without any"),
    ]
    for number, (shard, match) in enumerate(cases):
        tar_of(tmp_path / f"{number}" / shard)
        shutil.copytree(root / "val", tmp_path / f"{number}/val")
        with pytest.raises(InputError, match=match):
            index_root(str(tmp_path / f"{number}"), tmp_path / "data", DECODED)
    tar_of(root / "train-0.tar")
    with pytest.raises(InputError, match=r"the folder train/ and the shard train-0.tar: give one"):
        index_root(str(root), tmp_path / "data", DECODED)
    (root / "train-0.tar").unlink()
    shutil.rmtree(root / "val")
    for name, match in (
        ("val.tar.gz", "is a compressed tar"),
        ("val.tar", "rename it to val-0.tar if it is a shard, or unpack it into val/"),
        ("val/000.zip", r"val holds 1 file\(s\) such as 000.zip, and neither class folders nor tar shards"),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
        with pytest.raises(InputError, match=match):
            index_root(str(root), tmp_path / "data", DECODED)
        (root / name).unlink()


def test_an_archive_beside_the_folder_that_it_was_unpacked_into_does_no_harm(
    root: Path, tmp_path: Path
) -> None:
    for name in ("train.tar", "val.tar.gz"):
        (root / name).write_bytes(b"x")
    said = made("index", root, "--out", tmp_path / "data").stderr
    assert said.splitlines()[1:] == ["passed over: train.tar, val.tar.gz"]


# --- names of classes


def test_classes_that_differ_only_in_unicode_form(root: Path, tmp_path: Path) -> None:
    fill(root / "train" / NFC, 1)
    fill(root / "val" / NFD, 1)
    with pytest.raises(
        RunError, match=r"val/ has the class .* from 'Caf\\xe9' it differs only in Unicode form"
    ):
        build_dataset(root, tmp_path / "data")
    (root / "val" / NFD).rename(root / "train" / NFD)
    with pytest.raises(
        RunError, match=r"train/ has two classes .* only in Unicode form .*'Cafe\\u0301' and "
    ):
        build_dataset(root, tmp_path / "data")
    with pytest.raises(InputError, match=r"only in Unicode form"):
        Dataset(tmp_path, (NFC, "dog"), ()).require_classes((NFD, "dog"), "the run")
    with pytest.raises(InputError, match=r"is not a class of the run .*only in Unicode form"):
        index_folder(root / "train", (NFC, "cat", "dog"), tmp_path / "x.arrow")


def test_classes_that_look_alike_are_warned_of(root: Path, tmp_path: Path) -> None:
    fill(root / "train/Cat", 1)
    said = made("index", root, "--out", tmp_path / "data").stderr
    assert "warning: train/ has classes that look alike, such as 'Cat' and 'cat': are they one?\n" in said
    assert check_alike(["a b", "a  b", "ａb", "x\u200b", "x", "y"], "train/").count(" and ") == 2
    assert check_alike(["a", "b"], "train/") == ""
    assert KnownNames(["Cat"]).difference("dog") == ""
    assert "it looks like 'Cat'" in KnownNames(["Cat"]).difference("cat")


@pytest.mark.parametrize("name", ["a\x0bb", "a\x85b", "a\u2028b", "a\tb"])
def test_class_names_that_classes_tsv_cannot_hold(root: Path, tmp_path: Path, name: str) -> None:
    fill(root / "train" / name, 1)
    with pytest.raises(RunError, match="control characters, a line break or bytes that are not UTF-8"):
        build_dataset(root, tmp_path / "data")


# --- sets of class folders


def test_hidden_folders_and_other_files_of_a_set(root: Path, tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints", "@eaDir"):
        fill(root / "val" / name, 1)
    fill(root / "val/cat/more", 1)
    (root / "val/cat/x.gif").write_bytes(b"GIF89a")
    (root / "val/cat/x.txt").write_text("a note")
    left_out = dict(index_folder(root / "val", ("cat", "dog"), tmp_path / "x.arrow"))
    assert {Path(path).name: reason for path, reason in left_out.items()} == {
        ".ipynb_checkpoints": "a hidden folder is no class",
        "@eaDir": "a hidden folder is no class",
        "0.JPEG": "it lies in a folder below its class folder, where nothing is read",
        "x.gif": "files ending in .gif are not read as images",
    }


def test_the_python_api_says_what_was_left_out(root: Path, tmp_path: Path) -> None:
    import qrdali
    from qrdali.interfaces import SilentListener

    said: list[str] = []

    class Listener(SilentListener):
        def line(self, text: str) -> None:
            said.append(text)

        def warn(self, text: str) -> None:
            said.append(f"warning: {text}")

    (root / "train/cat/x.gif").write_bytes(b"GIF89a")
    shutil.copy(root / "train/cat/0.JPEG", root / "val/dog/copy.JPEG")
    qrdali.index(root, tmp_path / "data", hashed=True, progress=Listener())
    assert said[0] == "left out: 1 .gif"
    assert said[1].startswith("warning: ")


# --- images in two splits


def test_images_in_two_splits_are_named(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number, file in enumerate(sorted((root / split).rglob("*.JPEG"))):
            file.write_bytes(jpeg((16 + number, 12 + len(split))))
    for i in range(5):
        shutil.copy(root / "train/cat/0.JPEG", root / f"val/dog/copy{i}.JPEG")
    shutil.copytree(root / "val", root / "test")
    said = made("index", root, "--out", tmp_path / "data", "--hash").stderr
    assert said.splitlines()[1:] == [
        "warning: 5 of 9 images of val are in train too, byte for byte: val/dog/copy0.JPEG, "
        "val/dog/copy1.JPEG, val/dog/copy2.JPEG and 2 more",
        "warning: 5 of 9 images of test are in train too, byte for byte: test/dog/copy0.JPEG, "
        "test/dog/copy1.JPEG, test/dog/copy2.JPEG and 2 more",
        "warning: 9 of 9 images of test are in val too, byte for byte: test/cat/0.JPEG, test/cat/1.JPEG, "
        "test/dog/0.JPEG and 6 more",
    ]
    assert "warning" not in made("index", root, "--out", tmp_path / "unhashed").stderr


def test_a_million_hashes_are_compared_within_seconds(tmp_path: Path) -> None:
    import time

    import numpy as np

    from qrdali.data.duplicates import _rows_also_in

    rng = np.random.default_rng(0)
    train = np.frombuffer(rng.bytes(32 * 1_000_000), "S32")
    val = np.frombuffer(rng.bytes(32 * 50_000), "S32").copy()
    val[[7, 70, 49_999]] = train[[5, 999_999, 0]]
    val[8] = b"a" * 31  # ends in a zero
    val[9] = b"a" * 31 + b"b"
    begun = time.monotonic()
    found = _rows_also_in(iter([val[:30_000], val[30_000:]]), iter(np.array_split(train, 16)))
    assert time.monotonic() - begun < 20
    assert np.flatnonzero(found).tolist() == [7, 70, 49_999]
    assert not _rows_also_in(iter([val[8:9]]), iter([val[9:10]])).any()


def test_links_to_themselves_are_files_that_are_left_out(root: Path, tmp_path: Path) -> None:
    for place in ("train/cat/loop", "train/loop", "loop", "train/cat/more/loop"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).symlink_to("loop")
    said = made("index", root, "--out", tmp_path / "data").stderr
    assert "left out: 3 without an ending\n" in said
