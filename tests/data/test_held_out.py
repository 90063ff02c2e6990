"""Validation and test sets that are taken out of train, or of class folders without any split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny_data import done, fill, images, info, jpeg, made, paths

import qrdali
from qrdali.data.build import index_root
from qrdali.data.held_out import Shares, assign
from qrdali.data.index import Dataset
from qrdali.data.scan import Reading
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError

COUNTS = {"cat": 20, "dog": 40, "owl": 10}
SHARES = ("--val-share", 0.15, "--test-share", 0.2)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Class folders without train, val and test."""
    for name, count in COUNTS.items():
        fill(tmp_path / "pets" / name, count)
    return tmp_path / "pets"


def by_class(folder: Path, split: str) -> Counter[str]:
    return Counter(name for _, name in images(folder, split))


def test_class_folders_are_divided_by_shares(pets: Path, tmp_path: Path) -> None:
    (pets / "readme.txt").write_text("pets")
    (pets / "loose.jpg").write_bytes(jpeg())
    (pets / ".git").mkdir()
    said = made("index", pets, "--out", tmp_path / "data", *SHARES).stderr.splitlines()
    assert said[0].startswith("train 45, val 11, test 14 images of 3 classes in")
    assert said[1] == "left out: 1 .txt"
    assert said[2].startswith("left out: 1 in no class folder, such as ")
    assert said[3:] == ["passed over: pets/.git/"]
    data = tmp_path / "data"
    assert by_class(data, "val") == {"cat": 3, "dog": 6, "owl": 2}  # 1.5 is rounded to the even 2
    assert by_class(data, "test") == {"cat": 4, "dog": 8, "owl": 2}
    assert by_class(data, "train") == {"cat": 13, "dog": 26, "owl": 6}
    every = [path for split in ("train", "val", "test") for path in paths(data, split)]
    assert sorted(every) == sorted(str(file) for file in pets.glob("*/*.JPEG"))
    assert info(data)["source"] == {
        "made_by": "index",
        "root": str(pets),
        "found": "class folders",
        "minival": {"share": 0.15, "seed": 0, "images": 11},
        "test": {"share": 0.2, "seed": 0, "images": 14},
    }
    assert list(changes(Dataset.open(data))) == []  # each image's size stands beside it in every split
    assert (data / "minival.tsv").read_text().splitlines() == [
        "path\tclass",
        *(f"{path}\t{name}" for path, name in images(data, "val")),
    ]
    assert not list(data.glob("*.partial"))


def test_the_choice_is_the_seeds_and_val_does_not_depend_on_test(pets: Path, tmp_path: Path) -> None:
    for name, words in {
        "a": SHARES,
        "b": SHARES,
        "c": (*SHARES, "--seed", 1),
        "val": SHARES[:2],
        "test": SHARES[2:],
    }.items():
        made("index", pets, "--out", tmp_path / name, *words)
    a, b, c, val, test = (tmp_path / name for name in ("a", "b", "c", "val", "test"))
    for split in ("train", "val", "test"):
        assert images(a, split) == images(b, split)
        assert paths(a, split) != paths(c, split)
    assert images(val, "val") == images(a, "val")
    assert Dataset.open(val).splits == ("train", "val")
    assert Dataset.open(test).splits == ("train", "test")
    with pytest.raises(InputError, match="it has train, val; --test-share takes one out of train where ROOT"):
        Dataset.open(val).index("test")
    assert not (test / "minival.tsv").exists()


def test_train_beside_another_split_gives_the_one_that_is_missing(pets: Path, tmp_path: Path) -> None:
    pets.rename(tmp_path / "train")
    (tmp_path / "root").mkdir()
    (tmp_path / "train").rename(tmp_path / "root/train")
    fill(tmp_path / "root/val/cat", 2)
    made("index", tmp_path / "root", "--out", tmp_path / "data", "--test-share", 0.2)
    assert by_class(tmp_path / "data", "test") == {"cat": 4, "dog": 8, "owl": 2}
    assert by_class(tmp_path / "data", "val") == {"cat": 2}
    with pytest.raises(InputError, match="has a val already: leave val_share out"):
        qrdali.index(tmp_path / "root", tmp_path / "x", val_share=0.2, test_share=0.2)


