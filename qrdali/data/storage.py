"""Reads the files that an index names, on a disk, in an object store or inside a tar shard.

Whole or in parts.

A name is an absolute path, `s3://BUCKET/KEY` or `gs://BUCKET/KEY` (the key as it is, nothing escaped), or a
member of a tar: `tar+file:///SHARD?offset=512&length=8211#MEMBER`, also `tar+s3://` and `tar+gs://` (shard
and member percent-encoded).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

from qrdali.data.object_store import filesystem, translate_errors
from qrdali.errors import printable

REMOTE = ("s3://", "gs://")
_TAR = "tar+"
_HEAD_BYTES = 1 << 16  # read at once where only a header is wanted
_PART_BYTES = 1 << 20  # of an object, read at once where its length is not known
_MAX_OPEN_SHARDS = 512  # of object stores: they stay open


@dataclass(frozen=True)
class Stored:
    """An open file, or a part of one.

    read(start, length) returns bytes, from any thread, fewer only at the end. length: of the file, in bytes.
    """

    read: Callable[[int, int], bytes]
    length: int

    def whole(self) -> bytes:
        """Returns all bytes. Raises ValueError if there are fewer than there should be."""
        data = self.read(0, self.length)
        if len(data) != self.length:
            raise ValueError(f"{len(data)} of {self.length} bytes are there")
        return data

    def buffered(self) -> io.BufferedReader:
        """Returns a file object that reads in blocks, for headers."""
        return io.BufferedReader(_Raw(self), _HEAD_BYTES)


class _Raw(io.RawIOBase):
    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stored.length}[whence]
        if start + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        remaining = max(0, self._stored.length - self._position)
        data = self._stored.read(self._position, min(len(buffer), remaining))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass(frozen=True)
class Member:
    """A file in a tar shard: where its content lies, in bytes, and its name there."""

    shard: str
    offset: int
    length: int
    name: str

    @property
    def url(self) -> str:
        return f"{shard_prefix(self.shard)}?offset={self.offset}&length={self.length}#{quote(self.name)}"


def shard_prefix(shard: str) -> str:
    """Returns how the URLs of a shard's members begin.

    Of a folder: how those of the shards in it do, less a slash.
    """
    scheme, rest = ("file://", shard) if not is_remote(shard) else (shard[:5], shard[5:])
    return f"{_TAR}{scheme}{quote(rest)}"


def member(url: str) -> Member:
    """Returns the member that a URL names. Raises ValueError for anything but a member's URL."""
    address, _, name = url.partition("#")
    rest, _, query = address.removeprefix(_TAR).partition("?")
    fields = query.split("&")
    numbers = [field.partition("=")[2] for field in fields]
    scheme = next((known for known in ("file://", *REMOTE) if rest.startswith(known)), None)
    if (
        scheme is None
        or [f.partition("=")[0] for f in fields] != ["offset", "length"]
        or not all(n.isascii() and n.isdecimal() and len(n) < 19 for n in numbers)
    ):
        raise ValueError(f"{printable(url)[:200]} does not name a member of a tar")
    path = unquote(rest[len(scheme) :], errors="strict")
    shard = path if scheme == "file://" else scheme + path
    return Member(shard, int(numbers[0]), int(numbers[1]), unquote(name))


def is_member(name: str) -> bool:
    """Returns whether a name is a shard member's."""
    return name.startswith(_TAR)


def is_remote(name: str) -> bool:
    """Returns whether a file or folder is in an object store."""
    return name.startswith(REMOTE)


def absolute(name: str) -> str:
    """Returns a path or URL that means the same in any working directory."""
    return name if is_remote(name) else str(Path(name).absolute())


def is_url(name: str) -> bool:
    """Returns whether a name is an object's or a shard member's, which decoders cannot open themselves."""
    return name.startswith((*REMOTE, _TAR))


def shown(name: str) -> str:
    """Returns a file's own name, without its folders."""
    return unquote(name.partition("#")[2]) if name.startswith(_TAR) else name.rpartition("/")[2]


