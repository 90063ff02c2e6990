"""Lays originals beside their minimal images, small enough to be embedded in the page."""

from __future__ import annotations

import base64
import io
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from qrdali.data import storage
from qrdali.errors import printable
from qrdali.mepi.folder import SEARCHED
from qrdali.report.figures import COLORS
from qrdali.report.quotients import class_name
from qrdali.report.read_mepis import Mepis

_SIDE = 280  # pixels of the longer side, at most; smaller pictures are enlarged by the page, pixel by pixel
_LOSSLESS_SIDE = 64  # of pictures so small that every pixel is seen
_LONGEST_NAME = 80  # characters of a class's name under a picture
_MOST = 1 << 28  # bytes of a file that is opened, and pixels of an image


@dataclass(frozen=True)
class Picture:
    """Holds a picture and the text under it.

    uri: a data URI, or "" if the file is not there (any more). further: what the network answers one step
    further, "" where that is not known.
    """

    uri: str
    text: str
    further: str = ""


@dataclass(frozen=True)
class Row:
    """Holds one image: its class and where it lay, the original, and the MEPI of each reduction."""

    class_name: str
    file: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class _Image:
    """Holds what the manifest says of one image: its columns of each reduction in which it has a MEPI."""

    sample: int
    label: int
    path: str
    minimal: dict[str, dict[str, Any]]
    voids: int

    @property
    def rank(self) -> tuple[int, int, float, int]:
        """Orders images: with a MEPI in most reductions, then above the lowest state, then most reduced."""
        logs = [math.log(max(float(row["quotient"]), 1e-12)) for row in self.minimal.values()]
        return -len(logs), self.voids, sum(logs) / len(logs), self.sample


def rows(mepis: Mepis, most: int) -> list[Row]:
    """Returns up to `most` images, spread over the classes, one of each class before a second.

    Those with a MEPI in every reduction come first. Of a class the most reduced are taken, by the geometric
    mean of their quotients; those at the lowest state, which show nothing of their object, are taken last.
    The rows stand in the same order.
    """
    queue: dict[int, list[_Image]] = {}
    for image in sorted(_images(mepis), key=lambda image: image.rank):
        queue.setdefault(image.label, []).append(image)
    turns = [(turn, image) for images in queue.values() for turn, image in enumerate(images)]
    if len(queue) > most:  # more classes than rows: spread over them
        labels = sorted(queue)
        chosen = {labels[i] for i in np.linspace(0, len(labels) - 1, most).astype(int)}
        turns = [(turn, image) for turn, image in turns if image.label in chosen]
    turns.sort(key=lambda turn: (turn[0], turn[1].label))
    shown = sorted((image for _, image in turns[:most]), key=lambda image: image.rank)
    return [_row(mepis, image) for image in shown]


def _images(mepis: Mepis) -> list[_Image]:
    images: dict[int, _Image] = {}
    for reduction, columns in mepis.rows.items():
        # A journal that an earlier version began knows nothing of what is one step further.
        is_known = bool((columns["next_class"] != "").any())
        for i, sample in enumerate(columns["sample"].tolist()):
            image = images.get(sample)
            if image is None:
                image = _Image(sample, int(columns["label"][i]), str(columns["path"][i]), {}, 0)
            minimal = {**image.minimal, reduction: {key: column[i] for key, column in columns.items()}}
            is_void = is_known and not columns["next_class"][i]
            images[sample] = replace(image, minimal=minimal, voids=image.voids + is_void)
    return list(images.values())


def _row(mepis: Mepis, image: _Image) -> Row:
    name = class_name(mepis, image.label, image.path)
    pictures = [Picture(_original(image), "original")]
    for reduction in SEARCHED:
        if reduction not in mepis.summary:
            continue
        if reduction not in image.minimal:
            pictures.append(Picture("", f"{reduction}: no MEPI"))
            continue
        pictures.append(_minimal(mepis.folder / reduction, name, image.minimal[reduction]))
    return Row(printable(name), printable(storage.shown(image.path)), tuple(pictures))


def open_picture(file: str) -> Image.Image | None:
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


def thumbnail(picture: Image.Image) -> str:
    """Returns the data URI of a picture, at most as large as the page shows it."""
    scale = min(1.0, _SIDE / max(picture.size))
    return _uri(picture.resize(_cell(picture.size, scale), Image.Resampling.BOX) if scale < 1 else picture)


def _original(image: _Image) -> str:
    """Returns the data URI of the original with a frame around each window; "" if it is not there."""
    picture = open_picture(image.path)
    if picture is None:
        return ""
    scale = _SIDE / max(picture.size)
    shown = picture.resize(_cell(picture.size, scale), Image.Resampling.BOX)
    pen = ImageDraw.Draw(shown)
    for reduction, row in image.minimal.items():
        top, left, height, width = (int(row[key]) for key in ("top", "left", "height", "width"))
        is_within = top + height <= picture.height and left + width <= picture.width
        if is_within and (width, height) != picture.size:
            right, bottom = (left + width) * scale + 1, (top + height) * scale + 1
            # Around the window, so that it hides nothing of it.
            box = (left * scale - 2, top * scale - 2, max(right, left * scale), max(bottom, top * scale))
            pen.rectangle(box, outline=COLORS[reduction], width=2)
    return _uri(shown)


def _cell(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _minimal(folder: Path, class_name: str, row: dict[str, Any]) -> Picture:
    """Returns the MEPI of a sample, as large as `_SIDE` allows.

    row: its columns of the manifest. class_name: names the folder that most likely holds the file.
    """
    reduction, png = str(row["reduction"]), f"{int(row['sample'])}.png"
    share = 100 * float(row["quotient"])
    text = f"{reduction}: {share:.2g}%" if share < 9.95 else f"{reduction}: {share:.0f}%"
    further = ""
    if answer := str(row["next_class"]):
        answer = printable(answer[:_LONGEST_NAME])
        further = f"one step further: {answer}, {100 * float(row['next_confidence']):.0f}%"
    is_name = class_name not in (".", "..") and "/" not in class_name
    likely = folder / class_name / png if is_name else folder
    file = likely if likely.is_file() else next(iter(sorted(folder.glob(f"*/{png}"))), None)
    picture = open_picture(str(file)) if file else None
    if picture is None:
        return Picture("", text, further)
    text += f", {picture.width}×{picture.height}"
    scale = _SIDE / max(picture.size)
    if scale < 1:
        picture = picture.resize(_cell(picture.size, scale), Image.Resampling.BOX)
    return Picture(_uri(picture), text, further)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=88, method=4, lossless=max(picture.size) <= _LOSSLESS_SIDE)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
