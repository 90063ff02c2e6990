"""Originals beside their minimal images, small enough to stand in the page."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from qrdali.data import storage
from qrdali.errors import printable
from qrdali.mepi.folder import SEARCHED
from qrdali.report.quotients import class_name
from qrdali.report.read import Mepis

_SIDE = 150  # pixels of the longer side
_MOST = 1 << 28  # bytes of a file that is opened, and pixels of an image


@dataclass(frozen=True)
class Picture:
    """uri: a data URI, or "" if the file is not there (any more). text: under it."""

    uri: str
    text: str


@dataclass(frozen=True)
class Row:
    """One image: its class and where it lay, the original, and the MEPI of each reduction."""

    class_name: str
    file: str
    pictures: tuple[Picture, ...]


def rows(mepis: Mepis, most: int) -> list[Row]:
    """Up to `most` images, spread over the classes, one of each class before a second; those with a MEPI in every reduction first."""
    first: dict[int, tuple[int, str]] = {}
    counted: dict[int, int] = {}
    for columns in mepis.rows.values():
        for sample, label, path in zip(columns["sample"], columns["label"], columns["path"], strict=True):
            first.setdefault(int(sample), (int(label), str(path)))
            counted[int(sample)] = counted.get(int(sample), 0) + 1
    queue: dict[int, list[int]] = {}
    for sample in sorted(first, key=lambda s: (-counted[s], s)):
        queue.setdefault(first[sample][0], []).append(sample)
    turns = sorted((turn, label, sample) for label, own in queue.items() for turn, sample in enumerate(own))
    if len(queue) > most:  # more classes than rows: spread over them
        labels = sorted(queue)
        turns = [
            (0, labels[i], queue[labels[i]][0]) for i in np.linspace(0, len(labels) - 1, most).astype(int)
        ]
    return [_row(mepis, sample, *first[sample]) for _, _, sample in sorted(turns[:most], key=lambda t: t[1:])]


def _row(mepis: Mepis, sample: int, label: int, path: str) -> Row:
    found = {
        r: {key: column[i] for key, column in mepis.rows[r].items()}
        for r in SEARCHED
        if r in mepis.rows
        for i in np.flatnonzero(mepis.rows[r]["sample"] == sample)[:1]
    }
    named = class_name(mepis, label, path)
    original, size = _original(path)
    # The window of a color or resolution MEPI is the whole image.
    whole = next(
        ((int(found[r]["width"]), int(found[r]["height"])) for r in ("color", "resolution") if r in found),
        size,
    )
    pictures = [Picture(original, "original")]
    for reduction in SEARCHED:
        if reduction not in found:
            pictures.append(
                Picture(
                    "",
                    f"{reduction}: no MEPI" if reduction in mepis.summary else f"{reduction}: not searched",
                )
            )
            continue
        pictures.append(_minimal(mepis.folder / reduction, named, sample, reduction, found[reduction], whole))
    return Row(printable(named), printable(storage.shown(path)), tuple(pictures))


def _open(file: str) -> Image.Image | None:
    """The picture, upright and RGB; None if it is not there, is none, or is too large to be shown. Of a store nothing is asked: a report is
    made of what is on the disk."""
    try:
        if file.startswith((*storage.REMOTE, *(f"tar+{scheme}" for scheme in storage.REMOTE))):
            return None
        stored = storage.opened(file)
        if stored.length > _MOST:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stored.buffered()) as picture:
                if picture.width * picture.height > _MOST:
                    return None
                return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception:  # a damaged file can fail in any of Pillow's decoders
        return None


def _original(file: str) -> tuple[str, tuple[int, int] | None]:
    picture = _open(file)
    if picture is None:
        return "", None
    return _uri(picture.resize(_cell(picture.size), Image.Resampling.BOX)), picture.size


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    scale = _SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _minimal(
    folder: Path, place: str, sample: int, reduction: str, row: dict[str, Any], whole: tuple[int, int] | None
) -> Picture:
    """place: the class's name, whose folder most likely holds the file."""
    share = 100 * float(row["quotient"])
    text = f"{reduction}: {share:.2g}%" if share < 9.95 else f"{reduction}: {share:.0f}%"
    near = folder / place / f"{sample}.png" if place not in (".", "..") and "/" not in place else folder
    file = near if near.is_file() else next(iter(sorted(folder.glob(f"*/{sample}.png"))), None)
    picture = _open(str(file)) if file else None
    if picture is None:
        return Picture("", text)
    text += f", {picture.width}×{picture.height}"
    top, left, height, width = (int(row[key]) for key in ("top", "left", "height", "width"))
    if whole is None or top + height > whole[1] or left + width > whole[0]:
        whole, top, left, height, width = (width, height), 0, 0, height, width
    cell, scale = _cell(whole), _SIDE / max(whole)
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    # Enlarging repeats pixels, so that a low resolution is seen for what it is; the rest of the original's place stays empty.
    method = Image.Resampling.NEAREST if picture.width < shown[0] else Image.Resampling.BOX
    canvas = Image.new("RGBA", cell, (128, 128, 128, 40))
    canvas.paste(picture.resize(shown, method), (round(left * scale), round(top * scale)))
    return Picture(_uri(canvas), text)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
