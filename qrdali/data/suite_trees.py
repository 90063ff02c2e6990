"""Finds the images of an evaluation suite below the folder that it was unpacked into.

A folder one level too high or too low is recognized, and the message names the right one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qrdali.data import storage
from qrdali.data.class_matching import ClassList
from qrdali.data.left_out import LeftOut, Where
from qrdali.data.suite_definitions import SuiteDefinition
from qrdali.data.tree import folder_entries, image_files
from qrdali.errors import InputError, printable

_SHOWN = 5  # names that a message lists
_LOOKED_INTO = 50  # folders that are looked into to find the right level


@dataclass(frozen=True)
class SuitePart:
    """Holds a part of a suite that has rows of its own.

    name: of the rows. corruption, severity: of ImageNet-C, otherwise "" and 0. folder: holds the class
    folders. labels: the number of the class of each class folder that is evaluated.
    """

    name: str
    folder: Path
    labels: Mapping[str, int]
    corruption: str = ""
    severity: int = 0

    def files(self, left_out: LeftOut | None = None) -> Iterator[tuple[int, str]]:
        """Yields (label, path) of the images, in the order of the labels and then of the names.

        What else lies in the folder is counted in `left_out`.
        """
        if left_out is not None:
            found = folder_entries(self.folder)
            for name in found.files:
                left_out.add_file(str(self.folder / name), Where.BESIDE)
            for name in found.hidden:
                left_out.add_closed_folder(str(self.folder / name), "a hidden folder is no class")
        for name in sorted(self.labels, key=self.labels.__getitem__):
            for path in image_files((self.folder / name).absolute(), left_out):
                yield self.labels[name], path


@dataclass(frozen=True)
class FoundSuite:
    """Holds what was found of a suite. notes: sentences on what it lacks."""

    parts: tuple[SuitePart, ...]
    notes: tuple[str, ...] = ()


def listing_digest(files: Iterator[tuple[int, str]], root: Path) -> str:
    """Returns the SHA-256 of the labels, paths below `root`, sizes and times of files.

    It changes with any file that is replaced, without reading their content.
    """
    digest = hashlib.sha256()
    for label, path in files:
        try:
            status = os.stat(path)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError as error:  # such as a link to nothing
            state = f"{error.errno}"
        text = f"{label} {os.path.relpath(path, root)} {state}\n"
        digest.update(text.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def require_folder(definition: SuiteDefinition, root: str) -> Path:
    """Returns `root` as a path. Raises InputError unless it is a folder on the disk."""
    if storage.is_remote(root) or "://" in root:
        raise InputError(
            f"--suite {definition.name}={printable(root)}: a suite is read from a folder on the disk; copy "
            "it there, or evaluate one folder of class folders with --set"
        )
    folder = Path(root)
    if not folder.is_dir():
        problem = "is a file: unpack it, and give the folder" if folder.exists() else "does not exist"
        raise InputError(
            f"--suite {definition.name}={printable(root)} {problem}; it is distributed as "
            f"{definition.download}"
        )
    return folder


def find_suite(definition: SuiteDefinition, root: str, run_classes: ClassList) -> FoundSuite:
    """Returns the parts of a suite of class folders below `root`.

    run_classes: those of the network, for a suite whose classes are the run's. Raises InputError where `root`
    does not hold the suite, saying what was expected and what was found.
    """
    folder = require_folder(definition, root)
    if definition.layout == "corruptions":
        return _corruptions(definition, folder)
    if definition.layout == "minimal images":
        return _minimal_images(definition, folder, run_classes)
    labels = _class_folders(definition, folder, definition.folder_classes)
    return FoundSuite((SuitePart(definition.name, folder, labels),))


def _class_folders(definition: SuiteDefinition, folder: Path, classes: ClassList) -> dict[str, int]:
    """Returns the number of each class folder. Raises InputError for a folder of no class, or without any."""
    found = folder_entries(folder)
    first: dict[int, str] = {}
    unknown: list[str] = []
    for name in found.folders:
        label = classes.label_of(name)
        if label is None:
            unknown.append(name)
        elif label in first:
            raise InputError(
                f"{printable(folder)} has the folders {printable(first[label])} and {printable(name)}, which "
                f"are of one class of {definition.title}: keep one"
            )
        else:
            first[label] = name
    labels = {name: label for label, name in first.items()}
    expected = f"class folders such as {', '.join(classes.names[:2])}"
    if not labels:
        raise InputError(_wrong_level(definition, folder, expected, {*classes.names, *classes.readable}))
    if unknown:
        raise InputError(
            f"{printable(folder)} has the folder {printable(unknown[0])!r}, which is not a class of "
            f"{definition.title} ({len(unknown)} such){classes.difference(unknown[0])}: it has "
            f"{definition.class_count:,} {expected}"
        )
    return labels


def _wrong_level(
    definition: SuiteDefinition, folder: Path, expected: str, names: set[str], inner: Iterable[str] = ()
) -> str:
    """Returns the message on a folder that holds none of `names`, with the right folder if one is near.

    names: of folders that lie in the right one. inner: names of folders that lie further below it.
    """
    found = folder_entries(folder)
    start = f"--suite {definition.name}={printable(folder)}: expected {expected}, found {_describe(folder)}"
    below = [
        name for name in found.folders[:_LOOKED_INTO] if names & set(folder_entries(folder / name).folders)
    ]
    if below:
        choice = " or one of the others" if len(below) > 1 else ""
        return f"{start}; that is one level too high: give {printable(folder / below[0])}{choice}"
    of_suite, top = {*names, *inner}, folder.absolute()
    while top.name in of_suite:
        top = top.parent
    if top != folder.absolute():
        return f"{start}; that is too low: give {printable(top)}"
    return f"{start}; it is distributed as {definition.download}"


def _describe(folder: Path) -> str:
    """Returns in a few words what a folder holds."""
    found = folder_entries(folder)
    parts = []
    if found.folders:
        more = f" and {len(found.folders) - _SHOWN:,} more" if len(found.folders) > _SHOWN else ""
        parts.append(f"folders {', '.join(map(printable, found.folders[:_SHOWN]))}{more}")
    if found.files:
        archives = [name for name in found.files if name.endswith((".tar", ".zip", ".gz", ".tgz"))]
        kind = "archives, which must be unpacked" if archives else "files"
        names = archives or found.files
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        parts.append(f"{kind}: {', '.join(map(printable, names[:_SHOWN]))}{more}")
    return " and ".join(parts) or "nothing"


def _corruptions(definition: SuiteDefinition, root: Path) -> FoundSuite:
    """Returns a part per corruption and severity, whether or not groups such as noise/ stand above them."""
    folders = _corruption_folders(definition, root)
    severities = [str(number) for number in range(1, definition.severities + 1)]
    parts: list[SuitePart] = []
    notes: list[str] = []
    for corruption in (name for name in definition.corruptions if name in folders):
        folder = folders[corruption]
        found = folder_entries(folder).folders
        unknown = [name for name in found if name not in severities]
        if unknown or not found:
            raise InputError(
                f"{printable(folder)}: expected folders of severities, {', '.join(severities)}, found "
                f"{_describe(folder)}"
            )
        if len(found) < len(severities):
            notes.append(
                f"{corruption} has the severities {', '.join(found)} only: it has no corruption error, which "
                f"is of all {len(severities)}."
            )
        for severity in found:
            labels = _class_folders(definition, folder / severity, definition.folder_classes)
            name = f"{definition.name}-{corruption}-{severity}"
            parts.append(SuitePart(name, folder / severity, labels, corruption, int(severity)))
    absent = [name for name in definition.alexnet_error if name not in folders]
    if absent:
        notes.append(
            f"Corruptions that are not there ({len(absent)} of {len(definition.alexnet_error)}): "
            f"{', '.join(absent)}. mCE is of all {len(definition.alexnet_error)}."
        )
    return FoundSuite(tuple(parts), tuple(notes))


def _corruption_folders(definition: SuiteDefinition, root: Path) -> dict[str, Path]:
    """Returns the folder of each corruption below `root`. Raises InputError without any, or for another."""
    corruptions = set(definition.corruptions)
    folders: dict[str, Path] = {}
    unknown: list[Path] = []

    def add(name: str, folder: Path) -> None:
        if name in folders:
            raise InputError(
                f"{printable(root)} holds {name} twice, {printable(folders[name])} and {printable(folder)}: "
                "keep one"
            )
        folders[name] = folder

    for name in folder_entries(root).folders:
        if name in corruptions:
            add(name, root / name)
        elif name in definition.parts:
            for other in folder_entries(root / name).folders:
                if other in corruptions:
                    add(other, root / name / other)
                else:
                    unknown.append(root / name / other)
        else:
            unknown.append(root / name)
    expected = (
        "folders of corruptions such as gaussian_noise, or of groups of them such as noise/gaussian_noise"
    )
    if not folders:
        names = corruptions | set(definition.parts)
        inner = (*map(str, range(1, definition.severities + 1)), *definition.classes)
        raise InputError(_wrong_level(definition, root, expected, names, inner))
    if unknown:
        raise InputError(
            f"{printable(root)} has the folder {printable(unknown[0].relative_to(root))}, which is no "
            f"corruption of {definition.title} ({len(unknown)} such): {', '.join(definition.corruptions)}"
        )
    return folders


def _minimal_images(definition: SuiteDefinition, root: Path, run_classes: ClassList) -> FoundSuite:
    """Returns the parts of a folder of minimal images; folders of classes that the run lacks are left out."""
    found = folder_entries(root).folders
    reductions = [name for name in definition.parts if name in found]
    if reductions and (others := [name for name in found if name not in definition.parts]):
        raise InputError(
            f"{printable(root)} has folders of reductions, {', '.join(reductions)}, and the folder "
            f"{printable(others[0])}: give either reductions ({', '.join(definition.parts)}) with class "
            "folders in them, or class folders"
        )
    places = [(f"{definition.name}-{name}", root / name) for name in reductions] or [(definition.name, root)]
    parts: list[SuitePart] = []
    lacking: set[str] = set()
    for name, folder in places:
        labels: dict[str, int] = {}
        for class_name in folder_entries(folder).folders:
            label = run_classes.label_of(class_name)
            if label is None:
                lacking.add(class_name)
            elif label in labels.values():
                raise InputError(
                    f"{printable(folder)} has two folders of the class {run_classes.describe(label)}"
                )
            else:
                labels[class_name] = label
        if not labels:
            raise InputError(_no_shared_class(definition, folder, run_classes))
        parts.append(SuitePart(name, folder, labels))
    notes = []
    if lacking:
        notes.append(
            f"Left out are the folders of classes that the run does not know ({len(lacking)}): "
            f"{_some(lacking)}."
        )
    return FoundSuite(tuple(parts), tuple(notes))


def _no_shared_class(definition: SuiteDefinition, folder: Path, run_classes: ClassList) -> str:
    """Returns the message on a folder none of whose class folders the run knows."""
    known = f"folders named as classes of the run ({_some(run_classes.names)})"
    message = _wrong_level(definition, folder, known, {*run_classes.names, *definition.parts})
    return message + "; for a network of other classes give --class-map too"


def _some(names: Sequence[str] | set[str]) -> str:
    shown = [printable(name) for name in sorted(names)]
    more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