def opened(name: str) -> Stored:
    """Opens the file of a name.

    Raises FileNotFoundError for a file that is not there, ValueError or another OSError for one that cannot
    be read, Unreachable where the store cannot.
    """
    if name.startswith(_TAR):
        in_shard = member(name)
        offset, size = in_shard.offset, in_shard.length
        file = shard(in_shard.shard)
        if offset + size > file.length:
            raise ValueError(f"its shard has {file.length} bytes and it ends at {offset + size}")
        return Stored(
            lambda start, length: file.read(offset + start, max(0, min(length, size - start))), size
        )
    return remote(name) if is_remote(name) else local(name)


def whole(name: str, max_bytes: int) -> bytes:
    """Returns the bytes of an object or a shard's member.

    That takes one request to Google's store, two to others, one for a shard's member. Raises as `opened`
    does, and ValueError for more than `max_bytes`.
    """
    if name.startswith("gs://"):
        return _streamed(name, max_bytes)
    file = opened(name)
    if file.length > max_bytes:
        raise ValueError(f"{file.length} bytes exceed {max_bytes}")
    return file.whole()


def exists(name: str) -> bool:
    """Returns whether a file, or a member's shard, is there. Raises Unreachable."""
    if not is_url(name):
        return os.path.exists(name)
    try:
        opened(name)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        pass
    return True


def local(path: str) -> Stored:
    """Opens a file on the disk, anew at each read: thousands of shards would be too many to keep open."""
    facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError("not a regular file")

    def read(start: int, length: int) -> bytes:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            parts = []
            while length and (part := os.pread(file, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return b"".join(parts)
        finally:
            os.close(file)

    return Stored(read, facts.st_size)


def remote(url: str) -> Stored:
    """Opens an object: a request for its size now, then one for each read.

    In Google's store all reads that go forward are one request.
    """
    if not url.startswith("gs://"):
        return _random_access(url)
    store = filesystem(url)
    with translate_errors(url):
        info = store.get_file_info(url[5:])
    if info.type.name != "File":
        raise FileNotFoundError(f"no such object: {printable(url)}")
    return Stored(_Forward(url, store).read, info.size)


def shard(name: str) -> Stored:
    """Opens a tar by path or URL for random access. One in a store stays open."""
    return _remote_shard(name) if is_remote(name) else local(name)


@lru_cache(_MAX_OPEN_SHARDS)
def _remote_shard(url: str) -> Stored:
    return _random_access(url)


def _random_access(url: str) -> Stored:
    """Opens an object whose reads are a request each.

    Not for many objects of Google's store: there each request is for all that follows, of which no more is
    taken than is wanted, and opening is two requests, the second of which pyarrow makes with Python's lock
    held.
    """
    store = filesystem(url)
    with translate_errors(url):
        file = store.open_input_file(url[5:])
        size: int = file.size()

    def read(start: int, length: int) -> bytes:
        with translate_errors(url):
            data: bytes = file.read_at(length, start) if length and start < size else b""
            return data

    return Stored(read, size)


def _streamed(url: str, max_bytes: int) -> bytes:
    store, parts, remaining = filesystem(url), [], max_bytes + 1
    with translate_errors(url), store.open_input_stream(url[5:], compression=None) as stream:
        while remaining and (part := stream.read(min(remaining, _PART_BYTES))):
            parts.append(part)
            remaining -= len(part)
    if not remaining:
        raise ValueError(f"more than {max_bytes} bytes")
    return b"".join(parts)


class _Forward:
    """Reads an object in one stream as long as the reads go forward; one from further back begins another."""

    def __init__(self, url: str, store: Any) -> None:
        self._url = url
        self._store = store
        self._stream: Any = None
        self._position = 0
        self._lock = Lock()

    def read(self, start: int, length: int) -> bytes:
        with self._lock, translate_errors(self._url):
            if self._stream is None or start < self._position:
                self._stream = self._store.open_input_stream(self._url[5:], compression=None)
                self._position = 0
            while self._position < start and self._read_next(min(start - self._position, _PART_BYTES)):
                pass
            return self._read_next(length)

    def _read_next(self, length: int) -> bytes:
        data: bytes = self._stream.read(length) if length and self._stream is not None else b""
        self._position += len(data)
        return data
