"""ImageNet (ILSVRC 2012) as it is usually unpacked: test is the official validation set, validation is cut from train."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qrdali.data import minival
from qrdali.data import provenance as source
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
_NESTED = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive has train/ and val/; LOC_val_solution.csv lies beside ILSVRC/
_LABEL_PLACES = (".", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
_META = "meta.mat"  # the devkit's table of synsets and their ids
_META_BYTES = 5_000_000  # the whole devkit has half of that


@dataclass(frozen=True)
class ImageNet:
    """An unpacked ImageNet: the folder of train's synset folders, their names in order, and the official validation images by synset.

    found: what the validation labels were taken from, as words; labels: the file of them, if they are not folders.
    """

    train: Path
    synsets: tuple[str, ...]
    official: dict[str, list[str]]
    found: str
    labels: Path | None = None

    @property
    def files(self) -> int:
        """Images of train and official validation, for a progress bar."""
        return sum(1 for synset in self.synsets for _ in image_files(self.train / synset)) + sum(
            len(paths) for paths in self.official.values()
        )


def train_folder(root: Path) -> tuple[Path, tuple[str, ...]]:
    """ROOT/train, or that of Kaggle's archive, and the synsets in it, sorted.

    Raises InputError if there is none, or for a folder in it that is no synset's.
    """
    if str(root).startswith(("s3:/", "gs:/")):
        raise InputError(
            f"{printable(root)} is in an object store, where only `data index` finds its images: give a folder on a disk"
        )
    folder = next((place / "train" for place in (root, root / _NESTED) if (place / "train").is_dir()), None)
    if folder is None:
        raise InputError(
            f"{printable(root)} has no train/ (nor {_NESTED}/train/): give the folder that holds ImageNet's train/ and val/"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    for name in names:
        if not WNID.fullmatch(name):
            raise InputError(
                f"{printable(folder)} has the folder {quote(name)}, which is no synset: n and 8 digits"
            )
    return folder.absolute(), tuple(names)


def recognise(root: Path, labels: Path | None = None, synsets: Path | None = None) -> ImageNet:
    """Finds train and the official validation images with their labels; nothing is decoded.

    labels: the ground truth or LOC_val_solution.csv, if it is not in a usual place. synsets: what the numbers of the ground truth mean:
    the devkit's meta.mat, or a text file of one synset per line in the order of ILSVRC's ids. Raises InputError saying what is missing.
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
    file: Path | None = None
    if folders:
        if labels or synsets:
            raise InputError(
                f"{printable(val)} holds class folders: --val-labels and --synsets are for images without"
            )
        official, found = {name: list(image_files(val / name)) for name in folders}, "val/ in class folders"
    else:
        file = labels or _in_places(root, SOLUTION, GROUND_TRUTH)
        if file is None:
            raise InputError(
                f"{printable(val)} holds images without class folders: put {SOLUTION} or {GROUND_TRUTH} (of the devkit) in "
                f"{printable(root)}, or say where it is with --val-labels"
            )
        if file.suffix.lower() == ".csv":
            if synsets:
                raise InputError(f"{printable(file)} names synsets, not numbers: leave --synsets out")
            named, found = _solution(file), f"val/ flat, labelled by {SOLUTION}"
        else:
            named, found = (
                _ground_truth(file, _ids(root, file, synsets)),
                f"val/ flat, labelled by {GROUND_TRUTH}",
            )
        official = _labelled(flat, named, file)
    _match(official, names, val)
    return ImageNet(train, names, official, found, file)


def build(
    imagenet: ImageNet,
    out: Path,
    *,
    per_class: int = 25,
    seed: int = 0,
    reading: Reading = DECODED,
    progress: Progress = silent,
) -> Summary:
    """Indexes train and test into the new folder `out`, then moves `per_class` images of each class from train to val.

    Raises InputError for an `out` that exists, RunError for a class with too few readable images. Nothing is left behind on an error.
    """
    with new_folder(out) as folder:
        with Indexer(folder, list(imagenet.synsets), ("train", "test"), reading, progress) as indexer:
            for label, synset in enumerate(imagenet.synsets):
                added, reason = indexer.add("train", label, image_files(imagenet.train / synset))
                if added <= per_class:
                    raise RunError(
                        f"class {synset!r} has {added} readable training images: {per_class} for validation leave none{reason}"
                    )
            for label, synset in enumerate(imagenet.synsets):
                added, reason = indexer.add("test", label, iter(imagenet.official[synset]))
                if not added:
                    raise RunError(
                        f"class {synset!r} has no readable image in the official validation set{reason}"
                    )
        source.write(
            folder / source.FILE,
            {
                "made_by": "imagenet",
                "root": str(imagenet.train.parent),
                "found": imagenet.found,
                "labels_sha256": sha256_of(imagenet.labels) if imagenet.labels else None,
            },
        )
        done = minival.cut(folder, per_class, seed)
        counts = {"train": done.train, "val": done.val, "test": indexer.summary.images["test"]}
        indexer.summary.images = {split: counts[split] for split in SPLITS}
    return indexer.summary


