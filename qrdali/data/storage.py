"""The files that an index names: on a disk, in an object store, or inside a tar shard. Read by whole or by parts, by name alone.

A name is an absolute path, `s3://BUCKET/KEY` or `gs://BUCKET/KEY` (the key as it is, nothing escaped), or a member of a tar:
`tar+file:///SHARD?offset=512&length=8211#MEMBER`, also `tar+s3://` and `tar+gs://` (shard and member percent-encoded).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

from qrdali.errors import InputError, RunError, printable

REMOTE = ("s3://", "gs://")
_TAR = "tar+"
_SECONDS = 20  # without an answer of a server
_HEAD = 1 << 16  # bytes read at once where only a header is wanted
_PART = 1 << 20  # bytes of an object that are read at once where its length is not known
_OPEN = 512  # shards of an object store that stay open
_DENIED = (
    "ACCESS_DENIED",
    "FORBIDDEN",
    "HTTP response code: 403",
    "HTTP response code 403",
    "SIGNATURE",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION",
    "EXPIRED_TOKEN",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "InvalidAccessKeyId",
    "ExpiredToken",
    "Could not load the default credentials",
    "Permission denied",
)
_filesystem_lock = Lock()


class Unreachable(RunError):
    """A store that does not answer as one: no network, no bucket, no right to read. It is not the fault of the one file asked for."""


@dataclass(frozen=True)
class Stored:
    """An open file, or a part of one. read(start, length) gives bytes from any thread, fewer only at the end. length: in bytes."""

    read: Callable[[int, int], bytes]
    length: int

    def whole(self) -> bytes:
        """Raises ValueError if there is less than there should be."""
        data = self.read(0, self.length)
        if len(data) != self.length:
            raise ValueError(f"{len(data)} of {self.length} bytes are there")
        return data

    def buffered(self) -> io.BufferedReader:
        """As a file that is read in blocks, for headers."""
        return io.BufferedReader(_Raw(self), _HEAD)


class _Raw(io.RawIOBase):
    def __init__(self, stored: Stored) -> None:
        self._stored, self._place = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._stored.length}[whence]
        if start + offset < 0:
            raise ValueError("a place before the beginning")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = self._stored.read(self._place, max(0, min(len(buffer), self._stored.length - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


@dataclass(frozen=True)
class Member:
    """Of a tar shard: where it lies in the shard, in bytes, and its name there."""

    shard: str
    offset: int
    length: int
    name: str

    @property
    def url(self) -> str:
        return f"{shard_prefix(self.shard)}?offset={self.offset}&length={self.length}#{quote(self.name)}"


def shard_prefix(shard: str) -> str:
    """How the URLs of a shard's members begin; of a folder: those of the shards in it, less a slash."""
    scheme, rest = ("file://", shard) if not is_remote(shard) else (shard[:5], shard[5:])
    return f"{_TAR}{scheme}{quote(rest)}"


def member(url: str) -> Member:
    """What a member's URL says. Raises ValueError for one that says nothing of the kind."""
    address, _, name = url.partition("#")
    rest, _, query = address.removeprefix(_TAR).partition("?")
    fields = query.split("&")
    numbers = [field.partition("=")[2] for field in fields]
    scheme = next((s for s in ("file://", *REMOTE) if rest.startswith(s)), None)
    if (
        scheme is None
        or [f.partition("=")[0] for f in fields] != ["offset", "length"]
        or not all(n.isascii() and n.isdecimal() and len(n) < 19 for n in numbers)
    ):
        raise ValueError(f"{printable(url)[:200]} names no member of a tar")
    place = unquote(rest[len(scheme) :], errors="strict")
    return Member(
        place if scheme == "file://" else scheme + place, int(numbers[0]), int(numbers[1]), unquote(name)
    )


def is_remote(name: str) -> bool:
    """Whether a file or folder is in an object store."""
    return name.startswith(REMOTE)


def absolute(name: str) -> str:
    """A path or URL that means the same in any working directory."""
    return name if is_remote(name) else str(Path(name).absolute())


def is_url(name: str) -> bool:
    """Whether a name is not that of a file on the disk, which decoders read by themselves."""
    return name.startswith((*REMOTE, _TAR))


def shown(name: str) -> str:
    """A file's own name, without its folders: what tells it from its neighbours."""
    return unquote(name.partition("#")[2]) if name.startswith(_TAR) else name.rpartition("/")[2]


def opened(name: str) -> Stored:
    """Raises FileNotFoundError for a file that is not there, ValueError or another OSError for one that cannot be read, Unreachable
    where the store cannot."""
    if name.startswith(_TAR):
        own = member(name)
        file = shard(own.shard)
        if own.offset + own.length > file.length:
            raise ValueError(f"its shard has {file.length} bytes and it ends at {own.offset + own.length}")
        return Stored(
            lambda start, length: file.read(own.offset + start, max(0, min(length, own.length - start))),
            own.length,
        )
    return remote(name) if is_remote(name) else local(name)


def whole(name: str, most: int) -> bytes:
    """The bytes of a file that is not on the disk by itself: one request to Google's store, two to others, one for a shard's member.

    Raises as `opened` does, and ValueError for more than `most` bytes.
    """
    if name.startswith("gs://"):
        return _streamed(name, most)
    file = opened(name)
    if file.length > most:
        raise ValueError(f"{file.length} bytes exceed {most}")
    return file.whole()


