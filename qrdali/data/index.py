"""A data set on disk: Arrow files of paths, labels and upright sizes. The images stay where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qrdali.data import provenance, storage
from qrdali.data.class_matching import ClassList
from qrdali.data.class_names import KnownNames
from qrdali.data.fingerprints import content_fingerprint, file_fingerprint
from qrdali.data.index_batches import batches, mapped
from qrdali.data.index_columns import open_columns
from qrdali.data.relocation import Relocation, relocation_of
from qrdali.errors import InputError, RunError, printable
from qrdali.files.text_lines import decode_text, split_lines

_ROWS = 65_536  # of sizes read at once where all are gone through

Samples = npt.NDArray[np.int64]

SPLITS = ("train", "val", "test")
_FIELDS: list[Any] = [
    ("path", pa.string()),
    ("label", pa.int32()),
    ("width", pa.int32()),
    ("height", pa.int32()),
]
SCHEMA = pa.schema(_FIELDS)
_FILE_FIELDS: list[Any] = [("bytes", pa.int64()), ("sha256", pa.binary(32))]
# SPLIT.files.arrow, row by row beside SPLIT.arrow; sha256 is null where it was not asked for.
FILES_SCHEMA = pa.schema(_FILE_FIELDS)
ROWS = 65_536  # of a record batch
_MAX_CLASSES_BYTES = 64 << 20  # of classes.tsv
# An index of at most so many rows is checked at opening; of a larger one, which takes seconds to read, each
# row where used.
_MAX_CHECKED_ROWS = 8_000_000
_NO_LABEL = np.empty(0, np.int64)


class Index:
    """Says what the images of one split of a data set are; sample numbers are its rows.

    `data["train"]` is one. Nothing of the file is held in memory: a small one is mapped, a large one read.

    Example:
        >>> split = qrdali.Dataset.open("data")["train"]
        >>> len(split), split.labels([0, 1]).tolist(), split.sizes([0]).shape
        (24, [0, 0], (1, 2))
    """

    def __init__(
        self,
        file: Path,
        classes: int,
        relocation: Relocation | None = None,
        network_labels: Samples | None = None,
    ) -> None:
        """Opens an index whose labels are below `classes`; `relocation` says where the images are now.

        network_labels: int64 [classes], what `labels` returns for each label of the file, where a network
        counts classes otherwise than the data set; None for the labels themselves.

        Raises RunError for a file that is not such an index, or has impossible labels or sizes; of more than
        eight million rows `labels` and `sizes` raise it instead.
        """
        self.file = file
        self._classes = classes
        self._relocation = relocation
        self._network_labels = network_labels
        self._columns = open_columns(file, SCHEMA)
        self._count = len(self._columns)
        if len(self) <= _MAX_CHECKED_ROWS:
            for part in self._columns.parts():
                self._check(*part)

    def _check(self, labels: npt.NDArray[Any], *sides: npt.NDArray[Any]) -> None:
        wrong = len(labels) and (labels.min() < 0 or labels.max() >= self._classes)
        if wrong or any(len(side) and side.min() < 1 for side in sides):
            raise RunError(
                f"{self.file} holds labels outside 0..{self._classes - 1} or sizes below 1: index it again"
            )

    def __len__(self) -> int:
        return self._count

    @cached_property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of the split and of each image's path below the root, label and size.

        The same images below another mount have the same; `content_fingerprint` has the exact bytes.
        """
        root = provenance.read(self.file.parent).get("root")
        return content_fingerprint(self.file, self.file.stem, root if isinstance(root, str) else "")

    def fingerprint_like(self, recorded: object) -> str:
        """Returns the fingerprint of version 0.1 where `recorded` is that, otherwise `fingerprint`.

        So what was begun by that version with these images goes on.
        """
        return self._file_fingerprint if recorded == self._file_fingerprint else self.fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """Returns what a run records of its images: `content` and, as version 0.1 did, `file`."""
        return {"content": self.fingerprint, "file": self._file_fingerprint}

    @cached_property
    def _file_fingerprint(self) -> str:
        return file_fingerprint(self.file)

    def labels(self, samples: Samples) -> Samples:
        """Returns the labels, int64 [N]."""
        result = self._columns.labels(self._within(samples))
        self._check(result)
        return result if self._network_labels is None else self._network_labels[result]

    @property
    def classes(self) -> int:
        """Returns the number of classes of the data set."""
        return self._classes

    def with_network_labels(self, network_labels: Samples) -> Index:
        """Returns this index with labels as a network counts its classes. network_labels: int64 [classes]."""
        return Index(self.file, self._classes, self._relocation, network_labels)

    def sizes(self, samples: Samples) -> npt.NDArray[np.int32]:
        """Returns upright (height, width) in pixels, int32 [N, 2]."""
        result = self._columns.sizes(self._within(samples))
        self._check(_NO_LABEL, result)
        return result

    def size_chunks(self) -> Iterator[npt.NDArray[np.int32]]:
        """Yields all upright sizes, int32 [N, 2] at a time."""
        for start in range(0, len(self), _ROWS):
            yield self.sizes(np.arange(start, min(start + _ROWS, len(self))))

    def path_bytes(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        """Returns where each image is now, as UTF-8 bytes, uint8 [length], read-only."""
        if self._relocation is not None:
            return [np.frombuffer(path.encode(), np.uint8) for path in self.paths(samples)]
        return self._recorded(samples)

    def _recorded(self, samples: Samples) -> list[npt.NDArray[np.uint8]]:
        return self._columns.path_bytes(self._within(samples))

    def paths(self, samples: Samples) -> list[str]:
        """Returns where each image is now, as text.

        Raises RunError for a path that is not UTF-8, or that did not lie below the root that has moved.
        """
        indexed = self.indexed_paths(samples)
        if self._relocation is None:
            return indexed
        return [self._relocation.path(path) for path in indexed]

    def indexed_paths(self, samples: Samples) -> list[str]:
        """Returns each path as it was indexed, wherever the images are now: it tells them apart.

        Raises RunError for a path that is not UTF-8.
        """
        try:
            return [path.tobytes().decode() for path in self._recorded(samples)]
        except UnicodeDecodeError:
            raise RunError(
                f"{printable(self.file)} holds a path that is not UTF-8: run `qrdali data index` again"
            ) from None

    @cached_property
    def needs_bytes(self) -> bool:
        """Returns whether decoders need bytes: the first image, and so each, is not a file on the disk."""
        if not len(self):
            return False
        (first,) = self.path_bytes(np.zeros(1, np.int64))
        return storage.is_url(first[:16].tobytes().decode("latin-1"))

    def _within(self, samples: Samples) -> Samples:
        samples = np.asarray(samples)
        if samples.ndim != 1 or (samples.size and samples.dtype.kind not in "iu"):
            raise InputError(
                f"samples is {samples.dtype}{list(samples.shape)}: give rows of the split, integers [N], "
                "such as np.arange(len(split))"
            )
        samples = samples.astype(np.int64, copy=False)
        if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < len(self):
            raise IndexError(f"samples {samples.min()}..{samples.max()} are outside 0..{len(self) - 1}")
        return samples


def read_batches(file: Path, schema: pa.Schema) -> list[pa.RecordBatch]:
    """Returns the record batches of an Arrow file, mapped where the file system can.

    Raises RunError if it is not an Arrow file, has another schema or is damaged.
    """
    return list(batches(file, mapped(file), schema))


def divide_rows(
    file: Path, schema: pa.Schema, parts: npt.NDArray[np.uint8 | np.bool_], outs: Sequence[Path]
) -> None:
    """Writes the rows of an Arrow file whose part is i to outs[i], one record batch in memory at a time.

    parts: [N], of each row. Raises RunError if the file has another number of rows.
    """
    found = read_batches(file, schema)
    if sum(batch.num_rows for batch in found) != len(parts):
        raise RunError(f"{printable(file)} does not belong to train.arrow: index the images again")
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_file(str(out), schema)) for out in outs]
        start = 0
        for batch in found:
            part_of_row = parts[start : start + batch.num_rows]
            for part, writer in enumerate(writers):
                rows = batch.filter(pa.array(part_of_row == part))
                if rows.num_rows:
                    writer.write_batch(rows)
            start += batch.num_rows


