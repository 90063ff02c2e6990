"""Recognises ImageNet's archives where they have not been unpacked yet, and says how to unpack them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from qrdali.data.tree import Entries, folder_entries
from qrdali.errors import InputError, printable

SYNSET_TAR = re.compile(r"(n[0-9]{8})\.tar", re.ASCII)
_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_KAGGLE = re.compile(r"imagenet[-_]object[-_]localization.*\.(zip|tar\.gz)", re.ASCII | re.IGNORECASE)
_UNPACK_EACH = (
    'for t in n*.tar; do mkdir -p "${t%.tar}" && tar -xf "$t" -C "${t%.tar}"; done'  # nothing is removed
)


def check_root(root: Path) -> None:
    """Raises InputError with the command if a root without train/ holds archives of it."""
    entries = folder_entries(root)
    tars = list(filter(SYNSET_TAR.fullmatch, entries.shards))
    if tars:
        here, into = _quoted(root), _quoted(root / "train")
        raise InputError(
            f"{printable(root)} holds {len(tars):,} tar(s) of synsets, such as {tars[0]}, and no train/: "
            f"unpack them: mkdir -p {into} && mv {here}/n*.tar {into} && cd {into} && {_UNPACK_EACH}"
        )
    if _TRAIN_TAR in entries.files:
        raise InputError(
            f"{printable(root)} holds {_TRAIN_TAR} and no train/: unpack it: "
            f"{_unpack_train(root / _TRAIN_TAR, root / 'train')}"
        )
    if kaggle := next(filter(_KAGGLE.fullmatch, entries.files), None):
        unpack = "unzip -q" if kaggle.endswith(".zip") else "tar -xf"
        raise InputError(
            f"{printable(root)} holds {printable(kaggle)} and no train/: unpack it: cd {_quoted(root)} && "
            f"{unpack} {_quoted(kaggle)}"
        )


def check_train(train: Path, entries: Entries) -> None:
    """Raises InputError with the command if train/ holds tars of synsets that have no folder yet."""
    folders = set(entries.folders)
    packed = [name for name in entries.shards if SYNSET_TAR.fullmatch(name) and name[:-4] not in folders]
    if packed:
        raise InputError(
            f"{printable(train)} holds {len(packed):,} tar(s) of synsets that are not unpacked, such as "
            f"{packed[0]}: unpack them: cd {_quoted(train)} && {_UNPACK_EACH}"
        )
    if folders:
        return
    for archive in (train / _TRAIN_TAR, train.parent / _TRAIN_TAR):
        if archive.is_file():
            raise InputError(
                f"{printable(train)} is empty, and {printable(archive)} is not unpacked: unpack it: "
                f"{_unpack_train(archive, train)}"
            )


def check_val(parent: Path) -> None:
    """Raises InputError with the command if the official validation images are not unpacked."""
    val = parent / "val"
    entries = folder_entries(val)
    if entries.folders or entries.images:
        return
    for archive in (val / _VAL_TAR, parent / _VAL_TAR):
        if archive.is_file():
            raise InputError(
                f"{printable(archive)} is not unpacked: unpack it: mkdir -p {_quoted(val)} && tar -xf "
                f"{_quoted(archive)} -C {_quoted(val)}"
            )


def _unpack_train(archive: Path, train: Path) -> str:
    into = _quoted(train.absolute())
    unpack = f"tar -xf {_quoted(archive.absolute())} -C {into}"
    return f"mkdir -p {into} && {unpack} && cd {into} && {_UNPACK_EACH}"


def _quoted(path: Path | str) -> str:
    return printable(shlex.quote(str(path)))