def exists(name: str) -> bool:
    """Whether a file, or a member's shard, is there. Raises Unreachable."""
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
    """A file on the disk, which is opened anew at each read: thousands of shards would be too many to keep."""
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
    """An object. One request for its size now, then one for each read; in Google's store one for all reads that go forward."""
    if not url.startswith("gs://"):
        return _anywhere(url)
    store = filesystem(url)
    with reasons(url):
        info = store.get_file_info(url[5:])
    if info.type.name != "File":
        raise FileNotFoundError(f"no such object: {printable(url)}")
    return Stored(_Forward(url, store).read, info.size)


def shard(place: str) -> Stored:
    """A tar by path or URL, to be read from many places. One in a store stays open."""
    return _shard(place) if is_remote(place) else local(place)


@lru_cache(_OPEN)
def _shard(url: str) -> Stored:
    return _anywhere(url)


def _anywhere(url: str) -> Stored:
    """An object whose reads are a request each. In Google's store each is for all that follows, of which no more is taken than is wanted,
    and opening is two requests, the second of which pyarrow makes with Python's lock held: not for many objects."""
    store = filesystem(url)
    with reasons(url):
        file = store.open_input_file(url[5:])
        size: int = file.size()

    def read(start: int, length: int) -> bytes:
        with reasons(url):
            data: bytes = file.read_at(length, start) if length and start < size else b""
            return data

    return Stored(read, size)


def _streamed(url: str, most: int) -> bytes:
    store, parts, left = filesystem(url), [], most + 1
    with reasons(url), store.open_input_stream(url[5:], compression=None) as stream:
        while left and (part := stream.read(min(left, _PART))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise ValueError(f"more than {most} bytes")
    return b"".join(parts)


class _Forward:
    """Reads of an object that follow one another come out of one stream; one from further back begins another."""

    def __init__(self, url: str, store: Any) -> None:
        self._url, self._store, self._stream, self._place, self._turn = url, store, None, 0, Lock()

    def read(self, start: int, length: int) -> bytes:
        with self._turn, reasons(self._url):
            if self._stream is None or start < self._place:
                self._stream, self._place = self._store.open_input_stream(self._url[5:], compression=None), 0
            while self._place < start and self._taken(min(start - self._place, _PART)):
                pass
            return self._taken(length)

    def _taken(self, length: int) -> bytes:
        data: bytes = self._stream.read(length) if length and self._stream is not None else b""
        self._place += len(data)
        return data


@contextmanager
def reasons(url: str) -> Iterator[None]:
    """A store's errors become what `reason` says of them."""
    import pyarrow as pa

    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise reason(url, error) from None


def filesystem(url: str) -> Any:
    """The store of a URL: its address, region and credentials are those of the environment. Raises Unreachable."""
    with _filesystem_lock:  # threads ask at once, and each would make its own
        scheme, bucket = url[:5], url[5:].partition("/")[0]
        with reasons(url):
            return _s3(bucket) if scheme == "s3://" else _gcs()


@lru_cache(16)
def _s3(bucket: str) -> Any:
    from pyarrow import fs

    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not (
        region
        or address
        or os.environ.get("AWS_CONFIG_FILE")
        or os.path.exists(os.path.expanduser("~/.aws/config"))
    ):
        region = fs.resolve_s3_region(bucket)
    unsigned = os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true")
    return fs.S3FileSystem(
        endpoint_override=address,
        region=region,
        anonymous=unsigned,
        connect_timeout=_SECONDS,
        request_timeout=_SECONDS,
    )


@lru_cache(1)
def _gcs() -> Any:
    from pyarrow import fs

    address = os.environ.get("STORAGE_EMULATOR_HOST") or os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
    limit = timedelta(seconds=_SECONDS)
    if not address:
        return fs.GcsFileSystem(retry_time_limit=limit)
    scheme, _, host = address.rstrip("/").rpartition("://")
    return fs.GcsFileSystem(
        anonymous=True, scheme=scheme or "http", endpoint_override=host, retry_time_limit=limit
    )


def reason(url: str, error: Exception) -> Exception:
    """What a store's error means: the object is not there (FileNotFoundError), or Unreachable, saying what to do."""
    text = " ".join(str(error).split())
    bucket = printable("/".join(url.split("/")[:3]))
    scheme = url[:5]
    if "a last message of The specified bucket does not exist" in text:
        return no_bucket(url)
    if isinstance(error, FileNotFoundError) or "NO_SUCH_KEY" in text:
        return FileNotFoundError(f"no such object: {printable(url)}")
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text or ("Bucket" in text and "not found" in text):
        return no_bucket(url)
    if any(sign in text for sign in _DENIED):
        how = (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (AWS_NO_SIGN_REQUEST=1 for a public bucket)"
            if scheme == "s3://"
            else "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        )
        return Unreachable(f"{bucket} may not be read with the credentials found here: set {how}")
    if "OAuth2 access token" in text:
        return Unreachable(
            f"{bucket} cannot be read: there are no credentials here, or no network to use them: set "
            "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`"
        )
    if (
        isinstance(error, ValueError) and "google::cloud::Status" not in text
    ):  # that is of a server which answers anything
        return InputError(f"{printable(url)} is no address of an object: {printable(text)[:200]}")
    where = "AWS_ENDPOINT_URL and AWS_REGION" if scheme == "s3://" else "STORAGE_EMULATOR_HOST"
    return Unreachable(f"{bucket} cannot be read: check the network, {where} ({printable(text)[:200]})")


def no_bucket(url: str) -> Unreachable:
    own = ", and AWS_ENDPOINT_URL if it is not Amazon's" if url.startswith("s3://") else ""
    return Unreachable(f"there is no bucket {printable('/'.join(url.split('/')[:3]))}: check its name{own}")
