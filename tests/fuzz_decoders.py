"""Mutated image files of every kind, against the check that indexing makes.

`python tests/fuzz_decoders.py --mutations 100000` prints a JSON object with the counts of each format. No
file may pass the check that the training decoder then cannot decode, whole or in part, or decodes to other
pixels than Pillow; those that do are written into --out.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import malformed_images
import numpy as np
import numpy.typing as npt
from malformed_images import photo, pixels, saved, tiff
from PIL import Image, ImageOps

from qrdali.data.decoder_process import Finding, decoder_process
from qrdali.data.inspect import quiet_pillow
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import decode_inputs
from qrdali.pipelines.graphs import decode_windows

Generator = np.random.Generator
Pixels = npt.NDArray[np.uint8]

BATCH = 64
HEADER = 400  # bytes in which half of the changes are made
PNG = b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 1_000_000  # a mutated size is seldom wanted
# By EXIF's orientation, what makes an image upright.
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def seeds() -> dict[str, bytes]:
    """Returns whole files of every kind that is accepted, and of some that are not."""
    rng = np.random.default_rng(0)
    noisy = np.asarray(photo((61, 45))).astype(np.int16) + rng.integers(-25, 26, (45, 61, 3))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    os2 = b"BM" + struct.pack("<IHHIIHHHH", 14 + 12 + 48 * 36 * 3, 0, 0, 26, 12, 48, 36, 1, 24)
    extra = {
        "plain.jpg": saved(image, "JPEG", quality=85),
        "plain gray.jpg": saved(image.convert("L"), "JPEG", quality=85),
        "plain restarts.jpg": saved(image, "JPEG", quality=85, restart_marker_blocks=2),
        "progressive noisy.jpg": saved(image, "JPEG", quality=85, progressive=True),
        "progressive gray.jpg": saved(image.convert("L"), "JPEG", quality=85, progressive=True),
        "exif noisy.jpg": saved(image, "JPEG", quality=85, exif=malformed_images.exif((0x0112, 3, 1, 6))),
        **_jpegs_that_one_decoder_is_asked_about(image),
        "os2.bmp": os2 + bytes(pixels(0, 1, 2)),
        "4 bits.bmp": malformed_images.bmp(4, 0, bytes(range(128)), palette=16),
        "16 bits.bmp": malformed_images.bmp(16, 0, bytes(range(64))),
        "lossy noisy.webp": saved(image, "WEBP", quality=80),
        "lossless noisy.webp": saved(image, "WEBP", lossless=True),
        "rgb.ppm": saved(image, "PPM"),
        "gray.pgm": saved(image.convert("L"), "PPM"),
        "bits.pbm": saved(image.convert("1"), "PPM"),
        "plain.pgm": b"P2\n5 3\n# no 1\n255\n" + b" ".join(b"%d" % (17 * i) for i in range(15)) + b"\n",
        "plain.ppm": b"P3\n5 3\n255\n" + b" ".join(b"%d" % (5 * i) for i in range(45)) + b"\n",
        "deep.ppm": b"P6 6 4 65535\n" + rng.integers(0, 256, 144, np.uint8).tobytes(),
        "deep.pgm": b"P5 6 4 65535\n" + rng.integers(0, 256, 48, np.uint8).tobytes(),
        "max 15.pgm": b"P5 6 4 15\n" + rng.integers(0, 16, 24, np.uint8).tobytes(),
        "gray alpha deflate.tif": saved(image.convert("LA"), "TIFF", compression="tiff_adobe_deflate"),
        "two samples.tif": tiff(2, 8, 1, pixels(0, 1)),
    }
    refused = malformed_images.rejected()
    more = ("gray alpha.tif", "premultiplied.tif", "4 bits.tif", "runs.bmp", "cmyk plain.jpg")
    return malformed_images.accepted() | extra | {f"refused {name}": refused[name][0] for name in more}


def _jpegs_that_one_decoder_is_asked_about(image: Image.Image) -> dict[str, bytes]:
    """Returns progressive JPEGs, and JPEGs with EXIF as cameras write it; two of them are square."""
    files = {
        f"progressive {subsampling}.jpg": saved(
            image, "JPEG", quality=80, subsampling=subsampling, progressive=True
        )
        for subsampling in ("4:4:4", "4:2:2", "4:2:0")
    }
    files["progressive restarts.jpg"] = saved(
        image, "JPEG", quality=80, progressive=True, restart_marker_blocks=3
    )
    for orientation in range(1, 9):
        entries = ((0x010F, 2, 4, 7), (0x0112, 3, 1, orientation), (0x011A, 5, 1, 8), (0x0131, 2, 4, 9))
        block = malformed_images.segment(malformed_images.exif(*entries, order="<>"[orientation % 2]))
        shown = image.crop((0, 0, 40, 40)) if orientation in (5, 6) else image
        data = saved(shown, "JPEG", quality=80, progressive=orientation % 3 == 0)
        files[f"exif of a camera {orientation}.jpg"] = data[:2] + block + data[2:]
    return files


def mutate(rng: Generator, data: bytes) -> bytes:
    """Returns `data` with one to three changes, half of them in its header."""
    if data.startswith(PNG) and rng.random() < 0.7:
        return _mutate_chunks(rng, data)
    for _ in range(int(rng.integers(1, 4))):
        data = _change(rng, data)
    return data


def _mutate_chunks(rng: Generator, data: bytes) -> bytes:
    """Returns a PNG whose chunks are changed and have right checksums: nearly all others are rejected."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    which = int(rng.integers(len(chunks)))
    name, content = chunks[which]
    kind = rng.integers(6)
    if kind == 0:
        chunks.insert(int(rng.integers(len(chunks))), chunks[which])
    elif kind == 1:
        del chunks[which]
    elif kind == 2:
        other = int(rng.integers(len(chunks)))
        chunks[which], chunks[other] = chunks[other], chunks[which]
    elif kind == 3:
        names = (
            b"ABCD",
            b"abCd",
            b"PLTE",
            b"tRNS",
            b"acTL",
            b"fcTL",
            b"eXIf",
            b"sBIT",
            b"bKGD",
            b"iCCP",
            b"IEND",
        )
        added = rng.integers(0, 256, int(rng.integers(12)), np.uint8).tobytes()
        chunks.insert(int(rng.integers(len(chunks))), (names[rng.integers(len(names))], added))
    elif kind == 4 and name == b"IDAT":  # other pixels, or a wrong number of them, well compressed
        chunks[which] = name, zlib.compress(_change(rng, zlib.decompress(content)))
    else:
        chunks[which] = name, _change(rng, content)
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return PNG + b"".join(parts) + data[at:]


