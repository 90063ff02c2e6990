"""Decodes image files by DALI, as training does, and by Pillow, and says where the two disagree.

It runs in a child process (`decoding_server`), which hostile files may crash.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def
from PIL import Image

from qrdali.data.decoder_process import Finding
from qrdali.data.inspect import checked_header, quiet_pillow, reason_of
from qrdali.data.jpeg_structure import read_jpeg_structure
from qrdali.data.pillow_pixels import largest_difference, tolerance
from qrdali.errors import printable
from qrdali.pipelines import dali_ops as ops

Pixels = npt.NDArray[np.uint8]

_BATCH_FILES = 64
_BATCH_PIXELS = 16_000_000  # decoded at once; a larger image is decoded alone
_SMALL_BATCH = 8  # a batch that prints something is decoded again in these, then one by one
_MAX_CHATTER = 1 << 16  # bytes read of what decoders print
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE_PLACES = re.compile(r"^\[ ?(?:WARN|ERROR):\S+ global \S+ \S+ |OpenCV\([^)]*\) \S+: ")
# Printed of files in perfect order: by a decoder whose turn goes to the next one, or about colour profiles.
_HARMLESS = re.compile(r"not supported|[Uu]nsupported|iCCP|sRGB|gAMA|cHRM|Unknown field|custom directory")


class _Window(NamedTuple):
    """A window in upright pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass
