"""Indexes ImageNet (ILSVRC 2012) as it is usually unpacked.

Test is the official validation set; validation is cut from train.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from qrdali.data import imagenet_archives, minival, provenance
from qrdali.data.duplicates import shared_images
from qrdali.data.imagenet_labels import (
    GROUND_TRUTH,
    NESTED,
    SOLUTION,
    WNID,
    find_in_usual_folders,
    read_ground_truth,
    read_solution,
    synsets_by_id,
)
from qrdali.data.index import SPLITS, write_classes
from qrdali.data.left_out import LeftOut
from qrdali.data.scan import DECODED, Indexer, Progress, Reading, Summary, new_folder, silent
from qrdali.data.tree import folder_entries, image_files, leave_out_entries
from qrdali.errors import InputError, RunError, printable
from qrdali.files.hashing import sha256_of
from qrdali.files.text_lines import quote


@dataclass(frozen=True)
class ImageNet:
    """An unpacked ImageNet.

    train: the folder of the synset folders. synsets: their names, sorted. official: the paths of the official
    validation images by synset. found: in words, what their labels were taken from. labels: the file of the
    labels, None where val/ has class folders.
    """

    train: Path
    synsets: tuple[str, ...]
    official: dict[str, list[str]]
    found: str
    labels: Path | None = None

    def leave_out(self, left_out: LeftOut) -> None:
        """Counts what is not read in train/, beside the synsets' folders, and in val/ if that is used."""
        train = folder_entries(self.train)
        leave_out_entries(train, str(self.train), left_out)
        if self.official:
            val = self.train.parent / "val"
            entries = folder_entries(val)
            if entries.folders:
                leave_out_entries(entries, str(val), left_out)
            for folder in (val / name for name in entries.folders or [""]):
                deque(image_files(folder, left_out), 0)

    @property
    def files(self) -> int:
        """Returns the number of images of train and official validation, for a progress bar."""
        train = sum(1 for synset in self.synsets for _ in image_files(self.train / synset))
        return train + sum(len(paths) for paths in self.official.values())


def train_folder(root: Path) -> tuple[Path, tuple[str, ...]]:
    """Returns ROOT/train, or that of Kaggle's archive, and the names of its synset folders, sorted.

    Raises InputError if there is none, or if it has a folder that is not a synset's.
    """
    if str(root).startswith(("s3:/", "gs:/")):
        raise InputError(
            f"{printable(root)} is in an object store, where only `data index` finds its images: give a "
            "folder on a disk"
        )
    parents = (root, root / NESTED)
    folder = next((parent / "train" for parent in parents if (parent / "train").is_dir()), None)
    if folder is None:
        imagenet_archives.check_root(root)
        raise InputError(
            f"{printable(root)} has no train/ (nor {NESTED}/train/): give the folder that holds ImageNet's "
            "train/ and val/"
        )
    entries = folder_entries(folder)
    for name in entries.folders:
        if not WNID.fullmatch(name):
            raise InputError(
                f"{printable(folder)} has the folder {quote(name)}, which is not a synset: n and 8 digits"
            )
    imagenet_archives.check_train(folder, entries)
    return folder.absolute(), tuple(entries.folders)


def recognise(root: Path, labels: Path | None = None, synsets: Path | None = None) -> ImageNet:
    """Finds train and the official validation images with their labels; nothing is decoded.

    labels: the ground truth or LOC_val_solution.csv, if it is not in a usual place. synsets: what the numbers
    of the ground truth mean: the devkit's meta.mat, or a text file of one synset per line in the order of
    ILSVRC's ids. Raises InputError saying what is missing.
    """
    train, names = train_folder(root)
    if len(names) < 2:
        raise InputError(
            f"{printable(train)} has {len(names)} synset folder(s): a classifier needs at least two"
        )
    val = train.parent / "val"
    imagenet_archives.check_val(train.parent)
    if not val.is_dir():
        raise InputError(
            f"{printable(train.parent)} has no val/: the official validation images are the test set"
        )
    folders = folder_entries(val).folders
    flat = list(image_files(val))
    if folders and flat:
        raise InputError(
            f"{printable(val)} holds class folders and {len(flat):,} images beside them: give one of the two"
        )
    label_file: Path | None = None
    if folders:
        if labels or synsets:
            raise InputError(
                f"{printable(val)} holds class folders: --val-labels and --synsets are for images without"
            )
        official = {name: list(image_files(val / name)) for name in folders}
        found = "val/ in class folders"
    else:
        label_file = labels or find_in_usual_folders(root, SOLUTION, GROUND_TRUTH)
        if label_file is None:
            raise InputError(
                f"{printable(val)} holds images without class folders: put {SOLUTION} or {GROUND_TRUTH} (of "
                f"the devkit) in {printable(root)}, or say where it is with --val-labels"
            )
        if label_file.suffix.lower() == ".csv":
            if synsets:
                raise InputError(f"{printable(label_file)} names synsets, not numbers: leave --synsets out")
            synset_of = read_solution(label_file)
            found = f"val/ flat, labelled by {SOLUTION}"
        else:
            synset_of = read_ground_truth(label_file, synsets_by_id(root, label_file, synsets))
            found = f"val/ flat, labelled by {GROUND_TRUTH}"
        official = _paths_by_synset(flat, synset_of, label_file)
    _require_same_synsets(official, names, val)
    return ImageNet(train, names, official, found, label_file)


