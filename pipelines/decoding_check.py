"""Decodes image files by DALI, as training does, and by Pillow, and says where the two disagree.

It runs in a child process (`decoding_server`), which hostile files may crash.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

from qrdali.data.decoder_process import Finding
from qrdali.data.inspect import checked_header, quiet_pillow, reason_of
from qrdali.data.jpeg_structure import read_jpeg_structure
from qrdali.data.pillow_pixels import disagreement, size_disagreement, tolerance
from qrdali.errors import printable
from qrdali.pipelines.batch_decoder import BATCH_FILES, BatchDecoder, Pixels, Window
from qrdali.pipelines.decoder_chatter import Chatter, first_serious

_BATCH_PIXELS = 16_000_000  # decoded at once; a larger image is decoded alone
_SMALL_BATCH = 8  # a batch that prints something is decoded again in these, then one by one


@dataclass
class _Candidate:
    """A file whose header is in order.

    is_plain: a JPEG of which Pillow and DALI cannot but decode the same pixels, as long as DALI is silent.
    image: loaded by Pillow. decoded: DALI's pixels, valid until the next batch is decoded. parts: of them,
    those of the windows. is_loud: whether DALI prints anything. The two refusals are apart because Pillow and
    DALI decode at the same time.
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
    parts: list[Pixels] = field(default_factory=list)
    refusal_by_pillow: str = ""
    refusal: str = ""
    is_loud: bool = False
    warning: str = ""

    @property
    def reason(self) -> str:
        return self.refusal_by_pillow or self.refusal

    def whole(self) -> Window:
        return Window(0, 0, self.height, self.width)

    def windows(self) -> list[Window]:
        """Returns a window in the middle, off a decoder's grid, and the one from there to the last pixel."""
        (top, height), (left, width) = _middle(self.height), _middle(self.width)
        return [Window(top, left, height, width), Window(top, left, self.height - top, self.width - left)]


def _middle(side: int) -> tuple[int, int]:
    """Returns where the middle of a side begins, and its length: at least two, where there are as many."""
    length = max(side // 2 | 1, min(2, side))
    return min(side // 3 | 1, side - length), length


class DecodingCheck:
    """Checks the contents of image files, batch by batch.

    threads: of each decoder. max_pixels: larger images are rejected by their header. begin: is called before
    each batch that is decoded, however long one takes.
    """

    def __init__(self, threads: int, max_pixels: int, begin: Callable[[], None] = lambda: None) -> None:
        quiet_pillow()
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        self._max_pixels, self._begin = max_pixels, begin
        self._decoder = BatchDecoder(threads)
        self._pool = ThreadPoolExecutor(threads, "pillow")
        self._chatter = Chatter()

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
            if group[0].width * group[0].height > _BATCH_PIXELS:
                self._decoder.release()  # its buffers would stay as large as that
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
                candidate.is_plain = structure.is_plain and not structure.may_be_turned_or_recoloured(
                    width == height
                )
            return candidate
        except Exception as error:  # Pillow's readers raise many types
            return reason_of(error)

    def _check_group(self, group: list[_Candidate]) -> None:
        self._chatter.begin()
        self._compare_with_pillow(group, [candidate for candidate in group if not candidate.is_plain])
        if self._chatter.heard_anything():
            self._find_damaged([candidate for candidate in group if not candidate.reason])
        if suspects := [c for c in group if c.is_plain and (c.refusal or c.is_loud)]:
            self._compare_with_pillow([c for c in suspects if not c.refusal], suspects)
        if with_windows := [c for c in group if not c.reason and (c.needs_windows or c.is_loud)]:
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
        window: Callable[[_Candidate], Window],
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
            if reason := size_disagreement((candidate.width, candidate.height), shape):
                candidate.refusal = reason
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
                part[0].is_loud, part[0].warning = True, first_serious(printed)

    def _compare_windows(self, group: Sequence[_Candidate]) -> None:
        """Decodes windows as training does, and rejects files of which they are not a part of the whole."""

        def compare(candidate: _Candidate, pixels: Pixels) -> None:
            if not np.array_equal(candidate.parts.pop(0), pixels):
                candidate.refusal = "the training decoder (DALI) decodes a window of it otherwise than all"

        self._decode([candidate for candidate in group if not candidate.parts], _Candidate.whole, _keep_parts)
        for which in range(2):
            ready = [candidate for candidate in group if not candidate.reason]
            self._decode(ready, partial(_window, which), compare)


def _groups(candidates: Sequence[_Candidate]) -> Iterator[list[_Candidate]]:
    """Yields the files in batches of bounded pixels; a large image comes alone."""
    group: list[_Candidate] = []
    pixels = 0
    for candidate in candidates:
        area = candidate.width * candidate.height
        if group and (pixels + area > _BATCH_PIXELS or len(group) == BATCH_FILES):
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


def _window(which: int, candidate: _Candidate) -> Window:
    return candidate.windows()[which]


def _keep(candidate: _Candidate, pixels: Pixels) -> None:
    candidate.decoded = pixels
    if candidate.needs_windows:
        _keep_parts(candidate, pixels)


def _keep_parts(candidate: _Candidate, pixels: Pixels) -> None:
    candidate.parts = [pixels[window.rows, window.columns].copy() for window in candidate.windows()]


def _drop(candidate: _Candidate, pixels: Pixels) -> None:
    pass


def _compare(candidate: _Candidate) -> None:
    decoded, candidate.decoded = candidate.decoded, None
    image, candidate.image = candidate.image, None
    if candidate.reason or decoded is None or image is None:
        return
    try:
        candidate.refusal = disagreement(image, decoded, decoded.shape, candidate.tolerance)
    except Exception as error:  # whatever Pillow's conversion to RGB raises
        candidate.refusal_by_pillow = reason_of(error)


def _cause(error: RuntimeError) -> str:
    """Returns what DALI says after the place in the graph."""
    text = str(error).partition("encountered:")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0])[:200] if lines else "no reason given"
