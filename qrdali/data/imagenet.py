"""Indexes ImageNet (ILSVRC 2012) as it is usually unpacked.

Test is the official validation set; validation is cut from train.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qrdali.data import minival, provenance
from qrdali.data.index import SPLITS
from qrdali.data.scan import DECODED, Indexer, Progress, Reading, Summary, new_folder, silent
from qrdali.data.tree import image_files
from qrdali.errors import InputError, RunError, printable
from qrdali.files import text_lines
from qrdali.files.hashing import sha256_of
from qrdali.files.text_lines import quote

WNID = re.compile(r"n[0-9]{8}", re.ASCII)
GROUND_TRUTH, SOLUTION = "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})", re.ASCII)  # the name of a validation image, without .JPEG
# Where Kaggle's archive has train/ and val/; LOC_val_solution.csv lies beside its ILSVRC/.
_NESTED = "ILSVRC/Data/CLS-LOC"
_LABEL_FOLDERS = (".", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
_META = "meta.mat"  # the devkit's table of synsets and their ids
_MAX_META_BYTES = 5_000_000  # the whole devkit has half of that


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
    parents = (root, root / _NESTED)
    folder = next((parent / "train" for parent in parents if (parent / "train").is_dir()), None)
    if folder is None:
        raise InputError(
            f"{printable(root)} has no train/ (nor {_NESTED}/train/): give the folder that holds ImageNet's "
            "train/ and val/"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    for name in names:
        if not WNID.fullmatch(name):
            raise InputError(
                f"{printable(folder)} has the folder {quote(name)}, which is not a synset: n and 8 digits"
            )
    return folder.absolute(), tuple(names)


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
    if not val.is_dir():
        raise InputError(
            f"{printable(train.parent)} has no val/: the official validation images are the test set"
        )
    folders = sorted(entry.name for entry in os.scandir(val) if entry.is_dir())
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
        label_file = labels or _in_usual_folders(root, SOLUTION, GROUND_TRUTH)
        if label_file is None:
            raise InputError(
                f"{printable(val)} holds images without class folders: put {SOLUTION} or {GROUND_TRUTH} (of "
                f"the devkit) in {printable(root)}, or say where it is with --val-labels"
            )
        if label_file.suffix.lower() == ".csv":
            if synsets:
                raise InputError(f"{printable(label_file)} names synsets, not numbers: leave --synsets out")
            synset_of = _read_solution(label_file)
            found = f"val/ flat, labelled by {SOLUTION}"
        else:
            synset_of = _read_ground_truth(label_file, _synsets_by_id(root, label_file, synsets))
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
            for label, synset in enumerate(imagenet.synsets):
                added, reason = indexer.add("train", label, image_files(imagenet.train / synset))
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
    return indexer.summary


def _in_usual_folders(root: Path, *names: str) -> Path | None:
    """Returns the first file with one of `names` where labels usually lie, or None."""
    files = (
        parent / folder / name
        for name in names
        for parent in (root, root / _NESTED)
        for folder in _LABEL_FOLDERS
    )
    return next((file for file in files if file.exists()), None)


def _read_solution(file: Path) -> dict[str, str]:
    """Returns the synset by image name.

    Rows are ImageId,PredictionString; the latter's first word is the synset.
    """
    synset_of: dict[str, str] = {}
    for number, (where, text) in enumerate(text_lines.read_lines(file)):
        image, comma, prediction = text.partition(",")
        if number == 0 and image == "ImageId":
            continue
        synset = prediction.split(" ", 1)[0]  # boxes follow it
        if not (comma and _IMAGE.fullmatch(image) and WNID.fullmatch(synset)):
            raise InputError(
                f"{where} is {quote(text)}, not ILSVRC2012_val_ and 8 digits, a comma, and a synset"
            )
        if image in synset_of:
            raise InputError(f"{where}: {image} stands in an earlier line too")
        synset_of[image] = synset
    return synset_of


def _read_ground_truth(file: Path, synsets: list[str]) -> dict[str, str]:
    """Returns the synset by image name: line i holds the id of ILSVRC2012_val_i, from 1."""
    synset_of: dict[str, str] = {}
    for where, text in text_lines.read_lines(file):
        number = int(text) if re.fullmatch("[0-9]{1,4}", text.strip(), re.ASCII) else 0
        if not 1 <= number <= len(synsets):
            raise InputError(f"{where} is {quote(text)}, not an id from 1 to {len(synsets)}")
        synset_of[f"ILSVRC2012_val_{len(synset_of) + 1:08d}"] = synsets[number - 1]
    return synset_of


def _synsets_by_id(root: Path, ground_truth: Path, file: Path | None) -> list[str]:
    """Returns the synsets by ILSVRC's ids, from 1 on, as `file` or one in a usual place lists them."""
    beside = ground_truth.parent / _META
    file = file or (beside if beside.exists() else _in_usual_folders(root, _META))
    if file is None:
        raise InputError(
            f"{printable(ground_truth)} numbers the classes by ILSVRC's ids, and nothing says which synset "
            f"has which: put the devkit's {_META} beside it, or give --synsets FILE with one synset per line "
            "in the order of the ids"
        )
    synsets = _read_meta(file) if file.suffix.lower() == ".mat" else _read_synset_list(file)
    if len(synsets) > 2 and synsets == sorted(synsets):
        raise InputError(
            f"{printable(file)} is sorted, and ILSVRC's ids are not in that order (id 1 is n02119789): every "
            "label would be wrong. Give the synsets in the order of the ids"
        )
    return synsets


def _read_synset_list(file: Path) -> list[str]:
    """Returns the first word of each line, each a synset and each once."""
    synsets: dict[str, None] = {}
    for where, text in text_lines.read_lines(file):
        synset = (
            text.split()[0] if text.split() else text
        )  # in the devkit's lists the words of the synset follow
        if not WNID.fullmatch(synset):
            raise InputError(f"{where} is {quote(text)}, not a synset: n and 8 digits")
        if synset in synsets:
            raise InputError(f"{where}: {synset} stands in an earlier line too")
        synsets[synset] = None
    return list(synsets)


def _read_meta(file: Path) -> list[str]:
    """Returns the synsets of the devkit's meta.mat that have no children, which are the classes.

    Their ids must be 1, 2, …
    """
    from scipy.io import loadmat

    if not file.is_file() or file.stat().st_size > _MAX_META_BYTES:
        raise InputError(f"{printable(file)} is not a file below {_MAX_META_BYTES:,} bytes")
    try:
        rows = loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"]
        synset_of = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0
        }
    except Exception as error:  # a damaged file raises many types
        raise InputError(
            f"{printable(file)} cannot be read as the devkit's {_META}: {printable(error)[:200]}"
        ) from None
    is_numbered = sorted(synset_of) == list(range(1, len(synset_of) + 1))
    if not is_numbered or not all(WNID.fullmatch(synset) for synset in synset_of.values()):
        raise InputError(f"{printable(file)} does not number synsets 1, 2, …: it is not the devkit's {_META}")
    return [synset_of[number] for number in sorted(synset_of)]


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
