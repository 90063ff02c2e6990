"""Lists of classes for networks that come without one: ImageNet's from timm, a data set's, a TSV file's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qrdali.data.class_matching import ClassList
from qrdali.data.class_names import is_listable
from qrdali.data.index import Dataset
from qrdali.errors import InputError, printable
from qrdali.files import text_lines
from qrdali.files.text_lines import quote
from qrdali.runs.adoption import IMAGENET, SUBSETS, AdoptRequest

_HEAD = ("label", "name")


@dataclass(frozen=True)
class NamedClasses:
    """Holds a list of classes and, in words, where it comes from."""

    classes: ClassList
    source: str


def imagenet_classes(subset: str = "imagenet-1k") -> ClassList:
    """Returns the synset ids of one of timm's subsets of ImageNet, in its order, and their readable names."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo(subset)
    return ClassList(tuple(info.label_names()), tuple(info.label_descriptions()))


def imagenet_readable(synsets: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the readable names of ImageNet's 1,000 synsets or of some of them; () where one is not among
    them.
    """
    known = imagenet_classes()
    by_synset = dict(zip(known.names, known.readable, strict=True))
    return tuple(by_synset[name] for name in synsets) if set(synsets) <= by_synset.keys() else ()


def published_classes(outputs: int) -> NamedClasses | None:
    """Returns the subset of ImageNet for which networks with so many outputs are published, or None."""
    from timm.data import infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": outputs})
    return NamedClasses(imagenet_classes(subset), subset) if subset in SUBSETS else None


def read_classes(given: str, outputs: int | None) -> NamedClasses:
    """Returns the classes that --classes names.

    given: "imagenet" or one of SUBSETS, a data set's folder, or a TSV file: a name a line, with a readable
    name after a tab if there are any, or the columns of a data set's classes.tsv. outputs: of the network,
    None where they are not known. Raises InputError for anything else.
    """
    if given == IMAGENET:
        known = published_classes(1000 if outputs is None else outputs)
        if known is None:
            raise InputError(
                f"--classes imagenet: the network has {outputs:,} outputs, and timm has no list of "
                "ImageNet's classes of that length: give a data set or a TSV file of the names"
            )
        return known
    if given in SUBSETS:
        return NamedClasses(imagenet_classes(given), given)
    place = Path(given)
    if place.is_dir():
        return NamedClasses(Dataset.open(place).class_list, str(place.absolute()))
    if not place.exists():
        raise InputError(
            f"--classes is {printable(given)!r}, which does not exist: give a data set's folder, a TSV file, "
            f"{IMAGENET} or one of {', '.join(SUBSETS)}"
        )
    return NamedClasses(_read_tsv(place), str(place.absolute()))


def classes_of(request: AdoptRequest, outputs: int | None) -> NamedClasses:
    """Returns the classes of a network that is adopted: as asked, or ImageNet's by its number of outputs.

    outputs: of its last layer as it is published, 0 if it has none, None where they are not known. Raises
    InputError where nothing says what they are, and for a list of another length.
    """
    if request.classes:
        named = read_classes(request.classes, outputs)
        # A file may have another head than what is published: it is compared with the list when it is read.
        if not request.is_file and outputs is not None and len(named.classes) != outputs:
            raise InputError(
                f"--classes lists {len(named.classes):,} classes, the last layer of {request.model} has "
                f"{outputs:,} outputs: give a list of as many, in their order"
            )
        return named
    if outputs == 0 and not request.weights:
        raise InputError(
            f"the published {request.model} has no last layer, it gives features: adopt another of "
            "`qrdali models '*'`"
        )
    known = None if outputs == 0 else published_classes(outputs or 1000)
    if known is None:
        raise InputError(
            f"nothing says of which classes the {f'{outputs:,} ' if outputs else ''}outputs of "
            f"{request.model} "
            "are, and timm has no list of that length: give --classes, a data set or a TSV file of "
            "their names in their order"
        )
    return known


def _read_tsv(file: Path) -> ClassList:
    rows: list[list[str]] = []
    for where, text in text_lines.read_lines(file):
        columns = text.split("\t")
        if not rows and tuple(columns[:2]) == _HEAD:
            continue
        if not all(columns) or not all(map(is_listable, columns)) or len(columns) > 3:
            raise InputError(
                f"{where} is {quote(text)}: give a class name, with a readable name after a tab if "
                "there is one"
            )
        rows.append(columns)
    if not rows:
        raise InputError(f"{printable(file)} lists no class")
    if all(columns[0] == str(number) and len(columns) > 1 for number, columns in enumerate(rows)):
        rows = [columns[1:] for columns in rows]
    widths = {len(columns) for columns in rows}
    if len(widths) > 1 or max(widths) > 2:
        raise InputError(
            f"{printable(file)} has lines of {min(widths)} and {max(widths)} columns: give each class a "
            "name, and a readable name either to all or to none"
            if len(widths) > 1
            else f"{printable(file)} has three columns, of which the first is not 0, 1, 2, …: give the "
            "labels in their order"
        )
    names = tuple(columns[0] for columns in rows)
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise InputError(f"{printable(file)} lists the class {quote(twice)} twice")
    return ClassList(names, tuple(columns[1] for columns in rows) if widths == {2} else ())
