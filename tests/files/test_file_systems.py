"""File systems that lack operations: network shares, exFAT, FUSE and mounts of object stores.

Everything goes on without fsync of folders, permissions, mappings, locks, links, times and free space;
nothing is lost. A library that is preloaded makes the C library's calls fail (`fault_helpers`).
"""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_helpers import compiled, environment, run_all
from tiny_data import done

from qrdali.data import index_columns
from qrdali.data.index import Dataset
from qrdali.errors import RunError
from qrdali.files import lock
from qrdali.files.atomic import sync, write_whole
from qrdali.files.hashing import sha256_of
from qrdali.reduction.levels import PerImageLevels
from qrdali.reduction.quality import QUARTERS
from qrdali.runs import checkpoint

LACKING = {
    "fsync_folder": errno.EINVAL,
    "fsync_file": errno.EINVAL,
    "chmod": errno.EPERM,
    "utime": errno.EPERM,
    "mmap": errno.ENODEV,
    "flock": errno.ENOLCK,
    "link": errno.EPERM,
    "fallocate": errno.EOPNOTSUPP,
    "sendfile": errno.EINVAL,
    "statvfs": errno.ENOSYS,
}
KILLED_IN_A_SAVE = """
import os, signal
from qrdali.runs import checkpoint
from qrdali.__main__ import main
real, seen = checkpoint.sync, []
def sync(path):
    real(path)
    seen.append(path)
    if sum(p.name == "last.new" for p in seen) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.sync = sync
main()
"""
MATRIX = """
out = {out}
[data]
folder = {data}
[train]
device = "cpu"
threads = 1
batch_size = 8
[[network]]
model = "test_resnet"
input_size = 16
epochs = 1
[runs]
methods = []
[evaluate]
splits = ["val"]
[mepi]
runs = ["shared"]
limit = 1
"""


def training(data: Path, run: Path) -> list[object]:
    options = ["--model", "test_resnet", "--input-size", 16, "--batch-size", 8, "--seed", 1, "--lr", 0.01]
    schedule = ["--reduction", "crop", "--step", 0.5, "--max-epochs", 3, "--save-every", 1]
    place = ["--data", data, "--run", run, "--device", "cpu", "--threads", 1]
    return ["train", "adaptive", *place, *options, *schedule]


def test_every_command_works_where_a_file_system_lacks_these_operations(images: Path, tmp_path: Path) -> None:
    env = environment(compiled(tmp_path), LACKING, tmp_path)
    data, run, mepi, matrix = (tmp_path / name for name in ("data", "run", "mepi", "matrix"))
    (indexed,) = run_all([["data", "index", images, "--out", data, "--threads", 1]], env)
    assert indexed.status == 0, indexed.text
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_SAVE, *map(str, training(data, run))], env=env, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (run / "last.new").exists()
    (tmp_path / "matrix.toml").write_text(
        MATRIX.format(out=json.dumps(str(matrix)), data=json.dumps(str(data))), "utf-8"
    )
    search = ["build-mepi", "--run", run, "--data", data, "--split", "val", "--reduction", "color"]
    search += ["--step", 0.5, "--limit", 2, "--threads", 1]
    ended = run_all(
        [
            [*training(data, run), "--resume"],
            ["evaluate", "--run", run, "--data", data, "--split", "val", "--threads", 1, "--device", "cpu"],
            [*search, "--out", mepi],
            ["report", run, "--mepi", mepi, "--out", tmp_path / "report"],
            ["reproduce", tmp_path / "matrix.toml"],
            ["data", "verify", data],
            ["doctor", "--run", tmp_path],
        ],
        env,
    )
    for command in ended:
        assert command.status == 0, command.text
    text = "".join(command.text for command in ended)
    assert text.count("warning: the file system of") == 1
    assert "has no locks (No locks available)" in " ".join(text.split())
    assert (tmp_path / "report" / "report.html").exists()
    assert (matrix / "report" / "report.html").exists()
    # Neither the kill nor the missing operations have changed what is trained.
    done("data", "index", images, "--out", tmp_path / "plain", "--threads", 1)
    done(*training(tmp_path / "plain", tmp_path / "reference"))
    for name in ("last", "best"):
        files = [folder / name / "model.safetensors" for folder in (run, tmp_path / "reference")]
        assert sha256_of(files[0]) == sha256_of(files[1])


