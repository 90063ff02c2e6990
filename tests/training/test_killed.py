"""A sample of what `make soak` does: commands killed by real SIGKILLs at seeded moments end with the same
files as if never killed, and what is complete is not done again. docs/explanation/
reliability.md refers to these tests by name."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from kill_helpers import Case, Outcome, call, contents, killed
from soak_cases import Ground, commands, on_gpu, training

from qrdali.data import scan


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("killed") / "ground")


def found(ground: Ground, tmp_path: Path, name: str) -> Case:
    now = tmp_path / "case" / "now"
    return next(case for case in (*training(ground, now), *commands(ground, now)) if case.name == name)


def survived(ground: Ground, tmp_path: Path, name: str, seed: str, kills: int | None) -> Outcome:
    outcome = killed(found(ground, tmp_path, name), tmp_path / "case", seed, kills)
    assert not outcome.differences, outcome
    assert outcome.kills, outcome  # else the test shows nothing: choose another seed
    return outcome


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("train adaptive online paired-rounds combination ema", "0"),
        ("train linear paired-epochs crop", "0"),
        ("train shared dropout", "0"),
        ("train baseline deterministic", "0"),
        ("train linear wsd ema", "0"),
        ("train linear stage ema", "0"),
        ("train shared freeze ema", "0"),
        ("train random paired-epochs noise", "0"),
    ],
)
def test_train(ground: Ground, tmp_path: Path, name: str, seed: str) -> None:
    outcome = survived(ground, tmp_path, name, seed, 3)
    assert outcome.longest <= 2  # steps, which is --save-every


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kills", [0, 3])  # none: two runs are the same
@pytest.mark.parametrize("name", ["squeezenet", "adaptive", "random fp16"])
def test_train_on_a_gpu_with_deterministic_algorithms(
    ground: Ground, tmp_path: Path, name: str, kills: int
) -> None:
    case = next(case for case in on_gpu(ground, tmp_path / "case" / "now") if case.name == f"gpu {name}")
    outcome = killed(case, tmp_path / "case", "0", kills)
    assert not outcome.differences, outcome
    assert (outcome.kills > 0) == (kills > 0), outcome
    assert outcome.longest <= 2


@pytest.mark.parametrize("name", ["index", "imagenet", "humanet"])
def test_data_is_whole_or_absent(ground: Ground, tmp_path: Path, name: str) -> None:
    survived(ground, tmp_path, f"data {name}", "0", 4)
    assert sorted(path.name for path in (tmp_path / "case" / "now").iterdir()) == ["data"]


def test_minival(ground: Ground, tmp_path: Path) -> None:
    survived(ground, tmp_path, "data minival", "0", 4)


def test_evaluate(ground: Ground, tmp_path: Path) -> None:
    outcome = survived(ground, tmp_path, "evaluate curve", "0", None)
    assert outcome.kills == 5  # rows, and four files of a curve


def test_build_mepi(ground: Ground, tmp_path: Path) -> None:
    outcome = survived(ground, tmp_path, "build-mepi crop", "0", 2)
    searched = [
        line for line in (tmp_path / "case" / "log").read_text().splitlines() if line.startswith("MEPI")
    ]
    # An image whose entry had just been begun is searched again; the files of a finished search are read back
    # again.
    assert len(searched) - len(set(searched)) <= outcome.kills
    assert len(set(searched)) == 12


def test_reproduce(ground: Ground, tmp_path: Path) -> None:
    survived(ground, tmp_path, "reproduce", "0", 1)
    log = (tmp_path / "case" / "log").read_text().splitlines()
    begun = Counter(line for line in log if line.startswith("task"))
    # A single task begins again, or none: the moment may fall between two tasks.
    assert len(begun) <= sum(begun.values()) <= len(begun) + 1
    notes = [*(tmp_path / "case/now/matrix/tasks").glob("*/done.json")]
    assert len(notes) == len(begun)
    assert all("worker" in json.loads(note.read_text()) for note in notes)


def test_a_data_set_is_on_the_disk_before_it_has_its_name(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, rename, log = os.fsync, Path.rename, list[str]()

    def synced(handle: int) -> None:
        log.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        log.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    scan.build_dataset(ground.images, tmp_path / "data", threads=1)
    last = len(log) - 1 - log[::-1].index("renamed")
    before, after = set(log[:last]) - {"renamed", ".source.json.partial"}, log[last + 1 :]
    made = {path.name for path in (tmp_path / "data").iterdir()}
    assert before | {"source.json"} == made | {"data.partial"}  # source.json has got its name there before
    assert after == [tmp_path.name]


def test_what_the_others_rely_on(ground: Ground, tmp_path: Path) -> None:
    case = found(ground, tmp_path, "data index")
    whole, now = tmp_path / "whole", tmp_path / "case" / "now"
    now.mkdir(parents=True)
    dead = call(case.command, now, tmp_path / "log", deadly=20)
    assert (dead.status, dead.moments) == (-signal.SIGKILL, 0)
    assert not (now / "data").exists()
    assert call(case.command, now, tmp_path / "log").status == 0
    now.rename(whole)
    now.mkdir()
    assert call([*case.command, "--no-verify"], now, tmp_path / "log").status == 0
    assert contents(now) == contents(whole)
    (now / "data" / "classes.tsv").write_text("label\tname\n")
    (now / "data" / "train.arrow.partial").touch()
    assert {name for name, _ in contents(now).items() ^ contents(whole).items()} == {
        "data/classes.tsv",
        "data/train.arrow.partial",
    }
