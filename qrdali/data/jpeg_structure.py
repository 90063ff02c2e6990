"""Reads the markers of a JPEG: how its frame is sampled, and which scans refine which coefficients."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

_SOI, _EOI, _SOS, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE1, 0xEE
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # Huffman-coded; 0xC2 is progressive
_PROGRESSIVE = 0xC2
_NO_LENGTH = frozenset((0x01, _SOI, *range(0xD0, 0xD8)))
_MAX_SCANS = 1000
# What ends a scan's data: a marker that is neither a stuffed zero, nor a restart, nor a fill byte.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_QUARTER_TURNS = range(5, 9)
_BYTE_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_CHROMA_ONCE = frozenset(((1, 1), (2, 1), (1, 2), (2, 2)))  # luma's samples for each of chroma's


class Sampling(NamedTuple):
    """How a component is sampled, relative to the others."""

    component: int
    horizontal: int
    vertical: int


class Scan(NamedTuple):
    """What a scan brings: bits from `low_bit` up of coefficients `first` to `last` of some components.

    high_bit: the lowest bit that earlier scans have brought, 0 if none has.
    """

    components: tuple[int, ...]
    first: int
    last: int
    high_bit: int
    low_bit: int


@dataclass
class JpegStructure:
    """Holds the markers of a JPEG up to its end.

    frame: the marker of its frame, 0 without one. markers: all that have a length. contiguous: whether
    nothing lies between the segments. app1: the contents of its APP1 segments, of EXIF and XMP.
    app1_before_frame: whether all of these come before the frame.
    """

    frame: int = 0
    markers: set[int] = field(default_factory=set)
    sampling: list[Sampling] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)
    contiguous: bool = True
    ended: bool = False
    app1: list[bytes] = field(default_factory=list)
    app1_before_frame: bool = True

    @property
    def is_plain(self) -> bool:
        """Returns whether it is a whole JPEG, gray or with the usual chroma, in one sequential scan or in
        all of a progressive one's.

        Of these a window is decoded to the same pixels as the whole, whatever they show: decoders smooth only
        a progressive JPEG that lacks scans.
        """
        if not (self.contiguous and self.ended):
            return False
        luma, *chroma = [(s.horizontal, s.vertical) for s in self.sampling] or [(0, 0)]
        if chroma and not (len(chroma) == 2 and chroma == [(1, 1)] * 2 and luma in _CHROMA_ONCE):
            return False
        if self.frame == _PROGRESSIVE:
            return self._is_progressive_in_order() and not self.lacks_scans()
        components = [sampling.component for sampling in self.sampling]
        return self.frame in _SEQUENTIAL and [sorted(s.components) for s in self.scans] == [
            sorted(components)
        ]

    def may_be_turned_or_recoloured(self, is_square: bool) -> bool:
        """Returns whether decoders that agree on its size may see another orientation or other colours in it.

        Adobe's marker may mean other colours. EXIF or XMP with an orientation may be understood otherwise:
        DALI ignores all of an EXIF block in which any entry is damaged. Where a quarter turn is written
        clearly, an image that is not square has another size without it.
        """
        if _APP14 in self.markers or not self.app1_before_frame:
            return True
        blocks = [data[len(_EXIF) :] for data in self.app1 if data.startswith(_EXIF)]
        others = [data for data in self.app1 if not data.startswith(_EXIF)]
        if len(blocks) > 1 or any(b"rientation" in data or data[:4].lower() == b"exif" for data in others):
            return True
        orientation = _clear_orientation(blocks[0]) if blocks else 1
        return not (orientation == 1 or (orientation in _QUARTER_TURNS and not is_square))

    def _is_progressive_in_order(self) -> bool:
        """Returns whether each scan brings the next bits of coefficients, and none of them twice."""
        low_bits = {sampling.component: [-1] * 64 for sampling in self.sampling}
        if len(low_bits) != len(self.sampling):
            return False
        for scan in self.scans:
            is_dc = scan.first == 0
            if scan.last < scan.first or (scan.last > 0 if is_dc else len(scan.components) != 1):
                return False
            if not scan.components or len(set(scan.components)) != len(scan.components):
                return False
            if scan.high_bit and scan.low_bit != scan.high_bit - 1:
                return False
            for component in scan.components:
                bits = low_bits.get(component)
                if bits is None or (not is_dc and bits[0] < 0):
                    return False
                wanted = scan.high_bit or -1
                if any(bit != wanted for bit in bits[scan.first : scan.last + 1]):
                    return False
                bits[scan.first : scan.last + 1] = [scan.low_bit] * (scan.last + 1 - scan.first)
        return True

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
        if code == _APP1:
            found.app1.append(body)
            found.app1_before_frame &= not found.frame
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
    return Scan(components, first, min(last, 63), bits >> 4, bits & 15)


def _clear_orientation(block: bytes) -> int:
    """Returns the orientation of an EXIF block, 1 where it has none, 0 where readers might not agree on it.

    The first directory follows the header and lies inside the block. An orientation stands in it once, as one
    SHORT from 1 to 8, and nowhere else in the block, as in the directory of a thumbnail.
    """
    order = _BYTE_ORDERS.get(block[:4])
    if order is None or len(block) < 10 or int.from_bytes(block[4:8], order) != 8:
        return 0
    count = int.from_bytes(block[8:10], order)
    if len(block) < 10 + 12 * count + 4:  # the offset of the next directory follows
        return 0
    entries = [block[start : start + 12] for start in range(10, 10 + 12 * count, 12)]
    tag = _ORIENTATION.to_bytes(2, order)
    found = [entry for entry in entries if entry.startswith(tag)]
    short = (3).to_bytes(2, order)
    if block.count(tag + short) != len(found) or len(found) > 1:
        return 0
    if not found:
        return 1
    kind, values = found[0][2:4], int.from_bytes(found[0][4:8], order)
    orientation = int.from_bytes(found[0][8:10], order)
    return orientation if kind == short and values == 1 and orientation in range(1, 9) else 0
