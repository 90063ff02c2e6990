"""A validation set cut from train, killed at every rename; and files that change after they were indexed."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from tiny_data import fill, images, info, jpeg, paths

from qrdali.cli.main import cli
from qrdali.data import duplicates, minival
from qrdali.data import provenance as source
from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.verify import changes
from qrdali.errors import InputError, RunError
from qrdali.files.lock import acquire
from qrdali.reduction.counter_rng import shuffled

SEED = 7


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for name, count in (("cat", 6), ("dog", 9), ("owl", 4)):
        fill(tmp_path / "pets/train" / name, count)
    build_dataset(tmp_path / "pets", tmp_path / "data", threads=1, hashed=True)
    return tmp_path / "data"


def test_minival_is_balanced_disjoint_and_a_function_of_the_seed(pets: Path, tmp_path: Path) -> None:
    before = paths(pets, "train")
    done = minival.cut(pets, 3, 0)
    train, val = images(pets, "train"), images(pets, "val")
    assert (done.train, done.val, done.resumed) == (10, 9, False)
    assert Counter(name for _, name in val) == {"cat": 3, "dog": 3, "owl": 3}
    assert not paths(pets, "train") & paths(pets, "val")
    assert paths(pets, "train") | paths(pets, "val") == before
    assert all(Path(path).parent.name == name for path, name in train + val)
    assert (pets / "minival.tsv").read_text().splitlines() == [
        "path\tclass",
        *(f"{path}\t{name}" for path, name in val),
    ]
    assert source.read(pets)["minival"] == {"per_class": 3, "seed": 0, "images": 9}
    assert sorted(file.name for file in pets.iterdir()) == sorted(
        (
            "classes.tsv",
            "rejected.tsv",
            "minival.tsv",
            "source.json",
            "train.arrow",
            "train.files.arrow",
            "val.arrow",
            "val.files.arrow",
            "warnings.tsv",
        )
    )
    assert (
        list(changes(Dataset.open(pets), hashed=True, threads=1)) == []
    )  # bytes and hashes went along with their rows
    for seed, same in ((0, True), (1, False)):
        build_dataset(tmp_path / "pets", tmp_path / f"again{seed}", threads=1)
        minival.cut(tmp_path / f"again{seed}", 3, seed)
        assert (paths(tmp_path / f"again{seed}", "val") == paths(pets, "val")) == same
    fill(tmp_path / "pets/train/ant", 7)
    build_dataset(tmp_path / "pets", tmp_path / "more", threads=1)
    minival.cut(tmp_path / "more", 3, 0)
    assert {path for path in paths(tmp_path / "more", "val") if "/ant/" not in path} == paths(pets, "val")


def test_minival_of_many_record_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrdali.data.index.ROWS", 4)
    for name in ("cat", "dog"):
        fill(tmp_path / "pets/train" / name, 9)
    build_dataset(tmp_path / "pets", tmp_path / "data", threads=1, hashed=True)
    minival.cut(tmp_path / "data", 2, 5)
    assert Counter(name for _, name in images(tmp_path / "data", "val")) == {"cat": 2, "dog": 2}
    assert Counter(name for _, name in images(tmp_path / "data", "train")) == {"cat": 7, "dog": 7}
    listed = [row.partition("\t")[0] for row in (tmp_path / "data/minival.tsv").read_text().splitlines()[1:]]
    assert listed == [path for path, _ in images(tmp_path / "data", "val")]
    assert not set(listed) & paths(tmp_path / "data", "train")
    assert list(changes(Dataset.open(tmp_path / "data"), hashed=True, threads=1)) == []


def test_the_same_call_again_changes_nothing(pets: Path) -> None:
    """The data set is left as a kill at the very end leaves it, when all is done and nobody was told."""
    done = minival.cut(pets, 1, 0)
    (pets / ".lock").touch()
    before = {file.name: file.read_bytes() for file in pets.iterdir() if file.name != ".lock"}
    again = minival.cut(pets, 1, 0)
    assert (again.train, again.val, again.resumed) == (done.train, done.val, True)
    assert {file.name: file.read_bytes() for file in pets.iterdir()} == before


def test_minival_refuses(pets: Path) -> None:
    before = {file.name: file.read_bytes() for file in pets.iterdir()}
    with pytest.raises(
        RunError, match=r"class 'owl' has 4 training images: 4 for validation leave none \(1 such class\)"
    ):
        minival.cut(pets, 4, 0)
    assert {file.name: file.read_bytes() for file in pets.iterdir()} == before
    minival.cut(pets, 1, 0)
    for other in ({"per_class": 2, "seed": 0}, {"per_class": 1, "seed": 1}):
        with pytest.raises(InputError, match="has a validation split already"):
            minival.cut(pets, **other)
    with pytest.raises(InputError, match="is not a data set"):
        minival.cut(pets.parent, 1, 0)
    (pets / "val.arrow").unlink()
    with pytest.raises(RunError, match="val.arrow is gone"):
        minival.cut(pets, 1, 0)


class Killed(BaseException):
    pass


def test_minival_killed_at_every_rename_loses_nothing(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, rename = paths(pets, "train"), Path.rename
    build_dataset(tmp_path / "pets", tmp_path / "whole", threads=1, hashed=True)
    minival.cut(tmp_path / "whole", 2, 7)
    for kill in range(6):
        folder, count = tmp_path / f"killed{kill}", iter(range(100))

        def dying(old: Path, new: Path, kill: int = kill, count: Any = count) -> Path:
            if next(count) == kill:
                raise Killed
            return rename(old, new)

        build_dataset(tmp_path / "pets", folder, threads=1, hashed=True)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            with pytest.raises(Killed):
                minival.cut(folder, 2, 7)
        left = Dataset.open(folder)
        assert left.splits == ("train",)  # never a validation set beside a train that still holds it
        assert paths(folder, "train") <= every
        done = minival.cut(
            folder, *((2, 7) if kill == 0 else (1, 0))
        )  # a cut that was decided is finished as it was asked for
        assert (done.resumed, done.val) == (kill > 0, 6)
        for name in (
            "train.arrow",
            "val.arrow",
            "train.files.arrow",
            "val.files.arrow",
            "minival.tsv",
            "source.json",
        ):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert not list(folder.glob("*.partial"))


TWINS = "1 of 6 images of val are in train too, byte for byte: train/cat/copy.JPEG"


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """A data set of which a cut moves one of two identical cats."""
    root = tmp_path / "twins"
    for number, name in enumerate(("cat", "dog", "owl")):
        fill(root / "train" / name, 5)
        for i in range(5):
            (root / "train" / name / f"{i}.JPEG").write_bytes(jpeg((16 + i, 12), 50 * number))
    shutil.copy(root / "train/cat/0.JPEG", root / "train/cat/copy.JPEG")
    build_dataset(root, tmp_path / "of_twins", threads=1, hashed=True)
    return tmp_path / "of_twins"


def warnings_of_a_cut(folder: Path, warn: Callable[[str], None] | None = None) -> list[str]:
    said: list[str] = []
    minival.cut(folder, 2, SEED, warn=warn or said.append)
    return said


def test_minival_names_images_that_are_in_both(twins: Path, tmp_path: Path) -> None:
    build_dataset(tmp_path / "twins", tmp_path / "unhashed", threads=1)
    assert warnings_of_a_cut(tmp_path / "unhashed") == []
    done = CliRunner().invoke(cli, ["data", "minival", str(twins), "--per-class", "2", "--seed", str(SEED)])
    assert (done.exit_code, done.stderr.splitlines()) == (
        0,
        [f"warning: {TWINS}", f"train 10, val 6 images in {twins}"],
    )
    (tmp_path / "twins/train/cat/copy.JPEG").unlink()
    build_dataset(tmp_path / "twins", tmp_path / "all_different", threads=1, hashed=True)
    assert warnings_of_a_cut(tmp_path / "all_different") == []


@pytest.mark.parametrize("moment", [*range(12), "hashes", "warned"])
def test_whoever_finds_a_validation_set_has_been_warned(
    twins: Path, moment: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after every rename, while hashes are compared, or once a warning is given."""
    said: list[str] = []
    rename, hashes, count = Path.rename, duplicates._hashes, iter(range(100))

    def dying(old: Path, new: Path) -> Path:
        if next(count) == moment:
            raise Killed
        renamed = rename(old, new)
        if next(count) == moment:
            raise Killed
        return renamed

    def warn(text: str) -> None:
        said.append(text)
        if moment == "warned":
            raise Killed

    def dying_hashes(*args: Any) -> Any:
        if moment == "hashes":
            raise Killed
        return hashes(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        patch.setattr(duplicates, "_hashes", dying_hashes)
        with pytest.raises(Killed):
            warnings_of_a_cut(twins, warn)
    if moment == 11:  # after the last rename
        assert Dataset.open(twins).splits == ("train", "val")
    else:
        assert Dataset.open(twins).splits == ("train",)
        said += warnings_of_a_cut(twins)
    assert set(said) == {TWINS}
    assert (len(paths(twins, "train")), len(paths(twins, "val"))) == (10, 6)
    assert not paths(twins, "train") & paths(twins, "val")


def test_hashes_of_test_that_are_damaged_do_not_keep_a_cut_from_being_made(twins: Path) -> None:
    shutil.copy(twins / "train.arrow", twins / "test.arrow")
    (twins / "test.files.arrow").write_bytes(b"ARROW1")
    (said,) = warnings_of_a_cut(twins)
    assert "images in two splits were not looked for" in said
    assert "test.files.arrow" in said
    assert Dataset.open(twins).splits == ("train", "val", "test")


def test_minival_of_damaged_files(pets: Path) -> None:
    table = pa.ipc.open_file(str(pets / "train.files.arrow")).read_all()
    with pa.ipc.new_file(str(pets / "train.files.arrow"), table.schema) as writer:
        writer.write_table(table.slice(1))
    with pytest.raises(RunError, match=r"train\.files\.arrow does not belong to train\.arrow"):
        minival.cut(pets, 1, 0)
    with pytest.raises(RunError, match=r"train\.files\.arrow does not belong to train\.arrow"):
        list(changes(Dataset.open(pets), threads=1))
    (pets / "train.files.arrow").write_bytes(b"ARROW1")
    with pytest.raises(RunError, match="is not a readable index"):
        minival.cut(pets, 1, 0)
    assert Dataset.open(pets).splits == ("train",)
    assert not list(pets.glob("*.partial"))  # nor what was written before the damage was found


def test_one_cut_at_a_time(pets: Path) -> None:
    with acquire(pets / ".lock", str), pytest.raises(RunError, match="is being cut by process"):
        minival.cut(pets, 1, 0)
    (pets / ".lock").touch()  # of a process that is gone
    assert minival.cut(pets, 1, 0).val == 3


def test_an_order_is_a_permutation_of_its_own() -> None:
    assert sorted(shuffled(3, "cat", 100).tolist()) == list(range(100))
    assert shuffled(3, "cat", 0).tolist() == []
    orders = [shuffled(*key).tolist() for key in ((3, "cat", 100), (4, "cat", 100), (3, "dog", 100))]
    assert orders[0] == shuffled(3, "cat", 100).tolist()
    assert all(orders[a] != orders[b] for a, b in ((0, 1), (0, 2), (1, 2)))
    assert shuffled(0, "cat", 8).tolist() == [
        3,
        0,
        1,
        5,
        2,
        7,
        6,
        4,
    ]  # data sets made before must be made again the same


def test_a_damaged_source(pets: Path) -> None:
    assert source.read(pets)["made_by"] == "index"
    (pets / "source.json").unlink()  # as in data sets of earlier versions
    assert source.read(pets) == {}
    assert info(pets)["source"] is None
    for text in ("", "[1]", "[" * 100_000, '{"a": 1'):
        (pets / "source.json").write_text(text)
        with pytest.raises(RunError, match=r"source\.json"):
            source.read(pets)
    (pets / "source.json").write_text(
        json.dumps({"made_by": "x\x1b[2J", "synsets": {"a": ["b"]}, "deep": {"n": 1, "m": {"k": 2}}})
    )
    assert source.brief(source.read(pets)) == {"made_by": "x\x1b[2J", "deep": {"n": 1}}
    assert "\x1b" not in CliRunner().invoke(cli, ["data", "info", str(pets)]).stderr


def test_verify_names_what_changed(pets: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "verify", str(pets), "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "files": 19,
        "changed": 0,
        "kinds": {"missing": 0, "unreadable": 0, "bytes": 0, "pixels": 0, "hash": 0},
        "changes": [],
    }
    cats = tmp_path / "pets/train/cat"
    (cats / "0.JPEG").unlink()
    (cats / "1.JPEG").write_bytes(b"garbage")
    (cats / "2.JPEG").write_bytes(jpeg(colour=2) + b"\0")
    bigger = jpeg((24, 12), 3)
    (cats / "3.JPEG").write_bytes(bigger[:2] + b"\xff\xfe\0\x02" + bigger[2:])
    (cats / "4.JPEG").unlink()
    os.mkfifo(cats / "4.JPEG")
    same = bytearray((cats / "5.JPEG").read_bytes())
    same[-3] ^= 1
    (cats / "5.JPEG").write_bytes(same)
    found = {
        Path(c.path).name: (c.kind, c.detail) for c in changes(Dataset.open(pets), hashed=True, threads=1)
    }
    assert {name: kind for name, (kind, _) in found.items()} == {
        "0.JPEG": "missing",
        "1.JPEG": "unreadable",
        "2.JPEG": "bytes",
        "3.JPEG": "bytes",
        "4.JPEG": "unreadable",
        "5.JPEG": "hash",
    }
    assert found["2.JPEG"][1] == f"{len(jpeg(colour=2))} bytes are now {len(jpeg(colour=2)) + 1}"
    result = CliRunner().invoke(cli, ["data", "verify", str(pets), "--most", "2", "--json"])
    assert isinstance(result.exception, RunError)
    shown = json.loads(result.stdout)
    assert (shown["changed"], len(shown["changes"]), shown["kinds"]["hash"]) == (5, 2, 0)
    result = CliRunner().invoke(cli, ["data", "verify", str(pets), "--most", "2"])
    assert (
        str(result.exception)
        == f"5 of 19 files of {pets} are not what was indexed: 1 missing, 2 unreadable, 2 bytes"
    )
    assert (
        result.stderr.splitlines()[0]
        == f"train  missing  {cats / '0.JPEG'}: [Errno 2] No such file or directory: '{cats / '0.JPEG'}'"
    )
    assert len(result.stderr.splitlines()) == 2


def test_verify_of_a_data_set_without_sizes_or_hashes(pets: Path, tmp_path: Path) -> None:
    build_dataset(tmp_path / "pets", tmp_path / "plain", threads=1)
    with pytest.raises(InputError, match="holds no hashes: make it again with --hash"):
        list(changes(Dataset.open(tmp_path / "plain"), hashed=True))
    (tmp_path / "plain/train.files.arrow").unlink()  # as older data sets are
    assert list(changes(Dataset.open(tmp_path / "plain"), threads=1)) == []
    (tmp_path / "pets/train/cat/3.JPEG").write_bytes(jpeg((24, 12)))
    (change,) = changes(Dataset.open(tmp_path / "plain"), threads=1)
    assert (change.kind, change.detail) == ("pixels", "16x12 is now 24x12")
    with pytest.raises(InputError, match="holds no hashes"):
        list(changes(Dataset.open(tmp_path / "plain"), hashed=True))
    minival.cut(tmp_path / "plain", 1, 0)
    assert not (tmp_path / "plain/val.files.arrow").exists()
    (pets / "train.files.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(RunError, match=r"train\.files\.arrow is not a readable index"):
        list(changes(Dataset.open(pets)))
