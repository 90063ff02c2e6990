"""Weights and training state in a folder: safetensors and JSON, written whole or not at all, nothing executed at load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qrdali.errors import RunError, printable

Tensors = dict[str, torch.Tensor]


def save(folder: Path, state: dict[str, Any], **tensors: Tensors) -> None:
    """Writes `state.json` and one `NAME.safetensors` per keyword, replacing `folder` at once.

    All files are on the disk before the old folder goes, which waits as `NAME.old` until the new one has its place.
    """
    new, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, values in tensors.items():
        save_file({key: value.detach().contiguous() for key, value in values.items()}, new / f"{name}.safetensors")
    (new / "state.json").write_text(json.dumps(state, indent=1) + "\n", "utf-8")
    for path in (*new.iterdir(), new):
        sync(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def current(folder: Path) -> Path:
    """`folder`, or the one before it if a save was cut short."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and old.exists() else folder


def load(folder: Path, *names: str) -> tuple[dict[str, Any], list[Tensors]]:
    """`state.json` and the named tensor files of `folder`, or of the one before it if a save was cut short.

    Raises RunError naming the file that is missing or damaged.
    """
    folder = current(folder)
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text("utf-8"))
        if not isinstance(state, dict):
            raise ValueError("not a JSON object")
        tensors = []
        for name in names:
            path = folder / f"{name}.safetensors"
            tensors.append(load_file(path))
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise RunError(f"{printable(path)} cannot be read: {printable(error)[:200]}") from None
    return state, tensors


def sync(path: Path) -> None:
    """Forces a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
