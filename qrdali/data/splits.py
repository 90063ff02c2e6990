"""Finds the splits of a root, as class folders or as tar shards, and refuses a root that could be both."""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass, field

from qrdali.data.class_names import KnownNames, check_alike, is_listable
from qrdali.data.file_names import DESCRIPTIONS, ending, is_noise, is_shard, unpacker
from qrdali.data.imagenet_archives import SYNSET_TAR
from qrdali.data.index import SPLITS
from qrdali.data.left_out import LeftOut
from qrdali.data.tree import Entries, Place, Tree, leave_out_entries
from qrdali.errors import InputError, RunError, printable

# What data sets call the splits: names of folders, and beginnings of the names of shards.
NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
_SHARD = re.compile(rf"({'|'.join(_SPLIT_OF)})[-_]")
_WHOLE_SPLIT = re.compile(rf"({'|'.join(_SPLIT_OF)})\.")  # an archive of one, such as train.tar


@dataclass(frozen=True)
class Layout:
    """Says where the splits of a root are.

    folders: the name of each split's folder, such as "validation" for val. shards: for each split the paths
    or URLs of its tars; {} for a root of class folders. passed_over: what else lies in the root. is_flat:
    whether the root itself holds the class folders, which are all of train.
    """

    folders: dict[str, str]
    shards: dict[str, list[str]] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    is_flat: bool = False

    def place(self, split: str) -> Place:
        """Returns where the class folders of a split lie in the tree."""
        return () if self.is_flat else (self.folders[split],)

    @property
    def splits(self) -> list[str]:
        """Returns the splits that there are, in the order of SPLITS."""
        return [split for split in SPLITS if split in (self.shards or self.folders)]


def find_layout(tree: Tree, may_be_flat: bool = False) -> Layout:
    """Returns where the splits of a root are.

    may_be_flat: whether class folders in the root itself, without any split, are taken for train. Raises
    InputError if there is no split, if one is there twice or in a form that is not read, and if some splits
    are class folders and others shards: whatever was chosen then, a part would be lost.
    """
    root = tree.root_entries()
    folders = _split_folders(tree)
    entries = {split: tree.entries(folder) for split, folder in folders.items()}
    for split, found in entries.items():
        _check_split_folder(tree, folders[split], found)
    in_folders = {split: found.shards for split, found in entries.items() if found.shards}
    in_root: dict[str, list[str]] = {}
    for name in root.shards:
        if begins := _SHARD.match(name):
            in_root.setdefault(_SPLIT_OF[begins[1]], []).append(name)
    _check_archives(tree, root, {*folders, *in_root}, in_root)
    if twice := next((split for split in in_root if split in folders), None):
        raise InputError(
            f"{printable(tree.root)} holds the folder {folders[twice]}/ and the shard "
            f"{printable(in_root[twice][0])}: give one of the two"
        )
    shards = {
        split: [tree.name(folders[split], name) for name in names] for split, names in in_folders.items()
    }
    shards |= {split: [tree.name(name) for name in names] for split, names in in_root.items()}
    if not shards and not folders:
        _require_images(tree, root)
        if not (classes := _flat_classes(tree)):
            raise InputError(_no_split(tree, root))
        if not may_be_flat:
            raise InputError(_no_shares(tree, classes))
        return Layout({"train": "."}, is_flat=True)
    if shards:
        for split, found in entries.items():
            if split not in shards and (found.folders or found.images):
                raise InputError(
                    f"{printable(tree.root)} holds tar shards of {', '.join(shards)}, and {folders[split]}/ "
                    "without any: give all splits as shards, or all as class folders"
                )
    empty = {split: folder for split, folder in folders.items() if shards and split not in shards}
    return Layout(
        {split: folder for split, folder in folders.items() if split not in empty},
        {split: shards[split] for split in SPLITS if split in shards},
        _passed_over(
            root, {*folders.values()} - {*empty.values()}, {n for names in in_root.values() for n in names}
        ),
    )


def leave_out_loose(tree: Tree, layout: Layout, left_out: LeftOut) -> None:
    """Counts what lies in the splits' folders, beside class folders or shards, and what was passed over."""
    for split in layout.folders:
        place = layout.place(split)
        found = tree.entries(*place)
        if split in layout.shards:
            found = found._replace(files=[name for name in found.files if not is_shard(name)])
        leave_out_entries(found, tree.name(*place), left_out)
    for name in layout.passed_over:
        left_out.pass_over(name)


def class_folders(tree: Tree, layout: Layout) -> tuple[list[str], str]:
    """Returns the class folders of the first split, and a warning of names that look alike, or "".

    Raises RunError for less than two, for a name that cannot be listed, and for a class of another split that
    is not among them.
    """
    first, *others = layout.folders.values()
    place = layout.place(layout.splits[0])
    classes = tree.entries(*place).folders
    for name in classes:
        if os.fsencode(name) != name.encode(errors="surrogateescape"):
            encoding = sys.getfilesystemencoding()
            raise RunError(f"Python takes names for {encoding}: start it with PYTHONUTF8=1")
        if not is_listable(name):
            raise RunError(
                f"class folder {printable(name)!r} has control characters, a line break or bytes that are "
                "not UTF-8: rename it"
            )
        if name in (".", ".."):  # in an object store a key may have such a part
            raise RunError(f"class folder {tree.name(*place, name)!r} would lead out of its split: rename it")
    for folder in others:
        unknown = sorted(set(tree.entries(folder).folders) - set(classes))
        if unknown:
            raise RunError(
                f"{folder}/ has the class {printable(unknown[0])!r}, which {first}/ lacks ({len(unknown)} "
                f"such): every split uses the classes of {first}/{KnownNames(classes).difference(unknown[0])}"
            )
    if len(classes) < 2:
        raise RunError(
            f"{printable(tree.name(*place))} has {len(classes)} class folder(s): a classifier needs at least "
            "two"
        )
    return classes, check_alike(classes, f"{first}/")


