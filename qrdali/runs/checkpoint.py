"""Weights and training state in a folder: safetensors and JSON, written whole or not at all, nothing executed
at load.

`SHA256SUMS` holds the hash of every file, as `sha256sum --check` reads it; what is loaded is compared with
it.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qrdali.errors import RunError, printable
from qrdali.files.atomic import sync
from qrdali.files.hashing import sha256_of
from qrdali.files.json_objects import read_object

Tensors = dict[str, torch.Tensor]


SUMS = "SHA256SUMS"
_TURNS = 20  # readings of a folder that is replaced meanwhile
_LINE = re.compile(r"([0-9a-f]{64})  ([a-z]{1,40}\.(?:json|safetensors))")


def save(folder: Path, state: dict[str, Any], *, keep_previous: bool = False, **tensors: Tensors) -> None:
    """Writes `state.json`, one `NAME.safetensors` per keyword and their hashes, replacing `folder` at once.

    All files are on the disk before the old folder goes, which waits as `NAME.old` until the new one has its
    place, and stays there with `keep_previous`. Raises OSError if the disk is full or cannot be written;
    `folder` is then as before.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        _write(new, state, tensors)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # on a full disk, make room again
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    if not keep_previous:
        shutil.rmtree(old, ignore_errors=True)


def _write(folder: Path, state: dict[str, Any], tensors: dict[str, Tensors]) -> None:
    """All files of a checkpoint, on the disk. Each is hashed while the next is written."""
    with ThreadPoolExecutor(1) as pool:
        found = {}
        (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        found["state.json"] = pool.submit(_on_disk, folder / "state.json")
        mode = (folder / "state.json").stat().st_mode & 0o777
        for name, values in tensors.items():
            file = folder / f"{name}.safetensors"
            try:
                save_file({key: value.detach().contiguous() for key, value in values.items()}, file)
            except SafetensorError as error:  # of the system's error it keeps the text alone
                raise OSError(str(error)) from None
            file.chmod(mode)  # safetensors writes for its owner alone
            found[file.name] = pool.submit(_on_disk, file)
        (folder / SUMS).write_text(
            "".join(f"{found[name].result()}  {name}\n" for name in sorted(found)), "utf-8"
        )
    sync(folder / SUMS)
    sync(folder)


def _on_disk(file: Path) -> str:
    """The digest of a file that is then on the disk."""
    found = sha256_of(file)
    sync(file)
    return found


def current(folder: Path) -> Path:
    """`folder`, or the one before it if a save was cut short."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and old.exists() else folder


def load(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors]]:
    """`state.json` and the named tensor files of `folder`, or of the one before it if a save was cut short.

    Raises RunError naming the file that is missing or damaged. A folder that a running training replaces
    meanwhile is read again.
    """
    failed = 0
    for turn in range(_TURNS):
        place = _place(folder)
        try:
            found = _read(current(folder), names)
        except RunError:
            # Twice in a row at the same place, because a new folder may get an old one's number within a tick
            # of the clock. One that was not there for a moment is being replaced too; one that never is, is
            # missing.
            failed = failed + 1 if place is not None and _place(folder) == place else 0
            if failed == 2 or (turn == _TURNS - 1 and place is None and _place(folder) is None):
                raise
        else:
            if (
                place is not None and _place(folder) == place
            ):  # else the weights may be of a later save than the state
                return found
            failed = 0
    raise RunError(f"{printable(folder)} is replaced faster than it can be read: try again")


def load_newest(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors], str]:
    """As `load`, but a damaged folder gives way to the one before it.

    The third value says what is damaged, or nothing.

    Raises RunError if neither can be read.
    """
    try:
        return *load(folder, *names), ""
    except RunError as error:
        old = folder.with_name(folder.name + ".old")
        if current(folder) == old or not old.exists():
            raise RunError(f"{error}; no earlier checkpoint is there") from None
        try:
            return *_read(old, names), str(error)
        except RunError as older:
            raise RunError(f"{error}; and the one before: {older}") from None


def quarantine_damaged(folder: Path) -> None:
    """Renames a damaged folder to `NAME.damaged`, so that the next save leaves the good one before it in
    place.
    """
    damaged = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    folder.rename(damaged)
    sync(folder.parent)


def _place(folder: Path) -> tuple[int, int] | None:
    """What changes when a folder is replaced."""
    try:
        seen = current(folder).stat()
        return seen.st_ino, seen.st_mtime_ns
    except OSError:
        return None


def _read(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], list[Tensors]]:
    sums = _sums(folder)
    _check(folder / "state.json", sums)
    state = read_object(folder / "state.json")
    tensors = []
    for name in names:
        file = folder / f"{name}.safetensors"
        _check(file, sums)
        try:
            if not file.is_file():
                raise ValueError("it is no file" if file.exists() else "it is missing")
            tensors.append(load_file(file))
        except (OSError, ValueError, KeyError, OverflowError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{printable(file)} cannot be read: {printable(error)[:200]}") from None
    return state, tensors


def _sums(folder: Path) -> dict[str, str]:
    """Hashes by file; none of a checkpoint that was made before there were any."""
    file = folder / SUMS
    try:
        if not file.exists():
            return {}
        if not file.is_file() or file.stat().st_size > 1 << 16:
            raise ValueError("it is no list of hashes")
        lines = [_LINE.fullmatch(line) for line in file.read_text("utf-8").splitlines()]
        found = {line[2]: line[1] for line in lines if line}
        if not found or not all(lines):
            raise ValueError("it is no list of hashes")
        return found
    except (OSError, ValueError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def _check(file: Path, sums: dict[str, str]) -> None:
    """Raises RunError if `file` is not what its hash says."""
    try:
        if sums and file.is_file() and sha256_of(file) != sums.get(file.name):
            raise RunError(f"{printable(file)} is damaged: its SHA-256 is not that in {SUMS}")
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def flatten(optimizer_state: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """An optimizer's state_dict as tensors by `PARAMETER.NAME` and the rest as plain data."""
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, values in optimizer_state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                plain.setdefault(str(number), {})[name] = value
    return tensors, {"param_groups": optimizer_state["param_groups"], "plain": plain}


def unflatten(tensors: Tensors, rest: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in rest["plain"].items()}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}
