"""Makes a data set from folders of images: sizes from headers, every file decoded once, what fails listed with a reason."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from PIL import Image

from qrdali.data.index import SPLITS, Writer, write_classes
from qrdali.errors import InputError, RunError, printable

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"))
FORMATS = frozenset(("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP"))  # what the pipelines decode to Pillow's pixels
MAX_PIXELS = 128_000_000  # a decoded image of 384 MB; checked on the header before anything is decoded
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap width and height
_CHUNK = 1024


@dataclass
class Summary:
    """What `build` did: images indexed per split, files rejected, class names in label order."""

    images: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """A file's upright size, or why it is rejected."""

    path: str
    width: int = 0
    height: int = 0
    reason: str = ""


def examine(path: str, verify: bool) -> tuple[int, int]:
    """Upright (width, height) of an image file; `verify` also decodes it. Raises ValueError or OSError with the reason."""
    with Image.open(path) as image:
        if image.format not in FORMATS:
            raise ValueError(f"{image.format} is not decoded by the pipelines")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} exceeds {MAX_PIXELS} pixels")
        if image.format == "WEBP" and getattr(image, "is_animated", False):
            raise ValueError("animated")
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = image.size
        if verify:
            image.load()
    return (height, width) if turned else (width, height)


def build(root: Path, out: Path, *, verify: bool = True, threads: int | None = None,
          progress: Callable[[str, int], None] = lambda split, files: None) -> Summary:
    """Indexes ROOT/SPLIT/CLASS/FILE into the new folder `out`; `progress` hears of each finished chunk of files.

    Raises InputError for a root without splits or an `out` that exists, RunError for an unusable content: a class
    without images, a single class, or a class that only another split has. Nothing is left behind on an error.
    """
    if not root.is_dir():
        raise InputError(f"{printable(root)} is not a folder")
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if not splits:
        raise InputError(f"{printable(root)} has none of train/, val/, test/: put class folders in at least one of them")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{printable(out)} exists and is not empty: choose another --out or remove it")
    classes = _classes(root, splits)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    Image.MAX_IMAGE_PIXELS = None  # `examine` has its own limit
    try:
        summary = _write(root, splits, classes, partial, verify, threads, progress)
        write_classes(partial, classes)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def index_folder(root: Path, classes: tuple[str, ...], file: Path, verify: bool, threads: int | None = None,
                 progress: Callable[[int], None] = lambda files: None, whose: str = "the run") -> list[tuple[str, str]]:
    """Indexes ROOT/CLASS/* for any subset of `classes` into the Arrow `file`; returns (path, reason) of files left out.

    In the order of the classes, then of the names. Raises InputError for a folder that is no class or where nothing can be
    read.
    """
    if not root.is_dir():
        raise InputError(f"{printable(root)} is no folder: a set holds class folders of images")
    found = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise InputError(f"{printable(root)} has the folder {printable(unknown[0])!r}, which is no class of {whose} ({len(unknown)} such)")
    rejected, writer = [], Writer(file)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for label, name in enumerate(classes):
            if name not in found:  # a run's class names need not be a folder's
                continue
            files = _files((root / name).absolute())
            while chunk := list(islice(files, _CHUNK)):
                for image in pool.map(lambda path: _look(path, verify), chunk):
                    if image.reason:
                        rejected.append((image.path, image.reason))
                    else:
                        writer.add(image.path, label, image.width, image.height)
                progress(len(chunk))
    writer.close()
    if not writer.count:
        first = f"; {printable(rejected[0][0])}: {rejected[0][1]}" if rejected else ""
        raise InputError(f"{printable(root)} holds no readable image in a class folder{first}")
    return rejected


def _classes(root: Path, splits: list[str]) -> list[str]:
    listed = {split: sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir()) for split in splits}
    classes = listed[splits[0]]
    for name in classes:
        if "\t" in name or "\n" in name or "\r" in name or not _is_utf8(name):
            raise RunError(f"class folder {printable(name)!r} has a tab, a line break or bytes that are not UTF-8: rename it")
    for split in splits[1:]:
        unknown = sorted(set(listed[split]) - set(classes))
        if unknown:
            raise RunError(f"{split}/ has the class {printable(unknown[0])!r}, which {splits[0]}/ lacks "
                           f"({len(unknown)} such): every split uses the classes of {splits[0]}/")
    if len(classes) < 2:
        raise RunError(f"{printable(root / splits[0])} has {len(classes)} class folder(s): a classifier needs at least two")
    return classes


def _write(root: Path, splits: list[str], classes: list[str], folder: Path, verify: bool, threads: int | None,
           progress: Callable[[str, int], None]) -> Summary:
    summary = Summary(classes=classes)
    with (open(folder / "rejected.tsv", "w", encoding="utf-8", errors="backslashreplace") as rejected,
          ThreadPoolExecutor(threads or os.cpu_count()) as pool):
        rejected.write("path\treason\n")
        for split in splits:
            writer = Writer(folder / f"{split}.arrow")
            for label, name in enumerate(classes):
                before, first_reason = writer.count, ""
                files = _files((root / split / name).absolute())
                while chunk := list(islice(files, _CHUNK)):
                    for found in pool.map(lambda path: _look(path, verify), chunk):
                        if found.reason:
                            first_reason = first_reason or f"; {printable(found.path)}: {found.reason}"
                            rejected.write(f"{_field(found.path)}\t{_field(found.reason)}\n")
                            summary.rejected += 1
                        else:
                            writer.add(found.path, label, found.width, found.height)
                    progress(split, len(chunk))
                if writer.count == before and (split == splits[0] or (root / split / name).is_dir()):
                    raise RunError(f"class folder {printable(root / split / name)} holds no readable image{first_reason}")
            writer.close()
            summary.images[split] = writer.count
    return summary


def _files(folder: Path) -> Iterator[str]:
    """Paths with an image's extension, in order of their names; an absent folder has none."""
    if folder.is_dir():
        for name in sorted(os.listdir(folder)):
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                yield os.path.join(folder, name)


def _look(path: str, verify: bool) -> _Found:
    try:
        if not _is_utf8(path):
            return _Found(path, reason="the file name is not UTF-8")
        # stat first: opening a FIFO would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return _Found(path, reason="not a regular file")
        width, height = examine(path, verify)
        return _Found(path, width, height)
    except Exception as error:  # Pillow's decoders raise many types; each is this file's reason, not ours
        return _Found(path, reason=printable(error) or type(error).__name__)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _field(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def count(root: Path) -> int:
    """Files with an image's extension below ROOT/SPLIT/CLASS, for a progress bar. 0 where there is nothing."""
    return sum(1 for split in SPLITS for folder in (root / split).glob("*/") for _ in _files(folder))
