"""Durable writes: what a later start reads is the old content or the new, whole, even after a loss of power.

A rename alone is not enough: without fsync the file system may write the new name to the disk before the
content. A file system that has no fsync, or none for folders, decides by itself when to write.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from qrdali.files.unsupported import is_unsupported


def write_whole(file: Path, data: bytes | Callable[[Path], None]) -> None:
    """Writes `file`, replacing an older one: partial file, fsync, rename, fsync of the folder, in this order.

    `data` is the content, or a function that writes it to the path it is given, `.NAME.partial` beside the
    file (one writer at a time, therefore). Libraries that append an extension to a name they do not know, as
    `numpy.save` does, must be handed an open file. The folder must exist. On any failure the partial file is
    removed, the older file stays as it was, and what was raised goes on: OSError if the disk is full or
    cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        if callable(data):
            data(partial)
        else:
            partial.write_bytes(data)
        replace_atomically(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)  # on a full disk, make room again
        raise


def write_whole_among_writers(file: Path, data: bytes) -> None:
    """Does as `write_whole` where several processes, on any hosts, may write the same file at once.

    Each has a partial file of its own; the last one's content stays.
    """
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(data)
        replace_atomically(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_atomically(partial: Path, target: Path) -> None:
    """Renames a complete file or folder: fsync of all in it, rename to `target`, fsync of its parent."""
    for path in partial.rglob("*") if partial.is_dir() else ():
        sync(path)
    sync(partial)
    partial.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk (fsync), where the file system can.

    Raises OSError if the disk fails or is full.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if path.is_dir() and is_unsupported(error):  # a folder that may be written but not listed
            return
        raise
    try:
        sync_opened(handle)
    finally:
        os.close(handle)


def sync_opened(descriptor: int) -> None:
    """Does as `sync` for an open file."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_unsupported(error):
            raise
