import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qrdali.data.index import Dataset, Index, Writer
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, class_names, generate, picture
from qrdali.errors import InputError, RunError


def tree(root: Path, *names: str, split: str = "train") -> None:
    for name in names:
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (200, 40, 10)).save(path, "JPEG")


def test_names_survive_the_round_trip(tmp_path: Path) -> None:
    names = ["a/one two.jpg", 'a/"quoted".JPG', "a/émoji 🦊.jpeg", "b/x.jpg"]
    tree(tmp_path / "r", *names)
    summary = build_dataset(tmp_path / "r", tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    index = dataset.index("train")
    every = np.arange(4)
    assert sorted(index.paths(every)) == sorted(str(tmp_path / "r/train" / n) for n in names)
    assert index.labels(every).tolist() == [0, 0, 0, 1]
    assert index.sizes(every).tolist() == [[7, 9]] * 4
    assert (summary.images, summary.rejected, dataset.classes) == ({"train": 4}, 0, ("a", "b"))


def test_upright_sizes(tmp_path: Path) -> None:
    tree(tmp_path / "r", "a/x.jpg", "b/x.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 7)).save(tmp_path / "r/train/a/x.jpg", exif=exif)
    build_dataset(tmp_path / "r", tmp_path / "d")
    assert Dataset.open(tmp_path / "d").index("train").sizes(np.arange(2)).tolist() == [[9, 7], [7, 9]]


def test_what_cannot_be_decoded_is_listed_and_stays_out(tmp_path: Path) -> None:
    folder = tmp_path / "r/train/a"
    tree(tmp_path / "r", "a/good.jpg", "b/good.jpg")
    whole = picture("red-striped-disc", (1,), (80, 60))
    for share in (1, 50, 99):
        (folder / f"cut{share}.jpg").write_bytes(whole[: len(whole) * share // 100])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "garbage.png").write_bytes(os.urandom(500))
    Image.new("P", (4, 4)).save(folder / "gif.jpg", "GIF")
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "fifo.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(whole)
    (folder / "notes.txt").write_text("not scanned")
    summary = build_dataset(tmp_path / "r", tmp_path / "d")
    lines = dict(line.split("\t") for line in (tmp_path / "d/rejected.tsv").read_text().splitlines()[1:])
    reasons = {Path(path).name: reason for path, reason in lines.items()}
    assert summary.images == {"train": 2}
    assert summary.rejected == len(reasons) == 10
    assert "truncated" in reasons["cut50.jpg"]
    assert "truncated" in reasons["cut99.jpg"]
    assert "GIF" in reasons["gif.jpg"]
    assert reasons["folder.jpg"] == reasons["fifo.jpg"] == "not a regular file"
    assert any("UTF-8" in reason for reason in reasons.values())


def test_no_verify_trusts_headers(tmp_path: Path) -> None:
    tree(tmp_path / "r", "a/good.jpg", "b/good.jpg")
    whole = picture("red-striped-disc", (1,), (80, 60))
    (tmp_path / "r/train/a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert build_dataset(tmp_path / "r", tmp_path / "d", verify=False).images == {"train": 3}


def test_refusals_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        build_dataset(tmp_path / "none", tmp_path / "d")
    tree(tmp_path / "one", "a/x.jpg")
    with pytest.raises(InputError, match="none of train/"):
        build_dataset(tmp_path / "one/train", tmp_path / "d")
    with pytest.raises(RunError, match="at least two"):
        build_dataset(tmp_path / "one", tmp_path / "d")
    (tmp_path / "one/train/b").mkdir()
    with pytest.raises(RunError, match="b holds no readable image"):
        build_dataset(tmp_path / "one", tmp_path / "d")
    tree(tmp_path / "one", "b/x.jpg")
    tree(tmp_path / "one", "c/x.jpg", split="val")
    with pytest.raises(RunError, match="val/ has the class 'c'"):
        build_dataset(tmp_path / "one", tmp_path / "d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d/precious").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        build_dataset(tmp_path / "one", tmp_path / "d")
    assert (tmp_path / "d/precious").read_text() == "x"


@pytest.mark.parametrize("flat", ["train", "val"])
def test_a_flat_split_is_refused(tmp_path: Path, flat: str) -> None:
    for split in ("train", "val"):
        tree(
            tmp_path / "root",
            *(["x.jpg", "y.JPEG", "note.txt"] if split == flat else ["a/x.jpg", "b/x.jpg"]),
            split=split,
        )
    with pytest.raises(
        InputError,
        match=rf"root/{flat} holds 2 image file\(s\) and no class folder: .*`qrdali data imagenet`$",
    ):
        build_dataset(tmp_path / "root", tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["root"]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    tree(tmp_path / "root", "a/x.jpg", "b/x.jpg")
    build_dataset(tmp_path / "root", tmp_path / "d")
    with pytest.raises(
        InputError,
        match="has no split 'val': it has train; `qrdali data minival` cuts one from train, .*--val-share",
    ):
        Dataset.open(tmp_path / "d").index("val")
    with pytest.raises(
        InputError, match="has no split 'test': it has train; --test-share takes one out of train where ROOT"
    ):
        Dataset.open(tmp_path / "d").index("test")


def test_damaged_data_sets(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no classes\.tsv"):
        Dataset.open(tmp_path)
    (tmp_path / "classes.tsv").write_text("label\tname\n0\ta\n1\tb\n")
    for content in (b"", b"ARROW1\0\0garbage", (dataset.folder / "train.arrow").read_bytes()[:-40]):
        (tmp_path / "train.arrow").write_bytes(content)
        with pytest.raises(RunError, match=r"train\.arrow is not a readable index"):
            Dataset.open(tmp_path).index("train")
    (tmp_path / "train.arrow").write_bytes((dataset.folder / "train.arrow").read_bytes())
    with pytest.raises(RunError, match=r"outside 0\.\.1"):
        Dataset.open(tmp_path).index("train")
    (tmp_path / "classes.tsv").write_text("label\tname\n1\ta\n")
    with pytest.raises(RunError, match="line 2"):
        Dataset.open(tmp_path)
    for content, said in (
        (b"", "is empty and lists no class"),
        (b"label\tname\n", "lists no class but has 'label"),
        (b"\x1b[31mjunk", r"lists no class but has '[^\x1b]*junk'"),
    ):
        (tmp_path / "classes.tsv").write_bytes(content)
        with pytest.raises(RunError, match=rf"classes\.tsv {said}.*: index again$"):
            Dataset.open(tmp_path)
    with pytest.raises(InputError, match="only in the run x: .*orange"):
        Dataset(tmp_path, ("a", *dataset.classes[1:]), ()).require_classes(dataset.classes, "the run x")


def test_shapes_are_a_function_of_the_seed(tmp_path: Path) -> None:
    spec = ShapesSpec(classes=2, train=3, val=1, test=1, size=(64, 48), seed=5)
    assert generate(tmp_path / "a", spec, workers=1) == generate(tmp_path / "b", spec, workers=2) == 10
    for path in (tmp_path / "a").rglob("*.jpg"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    assert picture("red-striped-disc", (1,), (64, 48)) != picture("red-striped-disc", (2,), (64, 48))
    with pytest.raises(InputError, match="already holds"):
        generate(tmp_path / "a", spec)


def test_no_two_attributes_tell_all_classes_apart() -> None:
    names = [name.split("-") for name in class_names(20)]
    assert len({tuple(name) for name in names}) == 20
    for missing in range(3):
        assert len({tuple(part for i, part in enumerate(name) if i != missing) for name in names}) < 20
    assert all(len(set(class_names(n))) == n for n in range(2, 97))


def test_full_size_shapes_are_as_heavy_as_photographs() -> None:
    sizes = [len(picture("orange-checked-star", (0, i), (500, 375))) for i in range(12)]
    assert 50_000 < np.median(sizes) < 120_000


@pytest.mark.parametrize("most", [1 << 28, 0], ids=["mapped", "read"])
def test_rows_are_found_in_many_record_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("qrdali.data.index.ROWS", 4)
    monkeypatch.setattr("qrdali.data.index_columns.MAPPED", most)
    writer = Writer(tmp_path / "x.arrow")
    for i in range(50):
        writer.add(f"/{i}.jpg", i % 7, 100 + i, 200 + i)
    writer.close()
    index = Index(tmp_path / "x.arrow", 7)
    shuffled = np.random.default_rng(0).permutation(50)
    assert (str(tmp_path) in Path("/proc/self/maps").read_text()) == bool(most)
    for samples in (
        np.arange(50),
        shuffled,
        shuffled[:5],
        np.array([49, 0, 0]),
        np.tile(np.arange(8), 9),
        np.arange(0),
    ):
        assert index.paths(samples) == [f"/{i}.jpg" for i in samples]
        assert index.labels(samples).tolist() == (samples % 7).tolist()
        assert index.sizes(samples).tolist() == [[200 + i, 100 + i] for i in samples.tolist()]
    with pytest.raises(IndexError, match=r"outside 0\.\.49"):
        index.labels(np.array([3, 50]))


@pytest.mark.parametrize("most", [1 << 28, 0], ids=["mapped", "read"])
def test_a_large_index_is_checked_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("qrdali.data.index_columns.MAPPED", most)
    writer = Writer(tmp_path / "x.arrow")
    for label, side in ((0, 5), (9, 5), (1, 0), (1, 5)):
        writer.add("/x.jpg", label, 5, side)
    writer.close()
    with pytest.raises(RunError, match=r"outside 0\.\.1 or sizes below 1"):
        Index(tmp_path / "x.arrow", 2)
    monkeypatch.setattr("qrdali.data.index._MAX_CHECKED_ROWS", 3)
    index = Index(tmp_path / "x.arrow", 2)
    assert index.labels(np.array([0, 3, 2])).tolist() == [0, 1, 1]
    assert index.sizes(np.array([0, 1, 3])).tolist() == [[5, 5]] * 3
    for ask, sample in ((index.labels, 1), (index.sizes, 2)):
        with pytest.raises(RunError, match=r"outside 0\.\.1 or sizes below 1"):
            ask(np.array([0, sample]))