class _Candidate:
    """A file whose header is in order.

    is_plain: a JPEG of which Pillow and DALI cannot but decode the same pixels, as long as DALI is silent.
    image: loaded by Pillow. decoded: DALI's pixels, valid until the next batch is decoded. The two refusals
    are apart because Pillow and DALI decode at the same time.
    """

    number: int
    content: bytes
    tolerance: int
    width: int
    height: int
    needs_windows: bool = False
    is_plain: bool = False
    image: Image.Image | None = None
    decoded: Pixels | None = None
    refusal_by_pillow: str = ""
    refusal: str = ""
    warning: str = ""

    @property
    def reason(self) -> str:
        return self.refusal_by_pillow or self.refusal

    def whole(self) -> _Window:
        return _Window(0, 0, self.height, self.width)

    def middle(self) -> _Window:
        """Returns a window in the middle, off a decoder's grid."""
        top, left = (min(side // 3 | 1, side - 1) for side in (self.height, self.width))
        return _Window(
            top,
            left,
            min(self.height // 2 | 1, self.height - top),
            min(self.width // 2 | 1, self.width - left),
        )

    def corner(self) -> _Window:
        """Returns the window from the middle to the last pixel."""
        top, left = self.height // 2, self.width // 2
        return _Window(top, left, self.height - top, self.width - left)


class DecodingCheck:
    """Checks the contents of image files, batch by batch.

    threads: of each decoder. max_pixels: larger images are rejected by their header. begin: is called before
    each batch that is decoded, however long one takes.
    """

    def __init__(self, threads: int, max_pixels: int, begin: Callable[[], None] = lambda: None) -> None:
        quiet_pillow()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        self._max_pixels, self._begin = max_pixels, begin
        self._decoder = _Decoder(threads)
        self._pool = ThreadPoolExecutor(threads, "pillow")
        self._chatter = _Chatter()

    def check(self, contents: Sequence[bytes]) -> list[Finding]:
        """Returns a finding for each file: its upright size, or why it is rejected."""
        findings: list[Finding] = []
        candidates: list[_Candidate] = []
        for number, opened in enumerate(self._pool.map(self._open, range(len(contents)), contents)):
            if isinstance(opened, str):
                findings.append(Finding(reason=opened))
            else:
                findings.append(Finding(opened.width, opened.height))
                candidates.append(opened)
            assert len(findings) == number + 1
        for group in _groups(candidates):
            self._begin()
            self._check_group(group)
            for candidate in group:
                findings[candidate.number] = Finding(
                    candidate.width, candidate.height, candidate.reason, candidate.warning
                )
        return findings

    def _open(self, number: int, content: bytes) -> _Candidate | str:
        """Returns a file that may be decoded, or why it may not."""
        try:
            with Image.open(BytesIO(content)) as image:
                width, height = checked_header(image, True, self._max_pixels)
                candidate = _Candidate(number, content, tolerance(image, content), width, height)
                kind = image.format
            candidate.needs_windows = kind == "TIFF"  # of these and of some JPEGs, only a part is decoded
            if kind in ("JPEG", "MPO"):
                structure = read_jpeg_structure(content)
                if structure.lacks_scans():
                    return "an incomplete progressive JPEG: scans are missing, and windows of it differ"
                candidate.needs_windows = not structure.is_plain
                candidate.is_plain = structure.is_plain and not structure.may_be_turned_or_recoloured
            return candidate
        except Exception as error:  # Pillow's readers raise many types
            return reason_of(error)

    def _check_group(self, group: list[_Candidate]) -> None:
        self._chatter.begin()
        self._compare_with_pillow(group, [candidate for candidate in group if not candidate.is_plain])
        if self._chatter.heard_anything():
            self._find_damaged([candidate for candidate in group if not candidate.reason])
        if suspects := [c for c in group if c.is_plain and (c.refusal or c.warning)]:
            self._compare_with_pillow([c for c in suspects if not c.refusal], suspects)
        if with_windows := [c for c in group if not c.reason and (c.needs_windows or c.warning)]:
            self._compare_windows(with_windows)

    def _compare_with_pillow(self, by_dali: Sequence[_Candidate], by_pillow: Sequence[_Candidate]) -> None:
        """Decodes files by both at the same time, and compares the pixels of those that both were given."""
        loading = [self._pool.submit(_load, candidate) for candidate in by_pillow]
        self._decode(by_dali, _Candidate.whole, _keep)
        for future in loading:
            future.result()
        list(self._pool.map(_compare, by_pillow))

    def _decode(
        self,
        group: Sequence[_Candidate],
        window: Callable[[_Candidate], _Window],
        receive: Callable[[_Candidate, Pixels], None],
        is_part: bool = False,
    ) -> None:
        """Decodes files and hands out their pixels; one that cannot be decoded gets its reason.

        The pixels are copies where the group had to be decoded in parts (`is_part`).
        """
        if not group:
            return
        if is_part:
            self._chatter.take()  # of the parts before it
        try:
            decoded = self._decoder.run([c.content for c in group], [window(c) for c in group])
        except RuntimeError as error:
            if len(group) > 1:
                for part in _parts(group, _SMALL_BATCH if len(group) > _SMALL_BATCH else 1):
                    self._decode(part, window, receive, True)
            else:
                printed = next(iter(self._chatter.take()), "") or _cause(error)
                group[0].refusal = f"Pillow decodes it, the training decoder (DALI) does not: {printed}"
            return
        for candidate, (pixels, shape) in zip(group, decoded, strict=True):
            if shape[:2] != (candidate.height, candidate.width):
                candidate.refusal = (
                    f"decoders disagree about its size: {candidate.width}x{candidate.height} by Pillow, "
                    f"{shape[1]}x{shape[0]} by the training decoder (DALI)"
                )
            receive(candidate, pixels.copy() if is_part else pixels)

    def _find_damaged(self, group: Sequence[_Candidate]) -> None:
        """Decodes smaller and smaller batches again to find the files that decoders print something about."""
        size = _SMALL_BATCH if len(group) > _SMALL_BATCH else 1
        for part in _parts(group, size):
            self._chatter.begin()
            self._decode(part, _Candidate.whole, _drop)
            printed = self._chatter.take()
            if printed and size > 1:
                self._find_damaged(part)
            elif printed:
                telling = [line for line in printed if not _HARMLESS.search(line)]
                part[0].warning = telling[0] if telling else ""

    def _compare_windows(self, group: Sequence[_Candidate]) -> None:
        """Decodes windows as training does, and rejects files of which they are not a part of the whole."""
        wholes: dict[int, Pixels] = {}

        def keep_copy(candidate: _Candidate, pixels: Pixels) -> None:
            wholes[candidate.number] = pixels.copy()

        self._decode(group, _Candidate.whole, keep_copy)
        for choose in (_Candidate.middle, _Candidate.corner):

            def compare(
                candidate: _Candidate,
                pixels: Pixels,
                choose: Callable[[_Candidate], _Window] = choose,
            ) -> None:
                top, left, height, width = choose(candidate)
                part = wholes[candidate.number][top : top + height, left : left + width]
                if not np.array_equal(part, pixels):
                    candidate.refusal = (
                        "the training decoder (DALI) decodes a window of it otherwise than all"
                    )

            self._decode([candidate for candidate in group if not candidate.reason], choose, compare)


class _Decoder:
    """Decodes batches by the operators of the training graphs."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._batch: tuple[Any, ...] = ()
        self._pipeline: Any = None

    def run(
        self, contents: Sequence[bytes], windows: Sequence[_Window]
    ) -> list[tuple[Pixels, tuple[int, ...]]]:
        """Returns for each file the window's pixels, valid until the next call, and the whole's shape.

        Raises RuntimeError if one of them cannot be decoded.
        """
        areas = np.array(windows, np.int32)
        # DALI takes no strides.
        self._batch = (
            [np.frombuffer(content, np.uint8) for content in contents],
            areas[:, :2].copy(),
            areas[:, 2:].copy(),
        )
        if self._pipeline is None:
            self._pipeline = self._built()
        try:
            images, shapes = self._pipeline.run()
        except BaseException:
            self._pipeline = None  # a pipeline that has failed is not to be used again
            raise
        return [
            (np.asarray(images.at(i)), tuple(np.asarray(shapes.at(i)).tolist())) for i in range(len(contents))
        ]

    def _built(self) -> Any:
        @pipeline_def(
            batch_size=_BATCH_FILES,
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        def graph() -> Any:
            encoded, start, shape = fn.external_source(lambda: self._batch, num_outputs=3, batch=True)
            return ops.read(encoded, start, shape, "cpu", False, True), fn.peek_image_shape(encoded)

        return graph()


class _Chatter:
    """What C libraries print to this process's standard error, which is a file of its own."""

    def __init__(self) -> None:
        self._heard = False

    def begin(self) -> None:
        """Forgets what was printed so far."""
        self.take()
        self._heard = False

    def heard_anything(self) -> bool:
        """Returns whether anything was printed since `begin`, taken or not."""
        return bool(self.take()) or self._heard

    def take(self) -> list[str]:
        """Returns the lines printed since the last call, without colours and places in source files."""
        size = os.fstat(2).st_size
        if not size:
            return []
        self._heard = True
        text = os.pread(2, min(size, _MAX_CHATTER), 0).decode("utf-8", "replace")
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)
        lines = (_SOURCE_PLACES.sub("", _ESCAPES.sub("", line)).strip() for line in text.splitlines())
        return [printable(line)[:200] for line in lines if line]


def _groups(candidates: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Yields the files in batches of bounded pixels; a large image comes alone."""
    group: list[_Candidate] = []
    pixels = 0
    for candidate in candidates:
        area = candidate.width * candidate.height
        if group and (pixels + area > _BATCH_PIXELS or len(group) == _BATCH_FILES):
            yield group
            group, pixels = [], 0
        group.append(candidate)
        pixels += area
    if group:
        yield group


def _parts(group: Sequence[_Candidate], size: int) -> Iterator[Sequence[_Candidate]]:
    for start in range(0, len(group), size):
        yield group[start : start + size]


def _load(candidate: _Candidate) -> None:
    try:
        # Opened again: what Pillow knows of a PNG's orientation before the pixels may change after them.
        candidate.image = Image.open(BytesIO(candidate.content))
        candidate.image.load()
    except Exception as error:  # Pillow's decoders raise many types
        candidate.refusal_by_pillow = reason_of(error)


def _keep(candidate: _Candidate, pixels: Pixels) -> None:
    candidate.decoded = pixels


def _drop(candidate: _Candidate, pixels: Pixels) -> None:
    pass


def _compare(candidate: _Candidate) -> None:
    decoded, candidate.decoded = candidate.decoded, None
    image, candidate.image = candidate.image, None
    if candidate.reason or decoded is None or image is None:
        return
    try:
        difference = largest_difference(image, decoded)
    except Exception as error:  # whatever Pillow's conversion to RGB raises
        candidate.refusal_by_pillow = reason_of(error)
        return
    if difference > candidate.tolerance:
        candidate.refusal = (
            f"decoders disagree: the training decoder's (DALI's) pixels differ by up to {difference} of 255 "
            "from Pillow's"
        )


def _cause(error: RuntimeError) -> str:
    """Returns what DALI says after the place in the graph."""
    text = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0])[:200] if lines else "no reason given"