def build(
    imagenet: ImageNet,
    out: Path,
    *,
    per_class: int = 25,
    seed: int = 0,
    reading: Reading = DECODED,
    progress: Progress = silent,
) -> Summary:
    """Indexes train and test into the new folder `out`, then moves `per_class` images of each class to val.

    Raises InputError for an `out` that exists, RunError for a class with too few readable images. Nothing is
    left behind on an error.
    """
    with new_folder(out) as folder:
        with Indexer(folder, list(imagenet.synsets), ("train", "test"), reading, progress) as indexer:
            imagenet.leave_out(indexer.left_out)
            for label, synset in enumerate(imagenet.synsets):
                added, reason = indexer.add(
                    "train", label, image_files(imagenet.train / synset, indexer.left_out)
                )
                if added <= per_class:
                    raise RunError(
                        f"class {synset!r} has {added} readable training images: {per_class} for validation "
                        f"leave none{reason}"
                    )
            for label, synset in enumerate(imagenet.synsets):
                added, reason = indexer.add("test", label, iter(imagenet.official[synset]))
                if not added:
                    raise RunError(
                        f"class {synset!r} has no readable image in the official validation set{reason}"
                    )
        from qrdali.data.class_lists import imagenet_readable  # timm has them, and imports torch

        write_classes(folder, list(imagenet.synsets), imagenet_readable(imagenet.synsets))
        provenance.write(
            folder,
            {
                "made_by": "imagenet",
                "root": str(imagenet.train.parent),
                "found": imagenet.found,
                "labels_sha256": sha256_of(imagenet.labels) if imagenet.labels else None,
            },
        )
        cut = minival.cut(folder, per_class, seed)
        counts = {"train": cut.train, "val": cut.val, "test": indexer.summary.images["test"]}
        indexer.summary.images = {split: counts[split] for split in SPLITS}
        indexer.summary.warnings += shared_images(folder)
    return indexer.summary


def _paths_by_synset(flat: list[str], synset_of: dict[str, str], label_file: Path) -> dict[str, list[str]]:
    """Returns the paths of images by synset.

    Raises InputError unless each image has one label and each label its image.
    """
    if len(flat) != len(synset_of):
        raise InputError(
            f"{printable(label_file)} labels {len(synset_of):,} images, val/ holds {len(flat):,}"
        )
    unused = dict(synset_of)
    official: dict[str, list[str]] = {}
    for path in flat:
        name = os.path.splitext(os.path.basename(path))[0]
        synset = unused.pop(name, None)  # popped: two files of one name and two extensions share one label
        if synset is None:
            raise InputError(f"{printable(path)} has no label of its own in {printable(label_file)}")
        official.setdefault(synset, []).append(path)
    return official


def _require_same_synsets(official: dict[str, list[str]], synsets: tuple[str, ...], val: Path) -> None:
    """Raises InputError unless train and val have the same synsets."""
    only_val = sorted(set(official) - set(synsets))
    only_train = sorted(set(synsets) - set(official))
    if only_val:
        raise InputError(
            f"{printable(val)} has images of {quote(only_val[0])}, which train/ lacks ({len(only_val)} such)"
        )
    if only_train:
        raise InputError(
            f"{printable(val)} has no image of {quote(only_train[0])}, which train/ has ({len(only_train)} "
            "such)"
        )
