"""Reads the headers of a tar: its members, where they lie, and which of them cannot be read in place.

tarfile's own reader takes an archive without an end mark for whole, stops at the first end mark, and holds
extended headers of any size in memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from qrdali.data import storage
from qrdali.data.storage import Member, Stored
from qrdali.errors import printable

_BLOCK = tarfile.BLOCKSIZE
_MAX_NAME_BYTES = 4096  # of a member
_MAX_VALUE_BYTES = 1 << 20  # of a record in an extended header that is read, and of GNU's long names
_MAX_RECORDS = 100_000  # of an extended header
_RECORD_HEAD_BYTES = 2048  # hold the length of a record and its key
_MAX_MEMBERS = 2_000_000  # of one shard
_LOCAL_WINDOW = 1 << 12  # bytes of a shard on the disk that are read at once
_REMOTE_WINDOW = 1 << 20  # the same in an object store, where each request takes long
_ZEROS = bytes(1 << 20)  # the end of a tar is read in parts of so many bytes
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDING = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_SPARSE = "GNU.sparse"  # stands for any record of these, whose content begins with a list of holes
# Whatever the size in their header says, no content follows these.
_WITHOUT_CONTENT = {*_KINDS, tarfile.DIRTYPE} - {tarfile.GNUTYPE_SPARSE}
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ\0": "unxz",
    b"BZh": "bunzip2",
    b"\x04\x22\x4d\x18": "unlz4",
    b"PK\x03\x04": "unzip",
}


def members(shard: str, file: Stored) -> Iterator[tuple[Member, str]]:
    """Yields the files of a tar, each with why it is refused or ""; folders are passed over.

    Reads on where another tar follows the end mark, as `tar --ignore-zeros` does. Raises ValueError or
    tarfile's errors unless the tar is whole: headers right, contents there, an end mark and nothing after it.
    """
    window = _Window(file, _REMOTE_WINDOW if storage.is_remote(shard) else _LOCAL_WINDOW)
    position, count = 0, 0
    is_ended = False
    extended: dict[str, str] = {}  # what an extending header says of the next member
    while True:
        block = window.read(position, _BLOCK)
        if block == bytes(len(block)):
            is_ended = len(block) == _BLOCK or is_ended
            position = _after_zeros(window, position, file.length)
            if position < file.length:
                continue
            if not is_ended:
                raise ValueError(f"it is cut: it ends at byte {file.length} without an end mark")
            return
        info = _header(block, position, is_ended)
        is_ended = False
        start = _content_start(window, position, info, block)
        size = _content_size(info, extended, position)
        has_content = info.type not in _WITHOUT_CONTENT
        position = start + (-(-size // _BLOCK) * _BLOCK if has_content else 0)
        if has_content and start + size > file.length:
            raise ValueError(
                f"it is cut: {printable(info.name)[:100]} ends at byte {start + size} of {file.length}"
            )
        count += 1
        if count > _MAX_MEMBERS:
            raise ValueError(f"it has more than {_MAX_MEMBERS:,} members")
        if info.type in _EXTENDING:
            if info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(_value(window, start, size).split(b"\0", 1)[0])
            elif info.type in _PAX:
                extended.update(_records(window, start, size))
            continue
        name = extended.get("path", info.name)
        if info.type != tarfile.DIRTYPE:
            yield Member(shard, start, size, _encodable(name)), _refusal(info.type, name, extended)
        extended = {}


def _header(block: bytes, position: int, is_ended: bool) -> tarfile.TarInfo:
    """Returns what a header says. Raises ValueError or tarfile's errors for anything else."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        if is_ended:
            raise ValueError(
                f"after its end mark, at byte {position}, comes something that is no tar: cut that off, for "
                f"example by `truncate -s {position}`"
            ) from None
        program = next((program for magic, program in _COMPRESSED.items() if block.startswith(magic)), None)
        if program and not position:
            raise ValueError(f"it is compressed: unpack it to a plain .tar with {program}") from None
        if len(block) < _BLOCK:
            raise ValueError(
                f"it is cut: it ends at byte {position + len(block)} without an end mark"
            ) from None
        raise


def _after_zeros(window: _Window, position: int, end: int) -> int:
    """Returns where the block of the first byte that is not zero begins, or `end`."""
    while position < end:
        part = window.read(position, min(len(_ZEROS), end - position))
        if part != _ZEROS[: len(part)]:
            zeros = len(part) - len(part.lstrip(b"\0"))
            return position + zeros // _BLOCK * _BLOCK
        position += len(part)
    return end


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
    if kind in _KINDS or _SPARSE in extended:
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


def _records(window: _Window, position: int, size: int) -> dict[str, str]:
    """Returns those records `LENGTH KEY=VALUE\\n` of a PAX header that say where the next member lies.

    Others, such as attributes of a file system, are passed over whatever their size. Raises ValueError for a
    damaged header.
    """
    records: dict[str, str] = {}
    end = position + size
    for _ in range(_MAX_RECORDS):
        head = window.read(position, min(_RECORD_HEAD_BYTES, end - position))
        if not head.strip(b"\0"):
            return records  # nothing is left, or it is padded
        digits, space, rest = head.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 12 else 0
        key, equals, _ = rest[: max(0, length - len(digits) - 1)].partition(b"=")
        value_start = position + len(digits) + 1 + len(key) + 1
        position += length
        if (
            not space
            or not equals
            or not value_start < position <= end
            or window.read(position - 1, 1) != b"\n"
        ):
            raise ValueError("an extended header of it is damaged")
        if key in (b"path", b"size"):
            value = _value(window, value_start, position - 1 - value_start)
            records[key.decode()] = _text(value)
        elif key.startswith(b"GNU.sparse."):
            records[_SPARSE] = ""
    raise ValueError(f"an extended header of it has more than {_MAX_RECORDS:,} records")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _value(window: _Window, start: int, length: int) -> bytes:
    if length > _MAX_VALUE_BYTES:
        raise ValueError(f"the name at byte {start} has {length:,} bytes")
    return window.read(start, length)


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
