"""Reads what people answered to images, from a table of theirs, and finds the images among evaluated ones."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qrdali.data import storage
from qrdali.data.class_matching import ClassList
from qrdali.errors import InputError, printable
from qrdali.evaluation.prediction_rows import read_table
from qrdali.files.text_lines import MAX_LINES, quote, read_lines

# What a column may be called; the last of each are the names that model-vs-human writes.
_COLUMNS = {
    "path": ("path", "file", "file_name", "filename", "image", "imagename"),
    "person": ("person", "participant", "subject", "subj"),
    "answer": ("answer", "response", "object_response"),
}
_SET = "set"
_MAGIC = b"PAR1"  # of Parquet
_MOST_CANDIDATES = 1000  # images of one name and folder that are told apart by the folders above
UNKNOWN = -1  # the label of an answer that is none of the classes


@dataclass(frozen=True)
class HumanAnswers:
    """Holds one answer per row, in the file's order.

    paths, persons, answers: texts [N]. sets: the evaluated set that each image was shown in, texts [N], ""
    where the file does not say.
    """

    file: Path
    paths: Sequence[str]
    persons: Sequence[str]
    answers: Sequence[str]
    sets: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class PersonAnswers:
    """Holds one person's answers to images of a set. images: int64 [M], ascending. labels: int64 [M],
    `UNKNOWN` for an answer that is none of the classes.
    """

    person: str
    images: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatchedAnswers:
    """Holds the answers of people to the images of a set.

    ambiguous: rows whose file name several images have. repeated: rows of a person who had answered to the
    same image before. unknown: answers that are none of the classes, and how many rows have each.
    """

    persons: tuple[PersonAnswers, ...]
    ambiguous: int
    repeated: int
    unknown: dict[str, int]


def read_human_answers(file: Path) -> HumanAnswers:
    """Reads a CSV file (commas, semicolons or tabs; UTF-8) or a Parquet file with the columns path, person
    and answer, and optionally set.

    path may be a file name; the columns may have the names that model-vs-human gives them. Raises InputError
    for anything else, for more than a million rows and for none.
    """
    try:
        with open(file, "rb") as opened:
            is_parquet = opened.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise InputError(f"{printable(file)} cannot be read: {printable(error.strerror)}") from None
    columns = _parquet_columns(file) if is_parquet else _csv_columns(file)
    if not columns["path"]:
        raise InputError(f"{printable(file)} holds no answers below its head")
    sets = columns.get(_SET, [""] * len(columns["path"]))
    return HumanAnswers(file, columns["path"], columns["person"], columns["answer"], sets)


def _found_columns(file: Path, names: Sequence[str]) -> dict[str, int]:
    """Returns the number of each column that is needed, and of the set's where there is one."""
    plain = [name.strip().casefold() for name in names]
    found = {}
    for wanted, allowed in _COLUMNS.items():
        numbers = [plain.index(name) for name in allowed if name in plain]
        if not numbers:
            shown = ", ".join(quote(name) for name in names[:8])
            others = ", ".join(allowed[1:])
            raise InputError(f"{printable(file)} has the columns {shown}: one must be {wanted} (or {others})")
        found[wanted] = numbers[0]
    if _SET in plain:
        found[_SET] = plain.index(_SET)
    return found


def _csv_columns(file: Path) -> dict[str, list[str]]:
    lines = read_lines(file)
    head = next(lines, None)
    if head is None:
        raise InputError(f"{printable(file)} is empty: its first line names the columns path, person, answer")
    separator = max(",;\t", key=head[1].count)
    reader = csv.reader(_texts(chain([head], lines)), delimiter=separator, strict=True)
    columns: dict[str, list[str]] = {}
    number = 0
    try:
        names = next(reader)
        numbers = _found_columns(file, names)
        columns = {name: [] for name in numbers}
        for number, row in enumerate(reader, 1):
            if len(row) != len(names):
                raise InputError(
                    f"{printable(file)} row {number} below the head has {len(row)} values, not {len(names)}"
                )
            for name, at in numbers.items():
                columns[name].append(row[at].strip())
    except csv.Error as error:
        raise InputError(f"{printable(file)} after row {number}: {printable(error)}") from None
    return columns


