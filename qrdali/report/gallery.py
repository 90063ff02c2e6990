"""Lays originals beside their minimal images, small enough to be embedded in the page."""

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
from qrdali.report.read_mepis import Mepis

_SIDE = 150  # pixels of the longer side
_MOST = 1 << 28  # bytes of a file that is opened, and pixels of an image


@dataclass(frozen=True)
class Picture:
    """Holds a picture and the text under it. uri: a data URI, or "" if the file is not there (any more)."""

    uri: str
    text: str


@dataclass(frozen=True)
class Row:
    """Holds one image: its class and where it lay, the original, and the MEPI of each reduction."""

    class_name: str
    file: str
    pictures: tuple[Picture, ...]


def rows(mepis: Mepis, most: int) -> list[Row]:
    """Returns up to `most` images, spread over the classes, one of each class before a second.

    Those with a MEPI in every reduction come first.
    """
    first: dict[int, tuple[int, str]] = {}
    counted: dict[int, int] = {}
    for columns in mepis.rows.values():
        for sample, label, path in zip(columns["sample"], columns["label"], columns["path"], strict=True):
            first.setdefault(int(sample), (int(label), str(path)))
            counted[int(sample)] = counted.get(int(sample), 0) + 1
    queue: dict[int, list[int]] = {}
    for sample in sorted(first, key=lambda s: (-counted[s], s)):
        queue.setdefault(first[sample][0], []).append(sample)
    turns = sorted(
        (turn, label, sample) for label, samples in queue.items() for turn, sample in enumerate(samples)
    )
    if len(queue) > most:  # more classes than rows: spread over them
        labels = sorted(queue)
        turns = [
            (0, labels[i], queue[labels[i]][0]) for i in np.linspace(0, len(labels) - 1, most).astype(int)
        ]
    return [_row(mepis, sample, *first[sample]) for _, _, sample in sorted(turns[:most], key=lambda t: t[1:])]


def _row(mepis: Mepis, sample: int, label: int, path: str) -> Row:
    minimal = {
        r: {key: column[i] for key, column in mepis.rows[r].items()}
        for r in SEARCHED
        if r in mepis.rows
        for i in np.flatnonzero(mepis.rows[r]["sample"] == sample)[:1]
    }
    name = class_name(mepis, label, path)
    original, size = _original(path)
    # The window of a color or resolution MEPI is the whole image.
    original_size = next(
        (
            (int(minimal[reduction]["width"]), int(minimal[reduction]["height"]))
            for reduction in ("color", "resolution")
            if reduction in minimal
        ),
        size,
    )
    pictures = [Picture(original, "original")]
    for reduction in SEARCHED:
        if reduction not in minimal:
            pictures.append(
                Picture(
                    "",
                    f"{reduction}: no MEPI" if reduction in mepis.summary else f"{reduction}: not searched",
                )
            )
            continue
        pictures.append(_minimal(mepis.folder / reduction, name, minimal[reduction], original_size))
    return Row(printable(name), printable(storage.shown(path)), tuple(pictures))


def _open(file: str) -> Image.Image | None:
    """Opens a picture, upright and RGB; returns None if it is not there, is none, or is too large to be
    shown.

    Nothing is read from a store: a report is made of what is on the disk.
    """
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
    """Returns the data URI of the original, and its size (width, height); ("", None) if it is not there."""
    picture = _open(file)
    if picture is None:
        return "", None
    return _uri(picture.resize(_cell(picture.size), Image.Resampling.BOX)), picture.size


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    scale = _SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _minimal(
    folder: Path, class_name: str, row: dict[str, Any], original_size: tuple[int, int] | None
) -> Picture:
    """Returns the MEPI of a sample in its place within the original.

    row: its columns of the manifest. original_size: (width, height), None where it is not known. class_name:
    names the folder that most likely holds the file.
    """
    reduction, png = str(row["reduction"]), f"{int(row['sample'])}.png"
    share = 100 * float(row["quotient"])
    text = f"{reduction}: {share:.2g}%" if share < 9.95 else f"{reduction}: {share:.0f}%"
    is_name = class_name not in (".", "..") and "/" not in class_name
    likely = folder / class_name / png if is_name else folder
    file = likely if likely.is_file() else next(iter(sorted(folder.glob(f"*/{png}"))), None)
    picture = _open(str(file)) if file else None
    if picture is None:
        return Picture("", text)
    text += f", {picture.width}×{picture.height}"
    top, left, height, width = (int(row[key]) for key in ("top", "left", "height", "width"))
    if original_size is None or top + height > original_size[1] or left + width > original_size[0]:
        original_size, top, left, height, width = (width, height), 0, 0, height, width
    cell, scale = _cell(original_size), _SIDE / max(original_size)
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    # Enlarging repeats pixels, so that a low resolution is seen for what it is; the rest of the original's
    # place stays empty.
    method = Image.Resampling.NEAREST if picture.width < shown[0] else Image.Resampling.BOX
    canvas = Image.new("RGBA", cell, (128, 128, 128, 40))
    canvas.paste(picture.resize(shown, method), (round(left * scale), round(top * scale)))
    return Picture(_uri(canvas), text)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
