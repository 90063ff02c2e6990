"""Reads the markers of a JPEG: how its frame is sampled, and which scans refine which coefficients."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_SOI, _EOI, _SOS, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # Huffman-coded; 0xC2 is progressive
_PROGRESSIVE = 0xC2
_NO_LENGTH = frozenset((0x01, _SOI, *range(0xD0, 0xD8)))
_MAX_SCANS = 1000
# What ends a scan's data: a marker that is neither a stuffed zero, nor a restart, nor a fill byte.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_CHROMA_ONCE = frozenset(((1, 1), (2, 1), (1, 2), (2, 2)))  # luma's samples for each of chroma's


class Sampling(NamedTuple):
    """How a component is sampled, relative to the others."""

    component: int
    horizontal: int
    vertical: int


class Scan(NamedTuple):
    """What a scan brings: bits from `low_bit` up of coefficients `first` to `last` of some components."""

    components: tuple[int, ...]
    first: int
    last: int
    low_bit: int


@dataclass
class JpegStructure:
    """Holds the markers of a JPEG up to its end.

    frame: the marker of its frame, 0 without one. markers: all that have a length. contiguous: whether
    nothing lies between the segments.
    """

    frame: int = 0
    markers: set[int] = field(default_factory=set)
    sampling: list[Sampling] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    contiguous: bool = True
    ended: bool = False

    @property
    def is_plain(self) -> bool:
        """Returns whether it is a whole sequential JPEG in one scan, gray or with the usual chroma.

        Of these a window is decoded to the same pixels as the whole, whatever they show.
        """
        if self.frame not in _SEQUENTIAL or len(self.scans) != 1 or not (self.contiguous and self.ended):
            return False
        if len(self.sampling) != len(self.scans[0].components):
            return False
        luma, *chroma = [(s.horizontal, s.vertical) for s in self.sampling]
        return not chroma or (len(chroma) == 2 and chroma == [(1, 1)] * 2 and luma in _CHROMA_ONCE)

    @property
    def may_be_turned_or_recoloured(self) -> bool:
        """Returns whether there are markers of EXIF or XMP, which may turn it, or of Adobe's colours."""
        return bool(self.markers & {_APP1, _APP14})

    def lacks_scans(self) -> bool:
        """Returns whether a progressive JPEG ends before all its coefficients have all their bits.

        Decoders smooth such an image, a window of it otherwise than the whole.
        """
        if self.frame != _PROGRESSIVE:
            return False
        low_bits = {sampling.component: [-1] * 64 for sampling in self.sampling}
        for scan in self.scans:
            for component in scan.components:
                bits = low_bits.setdefault(component, [-1] * 64)
                bits[scan.first : scan.last + 1] = [scan.low_bit] * max(0, scan.last + 1 - scan.first)
        return any(bit != 0 for bits in low_bits.values() for bit in bits)


def read_jpeg_structure(content: bytes) -> JpegStructure:
    """Returns the structure of a JPEG's first image, as far as its markers can be followed; never raises."""
    found = JpegStructure()
    position = 2
    while len(found.scans) < _MAX_SCANS:
        marker = _MARKER.search(content, position)
        if marker is None:
            return found
        # Fill bytes before a marker are allowed, and searched over.
        if content[position : marker.start()].strip(b"\xff"):
            found.contiguous = False
        code, position = content[marker.start() + 1], marker.end()
        if code == _EOI:
            found.ended = True
            return found
        if code in _NO_LENGTH:
            found.contiguous = False
            continue
        length = int.from_bytes(content[position : position + 2], "big")
        body = content[position + 2 : position + length]
        if length < 2 or len(body) != length - 2:
            found.contiguous = False
            continue
        position += length
        if code in _FRAMES and found.markers & _FRAMES:
            found.contiguous = False
        found.markers.add(code)
        if code in _FRAMES and not found.frame:
            found.frame, found.sampling = code, _sampling(body)
        elif code == _SOS:
            found.scans.append(_scan(body))
            end = _AFTER_SCAN.search(content, position)
            position = len(content) if end is None else end.start()
    return found


def _sampling(frame: bytes) -> list[Sampling]:
    return [Sampling(frame[at], frame[at + 1] >> 4, frame[at + 1] & 15) for at in range(6, len(frame) - 2, 3)]


def _scan(header: bytes) -> Scan:
    count = header[0] if header else 0
    components = tuple(header[1 : 1 + 2 * count : 2])
    first, last, bits = header[1 + 2 * count : 4 + 2 * count].ljust(3, b"\0")
    return Scan(components, first, min(last, 63), bits & 15)
