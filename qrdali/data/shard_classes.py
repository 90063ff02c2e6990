"""Tells classes of tar shards: what a KEY.cls holds, and which label that is."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from qrdali.data import storage
from qrdali.data.class_names import KnownNames, check_alike, is_listable
from qrdali.data.left_out import short_path
from qrdali.data.storage import Member, Stored
from qrdali.data.tree import Tree
from qrdali.errors import InputError, RunError, printable
from qrdali.files.text_lines import decode_text, quote, split_lines

CLASSES = "classes.txt"  # in the root: line i, from 0, is the name of class i
_MAX_CLS_BYTES = 1024  # of a KEY.cls
_MAX_LISTING_BYTES = 16 << 20  # of classes.txt
# Numbers that are not written with digits alone, such as +3, 3.0 or 1e3.
_ODD_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)


class Classes:
    """Class names in label order.

    `listed` if they are of a classes.txt, so that a number in a KEY.cls is a label.
    """

    def __init__(self, names: Iterable[str], listed: bool) -> None:
        self.names = tuple(names)
        self._listed = listed
        self._labels = {name: label for label, name in enumerate(self.names)}
        self._are_numbers = all(map(_is_number, self.names))
        self._known = KnownNames(self.names)

    def label(self, class_text: str) -> int | None:
        """Returns the label of the content of a KEY.cls, None if it is none of these classes."""
        if self._listed and _is_number(class_text):
            return int(class_text) if int(class_text) < len(self.names) else None
        if self._are_numbers and _is_number(class_text):
            return self._labels.get(str(int(class_text)))  # "007" is class 7
        return self._labels.get(class_text)

    def why_unknown(self, class_text: str) -> str:
        """Returns why a KEY.cls names none of these classes."""
        why = f"its class {quote(class_text)} is none of the {len(self.names)}"
        if _is_odd_number(class_text):
            return f"{why}: write a number with digits alone, such as 3"
        return why + self._known.difference(class_text)

    def check(self, split: str, texts: dict[str, str]) -> list[str]:
        """Returns warnings about the classes of a split; `texts` are its classes, each with a sample's URL.

        Raises RunError for two that differ only in Unicode form.
        """
        warnings = [check_alike(filter(self._is_name, texts), split)]
        for text, url in texts.items():
            known = self._known.other_form(text)
            if known is not None and self.label(text) is None:
                raise RunError(
                    f"{printable(url)} has the class {printable(text)!r}, which differs only in Unicode form "
                    f"(NFC and NFD) from another: {text!a} and {known!a}: make them one"
                )
        odd = next((text for text in texts if not _is_number(text) and self.label(text) is not None), None)
        if odd is not None and not self._listed and any(map(_is_number, texts)):
            warnings.append(
                f"{short_path(texts[odd])} has the class {quote(odd)} where other samples have numbers: all "
                "are taken as names"
            )
        return [warning for warning in warnings if warning]

    def _is_name(self, text: str) -> bool:
        return not _is_number(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _is_odd_number(text: str) -> bool:
    """Returns whether a text is a number that is not written with ASCII digits alone."""
    return not _is_number(text) and (text.isdecimal() or _ODD_NUMBER.fullmatch(text) is not None)


def found_classes(class_texts: Collection[str]) -> Classes:
    """Returns the classes of shards without a listing: by number if all are numbers, else by name.

    A number in another form, such as "+3" or "3.0" among plain numbers, is no class: as a name it would turn
    the numbers into names too, in another order.
    """
    if any(map(_is_number, class_texts)):
        class_texts = [text for text in class_texts if not _is_odd_number(text)]
    if all(map(_is_number, class_texts)):
        return Classes(map(str, sorted(set(map(int, class_texts)))), False)
    return Classes(sorted(class_texts), False)


def read_class(file: Stored, member: Member) -> tuple[str, str]:
    """Returns the class in a KEY.cls, and why it cannot be one, or ""."""
    name = f"{printable(member.name.rpartition('/')[2])[:100]} beside it"
    if member.length > _MAX_CLS_BYTES:
        return "", f"{name} has {member.length} bytes: that is not a class"
    try:
        text = file.read(member.offset, member.length).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", f"{name} is not UTF-8"
    if not text or not is_listable(text):
        return "", f"{name} is {quote(text)}: give the number or the name of a class"
    if text[0] in '{["' and _is_json(text):
        return "", f"{name} is {quote(text)}, which is JSON: give the number or the name of a class alone"
    return text, ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def listed_classes(tree: Tree) -> Classes | None:
    """Returns the classes of ROOT/classes.txt, None where there is none.

    Raises InputError if it is not a list of names.
    """
    listing = tree.name(CLASSES)
    if not storage.exists(listing):
        return None
    try:
        file = storage.opened(listing)
        if file.length > _MAX_LISTING_BYTES:
            raise ValueError(f"{file.length} bytes are not a list of classes")
        names = [line.strip() for line in split_lines(decode_text(file.whole()))]
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(listing)} cannot be read: {printable(error)}") from None
    for number, name in enumerate(names, 1):
        if not name or not is_listable(name):
            raise InputError(
                f"{printable(listing)} line {number} is {quote(name)}: give the name of a class on each line"
            )
    if len(set(names)) < len(names):
        raise InputError(f"{printable(listing)} names a class twice")
    return Classes(names, True)
