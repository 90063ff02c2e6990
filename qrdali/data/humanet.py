"""HumaNet: a few everyday classes, each made of ImageNet synsets by a mapping; as many images per class, drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qrdali.data import provenance as source
from qrdali.data.imagenet import WNID, ImageNet
from qrdali.data.index import SPLITS
from qrdali.data.scan import DECODED, Indexer, Progress, Reading, Summary, new_folder, silent
from qrdali.data.tree import image_files
from qrdali.errors import InputError, RunError, printable
from qrdali.files import text_lines
from qrdali.files.hashing import sha256_of
from qrdali.files.text_lines import quote
from qrdali.reduction.counter_rng import shuffled

_SYNSET_HEADS = ("wnid", "wnids", "synset", "synsets")
_ORDER = (
    "val",
    "test",
    "train",
)  # in which a class's images are dealt out: the small sets first, so that they hold every synset
_LONGEST_NAME = 255  # bytes: a class becomes the name of a folder


@dataclass(frozen=True)
class Mapping:
    """Synsets by class, in the order of the file, and the file's SHA-256."""

    synsets: dict[str, tuple[str, ...]]
    file: str
    sha256: str

    def present(self, synsets: Sequence[str]) -> tuple[Mapping, list[str]]:
        """This mapping of `synsets` alone, and the synsets it loses. Raises InputError for a class that loses all."""
        there = set(synsets)
        kept = {
            name: tuple(synset for synset in own if synset in there) for name, own in self.synsets.items()
        }
        for name, own in kept.items():
            if not own:
                raise InputError(
                    f"none of the synsets of {quote(name)} is in train/ ({', '.join(self.synsets[name][:3])})"
                )
        return Mapping(kept, self.file, self.sha256), [
            s for own in self.synsets.values() for s in own if s not in there
        ]


def read_mapping(file: Path) -> Mapping:
    """Lines of `wnid<TAB>class` or, all of them, of `class<TAB>wnid[,wnid…]`; # comments and a header naming the column of wnids allowed.

    Without a header the first line tells the columns apart. Raises InputError, naming the line, for anything else, for a synset that
    stands twice and for a class that cannot be a folder's name.
    """
    found: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    column: int | None = None  # of the synsets
    for number, (where, text) in enumerate(text_lines.read_lines(file)):
        cells = text.split("\t")
        if len(cells) != 2:
            raise InputError(
                f"{where} is {quote(text)}: give a synset, a tab and its class; or a class, a tab and its synsets"
            )
        heads = [place for place, cell in enumerate(cells) if cell.strip().lower() in _SYNSET_HEADS]
        if number == 0 and len(heads) == 1:
            column = heads[0]
            continue
        if column is None:
            column = _column(where, text, cells)
        name = _class_name(cells[1 - column], where)
        for synset in (part.strip() for part in (cells[column].split(",") if column else cells[:1])):
            if not WNID.fullmatch(synset):
                raise InputError(f"{where}: {quote(synset)} is no synset, which is n and 8 digits")
            if synset in owner:
                raise InputError(
                    f"{where}: {synset} stands in an earlier line too, as {quote(owner[synset])}: a synset has one class"
                )
            owner[synset] = name
            found.setdefault(name, []).append(synset)
    if len(found) < 2:
        raise InputError(f"{printable(file)} has {len(found)} class(es): a classifier needs at least two")
    return Mapping({name: tuple(own) for name, own in found.items()}, file.name, sha256_of(file))


def build(
    imagenet: ImageNet,
    mapping: Mapping,
    out: Path,
    counts: dict[str, int],
    *,
    seed: int = 0,
    test_from_val: bool = False,
    missing: Sequence[str] = (),
    reading: Reading = DECODED,
    progress: Progress = silent,
) -> Summary:
    """Indexes `counts` readable images per class and split into the new folder `out`, all from train or, for test, from the official
    validation set.

    A class's synsets take turns, each in an order of its own drawn by the seed. Raises InputError for an `out` that exists, RunError
    naming a class with too few images. Nothing is left behind on an error.
    """
    pools = {
        split: "val" if split == "test" and test_from_val else "train" for split in _ORDER if counts[split]
    }
    need = {
        pool: sum(counts[split] for split, own in pools.items() if own == pool)
        for pool in sorted(set(pools.values()))
    }
    for name, synsets in mapping.synsets.items():  # before anything is decoded
        for pool in need:
            _require(name, sum(len(_files(imagenet, synset, pool)) for synset in synsets), need[pool], pool)
    splits = [split for split in SPLITS if split in pools]
    with new_folder(out) as folder:
        with Indexer(folder, list(mapping.synsets), splits, reading, progress) as indexer:
            for label, (name, synsets) in enumerate(mapping.synsets.items()):
                turns, taken = (
                    {pool: _turns(imagenet, name, synsets, seed, pool) for pool in need},
                    dict.fromkeys(need, 0),
                )
                for split, pool in pools.items():
                    added, reason = indexer.add(split, label, turns[pool], counts[split])
                    taken[pool] += added
                    if added < counts[split]:
                        _require(name, taken[pool], need[pool], pool, reason)
        source.write(
            folder / source.FILE,
            {
                "made_by": "humanet",
                "root": str(imagenet.train.parent),
                "mapping": mapping.file,
                "mapping_sha256": mapping.sha256,
                "seed": seed,
                "per_class": {split: counts[split] for split in SPLITS},
                "test_from": "val" if test_from_val else "train",
                "missing_synsets": list(missing),
                "synsets": {name: list(own) for name, own in mapping.synsets.items()},
            },
        )
    return indexer.summary


def _turns(imagenet: ImageNet, name: str, synsets: tuple[str, ...], seed: int, pool: str) -> Iterator[str]:
    """Images of a class: one of each synset in turn, in shuffled order; a synset that has no more is passed over."""
    shuffles = []
    for place in shuffled(seed, name, len(synsets)).tolist():
        files = _files(imagenet, synsets[place], pool)
        shuffles.append([files[i] for i in shuffled(seed, synsets[place], len(files)).tolist()])
    for turn in range(max(map(len, shuffles))):
        yield from (files[turn] for files in shuffles if turn < len(files))


def _files(imagenet: ImageNet, synset: str, pool: str) -> list[str]:
    return imagenet.official[synset] if pool == "val" else list(image_files(imagenet.train / synset))


def _require(name: str, there: int, need: int, pool: str, reason: str = "") -> None:
    if there < need:
        kind = "readable images" if reason else "images"
        raise RunError(
            f"class {quote(name)} has {there:,} {kind} in {pool}/ for the {need:,} asked for: ask for fewer, or map more "
            f"synsets to it{reason}"
        )


def _column(where: str, text: str, cells: list[str]) -> int:
    """Which of the first line's two cells holds synsets."""
    synsets = [
        place
        for place, cell in enumerate(cells)
        if all(WNID.fullmatch(part.strip()) for part in cell.split(","))
    ]
    if len(synsets) != 1:
        what = (
            "both columns are synsets: a header must say which"
            if synsets
            else "neither column is a synset, which is n and 8 digits"
        )
        raise InputError(f"{where} is {quote(text)}: {what}")
    return synsets[0]


def _class_name(name: str, where: str) -> str:
    if (
        not name
        or name != name.strip()
        or "/" in name
        or name in (".", "..")
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise InputError(
            f"{where}: {quote(name)} is no name of a class: it must do as a folder's, without / and spaces around it"
        )
    return name