def _change(rng: Generator, data: bytes) -> bytes:
    if not data:
        return data
    end = min(len(data), HEADER) if rng.random() < 0.5 else len(data)
    at = int(rng.integers(end))
    kind = rng.integers(8)
    if kind == 0:  # a bit
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    if kind == 1:  # a byte
        return data[:at] + rng.integers(0, 256, 1, np.uint8).tobytes() + data[at + 1 :]
    if kind == 2:  # an extreme, or a small change
        values = (0, 1, 255, 254, 128, 127, (data[at] + 1) % 256, (data[at] - 1) % 256)
        return data[:at] + bytes([values[rng.integers(len(values))]]) + data[at + 1 :]
    if kind == 3:  # inserted bytes, often those of a marker
        inserted = (
            b"\xff",
            b"\0",
            b"\xff\xd0",
            b"\xff\x00",
            b"\r\n",
            rng.integers(0, 256, 5, np.uint8).tobytes(),
        )
        return data[:at] + inserted[rng.integers(len(inserted))] + data[at:]
    if kind == 4:  # removed bytes
        return data[:at] + data[at + int(rng.integers(1, 9)) :]
    if kind == 5:  # cut
        return data[: max(1, len(data) - int(rng.integers(1, 200)))]
    length = int(rng.integers(2, 120))
    if kind == 6:  # a part twice
        return data[: at + length] + data[at : at + length] + data[at + length :]
    return data[:at] + data[at : at + 4][::-1] + data[at + 4 :]


@dataclass
class Counts:
    """What became of the mutations of each format."""

    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)
    undecodable: Counter[str] = field(default_factory=Counter)
    other_pixels: Counter[str] = field(default_factory=Counter)
    disagreements: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)

    def failures(self) -> int:
        return sum(self.undecodable.values()) + sum(self.other_pixels.values())


def fuzz(mutations: int, seed: int, out: Path | None = None) -> Counts:
    """Checks `mutations` files that `seed` determines."""
    quiet_pillow()
    rng, counts = np.random.default_rng(seed), Counts()
    files = list(seeds().items())
    for start in range(0, mutations, BATCH):
        chosen = [files[i] for i in rng.integers(len(files), size=min(BATCH, mutations - start))]
        batch = [(name, mutate(rng, data)) for name, data in chosen]
        findings = decoder_process.check([data for _, data in batch], 1, MAX_PIXELS)
        passed = []
        for (name, data), found in zip(batch, findings, strict=True):
            kind = name.rpartition(".")[2].lower()
            _count(counts, kind, found)
            if not found.reason:
                passed.append((name, data, found))
        for name, data, why in _wrong(rng, passed):
            kind = name.rpartition(".")[2].lower()
            (counts.undecodable if why == "undecodable" else counts.other_pixels)[kind] += 1
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{why} {seed}-{start} {name}".replace(" ", "_")).write_bytes(data)
    return counts


