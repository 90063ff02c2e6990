"""Files are replaced whole: fsync, rename, fsync in this order; failures leave the older file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qrdali.files.atomic import replace_atomically, write_whole


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order, by the names of files.

    A file's content at that moment in brackets.
    """
    log: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        log.append(f"fsync {path.name}" + (f" [{path.read_text()}]" if path.is_file() else "/"))
        fsync(handle)

    def logged_rename(path: Path, target: Path) -> Path:
        log.append(f"rename {path.name} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    return log


def write_content(partial: Path) -> None:
    with open(partial, "w") as file:
        file.write("con")
        file.write("tent")


@pytest.mark.parametrize("data", [b"content", write_content])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_call_returns(
    tmp_path: Path, operations: list[str], data: bytes | Callable[[Path], None]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.json").write_text("older")
    write_whole(folder / "file.json", data)
    assert operations == [
        "fsync .file.json.partial [content]",
        "rename .file.json.partial file.json",
        "fsync folder/",
    ]
    assert (folder / "file.json").read_text() == "content"
    assert os.listdir(folder) == ["file.json"]


def test_a_folder_is_on_the_disk_with_all_that_is_in_it_before_it_has_its_name(
    tmp_path: Path, operations: list[str]
) -> None:
    partial = tmp_path / "new"
    (partial / "inner").mkdir(parents=True)
    (partial / "inner" / "file").write_text("content")
    replace_atomically(partial, tmp_path / "folder")
    assert sorted(operations[:3]) == ["fsync file [content]", "fsync inner/", "fsync new/"]
    assert operations[3:] == ["rename new folder", f"fsync {tmp_path.name}/"]


def test_a_library_writes_to_the_path_that_it_is_given(tmp_path: Path) -> None:
    def save(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.save(file, np.arange(3))

    write_whole(tmp_path / "array.npy", save)
    assert np.load(tmp_path / "array.npy").tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["array.npy"]


@pytest.mark.parametrize("failing", ["content", "fsync", "rename", "interrupt"])
def test_a_failure_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    file = tmp_path / "file.json"
    file.write_text("older")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def write(partial: Path) -> None:
        partial.write_text("hal")
        if failing == "content":
            fail()
        if failing == "interrupt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fail)
        if failing == "rename":
            patch.setattr(Path, "rename", fail)
        with pytest.raises(KeyboardInterrupt if failing == "interrupt" else OSError):
            write_whole(file, write)
    assert file.read_text() == "older"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_partial_file_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".file.json.partial").write_text("much longer than the content")
    write_whole(tmp_path / "file.json", b"content")
    assert (tmp_path / "file.json").read_text() == "content"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "file.json", b"content")
    assert not os.listdir(tmp_path)
