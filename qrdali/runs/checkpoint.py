"""Saves and loads weights and training state in a folder: safetensors and JSON, whole or not at all.

Nothing is executed at load. `SHA256SUMS` holds the hash of every file, as `sha256sum --check` reads it; what
is loaded is compared with it.
"""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file

from qrdali.errors import RunError, printable
from qrdali.files.atomic import sync
from qrdali.files.hashing import sha256_of
from qrdali.files.json_objects import read_object
from qrdali.files.mapping import can_be_mapped

Tensors = dict[str, torch.Tensor]

SUMS = "SHA256SUMS"
_GROUP = "group-"  # begins the names of tensors that belong to a group of an optimizer's parameters
_MAX_ATTEMPTS = 20  # at reading a folder that is replaced meanwhile
_MAX_SUMS_BYTES = 1 << 16
_LINE = re.compile(r"([0-9a-f]{64})  ([a-z]{1,40}\.(?:json|safetensors))")


def _unshared(tensors: Tensors) -> Tensors:
    """Returns contiguous tensors of which no two share memory, which safetensors refuses: as tied weights do.

    A tied weight is written once per name, and reading a checkpoint back fills the same memory twice alike.
    """
    seen: set[int] = set()
    apart: Tensors = {}
    for name, value in tensors.items():
        tensor = value.detach().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


def save(folder: Path, state: dict[str, Any], *, keep_previous: bool = False, **tensors: Tensors) -> None:
    """Writes `state.json`, one `NAME.safetensors` per keyword and their hashes, replacing `folder` at once.

    All files are on the disk before the old folder is renamed to `NAME.old`; it is deleted once the new one
    has its name, or stays there with `keep_previous`. Raises OSError if the disk is full or cannot be
    written; `folder` is then as before.
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
    """Writes all files of a checkpoint to the disk. Each is hashed while the next is written."""
    with ThreadPoolExecutor(1) as pool:
        digests = {}
        (folder / "state.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        digests["state.json"] = pool.submit(_hash_and_sync, folder / "state.json")
        mode = (folder / "state.json").stat().st_mode & 0o777
        for name, values in tensors.items():
            file = folder / f"{name}.safetensors"
            try:
                save_file(_unshared(values), file)
            except SafetensorError as error:  # an error of the system comes as one too, with its text alone
                raise OSError(str(error)) from None
            with suppress(OSError):  # exFAT, SMB and mounts of object stores keep no permissions
                file.chmod(mode)  # safetensors makes files that only their owner may read
            digests[file.name] = pool.submit(_hash_and_sync, file)
        (folder / SUMS).write_text(
            "".join(f"{digests[name].result()}  {name}\n" for name in sorted(digests)), "utf-8"
        )
    sync(folder / SUMS)
    sync(folder)


def _hash_and_sync(file: Path) -> str:
    digest = sha256_of(file)
    sync(file)
    return digest


def current(folder: Path) -> Path:
    """Returns `folder`, or the one before it if a save was cut short."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and old.exists() else folder


def load(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors]]:
    """Returns `state.json` and the named tensor files of `current(folder)`.

    Raises RunError naming the file that is missing or damaged. A folder that a running training replaces
    meanwhile is read again.
    """
    failures = 0  # in a row, of one and the same folder
    for attempt in range(_MAX_ATTEMPTS):
        identity = _identity(folder)
        try:
            loaded = _read(current(folder), names)
        except RunError:
            # The folder is damaged if it fails twice unchanged; once is not enough, because a new folder may
            # get an old one's inode within a tick of the clock. One that is absent for a moment is being
            # replaced; one that is still absent at the last attempt is missing.
            is_unchanged = identity is not None and _identity(folder) == identity
            failures = failures + 1 if is_unchanged else 0
            is_missing = identity is None and _identity(folder) is None
            if failures == 2 or (attempt == _MAX_ATTEMPTS - 1 and is_missing):
                raise
        else:
            # If the folder was replaced meanwhile, the weights may be of a later save than the state.
            if identity is not None and _identity(folder) == identity:
                return loaded
            failures = 0
    raise RunError(f"{printable(folder)} is replaced faster than it can be read: try again")


