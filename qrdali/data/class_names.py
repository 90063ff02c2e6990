"""Checks the names of classes: whether they can be listed, and whether two of them look the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from qrdali.errors import RunError, printable

_SHOWN_PAIRS = 3


def is_listable(name: str) -> bool:
    """Returns whether classes.tsv can hold a name: UTF-8 without tabs, line breaks and control characters."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name)


def check_alike(names: Iterable[str], where: str) -> str:
    """Returns a warning of classes whose names look alike, or "".

    Raises RunError for two that differ only in Unicode form: they are one name, written on two systems.
    `where` begins the sentences.
    """
    by_look: dict[str, list[str]] = {}
    for name in names:
        by_look.setdefault(_look(name), []).append(name)
    alike = [group for group in by_look.values() if len(group) > 1]
    for group in alike:
        by_form = dict[str, str]()
        for name in group:
            other = by_form.setdefault(unicodedata.normalize("NFC", name), name)
            if other != name:
                raise RunError(
                    f"{where} has two classes called {printable(name)!r}, which differ only in Unicode form "
                    f"(NFC and NFD): {other!a} and {name!a}: make them one, or rename one"
                )
    if not alike:
        return ""
    pairs = [" and ".join(repr(printable(name)) for name in group[:2]) for group in alike[:_SHOWN_PAIRS]]
    more = f" and {len(alike) - _SHOWN_PAIRS:,} more" if len(alike) > _SHOWN_PAIRS else ""
    return f"{where} has classes that look alike, such as {', '.join(pairs)}{more}: are they one?"


class KnownNames:
    """Names of classes, to say how another name differs from the one that looks like it."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_form: dict[str, str] = {}
        self._by_look: dict[str, str] = {}
        for name in names:
            self._by_form.setdefault(unicodedata.normalize("NFC", name), name)
            self._by_look.setdefault(_look(name), name)

    def other_form(self, name: str) -> str | None:
        """Returns the known name from which `name` differs only in Unicode form, or None."""
        known = self._by_form.get(unicodedata.normalize("NFC", name))
        return None if known == name else known

    def difference(self, name: str) -> str:
        """Returns how a name that is not known differs from one that looks the same, as the end of a message.

        "" if none does.
        """
        if other := self.other_form(name):
            return f"; from {other!a} it differs only in Unicode form (NFC and NFD): rename one of them"
        if alike := self._by_look.get(_look(name)):
            return f"; it looks like {printable(alike)!r}, from which it differs in case, width or spaces"
        return ""


def _look(name: str) -> str:
    """Returns what names have in common that look alike: no case, width, spaces or invisible characters."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    return "".join(unicodedata.normalize("NFC", visible.casefold()).split())
