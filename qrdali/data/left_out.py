"""Counts what lies in a root and is not read, so that no part of a data set vanishes without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum

from qrdali.data import storage
from qrdali.data.file_names import DESCRIPTIONS, ending, is_image, is_noise
from qrdali.errors import printable

_MAX_KINDS = 200  # endings that are counted each; what comes after them is counted together
_SHOWN_KINDS = 6
_SHOWN_NAMES = 3
_SHOWN_CHARACTERS = 40  # of a name
_OTHER = "of other endings"


class Where(Enum):
    """Says where images lie that are not read; the value ends a sentence about several of them."""

    BELOW = "in folders below a class"
    BESIDE = "in no class folder"


_REASONS = {
    Where.BELOW: "it lies in a folder below its class folder, where nothing is read",
    Where.BESIDE: "it lies in no class folder",
}


def _not_listed(path: str, reason: str) -> None:
    pass


class LeftOut:
    """Counts files by kind, and folders; `list_file(path, reason)` is called for each.

    Files that describe images, such as .txt, are only counted.
    """

    def __init__(self, list_file: Callable[[str, str], None] = _not_listed) -> None:
        self._list_file = list_file
        self._endings = Counter[str]()
        self._misplaced = Counter[Where]()
        self._first = dict[Where, str]()
        self._passed_over: list[str] = []
        self._num_passed_over = 0
        self.example = ""  # the last one that was listed, with its reason

    @property
    def files(self) -> int:
        """Returns the number of files that were counted."""
        return self._endings.total() + self._misplaced.total()

    def add_file(self, path: str, where: Where) -> None:
        """Counts a file that is not read: an image outside class folders, or a file that is no image."""
        name = path.rpartition("/")[2]
        if is_noise(name):
            return
        if is_image(name):
            self._add_misplaced(path, where, _REASONS[where])
            return
        end = ending(name)
        hidden = name.startswith(".")
        kind = "hidden" if hidden else end or "without an ending"
        if kind not in self._endings and len(self._endings) >= _MAX_KINDS:
            kind = _OTHER
        self._endings[kind] += 1
        if end not in DESCRIPTIONS:
            what = (
                "hidden files" if hidden else f"files ending in {end}" if end else "names without an ending"
            )
            self._list(path, f"{what} are not read as images")

    def pass_over(self, path: str) -> None:
        """Counts something that is passed over as a whole: a hidden folder, or what belongs to no split."""
        self._num_passed_over += 1
        if len(self._passed_over) < _SHOWN_NAMES:
            self._passed_over.append(path)

    def add_closed_folder(self, path: str, reason: str) -> None:
        """Counts a folder below a class into which nobody has looked, as if it were one image."""
        self._add_misplaced(path, Where.BELOW, reason)

    def _add_misplaced(self, path: str, where: Where, reason: str) -> None:
        self._misplaced[where] += 1
        self._first.setdefault(where, path)
        self._list(path, reason)

    def _list(self, path: str, reason: str) -> None:
        self.example = f"{printable(path)}: {reason}"
        self._list_file(path, reason)

    def lines(self) -> list[str]:
        """Returns what was left out, in lines for a person."""
        lines = []
        if self._endings:
            common = [(kind, n) for kind, n in self._endings.most_common() if kind != _OTHER]
            shown = [f"{n:,} {_quoted(kind)}" for kind, n in common[:_SHOWN_KINDS]]
            if rest := self._endings.total() - sum(n for _, n in common[:_SHOWN_KINDS]):
                shown.append(f"{rest:,} {_OTHER}")
            lines.append(f"left out: {', '.join(shown)}")
        for where, count in self._misplaced.items():
            lines.append(f"left out: {count:,} {where.value}, such as {short_path(self._first[where])}")
        if self._passed_over:
            more = self._num_passed_over - len(self._passed_over)
            names = ", ".join(_shortened(name) for name in self._passed_over)
            lines.append(f"passed over: {names}" + (f" and {more:,} more" if more else ""))
        return lines


def short_path(path: str) -> str:
    """Returns the last three parts of a path or URL, or shard and member, which fit into a line."""
    if storage.is_member(path):
        return _shortened(f"{storage.member(path).shard.rpartition('/')[2]}: {storage.shown(path)}")
    return _shortened("/".join(path.split("/")[-3:]))


def _shortened(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _SHOWN_CHARACTERS else "…" + shown[1 - _SHOWN_CHARACTERS :]


def _quoted(kind: str) -> str:
    shown = printable(kind)
    return repr(shown) if kind.startswith(".") and any(c.isspace() for c in kind) else shown
