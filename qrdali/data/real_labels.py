"""Reads ReaL: several right answers for each of ImageNet's validation images."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qrdali.data.file_names import is_image
from qrdali.data.left_out import LeftOut, Where
from qrdali.data.suite_definitions import SuiteDefinition
from qrdali.data.suite_trees import require_folder
from qrdali.data.tree import folder_entries
from qrdali.errors import InputError, printable
from qrdali.files.text_lines import decode_text

LABELS = "real.json"
_IMAGES = 50_000
_CLASSES = 1000
_MOST_BYTES = 4 << 20  # ten times the published file
_MOST_ANSWERS = 100  # of an image; the published file has at most nine
_NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})\.[A-Za-z]{1,8}", re.ASCII)
_EXPECTED = (
    f"{LABELS} of github.com/google-research/reassessed-imagenet, and beside it or in val/ the validation "
    "images ILSVRC2012_val_00000001.JPEG, …, in class folders or not"
)


@dataclass(frozen=True)
class RealImages:
    """Holds the validation images that ReaL has answers for.

    answers: by the image's number from 1, the numbers of the right classes, in the order of ImageNet's
    synsets. images: (label, path) of the images that are there, by number; the label is the first answer.
    skipped: images that are there and have no answer.
    """

    answers: tuple[tuple[int, ...], ...]
    images: tuple[tuple[int, str], ...]
    skipped: int

    @property
    def digest(self) -> str:
        """Returns the SHA-256 of the right answers."""
        return hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()

    def right_answers(self, paths: Sequence[str]) -> npt.NDArray[np.int16]:
        """Returns the right answers of images, int16 [N, K], padded with -1."""
        of_each = [self.answers[image_number(path) - 1] for path in paths]
        table = np.full((len(paths), max(map(len, of_each))), -1, np.int16)
        for row, answers in zip(table, of_each, strict=True):
            row[: len(answers)] = answers
        return table


def image_number(path: str) -> int:
    """Returns the number of a validation image by its name, from 1; 0 for any other file."""
    match = _NAME.fullmatch(os.path.basename(path))
    return int(match[1]) if match else 0


def find_real(definition: SuiteDefinition, root: str, left_out: LeftOut) -> RealImages:
    """Returns the labels and images below `root`.

    Files that are not validation images are counted in `left_out`. Raises InputError for a folder without
    labels or images, damaged labels, and two files of one image.
    """
    folder = require_folder(definition, root)
    if not (folder / LABELS).exists():
        start = f"--suite {definition.name}={printable(folder)}: expected {_EXPECTED}"
        if (folder.absolute().parent / LABELS).exists():
            raise InputError(f"{start}; that is too low: give {printable(folder.absolute().parent)}")
        for name in folder_entries(folder).folders[:_MOST_ANSWERS]:
            if (folder / name / LABELS).exists():
                raise InputError(f"{start}; that is one level too high: give {printable(folder / name)}")
        raise InputError(f"{start}; found no {LABELS}")
    answers = read_answers(folder / LABELS)
    paths = _paths_by_number(folder, len(answers), left_out)
    if not paths:
        raise InputError(
            f"--suite {definition.name}={printable(folder)}: expected {_EXPECTED}; found no such image"
        )
    images = tuple(
        (answers[number - 1][0], path) for number, path in sorted(paths.items()) if answers[number - 1]
    )
    if not images:
        raise InputError(
            f"{printable(folder)}: {LABELS} has no answer for any of the {len(paths):,} images there"
        )
    return RealImages(answers, images, len(paths) - len(images))


def read_answers(file: Path) -> tuple[tuple[int, ...], ...]:
    """Returns the right answers of each image. Raises InputError for a file that is not real.json."""
    shown = printable(file)
    try:
        if not file.is_file():  # opening a FIFO would wait for ever
            raise ValueError("it is not a file")
        with open(file, "rb") as data:
            content = data.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it is larger than the allowed {_MOST_BYTES >> 20} MiB")
        lists = json.loads(decode_text(content))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{shown} cannot be read: {printable(error)[:160]}; download {LABELS} again"
        ) from None
    if not isinstance(lists, list) or len(lists) != _IMAGES:
        found = f"{len(lists):,} entries" if isinstance(lists, list | dict) else type(lists).__name__
        raise InputError(
            f"{shown} holds {found}: {LABELS} is a list of {_IMAGES:,} lists, one for each image"
        )
    for number, answers in enumerate(lists, 1):
        if not _are_answers(answers):
            raise InputError(
                f"{shown} has {printable(answers)[:80]!r} for image {number}: expected a list of at most "
                f"{_MOST_ANSWERS} different numbers from 0 to {_CLASSES - 1}; download {LABELS} again"
            )
    return tuple(tuple(answers) for answers in lists)


def _are_answers(value: object) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_ANSWERS:
        return False
    numbers = [entry for entry in value if type(entry) is int and 0 <= entry < _CLASSES]
    return len(set(numbers)) == len(value)


def _paths_by_number(root: Path, last: int, left_out: LeftOut) -> dict[int, str]:
    """Returns the path of each validation image. Raises InputError for two of one number."""
    folder = root / "val" if (root / "val").is_dir() else root
    paths: dict[int, str] = {}
    for path in _image_paths(folder, left_out):
        number = image_number(path)
        if not 1 <= number <= last:
            left_out.add_file(path, Where.BESIDE)
        elif number in paths:
            raise InputError(
                f"{printable(paths[number])} and {printable(path)} are both image {number}: keep one of them"
            )
        else:
            paths[number] = path
    return paths


def _image_paths(folder: Path, left_out: LeftOut) -> Iterator[str]:
    """Yields the images in a folder and in the folders in it, which may be links; nothing is below those."""
    found = folder_entries(folder.absolute())
    for place, names in [
        (folder, found.files),
        *((folder / name, folder_entries(folder / name).files) for name in found.folders),
    ]:
        for name in names:
            path = os.path.join(place.absolute(), name)
            if is_image(name):
                yield path
            elif name != LABELS:
                left_out.add_file(path, Where.BELOW)
