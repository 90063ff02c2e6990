"""Reads WebDataset's tar shards: which samples are in them, and where. Nothing is extracted.

Only headers and classes are read. A sample is a run of members with the same name up to the first dot of its
last part: KEY.jpg (or another image) and KEY.cls.
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
from qrdali.files.text_lines import decode_text, quote, split_lines

CLASSES = "classes.txt"  # in the root: line i, from 0, is the name of class i
_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 4096  # of a member
_MAX_EXTENDED_BYTES = 1 << 16  # of a header that extends the next one
_MAX_CLS_BYTES = 1024  # of a KEY.cls
_MAX_LISTING_BYTES = 16 << 20  # of classes.txt
_MAX_MEMBERS = 2_000_000  # of one shard
_LOCAL_WINDOW = 1 << 12  # bytes of a shard on the disk that are read at once
_REMOTE_WINDOW = 1 << 20  # the same in an object store, where each request takes long
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
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
    class_text: str = ""
    reason: str = ""


class Classes:
    """Class names in label order.

    `listed` if they are of a classes.txt, so that a number in a KEY.cls is a label.
    """

    def __init__(self, names: Iterable[str], listed: bool) -> None:
        self.names = tuple(names)
        self._listed = listed
        self._labels = {name: label for label, name in enumerate(self.names)}
        self._are_numbers = all(map(_is_number, self.names))

    def label(self, class_text: str) -> int | None:
        """Returns the label of the content of a KEY.cls, None if it is none of these classes."""
        if self._listed and _is_number(class_text):
            return int(class_text) if int(class_text) < len(self.names) else None
        if self._are_numbers and _is_number(class_text):
            return self._labels.get(str(int(class_text)))  # "007" is class 7
        return self._labels.get(class_text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def found_classes(class_texts: set[str]) -> Classes:
    """Returns the classes of shards without a listing: by number if all are numbers, else by name."""
    if all(map(_is_number, class_texts)):
        return Classes(map(str, sorted(set(map(int, class_texts)))), False)
    return Classes(sorted(class_texts), False)


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
        if not name or "\t" in name:
            raise InputError(
                f"{printable(listing)} line {number} is {quote(name)}: give the name of a class on each line"
            )
    if len(set(names)) < len(names):
        raise InputError(f"{printable(listing)} names a class twice")
    return Classes(names, True)


def samples(shards: list[str], threads: int) -> Iterator[Sample]:
    """Yields the samples of all shards in turn, `threads` of them read at once.

    Raises RunError for a damaged one.
    """
    names = iter(shards)
    pending = list[Future[list[Sample]]]()
    with ThreadPoolExecutor(threads, "shards") as pool:
        try:
            pending += [pool.submit(_read, name) for name in islice(names, threads)]
            while pending:
                yield from pending.pop(0).result()
                pending += [pool.submit(_read, name) for name in islice(names, 1)]
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
            f"{printable(shard)} is not a whole tar: {printable(error)[:300]}; restore it, or move it out of "
            "the folder"
        ) from None


def _samples(shard: str, file: Stored) -> Iterator[Sample]:
    """Yields a sample for each run of members with one key that holds an image.

    A key that comes again is rejected.
    """
    seen: set[int] = (
        set()
    )  # hashes, since the keys of a large shard are many; its images are rejected on a collision
    key = reason = ""
    image: Member | None = None
    class_text: str | None = None
    end: tuple[Member | None, str] = (None, "")
    for member, refusal in chain(_members(shard, file), [end]):
        member_key, extension = ("", "") if member is None else _split(member.name)
        if member_key != key or member is None:
            if image is not None:
                if not reason and hash(key) in seen:
                    reason = "its key has come before in this shard"
                if not reason and class_text is None:
                    reason = f"no {_base_name(key)}.cls beside it"
                seen.add(hash(key))
                yield Sample(image.url, class_text or "", reason)
            key, image, class_text, reason = member_key, None, None, ""
        if member is None:
            return
        if refusal:
            if extension in EXTENSIONS or extension == ".cls":
                yield Sample(member.url, reason=refusal)
        elif extension == ".cls":
            if class_text is not None:
                reason = f"two {_base_name(key)}.cls beside it"
            else:
                class_text, problem = _read_class(file, member)
                reason = reason or problem
        elif extension in EXTENSIONS:
            if image is not None:
                yield Sample(member.url, reason="its key has an image already")
            else:
                image = member


def _read_class(file: Stored, member: Member) -> tuple[str, str]:
    """Returns the class in a KEY.cls, and why it cannot be one, or ""."""
    name = printable(_base_name(member.name))[:100]
    if member.length > _MAX_CLS_BYTES:
        return "", f"{name} beside it has {member.length} bytes: that is not a class"
    try:
        text = file.read(member.offset, member.length).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return "", f"{name} beside it is not UTF-8"
    if not text or any(c in text for c in "\t\r\n\0"):
        return "", f"{name} beside it is {quote(text)}: give the number or the name of a class"
    return text, ""


def _split(name: str) -> tuple[str, str]:
    """Returns key and extension, which begins at the first dot of the last part, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return folder + slash + key, (dot + extension).lower()