def test_the_library_makes_calls_fail(tmp_path: Path) -> None:
    """What the test above shows nothing without."""
    program = """
import errno, fcntl, mmap, os, sys
def tried(work):
    try: work()
    except OSError as error: return error.errno
    return 0
os.chdir(sys.argv[1])
file, folder = open("file", "w+"), os.open(".", os.O_RDONLY)
file.write("text"); file.flush()
print(tried(lambda: os.fsync(folder)), tried(lambda: os.fsync(file.fileno())),
    tried(lambda: os.chmod(os.path.abspath("file"), 0o600)), tried(lambda: os.utime(os.path.abspath("file"))),
    tried(lambda: mmap.mmap(file.fileno(), 0)), tried(lambda: fcntl.flock(file, fcntl.LOCK_EX)),
    tried(lambda: os.link("file", "other")), tried(lambda: os.posix_fallocate(file.fileno(), 0, 9)),
    tried(lambda: os.sendfile(1, file.fileno(), 0, 1)), tried(lambda: os.statvfs(sys.argv[1])))
"""
    shown = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment(compiled(tmp_path), LACKING, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(map(int, shown.stdout.split())) == list(LACKING.values())


def failing(number: int, only: Callable[[int], bool] = lambda descriptor: True) -> Callable[..., None]:
    def fail(descriptor: int, *_: object) -> None:
        if only(descriptor):
            raise OSError(number, os.strerror(number))

    return fail


UNSUPPORTED = [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF]


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_a_file_is_written_where_there_is_no_fsync(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    write_whole(tmp_path / "file", b"new")
    sync(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_a_failing_disk_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_checkpoint_is_saved_where_there_are_no_permissions(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, mode: int) -> None:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(Path, "chmod", fail)
    checkpoint.save(tmp_path / "last", {"epoch": 1}, model={"weight": torch.arange(3)})
    state, (tensors,) = checkpoint.load(tmp_path / "last", "model")
    assert state == {"epoch": 1}
    assert tensors["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_without_locks_there_is_one_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    monkeypatch.setattr(lock, "_warned_devices", set())
    warnings: list[str] = []
    for name in ("first", "second"):
        lock.acquire(tmp_path / name, lambda holder: "", warnings.append).close()
    assert len(warnings) == 1
    assert f"{tmp_path} has no locks ({os.strerror(number)})" in warnings[0]


def test_a_lock_that_another_process_holds_on_smb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMB answers EACCES and not EWOULDBLOCK, and lets nobody read what is locked."""
    held = tmp_path / ".lock"
    held.write_text("process 7 on elsewhere", "utf-8")

    def flock(file: object, operation: int) -> None:
        if Path(f"/proc/self/fd/{file.fileno()}").resolve() == held:  # type: ignore[attr-defined]
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(RunError, match="^busy: process 7 on elsewhere$"):
        lock.acquire(held, lambda holder: f"busy: {holder}")


@pytest.fixture
def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files cannot be mapped."""

    def mmap(*args: object, **options: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("mmap.mmap", mmap)


@pytest.mark.parametrize("most", [index_columns.MAPPED, 0], ids=["small", "large"])
def test_an_index_is_the_same_where_no_file_is_mapped(
    dataset: Dataset, most: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    samples = np.arange(len(dataset["train"]))[::-1]

    def columns() -> tuple[list[str], list[int], list[list[int]], str]:
        index = dataset["train"]
        return (
            index.paths(samples),
            index.labels(samples).tolist(),
            index.sizes(samples).tolist(),
            index.fingerprint,
        )

    mapped = columns()
    monkeypatch.setattr(index_columns, "MAPPED", most)
    request.getfixturevalue("unmapped")
    assert columns() == mapped


@pytest.mark.usefixtures("unmapped")
def test_levels_are_the_same_where_no_file_is_mapped(tmp_path: Path) -> None:
    levels = PerImageLevels(np.array([[0, 1, 2], [3, 0, 1]], np.uint8), None, None)
    levels.save(tmp_path, 1)
    read = PerImageLevels.load(tmp_path, 1, 2, QUARTERS, crop=False, online=False)
    assert read.for_samples(np.array([1, 0])).tolist() == [[3, 0, 1], [0, 1, 2]]


def test_a_checkpoint_is_read_where_a_folder_has_another_inode_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "best", {"epoch": 1}, model={"weight": torch.arange(3)})
    stat, inodes = Path.stat, iter(range(1000))

    def other_inode(path: Path, **options: bool) -> os.stat_result:
        facts = list(stat(path, **options))
        facts[1] = next(inodes)
        return os.stat_result(facts)

    monkeypatch.setattr(Path, "stat", other_inode)
    assert checkpoint.load(tmp_path / "best", "model")[0] == {"epoch": 1}
