"""ImageNet as it is unpacked in several ways, and HumaNet by a mapping: tiny trees of tiny JPEGs."""

import hashlib
import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import savemat
from tiny_data import fill, images, info, jpeg, made, paths

from qrdali.cli.main import cli
from qrdali.data import provenance as source
from qrdali.data.humanet import read_mapping
from qrdali.data.imagenet import recognise
from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError
from qrdali.runs.settings import validate_settings
from qrdali.workflows.train import run_training

TENCH, SHARK, FOX, SETTER = "n01440764", "n01484850", "n02119789", "n02100735"
IDS = [FOX, SETTER, TENCH]  # ILSVRC's ids are in no order of the names


def flat_val(root: Path, count: int = 6) -> None:
    (root / "val").mkdir(parents=True)
    for i in range(1, count + 1):
        (root / "val" / f"ILSVRC2012_val_{i:08d}.JPEG").write_bytes(jpeg(colour=40 * i))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three synsets of 5 training images; no val/ yet."""
    for synset in IDS:
        fill(tmp_path / "imagenet/train" / synset, 5, synset + "_{}.JPEG")
    return tmp_path / "imagenet"


# --- ImageNet


def ground_truth(root: Path, lines: list[object]) -> Path:
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{line}\n" for line in lines))
    return root / "ILSVRC2012_validation_ground_truth.txt"


EXPECTED = {FOX: [1, 4], SETTER: [2, 3, 5], TENCH: [6]}  # val images by synset
TRUTH = [1, 2, 2, 1, 2, 3]


def checked(root: Path, out: Path, found: str, *words: object) -> None:
    result = made("imagenet", root, "--out", out, "--per-class", 2, *words)
    assert found in result.stderr
    assert {
        synset: [int(Path(path).stem[-8:]) for path, name in images(out, "test") if name == synset]
        for synset in IDS
    } == EXPECTED
    assert Counter(name for _, name in images(out, "val")) == dict.fromkeys(IDS, 2)
    assert Counter(name for _, name in images(out, "train")) == dict.fromkeys(IDS, 3)
    assert not paths(out, "train") & paths(out, "val")
    assert len((out / "minival.tsv").read_text().splitlines()) == 7
    assert Dataset.open(out).classes == tuple(sorted(IDS))
    assert Dataset.open(out).readable == (
        "tench, Tinca tinca",
        "English setter",
        "kit fox, Vulpes macrotis",
    )
    known = source.read(out)
    assert (known["made_by"], known["minival"]["seed"]) == ("imagenet", 0)
    assert found in known["found"]


def test_imagenet_with_class_folders(root: Path, tmp_path: Path) -> None:
    for synset, numbers in EXPECTED.items():
        for i in numbers:
            fill(root / "val" / synset, 1, f"ILSVRC2012_val_{i:08d}.JPEG")
    checked(root, tmp_path / "out", "val/ in class folders")
    for option in ("--val-labels", "--synsets"):
        with pytest.raises(InputError, match="--val-labels and --synsets are for images without"):
            made("imagenet", root, "--out", tmp_path / "x", option, tmp_path / "x")


def test_imagenet_flat_with_the_solution(root: Path, tmp_path: Path) -> None:
    flat_val(root)
    rows = [
        f"ILSVRC2012_val_{i:08d},{synset} 1 2 3 4 {synset} 5 6 7 8 "
        for synset, numbers in EXPECTED.items()
        for i in numbers
    ]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    checked(root, tmp_path / "out", "labelled by LOC_val_solution.csv")
    with pytest.raises(InputError, match="names synsets, not numbers: leave --synsets out"):
        recognise(root, synsets=tmp_path)


def test_imagenet_in_kaggles_archive(root: Path, tmp_path: Path) -> None:
    flat_val(root)
    outer = tmp_path / "kaggle"
    (outer / "ILSVRC/Data").mkdir(parents=True)
    root.rename(outer / "ILSVRC/Data/CLS-LOC")
    rows = [
        f"ILSVRC2012_val_{i:08d},{synset} 1 2 3 4" for synset, numbers in EXPECTED.items() for i in numbers
    ]
    (outer / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows))
    checked(outer, tmp_path / "out", "labelled by LOC_val_solution.csv")


def test_imagenet_flat_with_the_ground_truth_and_a_list(root: Path, tmp_path: Path) -> None:
    flat_val(root)
    ground_truth(root, list(TRUTH))
    with pytest.raises(
        InputError,
        match="nothing says which synset has which: put the devkit's meta.mat beside it, or give --syn",
    ):
        made("imagenet", root, "--out", tmp_path / "out")
    (tmp_path / "ids.txt").write_text("".join(f"{synset} some words\n" for synset in IDS))
    checked(
        root,
        tmp_path / "out",
        "labelled by ILSVRC2012_validation_ground_truth.txt",
        "--synsets",
        tmp_path / "ids.txt",
    )


def test_imagenet_flat_with_the_devkit(root: Path, tmp_path: Path) -> None:
    flat_val(root)
    devkit = root / "ILSVRC2012_devkit_t12/data"
    devkit.mkdir(parents=True)
    ground_truth(devkit, list(TRUTH))
    rows = np.zeros(
        (4, 1),
        dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)],
    )
    for row, values in zip(
        rows[:, 0],
        [(3, TENCH, "tench", 0), (1, FOX, "kit fox", 0), (2, SETTER, "setter", 0), (4, SHARK, "inner", 2)],
        strict=True,
    ):
        for key, value in zip(rows.dtype.names, values, strict=True):
            row[key] = value
    savemat(devkit / "meta.mat", {"synsets": rows})
    checked(root, tmp_path / "out", "labelled by ILSVRC2012_validation_ground_truth.txt")
    ground_truth(devkit, [1, 2, 2, 1, 2, 4])
    with pytest.raises(InputError, match="line 6 is '4', not an id from 1 to 3"):  # 4 is of an inner node
        recognise(root)
    (devkit / "meta.mat").write_bytes((devkit / "meta.mat").read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as the devkit's meta.mat"):
        recognise(root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([1, 2, 2, 1, 2], "labels 5 images, val/ holds 6"),
        ([1, 2, 2, 1, 2, 3, 3], "labels 7 images, val/ holds 6"),
        ([1, 2, 4, 1, 2, 3], "line 3 is '4', not an id from 1 to 3"),
        ([1, 2, "0", 1, 2, 3], "line 3 is '0', not an id"),
        (["1" * 5000], "line 1 is '1111.*…', not an id"),
        (["\x1b[2J"], "control characters"),
        ([1, 1, 1, 1, 1, 1], "has no image of 'n01440764', which train/ has \\(2 such\\)"),
    ],
)
def test_wrong_ground_truth(root: Path, lines: list[object], message: str) -> None:
    flat_val(root)
    ground_truth(root, lines)
    (root / "ids.txt").write_text("\n".join(IDS))
    with pytest.raises(InputError, match=message) as error:
        recognise(root, synsets=root / "ids.txt")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"ILSVRC2012_val_00000001,../../x 1 2",
            "line 1 is .* not ILSVRC2012_val_ and 8 digits, a comma, and a synset",
        ),
        (b"../train/x,n01440764 1 2", "line 1 is '../train/x,n01440764 1 2', not"),
        (b"ILSVRC2012_val_00000001;n01440764", "line 1 is"),
        (
            b"ILSVRC2012_val_00000001,n01440764\nILSVRC2012_val_00000001,n01440764",
            "line 2: ILSVRC2012_val_00000001 stands in an earlier",
        ),
        (b"ImageId,PredictionString\n\xff\xfe", "line 2 is not UTF-8"),
        (b"x" * 20_000, "line 1 is longer than 10,000 bytes"),
        (
            b"\n".join(b"ILSVRC2012_val_%08d,n01440764" % i for i in range(2, 8)),
            "val_00000001.JPEG has no label of its own in",
        ),
        (
            b"\n".join(b"ILSVRC2012_val_%08d,n01484850" % i for i in range(1, 7)),
            "has images of 'n01484850', which train/ lacks",
        ),
    ],
)
def test_wrong_solution(root: Path, text: bytes, message: str) -> None:
    flat_val(root)
    (root / "labels.csv").write_bytes(text)
    with pytest.raises(InputError, match=message):
        recognise(root, labels=root / "labels.csv")


def test_wrong_trees(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no val/"):
        recognise(root)
    flat_val(root)
    with pytest.raises(InputError, match="holds images without class folders: put LOC_val_solution.csv or"):
        recognise(root)
    os.mkfifo(root / "LOC_val_solution.csv")
    with pytest.raises(InputError, match="LOC_val_solution.csv is not a file"):
        recognise(root)
    (root / "LOC_val_solution.csv").unlink()
    ground_truth(root, [1, 2, 2, 1, 2, 3])
    (root / "ids.txt").write_text("\n".join(sorted(IDS)))
    with pytest.raises(
        InputError, match=r"is sorted, and ILSVRC's ids are not in that order \(id 1 is n02119789\)"
    ):
        recognise(root, synsets=root / "ids.txt")
    (root / "ids.txt").write_text("\n".join(IDS))
    (root / "val/ILSVRC2012_val_00000006.JPEG").rename(root / "val/ILSVRC2012_val_00000005.png")
    with pytest.raises(InputError, match="val_00000005.png has no label of its own"):
        recognise(root, synsets=root / "ids.txt")
    (root / "ids.txt").write_text(f"{FOX}\n{FOX}\n")
    with pytest.raises(InputError, match="line 2: n02119789 stands in an earlier line too"):
        recognise(root, synsets=root / "ids.txt")
    fill(root / "val" / FOX, 1)
    with pytest.raises(InputError, match="holds class folders and 6 images beside them"):
        recognise(root)
    (root / "train" / "dogs").mkdir()
    with pytest.raises(InputError, match="has the folder 'dogs', which is not a synset"):
        recognise(root)
    with pytest.raises(InputError, match="has no train/"):
        recognise(tmp_path)


def test_sigterm_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        assert (tmp_path / "out.partial").exists()
        os.kill(os.getpid(), signal.SIGTERM)

    for synset in IDS:
        fill(root / "val" / synset, 1)
    monkeypatch.setattr("qrdali.cli.terminal.Bar.advance", stopped)
    for words in (
        ("imagenet", root, "--per-class", 1),
        ("humanet", root, "--mapping", mapping(tmp_path, LISTED), "--train", 2, "--val", 0),
        ("index", root),
    ):
        with pytest.raises(SystemExit) as exit:
            made(*words, *(("--test", 0) if "humanet" in words else ()), "--out", tmp_path / "out")
        assert exit.value.code == 143
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "map.tsv") == ["imagenet"]


def test_imagenet_leaves_nothing_when_it_fails(root: Path, tmp_path: Path) -> None:
    for synset in IDS:
        fill(root / "val" / synset, 1)
        (root / "val" / synset / "broken.JPEG").write_bytes(jpeg()[:300])
    with pytest.raises(
        RunError, match="class 'n01440764' has 5 readable training images: 5 for validation leave none"
    ):
        made("imagenet", root, "--out", tmp_path / "out", "--per-class", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["imagenet"]
    result = made("imagenet", root, "--out", tmp_path / "out", "--per-class", 4)
    assert "train 3, val 12, test 3 images of 3 classes" in result.stderr
    assert "3 rejected" in result.stderr
    with pytest.raises(InputError, match="not empty"):
        made("imagenet", root, "--out", tmp_path / "out", "--per-class", 4)


# --- HumaNet


HEADED = f"wnid\tclass\n# fish\n{TENCH}\tfish\n\n{FOX}\tdog or fox\n{SETTER}\tdog or fox\n"
LISTED = f"fish\t{TENCH}\ndog or fox\t{FOX}, {SETTER}\n"


def mapping(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "map.tsv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


@pytest.mark.parametrize(
    "text",
    [
        HEADED,
        HEADED.partition("\n")[2],
        LISTED,
        "Class\tSynsets\n" + LISTED,
        "\ufeff" + LISTED,
        LISTED.replace("\n", "\r\n"),
    ],
)
def test_forms_of_a_mapping(tmp_path: Path, text: str) -> None:
    read = read_mapping(mapping(tmp_path, text))
    assert list(read.synsets.items()) == [("fish", (TENCH,)), ("dog or fox", (FOX, SETTER))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{TENCH}\tfish\n{FOX}\tfox\n{TENCH}\tfox\n",
            "line 3: n01440764 stands in an earlier line too, as 'fish': a synset has one class",
        ),
        (
            f"fish\t{TENCH}\nfox\t{FOX},{TENCH}\n",
            "line 2: n01440764 stands in an earlier line too, as 'fish'",
        ),
        (f"{TENCH}\tfish\nn0211978\tfox\n", "line 2: 'n0211978' is not a synset, which is n and 8 digits"),
        (f"{TENCH}\tfish\n{FOX}, {SETTER}\tfox\n", "line 2: 'n02119789, n02100735' is not a synset"),
        (f"fish\t{TENCH}\nfox\t{FOX},,{SETTER}\n", "line 2: '' is not a synset"),
        (f"fish\t{TENCH}\n{FOX}\tfox\n", "line 2: 'fox' is not a synset"),
        ("N01440764\tfish\n", "line 1 is 'N01440764.fish': neither column is a synset"),
        ("n0144076４\tfish\n", "line 1 is .* neither column is a synset"),
        (f"{TENCH}\t{FOX}\n", "line 1 is .* both columns are synsets: a header must say which"),
        (f"{TENCH}\n", "line 1 is 'n01440764': give a synset, a tab and its class"),
        (f"{TENCH}\ta\tb\n", "line 1 is .* give a synset"),
        (f"{TENCH}\t../../etc\n", "line 1: '../../etc' is not a name of a class"),
        (f"{TENCH}\t..\n", "line 1: '..' is not a name of a class"),
        (f"{TENCH}\t\n", "line 1: '' is not a name of a class"),
        (f"{TENCH}\tfish \n", "line 1: 'fish ' is not a name of a class"),
        (f"{TENCH}\t{'é' * 128}\n", "is not a name of a class"),
        (f"{TENCH}\tfi\x1bsh\n", "line 1 is 'n01440764.fi.sh': control characters"),
        (b"# \xff\n", "line 1 is not UTF-8"),
        (f"{TENCH}\tfish\n{FOX}\tfish\n", "has 1 class"),
        ("", "has 0 class"),
    ],
)
def test_wrong_mappings(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_mapping(mapping(tmp_path, text))
    assert str(error.value).isprintable()


def test_humanet(root: Path, tmp_path: Path) -> None:
    words = ("humanet", root, "--mapping", mapping(tmp_path, LISTED), "--train", 2, "--val", 1, "--test", 2)
    result = made(*words, "--out", tmp_path / "a")
    assert "train 4, val 2, test 4 images of 2 classes" in result.stderr
    dataset = Dataset.open(tmp_path / "a")
    assert dataset.classes == ("fish", "dog or fox")  # in the order of the mapping
    parts = {split: images(tmp_path / "a", split) for split in dataset.splits}
    assert {split: Counter(name for _, name in rows) for split, rows in parts.items()} == {
        "train": {"fish": 2, "dog or fox": 2},
        "val": {"fish": 1, "dog or fox": 1},
        "test": {"fish": 2, "dog or fox": 2},
    }
    every = [path for rows in parts.values() for path, _ in rows]
    assert len(set(every)) == 10
    synsets = {"fish": {TENCH}, "dog or fox": {FOX, SETTER}}
    assert all(
        Path(path).parent.name in synsets[name] and Path(path).parent.parent == root / "train"
        for rows in parts.values()
        for path, name in rows
    )
    for split in ("train", "test"):  # both synsets of a class equally
        assert Counter(Path(path).parent.name for path, name in parts[split] if name != "fish") == {
            FOX: 1,
            SETTER: 1,
        }
    made(*words, "--out", tmp_path / "b")
    made(*words, "--out", tmp_path / "c", "--seed", 1)
    for name in ("train.arrow", "val.arrow", "test.arrow", "classes.tsv", "source.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert paths(tmp_path / "a", "train") != paths(tmp_path / "c", "train")
    known = source.read(tmp_path / "a")
    assert known["mapping_sha256"] == hashlib.sha256(LISTED.encode()).hexdigest()
    shown = info(tmp_path / "a")
    assert (shown["source"], shown["classes"]) == (known, ["fish", "dog or fox"])
    assert (
        f"mapping_sha256: {known['mapping_sha256']}"
        in CliRunner().invoke(cli, ["data", "info", str(tmp_path / "a")]).stderr
    )


def test_a_small_synset_gives_what_it_has(root: Path, tmp_path: Path) -> None:
    fill(root / "train" / FOX, 20)  # 25 with those there
    made(
        "humanet",
        root,
        "--mapping",
        mapping(tmp_path, f"fish\t{TENCH}\ndog\t{FOX},{SETTER}\n"),
        "--train",
        4,
        "--val",
        0,
        "--test",
        1,
        "--out",
        tmp_path / "small",
    )
    assert Dataset.open(tmp_path / "small").splits == ("train", "test")
    with pytest.raises(RunError, match="class 'fish' has 5 images in train/ for the 6 asked for"):
        made(
            "humanet",
            root,
            "--mapping",
            tmp_path / "map.tsv",
            "--train",
            5,
            "--val",
            0,
            "--test",
            1,
            "--out",
            tmp_path / "x",
        )
    fill(root / "train" / TENCH, 20)
    made(
        "humanet",
        root,
        "--mapping",
        tmp_path / "map.tsv",
        "--train",
        12,
        "--val",
        2,
        "--test",
        2,
        "--out",
        tmp_path / "most",
    )
    dogs = {
        split: Counter(
            Path(path).parent.name for path, name in images(tmp_path / "most", split) if name == "dog"
        )
        for split in ("train", "val", "test")
    }
    assert dogs == {"val": {FOX: 1, SETTER: 1}, "test": {FOX: 1, SETTER: 1}, "train": {FOX: 9, SETTER: 3}}


def test_a_broken_image_is_replaced_by_another(root: Path, tmp_path: Path) -> None:
    words = ("humanet", root, "--mapping", mapping(tmp_path, LISTED), "--val", 1, "--test", 1)
    (root / "train" / TENCH / f"{TENCH}_2.JPEG").write_bytes(b"")
    made(*words, "--train", 2, "--out", tmp_path / "good")
    assert len(images(tmp_path / "good", "train")) == 4
    with pytest.raises(
        RunError, match="class 'fish' has 4 readable images in train/ for the 5 asked for.*_2.JPEG: "
    ):
        made(*words, "--train", 3, "--out", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert not (tmp_path / "bad.partial").exists()


def test_missing_synsets(root: Path, tmp_path: Path) -> None:
    words = (
        "humanet",
        root,
        "--mapping",
        mapping(tmp_path, f"fish\t{TENCH},{SHARK}\ndog\t{FOX},{SETTER}\n"),
        "--train",
        2,
        "--val",
        1,
        "--test",
        1,
        "--out",
        tmp_path / "out",
    )
    with pytest.raises(
        InputError, match="1 synsets of .* are not in .*: n01484850; --allow-missing does without them"
    ):
        made(*words)
    assert "warning: 1 synsets" in made(*words, "--allow-missing").stderr
    known = source.read(tmp_path / "out")
    assert (known["missing_synsets"], known["synsets"]["fish"]) == ([SHARK], [TENCH])
    mapping(tmp_path, f"fish\t{SHARK}\ndog\t{FOX},{SETTER}\n")
    with pytest.raises(InputError, match="none of the synsets of 'fish' is in train/ \\(n01484850\\)"):
        made(*words[:-1], tmp_path / "none", "--allow-missing")


def test_humanet_tested_on_the_official_validation_set(root: Path, tmp_path: Path) -> None:
    words = (
        "humanet",
        root,
        "--mapping",
        mapping(tmp_path, LISTED),
        "--train",
        4,
        "--val",
        1,
        "--test",
        1,
        "--out",
        tmp_path / "out",
    )
    flat_val(root)
    ground_truth(root, list(TRUTH))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    with pytest.raises(InputError, match="--val-labels and --synsets are of --test-from val"):
        made(*words, "--synsets", tmp_path / "ids.txt")
    made(*words, "--synsets", tmp_path / "ids.txt", "--test-from", "val")
    assert {Path(path).parent.name for path in paths(tmp_path / "out", "test")} == {"val"}
    assert [path for path, name in images(tmp_path / "out", "test") if name == "fish"] == [
        str(root / "val/ILSVRC2012_val_00000006.JPEG")
    ]
    assert source.read(tmp_path / "out")["test_from"] == "val"
    with pytest.raises(RunError, match="class 'fish' has 1 images in val/ for the 2 asked for"):
        made(
            *words[:-1], tmp_path / "x", "--test", 2, "--synsets", tmp_path / "ids.txt", "--test-from", "val"
        )


def test_a_run_keeps_where_its_images_come_from(root: Path, tmp_path: Path) -> None:
    table = mapping(tmp_path, LISTED)
    made(
        "humanet", root, "--mapping", table, "--train", 2, "--val", 1, "--test", 0, "--out", tmp_path / "data"
    )
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": str(tmp_path / "data"),
                "epochs": 1,
                "model": "test_resnet",
                "input_size": 32,
                "batch_size": 4,
                "device": "cpu",
                "threads": 1,
            }
        ),
        tmp_path / "run",
        False,
    )
    start = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert start["source"] == {
        "made_by": "humanet",
        "root": str(root),
        "mapping": "map.tsv",
        "seed": 0,
        "test_from": "train",
        "mapping_sha256": hashlib.sha256(LISTED.encode()).hexdigest(),
        "per_class": {"train": 2, "val": 1, "test": 0},
    }
    assert json.loads((tmp_path / "run/best/state.json").read_text())["classes"] == ["fish", "dog or fox"]