def _base_name(name: str) -> str:
    return name.rpartition("/")[2]


def _members(shard: str, file: Stored) -> Iterator[tuple[Member, str]]:
    """Yields the files of a tar, each with why it is refused or ""; folders are passed over.

    tarfile's own reader takes an archive without an end mark for whole, and reads extended headers of any
    size. Raises ValueError or tarfile's errors unless the tar is whole: headers right, contents there, an end
    mark.
    """
    window = _Window(file, _REMOTE_WINDOW if storage.is_remote(shard) else _LOCAL_WINDOW)
    position, count = 0, 0
    extended: dict[str, str] = {}  # what an extending header says of the next member
    while True:
        block = window.read(position, _BLOCK)
        if len(block) < _BLOCK:
            raise ValueError(f"it is cut: it ends at byte {file.length} without an end mark")
        if block == bytes(_BLOCK):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        start = _content_start(window, position, info, block)
        size = _content_size(info, extended, position)
        has_content = info.type not in _KINDS or info.type == tarfile.GNUTYPE_SPARSE
        position = start + (-(-size // _BLOCK) * _BLOCK if has_content else 0)
        if has_content and start + size > file.length:
            raise ValueError(
                f"it is cut: {printable(info.name)[:100]} ends at byte {start + size} of {file.length}"
            )
        count += 1
        if count > _MAX_MEMBERS:
            raise ValueError(f"it has more than {_MAX_MEMBERS:,} members")
        if info.type in _EXTENDING:
            if size > _MAX_EXTENDED_BYTES:
                raise ValueError(
                    f"the extended header at byte {start - _BLOCK} has {size} bytes, more than "
                    f"{_MAX_EXTENDED_BYTES}"
                )
            data = window.read(start, size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended.update(_extended(data))
            continue
        name = extended.get("path", info.name)
        if info.type != tarfile.DIRTYPE:
            yield Member(shard, start, size, _encodable(name)), _refusal(info.type, name, extended)
        extended = {}


def _content_start(window: _Window, position: int, info: tarfile.TarInfo, block: bytes) -> int:
    """Returns where a member's content begins: after its header and, if it is sparse, its list of holes."""
    start = position + _BLOCK
    has_more = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while has_more:
        has_more = (window.read(start, _BLOCK) or b"\0").ljust(_BLOCK, b"\0")[504]
        start += _BLOCK
    return start


def _content_size(info: tarfile.TarInfo, extended: dict[str, str], position: int) -> int:
    size = info.size
    if info.type in _REGULAR and "size" in extended:
        text = extended["size"]
        size = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1
    if size < 0:
        raise ValueError(f"the header at byte {position} names no size")
    return size


def _encodable(name: str) -> str:
    """Returns a name that a URL can hold: escaped where it is not UTF-8, and a long one cut in its middle."""
    name = name.encode("utf-8", "backslashreplace").decode()
    half = _MAX_NAME_BYTES // 2
    return name if len(name) <= _MAX_NAME_BYTES else name[:half] + name[-half:]  # its extension stays


def _refusal(kind: bytes, name: str, extended: dict[str, str]) -> str:
    """Returns why a member is not read, or ""."""
    if kind in _KINDS or any(key.startswith("GNU.sparse.") for key in extended):
        return f"{_KINDS.get(kind, 'a sparse file')}: only plain members are read"
    if kind not in _REGULAR:
        return "a member of unknown kind: only plain members are read"
    try:
        if len(name.encode("utf-8")) > _MAX_NAME_BYTES:
            return f"its name has more than {_MAX_NAME_BYTES} bytes"
    except UnicodeEncodeError:
        return "the file name is not UTF-8"
    if name.startswith("/"):
        return "an absolute path in a tar"
    if ".." in name.split("/"):
        return "a path with .. in a tar"
    return ""


def _extended(data: bytes) -> dict[str, str]:
    """Returns the records `LENGTH KEY=VALUE\\n` of a PAX header. Raises ValueError for anything else."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:12].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        if not space or not len(digits) + 1 < length <= len(data) or data[length - 1 : length] != b"\n":
            raise ValueError("an extended header of it is damaged")
        key, equals, value = data[len(digits) + 1 : length - 1].partition(b"=")
        if not equals:
            raise ValueError("an extended header of it is damaged")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


class _Window:
    """Reads parts of a shard that follow one another, at least `block` bytes at once."""

    def __init__(self, file: Stored, block: int) -> None:
        self._file = file
        self._block = block
        self._start = 0
        self._data = b""

    def read(self, start: int, length: int) -> bytes:
        """Returns `length` bytes from `start` on, fewer only at the end of the file."""
        if not self._start <= start <= start + length <= self._start + len(self._data):
            remaining = max(0, self._file.length - start)
            self._data = self._file.read(start, min(max(length, self._block), remaining))
            self._start = start
        return self._data[start - self._start : start - self._start + length]