class RowWriter:
    """Writes an Arrow file row by row in bounded memory."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._writer = pa.ipc.new_file(str(file), schema)
        self._schema = schema
        self._rows: list[tuple[Any, ...]] = []
        self.count = 0

    def row(self, *values: Any) -> None:
        """Adds a row of one value per field."""
        self._rows.append(values)
        self.count += 1
        if len(self._rows) == ROWS:
            self._flush()

    def close(self) -> None:
        """Writes the last rows and the file's footer."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            self._rows.clear()


class Writer(RowWriter):
    """Writes one split's index, row by row in bounded memory."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, SCHEMA)

    def add(self, path: str, label: int, width: int, height: int) -> None:
        """Adds an image: its path or URL, its label, and its upright size in pixels."""
        self.row(path, label, width, height)


def _what_to_index(folder: Path) -> str:
    """Returns what to do about a path that is no data set, to stand behind a semicolon."""
    if not folder.exists():
        return "there is no such folder: `qrdali data index ROOT --out DATASET` makes one"
    if (folder / "config.toml").exists():
        return "it is a run: give the folder that `qrdali data index ROOT --out DATASET` made"
    if any((folder / split).is_dir() for split in SPLITS):
        return "it looks like a folder of images: run `qrdali data index` on it"
    return "`qrdali data index ROOT --out DATASET` makes one"


# What to do about a split that is missing beside train, to stand behind what there is.
_HOW_TO_CUT = {
    "val": "; `qrdali data minival` cuts one from train, and so does --val-share where ROOT is indexed",
    "test": "; --test-share takes one out of train where ROOT is indexed",
}


@dataclass(frozen=True)
class Dataset:
    """Opens an indexed data set: the images stay where they are, the index says where and what they are.

    folder: of the index. classes: their names in label order. splits: those of train, val and test that it
    has. relocation: where the images are now, if they moved. readable: a readable name of each class, or ().
    `data["train"]` is a split's index; `open` makes a data set of its folder.

    Example:
        >>> data = qrdali.Dataset.open("data")
        >>> data.splits, len(data.classes), len(data["train"])
        (('train', 'val', 'test'), 4, 24)
    """

    folder: Path
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    relocation: Relocation | None = None
    readable: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path | str, root: str | None = None) -> Dataset:
        """Opens the data set in `folder`.

        root: where its images are now, if they moved since they were indexed: NEW or OLD=NEW. Raises
        InputError if `folder` is not a data set, or does not say what `root` replaces, and RunError if it is
        damaged.
        """
        if not isinstance(folder, str | os.PathLike):
            raise InputError(f"folder is a {type(folder).__name__}: give the folder of a data set")
        if root is not None and not isinstance(root, str):
            raise InputError(f"root is a {type(root).__name__}: give a text, NEW or OLD=NEW, or None")
        folder = Path(folder)
        listing = folder / "classes.tsv"
        if not listing.is_file():
            hint = _what_to_index(folder)
            raise InputError(f"{printable(folder)} is not a data set (no classes.tsv); {hint}")
        classes: list[str] = []
        readable: list[str] = []
        try:
            if listing.stat().st_size > _MAX_CLASSES_BYTES:
                raise RunError(
                    f"{printable(listing)} is larger than {_MAX_CLASSES_BYTES >> 20} MiB: that is not a list "
                    "of classes"
                )
            rows = split_lines(decode_text(listing.read_bytes()))
        except (OSError, ValueError) as error:
            raise RunError(f"{listing} cannot be read: {printable(error)}") from None
        for row in rows[1:]:
            label, *names = row.split("\t")
            if not 1 <= len(names) <= 2 or label != str(len(classes)):
                raise RunError(
                    f"{listing} line {len(classes) + 2} is {printable(row)!r}, not '{len(classes)}<TAB>name' "
                    "or the same with a readable name after another tab"
                )
            classes.append(names[0])
            readable += names[1:]
        if not classes:
            raise RunError(
                f"{listing} lists no class but has {printable(rows[0])[:80]!r}: index again"
                if rows
                else f"{listing} is empty and lists no class: index again"
            )
        if readable and len(readable) < len(classes):
            raise RunError(
                f"{listing} has a readable name for {len(readable)} of {len(classes)} classes: give all "
                "or none"
            )
        splits = tuple(split for split in SPLITS if (folder / f"{split}.arrow").exists())
        relocation = relocation_of(root, provenance.read(folder), folder) if root else None
        return cls(folder, tuple(classes), splits, relocation, tuple(readable))

    @property
    def class_list(self) -> ClassList:
        """Returns the classes with their readable names."""
        return ClassList(self.classes, self.readable)

    def index(self, split: str) -> Index:
        """Returns the index of a split.

        Raises InputError for one that the data set does not have or that is empty.
        """
        if split not in self.splits:
            known = isinstance(split, str) and "train" in self.splits
            advice = _HOW_TO_CUT.get(split, "") if known else ""
            raise InputError(
                f"{self.folder} has no split {printable(split)!r}: it has "
                f"{', '.join(self.splits) or 'none'}{advice}"
            )
        index = self.rows(split)
        if not len(index):
            raise InputError(f"{self.folder}: the split {split!r} holds no image")
        return index

    def __getitem__(self, split: str) -> Index:
        """Returns the index of "train", "val" or "test"; raises as `index` does."""
        return self.index(split)

    def rows(self, split: str) -> Index:
        """Returns the index of a split that the data set has, which may be empty."""
        return Index(self.folder / f"{split}.arrow", len(self.classes), self.relocation)

    def require_classes(self, classes: tuple[str, ...], whose: str) -> None:
        """Raises InputError showing the difference unless the class names and their order are `classes`."""
        if self.classes == classes:
            return
        mine, other = set(self.classes), set(classes)
        parts = [
            f"{words} {', '.join(map(printable, sorted(names)[:3]))}{', …' if len(names) > 3 else ''}"
            for words, names in (("only here:", mine - other), (f"only in {whose}:", other - mine))
            if names
        ]
        raise InputError(
            f"{self.folder} has {len(self.classes)} classes, {whose} has {len(classes)}; "
            + ("; ".join(parts) or "the same names in another order")
            + next(filter(None, map(KnownNames(classes).difference, sorted(mine - other))), "")
        )


def write_classes(folder: Path, classes: list[str], readable: tuple[str, ...] = ()) -> None:
    """Writes classes.tsv: label, name and, where there are any, readable names."""
    columns = [map(str, range(len(classes))), classes, *([readable] if readable else [])]
    rows = "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))
    head = "label\tname\treadable\n" if readable else "label\tname\n"
    (folder / "classes.tsv").write_text(head + rows, "utf-8")
