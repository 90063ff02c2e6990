"""Reads WebDataset's tar shards: which samples are in them, and where. Nothing is extracted.

Only headers and classes are read. A sample is a run of members with the same name up to the first dot of its
last part: KEY.jpg (or another image) and KEY.cls.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from qrdali.data import storage
from qrdali.data.file_names import DESCRIPTIONS, EXTENSIONS, is_hidden
from qrdali.data.shard_classes import read_class
from qrdali.data.storage import Member, Stored
from qrdali.data.tar_headers import members
from qrdali.errors import InputError, RunError, printable

_CLASS = ".cls"
# Headers that a program took for files when it unpacked a tar, which was then packed again.
_HEADERS = re.compile(r"PaxHeaders?(\.[0-9.]+)?|@LongLink|@PaxHeader|pax_global_header", re.ASCII)


@dataclass(frozen=True)
class Sample:
    """An image in a shard: its URL and its class as KEY.cls has it; or why it is rejected."""

    url: str
    class_text: str = ""
    reason: str = ""


@dataclass
class _Run:
    """Collects the members of one key, as long as they follow one another.

    image: KEY.jpg or another. label: KEY.cls, and class_text what it holds. dotted: images whose name has
    more dots. others: endings that are not read, with the first such member. reason: why the image is
    rejected. is_told: whether a member was rejected already that could have been the image.
    """

    key: str
    image: Member | None = None
    label: Member | None = None
    class_text: str = ""
    dotted: list[Member] = field(default_factory=list)
    others: dict[str, Member] = field(default_factory=dict)
    reason: str = ""
    is_told: bool = False

    def samples(self, seen: set[int]) -> Iterator[Sample]:
        """Yields the sample, or what is there instead. `seen`: hashes of the shard's earlier keys."""
        name = printable(self.key.rpartition("/")[2])[:100]
        if self.image is not None:
            reason = self.reason
            if not reason and hash(self.key) in seen:
                reason = "its key has come before in this shard"
            if not reason and self.label is None:
                reason = f"no {name}.cls beside it"
            seen.add(hash(self.key))
            yield Sample(self.image.url, self.class_text, reason)
        elif self.dotted:
            for member in self.dotted:
                end = printable(_split(member.name)[1])[:100]
                yield Sample(
                    member.url,
                    reason=f"its key is {name!r}, up to the first dot, and {end!r} is no image's ending: "
                    "rename it to KEY.jpg, without other dots",
                )
        elif self.others:
            ends = ", ".join(printable(end)[:40] for end in list(self.others)[:3])
            yield Sample(
                next(iter(self.others.values())).url, reason=f"its key has no image that is read, but {ends}"
            )
        elif self.label is not None and not self.is_told and hash(self.key) not in seen:
            yield Sample(self.label.url, reason="its key has no image beside it")


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

    A key that comes again is rejected. What cannot belong to a sample, such as macOS' `._x.jpg` between
    `x.jpg` and `x.cls`, is passed over and ends no run.
    """
    # Hashes, since the keys of a large shard are many: on a collision an image is rejected.
    seen: set[int] = set()
    run, refused_key = _Run(""), ""
    for member, refusal in members(shard, file):
        key, extension = _split(member.name)
        is_read = extension in EXTENSIONS or extension == _CLASS
        if not extension or _is_hidden(member.name):
            continue
        if refusal:
            if is_read:
                yield Sample(member.url, reason=refusal)
                refused_key = key
                run.is_told = run.is_told or key == run.key
            continue
        if key != run.key:
            yield from run.samples(seen)
            run = _Run(key, is_told=key == refused_key)
        if extension == _CLASS:
            if run.label is not None:
                run.reason = f"two {_base_name(key)}.cls beside it"
            else:
                run.label = member
                run.class_text, problem = read_class(file, member)
                run.reason = run.reason or problem
        elif is_read:
            if run.image is not None:
                yield Sample(member.url, reason="its key has an image already")
            else:
                run.image = member
        elif (last := "." + extension.rpartition(".")[2]) in EXTENSIONS:
            run.dotted.append(member)
        elif last not in DESCRIPTIONS:
            run.others.setdefault(extension, member)
    yield from run.samples(seen)


def _is_hidden(name: str) -> bool:
    *folders, base = name.split("/")
    return base.startswith(".") or any(is_hidden(folder) or _HEADERS.fullmatch(folder) for folder in folders)


def _split(name: str) -> tuple[str, str]:
    """Returns key and extension, which begins at the first dot of the last part, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return folder + slash + key, (dot + extension).lower()


def _base_name(name: str) -> str:
    return name.rpartition("/")[2]
