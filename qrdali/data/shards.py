"""WebDataset's tar shards: which samples are in them and where. Nothing is extracted, nothing but headers and classes is read.

A sample is a run of members with the same name up to the first dot of its last part: KEY.jpg (or another image) and KEY.cls.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice

from qrdali.data import storage
from qrdali.data.storage import Member, Stored
from qrdali.data.tree import EXTENSIONS, Tree
from qrdali.errors import InputError, RunError, printable
from qrdali.files.text_lines import quote

CLASSES = "classes.txt"  # in the root: line i, from 0, is the name of class i
_BLOCK = tarfile.BLOCKSIZE
_MOST_NAME, _MOST_EXTENDED = (
    4096,
    1 << 16,
)  # bytes of a member's name, and of a header that extends the next one
_MOST_CLS, _MOST_LISTING = 1024, 16 << 20
_MOST_MEMBERS = 2_000_000  # of one shard
_WINDOW, _FAR_WINDOW = (
    1 << 12,
    1 << 20,
)  # bytes of a shard on the disk or in a store that are read together: where a request takes long
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True)
class Sample:
    """An image in a shard: its URL and its class as KEY.cls has it; or why it is rejected."""

    url: str
    text: str = ""
    reason: str = ""


class Classes:
    """names, in label order. listed: of a classes.txt, so that a number in a KEY.cls is a place in it."""

    def __init__(self, names: Iterable[str], listed: bool) -> None:
        self.names, self._listed = tuple(names), listed
        self._labels = {name: label for label, name in enumerate(self.names)}
        self._numbered = all(map(_is_number, self.names))

    def label(self, text: str) -> int | None:
        """The label of what a KEY.cls says, None for no class of these."""
        if self._listed and _is_number(text):
            return int(text) if int(text) < len(self.names) else None
        return self._labels.get(str(int(text)) if self._numbered and _is_number(text) else text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def found_classes(texts: set[str]) -> Classes:
    """Of shards without a listing: numbers in their order if all are numbers, else the names in theirs."""
    if all(map(_is_number, texts)):
        return Classes(map(str, sorted(set(map(int, texts)))), False)
    return Classes(sorted(texts), False)


def listed_classes(tree: Tree) -> Classes | None:
    """Of ROOT/classes.txt, None where there is none. Raises InputError for one that is no list of names."""
    name = tree.name(CLASSES)
    if not storage.exists(name):
        return None
    try:
        file = storage.opened(name)
        if file.length > _MOST_LISTING:
            raise ValueError(f"{file.length} bytes are no list of classes")
        names = [line.strip() for line in file.whole().decode("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(name)} cannot be read: {printable(error)}") from None
    for number, one in enumerate(names, 1):
        if not one or "\t" in one:
            raise InputError(
                f"{printable(name)} line {number} is {quote(one)}: give the name of a class on each line"
            )
    if len(set(names)) < len(names):
        raise InputError(f"{printable(name)} names a class twice")
    return Classes(names, True)


def samples(shards: list[str], threads: int) -> Iterator[Sample]:
    """Of all shards in turn, `threads` of them read at once. Raises RunError for a damaged one."""
    names, ahead = iter(shards), list[Future[list[Sample]]]()
    with ThreadPoolExecutor(threads, "shards") as pool:
        try:
            ahead += [pool.submit(_read, name) for name in islice(names, threads)]
            while ahead:
                yield from ahead.pop(0).result()
                ahead += [pool.submit(_read, name) for name in islice(names, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def _read(shard: str) -> list[Sample]:
    try:
        file = storage.shard(shard)
        return list(_samples(shard, file))
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise RunError(
            f"{printable(shard)} is no whole tar: {printable(error)[:300]}; restore it, or move it out of the folder"
        ) from None


def _samples(shard: str, file: Stored) -> Iterator[Sample]:
    """Consecutive members of one key are a sample. A key that comes again is rejected."""
    seen: set[int] = set()
    key, reason = "", ""
    image: Member | None = None
    text: str | None = None
    for member, bad in chain(_members(shard, file), [(None, "")]):
        own, extension = ("", "") if member is None else _split(member.name)
        if own != key or member is None:
            if image is not None:
                if not reason and hash(key) in seen:
                    reason = "its key has come before in this shard"
                if not reason and text is None:
                    reason = f"no {_last(key)}.cls beside it"
                seen.add(hash(key))
                yield Sample(image.url, text or "", reason)
            key, image, text, reason = own, None, None, ""
        if member is None:
            return
        if bad:
            if extension in EXTENSIONS or extension == ".cls":
                yield Sample(member.url, reason=bad)
        elif extension == ".cls":
            if text is not None:
                reason = f"two {_last(key)}.cls beside it"
            else:
                text, wrong = _class(file, member)
                reason = reason or wrong
        elif extension in EXTENSIONS:
            if image is not None:
                yield Sample(member.url, reason="its key has an image already")
            else:
                image = member


def _class(file: Stored, member: Member) -> tuple[str, str]:
    """The class in a KEY.cls, and why it cannot be one."""
    name = printable(_last(member.name))[:100]
    if member.length > _MOST_CLS:
        return "", f"{name} beside it has {member.length} bytes: that is no class"
    try:
        text = file.read(member.offset, member.length).decode("utf-8").strip()
    except UnicodeDecodeError:
        return "", f"{name} beside it is not UTF-8"
    if not text or any(c in text for c in "\t\r\n\0"):
        return "", f"{name} beside it is {quote(text)}: give the number or the name of a class"
    return text, ""


def _split(name: str) -> tuple[str, str]:
    """Key and extension: at the first dot of the last part, as WebDataset does."""
    folder, slash, last = name.rpartition("/")
    key, dot, extension = last.partition(".")
    return folder + slash + key, (dot + extension).lower()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _members(shard: str, file: Stored) -> Iterator[tuple[Member, str]]:
    """Files of a tar with why they are refused, if they are; folders are passed over.

    Raises ValueError or tarfile's errors unless the tar is whole: headers right, contents there, an end.
    """
    window, place, count = _Window(file, _FAR_WINDOW if storage.is_remote(shard) else _WINDOW), 0, 0
    extended: dict[str, str] = {}
    while True:
        block = window.read(place, _BLOCK)
        if len(block) < _BLOCK:
            raise ValueError(f"it is cut: it ends at byte {file.length} without an end mark")
        if block == bytes(_BLOCK):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start, size = place + _BLOCK, info.size
        more = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while more:  # blocks that go on with the list of holes
            more = (window.read(start, _BLOCK) or b"\0").ljust(_BLOCK, b"\0")[504]
            start += _BLOCK
        if info.type in _REGULAR and "size" in extended:
            text = extended["size"]
            size = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1
        if size < 0:
            raise ValueError(f"the header at byte {place} says no size")
        holds = info.type not in _KINDS or info.type == tarfile.GNUTYPE_SPARSE
        place = start + (-(-size // _BLOCK) * _BLOCK if holds else 0)
        if holds and start + size > file.length:
            raise ValueError(
                f"it is cut: {printable(info.name)[:100]} ends at byte {start + size} of {file.length}"
            )
        count += 1
        if count > _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS:,} members")
        if info.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            if size > _MOST_EXTENDED:
                raise ValueError(
                    f"the extended header at byte {start - _BLOCK} has {size} bytes, more than {_MOST_EXTENDED}"
                )
            data = window.read(start, size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended.update(_extended(data))
            continue
        name, own, extended = extended.get("path", info.name), extended, {}
        if info.type == tarfile.DIRTYPE:
            continue
        yield Member(shard, start, size, _encodable(name)), _refused(info.type, name, own)


def _encodable(name: str) -> str:
    name = name.encode("utf-8", "backslashreplace").decode()
    return (
        name if len(name) <= _MOST_NAME else name[: _MOST_NAME // 2] + name[-_MOST_NAME // 2 :]
    )  # with its extension


def _refused(kind: bytes, name: str, extended: dict[str, str]) -> str:
    if kind in _KINDS or any(key.startswith("GNU.sparse.") for key in extended):
        return f"{_KINDS.get(kind, 'a sparse file')}: only plain members are read"
    if kind not in _REGULAR:
        return "a member of unknown kind: only plain members are read"
    try:
        if len(name.encode("utf-8")) > _MOST_NAME:
            return f"its name has more than {_MOST_NAME} bytes"
    except UnicodeEncodeError:
        return "the file name is not UTF-8"
    if name.startswith("/"):
        return "an absolute path in a tar"
    if ".." in name.split("/"):
        return "a path with .. in a tar"
    return ""


def _extended(data: bytes) -> dict[str, str]:
    """Records `LENGTH KEY=VALUE\\n` of a PAX header. Raises ValueError for anything else."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:12].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not space or not len(digits) + 1 < length <= len(data) or data[length - 1 : length] != b"\n":
            raise ValueError("an extended header of it is damaged")
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals:
            raise ValueError("an extended header of it is damaged")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return found


class _Window:
    """Reads of a shard that follow one another, `least` bytes at once."""

    def __init__(self, file: Stored, least: int) -> None:
        self._file, self._least, self._start, self._data = file, least, 0, b""

    def read(self, start: int, length: int) -> bytes:
        if not self._start <= start <= start + length <= self._start + len(self._data):
            self._start, self._data = (
                start,
                self._file.read(start, min(max(length, self._least), max(0, self._file.length - start))),
            )
        return self._data[start - self._start : start - self._start + length]
