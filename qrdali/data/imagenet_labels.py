"""Reads the labels of ImageNet's official validation images from the lists that come with them."""

from __future__ import annotations

import re
from pathlib import Path

from qrdali.errors import InputError, printable
from qrdali.files import text_lines
from qrdali.files.text_lines import quote

WNID = re.compile(r"n[0-9]{8}", re.ASCII)
GROUND_TRUTH, SOLUTION = "ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
# Where Kaggle's archive has train/ and val/; LOC_val_solution.csv lies beside its ILSVRC/.
NESTED = "ILSVRC/Data/CLS-LOC"
_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})", re.ASCII)  # the name of a validation image, without .JPEG
_LABEL_FOLDERS = (".", "val", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")
_META = "meta.mat"  # the devkit's table of synsets and their ids
_MAX_META_BYTES = 5_000_000  # the whole devkit has half of that


def find_in_usual_folders(root: Path, *names: str) -> Path | None:
    """Returns the first file with one of `names` where labels usually lie, or None."""
    files = (
        parent / folder / name
        for name in names
        for parent in (root, root / NESTED)
        for folder in _LABEL_FOLDERS
    )
    return next((file for file in files if file.exists()), None)


def read_solution(file: Path) -> dict[str, str]:
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


def read_ground_truth(file: Path, synsets: list[str]) -> dict[str, str]:
    """Returns the synset by image name: line i holds the id of ILSVRC2012_val_i, from 1."""
    synset_of: dict[str, str] = {}
    for where, text in text_lines.read_lines(file):
        number = int(text) if re.fullmatch("[0-9]{1,4}", text.strip(), re.ASCII) else 0
        if not 1 <= number <= len(synsets):
            raise InputError(f"{where} is {quote(text)}, not an id from 1 to {len(synsets)}")
        synset_of[f"ILSVRC2012_val_{len(synset_of) + 1:08d}"] = synsets[number - 1]
    return synset_of


def synsets_by_id(root: Path, ground_truth: Path, file: Path | None) -> list[str]:
    """Returns the synsets by ILSVRC's ids, from 1 on, as `file` or one in a usual place lists them."""
    beside = ground_truth.parent / _META
    file = file or (beside if beside.exists() else find_in_usual_folders(root, _META))
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
