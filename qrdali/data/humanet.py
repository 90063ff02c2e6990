"""Indexes HumaNet: a few everyday classes, each made of ImageNet synsets by a mapping.

Each class has the same number of images; which ones, a seed decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrdali.data import provenance
from qrdali.data.class_names import check_alike
from qrdali.data.duplicates import shared_images
from qrdali.data.imagenet import ImageNet
from qrdali.data.imagenet_labels import WNID
from qrdali.data.index import SPLITS
from qrdali.data.left_out import LeftOut
from qrdali.data.scan import DECODED, Indexer, Progress, Reading, Summary, new_folder, silent
from qrdali.data.tree import image_files
from qrdali.errors import InputError, RunError, printable
from qrdali.files import text_lines
from qrdali.files.hashing import sha256_of
from qrdali.files.text_lines import quote
from qrdali.reduction.counter_rng import shuffled

_SYNSET_HEADS = ("wnid", "wnids", "synset", "synsets")
# In which a class's images are dealt out: the small sets first, so that they hold every synset.
_ORDER = ("val", "test", "train")
_MAX_NAME_BYTES = 255  # a class becomes the name of a folder


@dataclass(frozen=True)
class Mapping:
    """Synsets by class, in the order of the file; the file's name and its SHA-256."""

    synsets: dict[str, tuple[str, ...]]
    file: str
    sha256: str

    def present(self, synsets: Sequence[str]) -> tuple[Mapping, list[str]]:
        """Returns this mapping restricted to `synsets`, and the synsets that it loses.

        Raises InputError for a class that loses all.
        """
        available = set(synsets)
        kept = {
            name: tuple(synset for synset in mapped if synset in available)
            for name, mapped in self.synsets.items()
        }
        for name, remaining in kept.items():
            if not remaining:
                raise InputError(
                    f"none of the synsets of {quote(name)} is in train/ ({', '.join(self.synsets[name][:3])})"
                )
        missing = [synset for mapped in self.synsets.values() for synset in mapped if synset not in available]
        return Mapping(kept, self.file, self.sha256), missing


@dataclass(frozen=True)
class HumaNetSpec:
    """Holds what a HumaNet consists of.

    counts: images per class of train, val and test. test_from_val: test is drawn from ImageNet's official
    validation set and not from train. missing: synsets that were left out of the mapping because they are not
    on the disk.
    """

    mapping: Mapping
    counts: dict[str, int]
    seed: int = 0
    test_from_val: bool = False
    missing: tuple[str, ...] = ()


def read_mapping(file: Path) -> Mapping:
    """Reads lines of `wnid<TAB>class` or, all of them, of `class<TAB>wnid[,wnid…]`.

    Comments with # and a header that names the column of wnids are allowed; without a header the first line
    tells the columns apart. Raises InputError, naming the line, for anything else, for a synset that stands
    twice and for a class that cannot be a folder's name.
    """
    synsets_of: dict[str, list[str]] = {}
    class_of: dict[str, str] = {}
    synset_column: int | None = None
    for number, (where, text) in enumerate(text_lines.read_lines(file)):
        cells = text.split("\t")
        if len(cells) != 2:
            raise InputError(
                f"{where} is {quote(text)}: give a synset, a tab and its class; or a class, a tab and its "
                "synsets"
            )
        head_columns = [i for i, cell in enumerate(cells) if cell.strip().lower() in _SYNSET_HEADS]
        if number == 0 and len(head_columns) == 1:
            synset_column = head_columns[0]
            continue
        if synset_column is None:
            synset_column = _synset_column(where, text, cells)
        name = _class_name(cells[1 - synset_column], where)
        synset_cells = cells[1].split(",") if synset_column == 1 else cells[:1]
        for synset in (part.strip() for part in synset_cells):
            if not WNID.fullmatch(synset):
                raise InputError(f"{where}: {quote(synset)} is not a synset, which is n and 8 digits")
            if synset in class_of:
                raise InputError(
                    f"{where}: {synset} stands in an earlier line too, as {quote(class_of[synset])}: "
                    "a synset has one class"
                )
            class_of[synset] = name
            synsets_of.setdefault(name, []).append(synset)
    if len(synsets_of) < 2:
        raise InputError(
            f"{printable(file)} has {len(synsets_of)} class(es): a classifier needs at least two"
        )
    check_alike(synsets_of, printable(file))
    synsets = {name: tuple(mapped) for name, mapped in synsets_of.items()}
    return Mapping(synsets, file.name, sha256_of(file))


