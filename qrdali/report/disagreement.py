"""Shows the images on which runs disagree most: some classify them correctly and others do not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from qrdali.data import storage
from qrdali.errors import printable
from qrdali.report.gallery import Picture, Row, open_picture, thumbnail
from qrdali.report.shared_rows import SharedRows
from qrdali.report.tables import Cell, Table, number, words

_MOST_ROWS = 100  # of the table
_TRIED = 5  # images that are tried for one that is shown
_NAMED_RUNS = 4
_PAGE_RUNS = 8  # columns of the table on the page
_LONGEST_NAME = 60  # characters of a class's name under a picture


@dataclass(frozen=True)
class Disputed:
    """Holds the images of a set of which some runs are right and others wrong, those that split them most
    evenly first.

    images: int64 [M], positions among the rows. right: int64 [M], how many runs are right. paths: text [M].
    """

    shared: SharedRows
    images: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    paths: tuple[str, ...]


def disputed(shared: SharedRows) -> Disputed | None:
    """Returns the images on which runs of a set disagree; None of a single run, or where none does.

    The disagreement is the number of pairs of runs of which one is right and the other wrong. Of equal ones,
    images of different classes come before a second one of a class, then those with more different answers.
    """
    runs = shared.runs
    if len(runs) < 2:
        return None
    right = shared.correct().sum(0)
    split = np.flatnonzero((right > 0) & (right < len(runs)))
    if not len(split):
        return None
    pairs = right[split] * (len(runs) - right[split])
    answers = _different_answers(shared, split)
    by_class = np.lexsort((split, -answers, shared.labels[split], -pairs))
    turn = np.empty(len(split), np.int64)
    # How many images of the same class and the same disagreement come before each.
    keys = np.stack([pairs[by_class], shared.labels[split][by_class]])
    begins = np.concatenate([[True], (np.diff(keys) != 0).any(0)])
    first = np.maximum.accumulate(np.where(begins, np.arange(len(split)), 0))
    turn[by_class] = np.arange(len(split)) - first
    order = np.lexsort((split, -answers, turn, -pairs))
    chosen = split[order]
    paths = shared.rows(runs[0]).paths()
    if paths is None:
        return None
    return Disputed(shared, chosen, right[chosen], tuple(str(path) for path in paths[chosen]))


def _different_answers(shared: SharedRows, images: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns of each image how many different answers the runs give, int64 [len(images)]."""
    answers = np.sort(np.stack([shared.predictions(run)[images] for run in shared.runs]), axis=0)
    different: npt.NDArray[np.int64] = 1 + (np.diff(answers, axis=0) != 0).sum(0)
    return different


def table(found: Disputed, slug: str) -> Table:
    """Returns the table of the images on which runs disagree most, with what each run answers."""
    shared = found.shared
    predictions = [shared.predictions(run) for run in shared.runs]
    rows: list[tuple[Cell, ...]] = []
    for image, right, path in zip(
        found.images[:_MOST_ROWS].tolist(), found.right[:_MOST_ROWS].tolist(), found.paths, strict=False
    ):
        rows.append(
            (
                words(_file(path)),
                words(shared.class_name(int(shared.labels[image]))),
                number(right),
                number(len(shared.runs) - right),
                *(words(shared.class_name(int(answers[image]))) for answers in predictions),
            )
        )
    fixed = ("image", "class", "right", "wrong")
    which = f"; these {_MOST_ROWS} split them most evenly" if len(found.images) > _MOST_ROWS else ""
    return Table(
        slug,
        f"Images of {shared.name} on which runs disagree",
        (*fixed, *(run.name for run in shared.runs)),
        tuple(rows),
        (
            f"{len(found.images):,} of {shared.images:,} images are classified correctly by some of the "
            f"{len(shared.runs)} runs and not by others{which}. Right and wrong: how many runs are. Below a "
            "run's name: its answer.",
            *shared.notes,
        ),
        page_columns=len(fixed) + _PAGE_RUNS,
    )


def _file(path: str) -> str:
    """Returns the folder and the name of a file, or a shard's member."""
    return storage.shown(path) if path.startswith("tar+") else "/".join(Path(path).parts[-2:])


def gallery(found: Disputed, most: int) -> tuple[Row | None, int]:
    """Returns (row of up to `most` thumbnails, how many images were passed over because they cannot be
    opened).

    The row is None where none can be.
    """
    pictures: list[Picture] = []
    missing = 0
    for image, path in list(zip(found.images.tolist(), found.paths, strict=True))[: _TRIED * most]:
        picture = open_picture(path)
        if picture is None:
            missing += 1
            continue
        pictures.append(_picture(found.shared, image, path, picture))
        if len(pictures) == most:
            break
    return (Row(found.shared.name, f"{len(pictures)} images", tuple(pictures)) if pictures else None), missing


def _picture(shared: SharedRows, image: int, path: str, picture: Image.Image) -> Picture:
    by_answer: dict[int, list[str]] = {}
    for run in shared.runs:
        by_answer.setdefault(int(shared.predictions(run)[image]), []).append(run.name)
    label = int(shared.labels[image])
    right = by_answer.pop(label, [])
    wrong = sorted(by_answer.items(), key=lambda item: -len(item[1]))
    some = _some if len(shared.runs) <= _PAGE_RUNS else _counted
    texts = [f"right: {some(right)}"]
    texts += [f"{_class(shared, answer)}: {some(runs)}" for answer, runs in wrong[:_NAMED_RUNS]]
    if more := len(wrong) - _NAMED_RUNS:
        texts += [f"and {more} other answers"] if more > 0 else []
    return Picture(thumbnail(picture), f"{_class(shared, label)}, {printable(_file(path))}", "; ".join(texts))


def _class(shared: SharedRows, label: int) -> str:
    return shared.class_name(label)[:_LONGEST_NAME]


def _counted(names: list[str]) -> str:
    """Returns how many runs there are; the table names them."""
    return f"{len(names)} run{'s' * (len(names) != 1)}"


def _some(names: list[str]) -> str:
    """Returns at most four names, and how many more there are."""
    more = len(names) - _NAMED_RUNS
    return ", ".join(names[:_NAMED_RUNS]) + (f" and {more} more" if more > 0 else "")
