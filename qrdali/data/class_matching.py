"""Matches the classes of a data set, or of folders, to those of a network by their names.

A network may know more classes than a data set holds, and ImageNet's have two names each: a synset id such as
n02012849, and a readable name, which lists synonyms ("great white shark, white shark, man-eater").
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qrdali.data.class_names import KnownNames
from qrdali.errors import InputError, printable
from qrdali.files.text_lines import quote

_NEAR = 3  # names that a message shows


@dataclass(frozen=True)
class ClassList:
    """Holds the classes of a network or a data set, by label.

    names: each differs from the others; folders have them. readable: a readable name of each, which may list
    synonyms, or () where there are none.
    """

    names: tuple[str, ...]
    readable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, label: int) -> str:
        """Returns a class's name for a message, with its readable name where it has one."""
        name = printable(self.names[label])
        return f"{name} ({printable(self.readable[label])})" if self.readable else name

    def label_of(self, name: str) -> int | None:
        """Returns the label of the class that `name` is of, or None.

        Compared are, in this order, names, readable names and their first synonyms. Raises InputError, naming
        both, for a readable name or a first synonym that two classes have.
        """
        if (label := self._by_name.get(name)) is not None:
            return label
        for labels_by_text in (self._by_readable, self._by_first_synonym):
            if labels := labels_by_text.get(name):
                if len(labels) > 1:
                    raise InputError(
                        f"{quote(name)} names two classes, {self.describe(labels[0])} and "
                        f"{self.describe(labels[1])}: use {self.names[labels[0]]} or {self.names[labels[1]]}"
                    )
                return labels[0]
        return None

    def difference(self, name: str) -> str:
        """Returns, as the end of a message, which classes a name that is none of them is near to."""
        if text := KnownNames(self.names).difference(name):
            return text
        near = difflib.get_close_matches(name, [*self.names, *self._by_first_synonym], _NEAR)
        return f"; near it: {', '.join(map(printable, near))}" if near else ""

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names)}

    @cached_property
    def _by_readable(self) -> dict[str, list[int]]:
        return _labels_by_text(self.readable)

    @cached_property
    def _by_first_synonym(self) -> dict[str, list[int]]:
        return _labels_by_text(map(first_synonym, self.readable))


def first_synonym(readable: str) -> str:
    """Returns the first of the synonyms that a readable name lists."""
    return readable.partition(",")[0].strip()


def _labels_by_text(texts: Iterable[str]) -> dict[str, list[int]]:
    labels: dict[str, list[int]] = {}
    for label, text in enumerate(texts):
        labels.setdefault(text, []).append(label)
    return labels


def match_classes(
    data: ClassList, network: ClassList, where: str, whose: str, refuse: Callable[[], None] = lambda: None
) -> npt.NDArray[np.int64]:
    """Returns the network's label of each of the data's classes, int64 [classes of the data].

    where: names the data in messages, such as "the data set d"; whose: the network, such as "the run r".
    refuse: is called first where a class has no counterpart, and may raise a better message.

    Raises InputError for a class that the network does not have, for a name that two of its classes have, and
    for two classes of the data that are one of the network's.
    """
    if data.names == network.names:
        return np.arange(len(network))
    labels = []
    for label in range(len(data)):
        found = _counterpart(data, label, network, where)
        if found is None:
            refuse()
            raise InputError(
                f"{where} has the class {data.describe(label)}, which is not a class of {whose}"
                f"{network.difference(data.names[label])}"
            )
        labels.append(found)
    require_different(data, labels, network, where)
    return np.array(labels, np.int64)


def require_different(data: ClassList, labels: Sequence[int], network: ClassList, where: str) -> None:
    """Raises InputError if two of the data's classes have one label of the network. labels: by data class."""
    first_with: dict[int, int] = {}
    for own, label in enumerate(labels):
        if (other := first_with.setdefault(label, own)) != own:
            raise InputError(
                f"{where} has the classes {data.describe(other)} and {data.describe(own)}, which are one "
                f"class of the network, {network.describe(label)}: make them one"
            )


def _counterpart(data: ClassList, label: int, network: ClassList, where: str) -> int | None:
    """Returns the network's label of a class of the data, or None: by its name, else its readable one."""
    texts = [data.names[label]]
    if data.readable:
        texts += [data.readable[label], first_synonym(data.readable[label])]
    try:
        return next((found for text in texts if (found := network.label_of(text)) is not None), None)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
