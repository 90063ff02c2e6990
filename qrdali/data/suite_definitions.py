"""Reads the definitions of the published evaluation suites: a TOML file each, in qrdali/data/suites/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from qrdali.data.class_lists import imagenet_classes
from qrdali.data.class_matching import ClassList
from qrdali.data.suite_names import require_suite_name
from qrdali.runs.settings import read_toml

Layout = Literal["class folders", "numbered folders", "corruptions", "validation images", "minimal images"]

_FOLDER = Path(__file__).with_name("suites")
_ALL_OF_IMAGENET, _OF_THE_RUN = "imagenet-1k", "of the run"
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class SuiteDefinition:
    """Holds what a suite consists of.

    name: on the command line and of its rows. layout: of its folder. images: how many were published, per
    corruption and severity where there are those; None where it is not known. is_all_of_imagenet: whether its
    images are of all of ImageNet's classes; else listed_classes are their synsets in the order of ImageNet's
    numbers, () where they are the run's. class_count: their number. parts: names of folders above the class
    folders, where there may be some. severities: of each corruption. alexnet_error, alexnet_error_extra: by
    corruption, AlexNet's share of wrong answers averaged over the severities; the extra ones are not part of
    mCE. alexnet_clean_error: without corruption.
    """

    name: str
    title: str
    layout: Layout
    source: str
    download: str
    images: int | None = None
    is_all_of_imagenet: bool = False
    listed_classes: tuple[str, ...] = ()
    class_count: int = 0
    parts: tuple[str, ...] = ()
    severities: int = 0
    alexnet_error: Mapping[str, float] = field(default_factory=dict)
    alexnet_error_extra: Mapping[str, float] = field(default_factory=dict)
    alexnet_clean_error: float = 1.0

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Returns the synsets of its classes in the order of ImageNet's numbers; () if they are the run's.

        Those of ImageNet are read when they are asked for: timm, which has them, takes seconds to import.
        """
        return imagenet_classes().names if self.is_all_of_imagenet else self.listed_classes

    @property
    def is_restricted(self) -> bool:
        """Returns whether its images are of some of ImageNet's classes only."""
        return bool(self.listed_classes)

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Returns the names of all corruptions, those of mCE first."""
        return (*self.alexnet_error, *self.alexnet_error_extra)

    @property
    def folder_classes(self) -> ClassList:
        """Returns the names that class folders have, by the number of the class in `classes`.

        Numbered folders may also be named by synsets, as one of the published forms of ImageNetV2 is.
        """
        if self.layout == "numbered folders":
            return ClassList(tuple(map(str, range(len(self.classes)))), self.classes)
        return ClassList(self.classes)


@lru_cache
def suite_definition(name: str) -> SuiteDefinition:
    """Returns the definition of a suite. Raises InputError for a name that is none of SUITES."""
    require_suite_name(name)
    values = read_toml(_FOLDER / f"{name}.toml")
    classes = values.pop("classes")
    is_all = classes == _ALL_OF_IMAGENET
    listed = () if is_all or classes == _OF_THE_RUN else tuple(classes)
    count = values.pop("class_count", _IMAGENET_CLASSES if is_all else len(listed))
    parts = tuple(values.pop("parts", ()))
    return SuiteDefinition(
        name=name,
        is_all_of_imagenet=is_all,
        listed_classes=listed,
        class_count=count,
        parts=parts,
        **values,
    )