def _in_places(root: Path, *names: str) -> Path | None:
    files = (
        folder / place / name
        for name in names
        for folder in (root, root / _NESTED)
        for place in _LABEL_PLACES
    )
    return next((file for file in files if file.exists()), None)


def _solution(file: Path) -> dict[str, str]:
    """Synset by image name. Rows are ImageId,PredictionString, whose first word is the synset and the rest boxes."""
    found: dict[str, str] = {}
    for number, (where, text) in enumerate(text_lines.read_lines(file)):
        image, comma, rest = text.partition(",")
        if number == 0 and image == "ImageId":
            continue
        synset = rest.split(" ", 1)[0]
        if not (comma and _IMAGE.fullmatch(image) and WNID.fullmatch(synset)):
            raise InputError(
                f"{where} is {quote(text)}, not ILSVRC2012_val_ and 8 digits, a comma, and a synset"
            )
        if image in found:
            raise InputError(f"{where}: {image} stands in an earlier line too")
        found[image] = synset
    return found


def _ground_truth(file: Path, synsets: list[str]) -> dict[str, str]:
    """Synset by image name: line i is the id of ILSVRC2012_val_i."""
    found: dict[str, str] = {}
    for where, text in text_lines.read_lines(file):
        number = int(text) if re.fullmatch("[0-9]{1,4}", text.strip(), re.ASCII) else 0
        if not 1 <= number <= len(synsets):
            raise InputError(f"{where} is {quote(text)}, not an id from 1 to {len(synsets)}")
        found[f"ILSVRC2012_val_{len(found) + 1:08d}"] = synsets[number - 1]
    return found


def _ids(root: Path, ground_truth: Path, file: Path | None) -> list[str]:
    """Synsets in the order of ILSVRC's ids, the first is of id 1."""
    beside = ground_truth.parent / _META
    file = file or (beside if beside.exists() else _in_places(root, _META))
    if file is None:
        raise InputError(
            f"{printable(ground_truth)} numbers the classes by ILSVRC's ids, and nothing says which synset has which: put the "
            f"devkit's {_META} beside it, or give --synsets FILE with one synset per line in the order of the ids"
        )
    found = _meta(file) if file.suffix.lower() == ".mat" else _listed(file)
    if len(found) > 2 and found == sorted(found):
        raise InputError(
            f"{printable(file)} is sorted, and ILSVRC's ids are not in that order (id 1 is n02119789): every label would be "
            "wrong. Give the synsets in the order of the ids"
        )
    return found


def _listed(file: Path) -> list[str]:
    found: dict[str, None] = {}
    for where, text in text_lines.read_lines(file):
        synset = text.split()[0] if text.split() else text  # the devkit's lists go on with the words
        if not WNID.fullmatch(synset):
            raise InputError(f"{where} is {quote(text)}, not a synset: n and 8 digits")
        if synset in found:
            raise InputError(f"{where}: {synset} stands in an earlier line too")
        found[synset] = None
    return list(found)


def _meta(file: Path) -> list[str]:
    """Of the devkit's meta.mat: the synsets without children, which are the classes; their ids must be 1, 2, …"""
    from scipy.io import loadmat

    if not file.is_file() or file.stat().st_size > _META_BYTES:
        raise InputError(f"{printable(file)} is no file below {_META_BYTES:,} bytes")
    try:
        rows = loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"]
        found = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
    except Exception as error:  # a damaged file raises many types
        raise InputError(
            f"{printable(file)} cannot be read as the devkit's {_META}: {printable(error)[:200]}"
        ) from None
    if sorted(found) != list(range(1, len(found) + 1)) or not all(
        WNID.fullmatch(synset) for synset in found.values()
    ):
        raise InputError(f"{printable(file)} does not number synsets 1, 2, …: it is not the devkit's {_META}")
    return [found[number] for number in sorted(found)]


def _labelled(flat: list[str], named: dict[str, str], file: Path) -> dict[str, list[str]]:
    """Paths by synset; `named` is used up. Raises InputError unless each image has one label and each label its image."""
    if len(flat) != len(named):
        raise InputError(f"{printable(file)} labels {len(named):,} images, val/ holds {len(flat):,}")
    official: dict[str, list[str]] = {}
    for path in flat:
        synset = named.pop(
            os.path.splitext(os.path.basename(path))[0], None
        )  # a name with two extensions has one label
        if synset is None:
            raise InputError(f"{printable(path)} has no label of its own in {printable(file)}")
        official.setdefault(synset, []).append(path)
    return official


def _match(official: dict[str, list[str]], synsets: tuple[str, ...], val: Path) -> None:
    unknown, lacking = sorted(set(official) - set(synsets)), sorted(set(synsets) - set(official))
    if unknown:
        raise InputError(
            f"{printable(val)} has images of {quote(unknown[0])}, which train/ lacks ({len(unknown)} such)"
        )
    if lacking:
        raise InputError(
            f"{printable(val)} has no image of {quote(lacking[0])}, which train/ has ({len(lacking)} such)"
        )