def _texts(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    for _, text in lines:
        yield text


def _parquet_columns(file: Path) -> dict[str, list[str]]:
    try:
        names = pq.read_schema(file).names
        numbers = _found_columns(file, names)
        if (rows := pq.read_metadata(file).num_rows) > MAX_LINES:
            raise InputError(f"{printable(file)} has {rows:,} rows: at most {MAX_LINES:,} are read")
        table = read_table(file, [names[at] for at in numbers.values()])
        columns = {}
        for name, at in numbers.items():
            texts = pc.cast(table[names[at]], pa.string())
            if texts.null_count:
                raise InputError(f"{printable(file)} has rows without a value of {quote(names[at])}")
            columns[name] = [str(text).strip() for text in texts.to_pylist()]
        return columns
    except InputError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{printable(file)} cannot be read: {printable(error)[:160]}") from None


def match_answers(
    answers: HumanAnswers, name: str, paths: Iterable[object], classes: ClassList
) -> MatchedAnswers:
    """Finds the images of the set `name`, whose paths are given in order, that people answered to.

    A row is of an image if its path ends as the image's does: in the file's name, and in its folder where the
    row has one; of several such images the one that most folders agree with. Rows that name another set are
    left out. A person's first answer to an image counts.
    """
    wanted = {path for path, of_set in zip(answers.paths, answers.sets, strict=True) if of_set in ("", name)}
    image_of, ambiguous = _images(wanted, paths)
    label_of: dict[str, int] = {}
    found: dict[str, dict[int, int]] = {}
    unclear = repeated = 0
    unknown: dict[str, int] = {}
    rows = zip(answers.paths, answers.persons, answers.answers, answers.sets, strict=True)
    for path, person, answer, of_set in rows:
        if of_set not in ("", name):
            continue
        unclear += path in ambiguous
        if (image := image_of.get(path)) is None:
            continue
        own = found.setdefault(person, {})
        if image in own:
            repeated += 1
            continue
        if answer not in label_of:
            label_of[answer] = _label(answer, classes)
        own[image] = label_of[answer]
        if label_of[answer] == UNKNOWN:
            unknown[answer] = unknown.get(answer, 0) + 1
    persons = []
    for person, own in found.items():
        images = np.array(sorted(own), np.int64)
        labels = np.array([own[image] for image in images.tolist()], np.int64)
        persons.append(PersonAnswers(person, images, labels))
    return MatchedAnswers(tuple(persons), unclear, repeated, unknown)


def _label(answer: str, classes: ClassList) -> int:
    """Returns the label of the class that an answer names, by name, readable name or synonym, in any case."""
    try:
        label = classes.label_of(answer)
    except InputError:  # a readable name that two classes have
        return UNKNOWN
    if label is None:
        folded = answer.casefold()
        every = (*classes.names, *classes.readable)
        same = {i % len(classes) for i, name in enumerate(every) if name.casefold() == folded}
        label = same.pop() if len(same) == 1 else None
    return UNKNOWN if label is None else label


def _images(wanted: set[str], paths: Iterable[object]) -> tuple[dict[str, int], set[str]]:
    """Returns the image of each wanted path that has one, and the wanted paths that are of several."""
    parts_of = {path: _parts(path) for path in wanted}
    # By the file's name and its folder where one is given: other classes may have a file of the same name.
    candidates: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = {
        parts[:2]: [] for parts in parts_of.values()
    }
    for image, path in enumerate(paths):
        parts = _parts(str(path))
        for key in {parts[:1], parts[:2]}:
            if (images := candidates.get(key)) is not None:
                images.append((image, parts))
    found, ambiguous = {}, set()
    for path, parts in parts_of.items():
        every = candidates[parts[:2]]
        if 1 < len(every) <= _MOST_CANDIDATES:
            most = max(_common(parts, other) for _, other in every)
            every = [(image, other) for image, other in every if _common(parts, other) == most]
        if len(every) == 1:
            found[path] = every[0][0]
        elif every:
            ambiguous.add(path)
    return found, ambiguous


def _parts(path: str) -> tuple[str, ...]:
    """Returns the file name of a path or of a shard's member, then its folders, the innermost first."""
    plain = storage.shown(path) if path.startswith("tar+") else path
    return tuple(part for part in plain.replace("\\", "/").split("/")[::-1] if part not in ("", ".")) or ("",)


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Returns how many of the first parts are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