def build(
    imagenet: ImageNet,
    spec: HumaNetSpec,
    out: Path,
    *,
    reading: Reading = DECODED,
    progress: Progress = silent,
) -> Summary:
    """Indexes `spec.counts` readable images per class and split into the new folder `out`.

    A class's synsets take turns, each in an order of its own drawn by the seed. Raises InputError for an
    `out` that exists, RunError naming a class with too few images. Nothing is left behind on an error.
    """
    counts, mapping = spec.counts, spec.mapping
    pools = {
        split: "val" if split == "test" and spec.test_from_val else "train"
        for split in _ORDER
        if counts[split]
    }
    needed = {
        pool: sum(counts[split] for split, its_pool in pools.items() if its_pool == pool)
        for pool in sorted(set(pools.values()))
    }
    for name, synsets in mapping.synsets.items():  # before anything is decoded
        for pool in needed:
            available = sum(len(_files(imagenet, synset, pool)) for synset in synsets)
            _require(available, needed[pool], f"images in {pool}/", name)
    splits = [split for split in SPLITS if split in pools]
    with new_folder(out) as folder:
        with Indexer(folder, list(mapping.synsets), splits, reading, progress) as indexer:
            imagenet.leave_out(indexer.left_out)
            for label, (name, synsets) in enumerate(mapping.synsets.items()):
                files = {
                    pool: _taking_turns(
                        [(synset, _files(imagenet, synset, pool, indexer.left_out)) for synset in synsets],
                        name,
                        spec.seed,
                    )
                    for pool in needed
                }
                taken = dict.fromkeys(needed, 0)
                for split, pool in pools.items():
                    added, reason = indexer.add(split, label, files[pool], counts[split])
                    taken[pool] += added
                    if added < counts[split]:
                        kind = "readable images" if reason else "images"
                        _require(taken[pool], needed[pool], f"{kind} in {pool}/", name, reason)
        provenance.write(folder, _origin(imagenet, spec))
        indexer.summary.warnings += shared_images(folder)
    return indexer.summary


def _origin(imagenet: ImageNet, spec: HumaNetSpec) -> dict[str, Any]:
    return {
        "made_by": "humanet",
        "root": str(imagenet.train.parent),
        "mapping": spec.mapping.file,
        "mapping_sha256": spec.mapping.sha256,
        "seed": spec.seed,
        "per_class": {split: spec.counts[split] for split in SPLITS},
        "test_from": "val" if spec.test_from_val else "train",
        "missing_synsets": list(spec.missing),
        "synsets": {name: list(mapped) for name, mapped in spec.mapping.synsets.items()},
    }


def _taking_turns(files_of_synsets: list[tuple[str, list[str]]], name: str, seed: int) -> Iterator[str]:
    """Yields the images of the class `name`: one of each synset in turn, in shuffled order.

    Exhausted ones are skipped.
    """
    shuffled_files = []
    for number in shuffled(seed, name, len(files_of_synsets)).tolist():
        synset, files = files_of_synsets[number]
        shuffled_files.append([files[i] for i in shuffled(seed, synset, len(files)).tolist()])
    for turn in range(max(map(len, shuffled_files))):
        yield from (files[turn] for files in shuffled_files if turn < len(files))


def _files(imagenet: ImageNet, synset: str, pool: str, left_out: LeftOut | None = None) -> list[str]:
    if pool == "val":
        return imagenet.official[synset]
    return list(image_files(imagenet.train / synset, left_out))


def _require(available: int, needed: int, of_what: str, class_name: str, reason: str = "") -> None:
    """Raises RunError if there are too few images."""
    if available < needed:
        raise RunError(
            f"class {quote(class_name)} has {available:,} {of_what} for the {needed:,} asked for: ask for "
            f"fewer, or map more synsets to it{reason}"
        )


def _synset_column(where: str, text: str, cells: list[str]) -> int:
    """Returns which of the first line's two cells holds synsets, 0 or 1.

    Raises InputError unless one does.
    """
    columns = [
        i for i, cell in enumerate(cells) if all(WNID.fullmatch(part.strip()) for part in cell.split(","))
    ]
    if len(columns) != 1:
        problem = (
            "both columns are synsets: a header must say which"
            if columns
            else "neither column is a synset, which is n and 8 digits"
        )
        raise InputError(f"{where} is {quote(text)}: {problem}")
    return columns[0]


def _class_name(name: str, where: str) -> str:
    """Returns `name` if a folder can have it. Raises InputError if not."""
    if (
        not name
        or name != name.strip()
        or "/" in name
        or name in (".", "..")
        or len(name.encode()) > _MAX_NAME_BYTES
    ):
        raise InputError(
            f"{where}: {quote(name)} is not a name of a class: it must do as a folder's, without / and "
            "spaces around it"
        )
    return name