def test_class_folders_alone_are_told_the_options(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"has class folders \(cat/, dog/, owl/\) and none of train/, val/, test/: add --val-share 0.15 "
        "--test-share 0.15 to take both out of each class$",
    ):
        made("index", pets, "--out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (0.0, None, "--val-share is 0.0: give a share between 0 and 1"),
        (0.1, 1.0, "--test-share is 1.0: give a share between 0 and 1"),
        (float("nan"), None, "--val-share is nan"),
        (0.5, 0.5, "leave nothing for train"),
    ],
)
def test_shares_out_of_range_are_refused(val: float, test: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Shares(val, test)


def test_a_class_with_too_few_images_is_named(pets: Path, tmp_path: Path) -> None:
    fill(pets / "emu", 2)
    fill(pets / "fox", 3)
    with pytest.raises(
        RunError,
        match=r"^class 'emu' has 2 images: too few for train and --val-share 0.15 and --test-share 0.2 "
        r"\(1 such class\); add images, take the class away or give other shares$",
    ):
        index_root(str(pets), tmp_path / "data", Reading(), shares=Shares(0.15, 0.2))
    assert not list(tmp_path.glob("data*"))
    (pets / "emu/2.JPEG").write_bytes(jpeg())
    index_root(str(pets), tmp_path / "data", Reading(), shares=Shares(0.15, 0.2))
    for split in ("train", "val", "test"):
        assert by_class(tmp_path / "data", split)["emu"] == 1


def test_a_data_set_among_the_classes_is_refused(pets: Path) -> None:
    with pytest.raises(InputError, match="would be taken for a class folder: choose an --out outside ROOT"):
        index_root(str(pets), pets / "data", Reading(), shares=Shares(0.15, 0.2))


def test_a_data_set_and_a_run_are_no_folders_of_images(pets: Path, tmp_path: Path) -> None:
    made("index", pets, "--out", tmp_path / "data", *SHARES)
    with pytest.raises(
        InputError, match=r"/data is a data set already: give it as it is, by --data /.*/data$"
    ):
        made("index", tmp_path / "data", "--out", tmp_path / "again")
    (tmp_path / "run/best").mkdir(parents=True)
    (tmp_path / "run/config.toml").touch()
    with pytest.raises(InputError, match="/run is a run: give the folder that holds the images$"):
        made("index", tmp_path / "run", "--out", tmp_path / "again", *SHARES)


def test_equal_images_stay_in_one_split(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(60):  # three of each
            (tmp_path / "pets" / name / f"{i}.jpg").write_bytes(jpeg((16 + i // 3, 12 + number)))
    (tmp_path / "pets/dog/a.jpg").write_bytes((tmp_path / "pets/cat/0.jpg").read_bytes())
    words = ("index", tmp_path / "pets", "--out")
    assert "warning" not in made(*words, tmp_path / "data", "--hash", *SHARES).stderr
    places: dict[bytes, set[str]] = {}
    for split in ("train", "val", "test"):
        for path in paths(tmp_path / "data", split):
            places.setdefault(Path(path).read_bytes(), set()).add(split)
    assert len(places) == 40
    assert all(len(splits) == 1 for splits in places.values())
    assert by_class(tmp_path / "data", "val")["cat"] == 9  # of 60 · 0.15, three times three
    assert by_class(tmp_path / "data", "test")["cat"] == 12
    made(*words, tmp_path / "unhashed", *SHARES)
    assert paths(tmp_path / "unhashed", "val") != paths(tmp_path / "data", "val")


def test_a_class_of_copies_cannot_be_divided() -> None:
    labels = np.zeros(7, np.int64)
    three = np.array([0, 0, 0, 1, 1, 2, 2])
    parts = assign(labels, ("cat",), Shares(0.15, 0.15), three)  # one image each is wanted
    assert [len(set(parts[three == number].tolist())) for number in range(3)] == [1, 1, 1]
    assert sorted(np.bincount(parts).tolist()) == [2, 2, 3]
    assert np.bincount(parts)[0] == 3  # the smallest groups go
    with pytest.raises(RunError, match="'cat' has 7 images, 2 of them different: too few for train and"):
        assign(labels, ("cat",), Shares(0.15, 0.15), np.minimum(three, 1))


def test_the_api_and_training_take_divided_folders(pets: Path, tmp_path: Path) -> None:
    data = qrdali.index(pets, tmp_path / "data", val_share=0.15, test_share=0.2, progress=True)
    assert {split: len(data[split]) for split in data.splits} == {"train": 45, "val": 11, "test": 14}
    moved = pets.rename(tmp_path / "elsewhere")
    done("data", "verify", tmp_path / "data", "--root", moved)
