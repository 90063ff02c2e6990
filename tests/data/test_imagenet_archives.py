"""ImageNet as it was downloaded: tars of tars. The command that is advised unpacks them."""

import subprocess
import tarfile
from pathlib import Path

import pytest
from object_stores import tar
from tiny_data import fill, images, jpeg, made

from qrdali.data.imagenet import recognise
from qrdali.errors import InputError

SYNSETS = ("n01440764", "n01484850")


def synset_tars(folder: Path) -> None:
    for number, synset in enumerate(SYNSETS):
        members = [(f"{synset}_{i}.JPEG", jpeg((16 + i, 12 + number))) for i in range(3)]
        tar(folder / f"{synset}.tar", *members)


def advised(root: Path, match: str) -> None:
    """Runs the command that the refusal ends with."""
    with pytest.raises(InputError, match=match) as error:
        recognise(root)
    command = str(error.value).rpartition(": unpack ")[2].partition(": ")[2]
    subprocess.run(["sh", "-ec", command], check=True, cwd=root.parent)


def index(root: Path, out: Path) -> str:
    said = made("imagenet", root, "--out", out, "--per-class", 1).stderr
    assert len(images(out, "train")) == 4
    return said


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Has val/ alone, in class folders."""
    for synset in SYNSETS:
        fill(tmp_path / "image net/val" / synset, 1)
    return tmp_path / "image net"


def test_tars_of_synsets_in_train(root: Path, tmp_path: Path) -> None:
    synset_tars(root / "train")
    advised(
        root, r"image net/train holds 2 tar\(s\) of synsets that are not unpacked, such as n01440764.tar: un"
    )
    assert "left out: 2 .tar\n" in index(root, tmp_path / "data")  # unpacked, they do no harm
    fill(tmp_path / "new/train" / SYNSETS[0], 2)
    synset_tars(tmp_path / "new/train")
    with pytest.raises(
        InputError, match=r"holds 1 tar\(s\) of synsets that are not unpacked, such as n01484850"
    ):
        recognise(tmp_path / "new")


def test_tars_of_synsets_in_the_root(root: Path, tmp_path: Path) -> None:
    synset_tars(root)
    advised(
        root, r"image net holds 2 tar\(s\) of synsets, such as n01440764.tar, and no train/: unpack them: mk"
    )
    index(root, tmp_path / "data")


@pytest.mark.parametrize("has_train", [False, True])
def test_the_tar_of_train(root: Path, tmp_path: Path, has_train: bool) -> None:
    synset_tars(tmp_path / "synsets")
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for file in sorted((tmp_path / "synsets").iterdir()):
            archive.add(file, file.name)
    if has_train:
        (root / "train").mkdir()
    advised(root, "ILSVRC2012_img_train.tar (and no train/|is not unpacked): unpack it: mkdir -p ")
    index(root, tmp_path / "data")


def test_the_tar_of_val(root: Path, tmp_path: Path) -> None:
    for synset in SYNSETS:
        fill(root / "train" / synset, 3)
    (root / "val").rename(tmp_path / "old")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for file in sorted((tmp_path / "old").iterdir()):
            archive.add(file, file.name)
    advised(root, "ILSVRC2012_img_val.tar is not unpacked: unpack it: mkdir -p ")
    index(root, tmp_path / "data")


def test_kaggles_archive(tmp_path: Path) -> None:
    (tmp_path / "imagenet-object-localization-challenge.zip").write_bytes(b"PK")
    with pytest.raises(
        InputError, match=r"and no train/: unpack it: cd .* && unzip -q imagenet-object-local"
    ):
        recognise(tmp_path)


def test_hidden_folders_and_other_files_are_said(root: Path, tmp_path: Path) -> None:
    for synset in SYNSETS:
        fill(root / "train" / synset, 3)
    for place in ("train", "val"):
        fill(root / place / ".ipynb_checkpoints", 1)
        (root / place / "__MACOSX").mkdir()
    (root / "train" / SYNSETS[0] / "x.gif").write_bytes(b"GIF89a")
    fill(root / "val" / SYNSETS[0] / "more", 1)
    said = index(root, tmp_path / "data").splitlines()
    assert said[-3:] == [
        "left out: 1 .gif",
        f"left out: 1 in folders below a class, such as {SYNSETS[0]}/more/0.JPEG",
        "passed over: train/.ipynb_checkpoints/, train/__MACOSX/, val/.ipynb_checkpoints/ and 1 more",
    ]
    rows = (tmp_path / "data/rejected.tsv").read_text().splitlines()[1:]
    assert sorted(Path(row.split("\t")[0]).name for row in rows) == ["0.JPEG", "x.gif"]