def _count(counts: Counts, kind: str, found: Finding) -> None:
    (counts.rejected if found.reason else counts.accepted)[kind] += 1
    if "DALI" in found.reason:
        counts.disagreements[kind] += 1
    if "survive" in found.reason:
        counts.crashes[f"{kind}: {found.reason}"] += 1
    if found.warning:
        counts.damaged[kind] += 1
        counts.warnings[f"{kind}: {found.warning}"] += 1


def _wrong(rng: Generator, passed: list[tuple[str, bytes, Finding]]) -> Iterator[tuple[str, bytes, str]]:
    """Yields the files that training would not decode, or not to Pillow's pixels, with what is wrong."""
    if not passed:
        return
    wholes = [(0, 0, found.height, found.width) for _, _, found in passed]
    windows = [_window(rng, found) for _, _, found in passed]
    contents = [data for _, data, _ in passed]
    decoded, parts = _decoded(contents, wholes), _decoded(contents, windows)
    for (name, data, _), window, whole, part in zip(passed, windows, decoded, parts, strict=True):
        if whole is None or part is None:
            yield name, data, "undecodable"
            continue
        theirs, allowed = reference(data)
        top, left, height, width = window
        cut = whole[top : top + height, left : left + width]
        if (
            whole.shape != theirs.shape
            or np.abs(whole - theirs).max() > allowed
            or not np.array_equal(cut, part)
        ):
            yield name, data, "other pixels"


def _window(rng: Generator, found: Finding) -> tuple[int, int, int, int]:
    """Returns a random window."""
    height, width = (int(rng.integers(1, side + 1)) for side in (found.height, found.width))
    top, left = int(rng.integers(found.height - height + 1)), int(rng.integers(found.width - width + 1))
    return top, left, height, width


def _decoded(contents: list[bytes], windows: list[tuple[int, int, int, int]]) -> list[Pixels | None]:
    """Returns each file's window by the graph that training decodes with, None where it fails."""
    arrays = [np.frombuffer(content, np.uint8) for content in contents]
    inputs = decode_inputs(arrays, np.array(windows, np.int32))
    try:
        (images,) = decode_windows(lambda: inputs, Engine(depth=1, threads=1), BATCH, needs_bytes=True).run()
    except RuntimeError:
        if len(contents) == 1:
            return [None]
        half = len(contents) // 2
        return _decoded(contents[:half], windows[:half]) + _decoded(contents[half:], windows[half:])
    return [np.array(images.at(i)) for i in range(len(contents))]


def reference(data: bytes) -> tuple[npt.NDArray[np.float64], int]:
    """Returns upright RGB by Pillow, and how far other decoders may be from it."""
    with Image.open(BytesIO(data)) as file:
        deep = (file.format == "PNG" and data[24] == 16) or (
            file.format == "TIFF" and (16 in file.tag_v2.get(258, ()) or file.mode in ("CMYK", "YCbCr", "P"))
        )
        deep = deep or (file.format == "PPM" and (file.mode == "I" or file.tile[0][0] == "ppm"))
        image = _upright(file)
        if image.mode == "I" or image.mode.startswith("I;16"):
            gray = np.rint(np.asarray(image).astype(np.float64) / 257)
            return np.repeat(gray[..., None], 3, axis=2), 1
        return np.asarray(image.convert("RGB")).astype(np.float64), int(deep)


def _upright(file: Image.Image) -> Image.Image:
    """Returns an image upright by its EXIF, also where Pillow cannot write the other entries anew."""
    try:
        return ImageOps.exif_transpose(file)
    except Exception:  # of many types: what is left of an entry that was damaged
        method = _TRANSPOSES.get(file.getexif().get(0x0112, 1))
        return file.copy() if method is None else file.transpose(method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a folder for the files that fail")
    options = parser.parse_args()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # decoders print about damaged files
    counts = fuzz(options.mutations, options.seed, options.out)
    print(json.dumps({name: dict(value) for name, value in vars(counts).items()}, indent=1))


if __name__ == "__main__":
    main()
