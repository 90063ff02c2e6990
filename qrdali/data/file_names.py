"""Tells by their names which files are images, which are shards, and which folders are never classes."""

from __future__ import annotations

import os

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
)
# What lies beside images to describe them: counted where it is left out, but not worth a line each.
DESCRIPTIONS = frozenset(
    (
        ".txt",
        ".xml",
        ".json",
        ".jsonl",
        ".csv",
        ".tsv",
        ".md",
        ".yaml",
        ".yml",
        ".html",
        ".htm",
        ".cls",
        ".log",
    )
)
# How tars are compressed, and what unpacks them.
_UNPACKERS = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".taz": "gunzip",
    ".tar.z": "gunzip",
    ".tar.zst": "unzstd",
    ".tar.zstd": "unzstd",
    ".tzst": "unzstd",
    ".tar.xz": "unxz",
    ".txz": "unxz",
    ".tar.lzma": "unlzma",
    ".tlz": "unlzma",
    ".tar.bz2": "bunzip2",
    ".tar.bz": "bunzip2",
    ".tbz2": "bunzip2",
    ".tbz": "bunzip2",
    ".tar.lz4": "unlz4",
    ".tar.lz": "lzip -d",
    ".tar.br": "brotli -d",
    ".tar.sz": "snzip -d",
}
# Folders that systems make: archives of macOS, Synology and QNAP stations, Windows, ext file systems, Python.
_SYSTEM_FOLDERS = frozenset(
    (
        "__macosx",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "lost+found",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "network trash folder",
        "temporary items",
        "found.000",
        "__pycache__",
    )
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"))
_MAX_ENDING = 12  # characters that are shown of one; dates and sizes after a dot may be longer


def is_image(name: str) -> bool:
    """Returns whether a file of this name is read as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def is_hidden(name: str) -> bool:
    """Returns whether a folder is hidden or a system's own, and so never a class."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM_FOLDERS


def is_noise(name: str) -> bool:
    """Returns whether a file is a system's own: it is passed over without a word.

    A hidden file with an image's ending is not, unless macOS made it: `._x.jpg` holds attributes of `x.jpg`.
    """
    if name.startswith("."):
        return name.startswith("._") or os.path.splitext(name)[1].lower() not in EXTENSIONS
    return name.lower() in _SYSTEM_FILES


def is_shard(name: str) -> bool:
    """Returns whether a file is a tar."""
    return name.lower().endswith(".tar") and not name.startswith(".")


def unpacker(name: str) -> str | None:
    """Returns the program that unpacks a compressed tar, None for any other file."""
    if name.startswith("."):
        return None
    return next((program for end, program in _UNPACKERS.items() if name.lower().endswith(end)), None)


def ending(name: str) -> str:
    """Returns the ending of a file's name in lower case, such as ".gif", "" where it has none.

    What follows a question mark, as in `x.jpg?itok=7`, differs from file to file: it becomes `.jpg?…`.
    """
    name, mark, _ = name.partition("?")
    end = os.path.splitext(name)[1].lower()
    return (end if len(end) <= _MAX_ENDING else end[:_MAX_ENDING] + "…") + (mark and "?…")