def _split_folders(tree: Tree) -> dict[str, str]:
    """Returns the folder of each split by the names that it may have. Raises InputError for two of one."""
    present = tree.among(list(_SPLIT_OF))
    folders: dict[str, str] = {}
    for split, names in NAMES.items():
        found = [name for name in names if name in present]
        if len(found) > 1:
            raise InputError(
                f"{printable(tree.root)} holds {' and '.join(f'{name}/' for name in found)}, which are names "
                f"of one split: remove or rename one of them"
            )
        if found:
            folders[split] = found[0]
    return folders


def _check_split_folder(tree: Tree, folder: str, found: Entries) -> None:
    """Raises InputError for a split's folder in which nothing can be read, or that is ambiguous."""
    where = printable(tree.name(folder))
    if found.compressed_shards:
        raise _compressed(tree, folder, found.compressed_shards[0])
    if found.shards and found.folders:
        raise InputError(
            f"{where} holds {len(found.shards)} shards and {len(found.folders)} folders beside them: give "
            "one of the two"
        )
    if found.shards and all(map(SYNSET_TAR.fullmatch, found.shards)):
        raise InputError(_packed_synsets(where, found.shards))
    if found.shards or found.folders:
        return
    if found.images:
        raise InputError(
            f"{where} holds {len(found.images)} image file(s) and no class folder: put them into class "
            "folders, or have ImageNet's labelled from its lists by `qrdali data imagenet`"
        )
    others = [name for name in found.files if not is_noise(name) and ending(name) not in DESCRIPTIONS]
    if others:
        raise InputError(
            f"{where} holds {len(others):,} file(s) such as {printable(others[0])}, and neither class "
            "folders nor tar shards: unpack them into class folders, or take the folder away"
        )


def _check_archives(tree: Tree, root: Entries, splits: set[str], in_root: dict[str, list[str]]) -> None:
    """Raises InputError for an archive in the root that a split is in, or a part of it.

    One beside the folder that it was unpacked into does no harm.
    """
    for name in root.compressed_shards:
        begins = _SHARD.match(name) or _WHOLE_SPLIT.match(name)
        split = _SPLIT_OF[begins[1]] if begins else None
        if split and (split in in_root or split not in splits):
            raise _compressed(tree, name)
    for name in root.shards:
        whole = _WHOLE_SPLIT.match(name)
        if whole and _SPLIT_OF[whole[1]] not in splits:
            raise InputError(
                f"{printable(tree.name(name))} is all of a split: rename it to {whole[1]}-0.tar if it is a "
                f"shard, or unpack it into {whole[1]}/ if it holds class folders"
            )


def _compressed(tree: Tree, *place: str) -> InputError:
    where = tree.name(*place)
    return InputError(
        f"{printable(where)} is a compressed tar, which cannot be read in place: unpack it to a plain .tar, "
        f"for example by `{unpacker(place[-1])} {printable(shlex.quote(where))}`"
    )


def _packed_synsets(where: str, tars: list[str]) -> str:
    return (
        f"{where} holds {len(tars):,} tar(s) of ImageNet's synsets, such as {tars[0]}, which are no shards: "
        "`qrdali data imagenet ROOT` says how to unpack them"
    )


def _no_split(tree: Tree, root: Entries) -> str:
    where = printable(tree.root)
    if root.shards and all(map(SYNSET_TAR.fullmatch, root.shards)):
        return _packed_synsets(where, root.shards)
    if root.shards:
        return (
            f"{where} holds {len(root.shards)} shards, none of them named train-*.tar, val-*.tar or "
            "test-*.tar: rename them, or put them into train/, val/ and test/"
        )
    there = ", ".join(f"{printable(name)[:40]}/" for name in root.folders[:3])
    return f"{where} has none of train/, val/, test/: put class folders in at least one of them" + (
        f" (there are {there}{', …' if len(root.folders) > 3 else ''})" if there else ""
    )


def _flat_classes(tree: Tree) -> list[str]:
    """Returns the folders of a root that hold images themselves, as those of classes do."""
    return [name for name in tree.entries().folders if tree.entries(name).images]


def _require_images(tree: Tree, root: Entries) -> None:
    """Raises InputError for a root that is known to be something else than a folder of images."""
    where = printable(tree.root)
    if "classes.tsv" in root.files:
        raise InputError(f"{where} is a data set already: give it as it is, by --data {where}")
    if "config.toml" in root.files and {"best", "last"} & {*root.folders}:
        raise InputError(f"{where} is a run: give the folder that holds the images")


def _no_shares(tree: Tree, classes: list[str]) -> str:
    there = ", ".join(f"{printable(name)[:40]}/" for name in classes[:3])
    return (
        f"{printable(tree.root)} has class folders ({there}{', …' if len(classes) > 3 else ''}) and none of "
        "train/, val/, test/: add --val-share 0.15 --test-share 0.15 to take both out of each class"
    )


def _passed_over(root: Entries, folders: set[str], shards: set[str]) -> tuple[str, ...]:
    """Returns the folders and tars of the root that belong to no split."""
    others = [f"{name}/" for name in (*root.folders, *root.hidden) if name not in folders]
    tars = [name for name in (*root.shards, *root.compressed_shards) if name not in shards]
    return (*others, *tars)