def load_newest(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors], str]:
    """Loads as `load` does, or the folder before it if that one is damaged.

    The third value describes the damage, "" if there is none. Raises RunError if neither can be read.
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
    """Renames a damaged folder to `NAME.damaged`, so that the next save keeps the good one before it."""
    damaged = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(damaged, ignore_errors=True)
    folder.rename(damaged)
    sync(folder.parent)


def _identity(folder: Path) -> bytes | tuple[int, int] | None:
    """Returns what differs when a folder is replaced: its hashes; None if it is absent.

    Of a checkpoint that was made before there were hashes: inode and time of change. Some of FUSE give a
    folder another inode each time.
    """
    newest = current(folder)
    try:
        facts = newest.stat()
        if not (newest / SUMS).is_file():
            return facts.st_ino, facts.st_mtime_ns
        with open(newest / SUMS, "rb") as sums:
            return sums.read(_MAX_SUMS_BYTES)
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
                raise ValueError("it is not a file" if file.exists() else "it is missing")
            # `load_file` maps the file even with backend="pread".
            tensors.append(load_file(file) if can_be_mapped(file) else load_bytes(file.read_bytes()))
        except (OSError, ValueError, KeyError, OverflowError, RuntimeError, SafetensorError) as error:
            raise RunError(f"{printable(file)} cannot be read: {printable(error)[:200]}") from None
    return state, tensors


def _sums(folder: Path) -> dict[str, str]:
    """Returns the hashes by file name; {} of a checkpoint that was made before there were any."""
    file = folder / SUMS
    try:
        if not file.exists():
            return {}
        if not file.is_file() or file.stat().st_size > _MAX_SUMS_BYTES:
            raise ValueError("it is not a list of hashes")
        lines = [_LINE.fullmatch(line) for line in file.read_text("utf-8").splitlines()]
        sums = {line[2]: line[1] for line in lines if line}
        if not sums or not all(lines):
            raise ValueError("it is not a list of hashes")
        return sums
    except (OSError, ValueError) as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def recorded_sum(folder: Path, name: str) -> str:
    """Returns the SHA-256 of a file of `current(folder)` as it was written there, "" where it was not.

    The file itself is not read. Raises RunError for a damaged list.
    """
    return _sums(current(folder)).get(name, "")


def _check(file: Path, sums: dict[str, str]) -> None:
    """Raises RunError if `file` is not what its hash says."""
    try:
        if sums and file.is_file() and sha256_of(file) != sums.get(file.name):
            raise RunError(f"{printable(file)} is damaged: its SHA-256 is not that in {SUMS}")
    except OSError as error:
        raise RunError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def flatten(optimizer_state: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """Divides an optimizer's state_dict into tensors and the rest as plain data.

    Tensors are named PARAMETER.NAME; those of a group of parameters, such as the step of timm's LAMB,
    group-NUMBER.NAME. Types of tensors are left out: an optimizer has its own.
    """
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    for number, values in optimizer_state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
            else:
                plain.setdefault(str(number), {})[name] = value
    for number, group in enumerate(optimizer_state["param_groups"]):
        own = {name: value for name, value in group.items() if isinstance(value, torch.Tensor)}
        tensors |= {f"{_GROUP}{number}.{name}": value for name, value in own.items()}
        left_out = (torch.Tensor, torch.dtype)
        groups.append({name: value for name, value in group.items() if not isinstance(value, left_out)})
    return tensors, {"param_groups": groups, "plain": plain}


def unflatten(tensors: Tensors, rest: dict[str, Any]) -> dict[str, Any]:
    """Returns the state_dict that `flatten` divided.

    Raises an exception of Python's for what it did not give.
    """
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in rest["plain"].items()}
    groups = [dict(group) for group in rest["param_groups"]]
    for key, value in tensors.items():
        owner, _, name = key.partition(".")
        if owner.startswith(_GROUP):
            groups[int(owner.removeprefix(_GROUP))][name] = value
        else:
            state.setdefault(int(owner), {})[name] = value
    return {"state": state, "param_groups": groups}
