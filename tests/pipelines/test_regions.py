"""A window has the pixels that the whole picture has there, whatever the file's kind: "crop exact"."""

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from malformed_images import HEIGHT, WIDTH, accepted, chunk, exif, photo, saved, segment
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageOps

from qrdali.data.inspect import read_upright_size
from qrdali.pipelines.decode_options import DecodeOptions
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import decode_inputs
from qrdali.pipelines.graphs import decode_windows


def progressive(**options: Any) -> bytes:
    return saved(photo(options.pop("size", (WIDTH, HEIGHT))), "JPEG", progressive=True, quality=90, **options)


def turned_progressive(orientation: int) -> bytes:
    data = progressive(size=(47, 35))
    return data[:2] + segment(exif((0x0112, 3, 1, orientation))) + data[2:]


def deep_interlaced() -> bytes:
    """Adam7 of 16-bit RGB pixels."""
    pixels = np.asarray(photo((9, 13))).astype(">u2") * 257 - 3
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    passes = [pixels[y::down, x::across] for x, y, across, down in steps]
    rows = b"".join(
        b"\0" + np.ascontiguousarray(row).tobytes() for part in passes for row in part if row.size
    )
    head = struct.pack(">IIBBBBB", 9, 13, 16, 2, 0, 0, 1)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiled() -> bytes:
    """A TIFF of RGB tiles, 16×16, uncompressed."""
    side, across, down = 16, WIDTH // 16, -(-HEIGHT // 16)
    padded = np.zeros((down * side, WIDTH, 3), np.uint8)
    padded[:HEIGHT] = np.asarray(photo())
    tiles = padded.reshape(down, side, across, side, 3).swapaxes(1, 2).tobytes()
    count, size = across * down, side * side * 3
    first, table = 8 + 2 + 10 * 12 + 4, 8 + 2 + 10 * 12 + 4 + 6
    offsets = [table + 8 * count + i * size for i in range(count)]
    entries = [(256, 4, 1, WIDTH), (257, 4, 1, HEIGHT), (258, 3, 3, first), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(277, 3, 1, 3), (322, 4, 1, side), (323, 4, 1, side)]
    entries += [(324, 4, count, table), (325, 4, count, table + 4 * count)]
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    lists = struct.pack(f"<HHH{count}I{count}I", 8, 8, 8, *offsets, *[size] * count)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + b"\0\0\0\0" + lists + tiles


def more() -> dict[str, bytes]:
    alpha = photo((47, 35))
    alpha.putalpha(photo((47, 35)).convert("L"))
    files = {f"progressive exif {o}.jpg": turned_progressive(o) for o in range(1, 9)}
    files |= {
        f"progressive {s}.jpg": progressive(subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
    }
    return files | {
        "progressive restarts.jpg": progressive(restart_marker_blocks=2),
        "progressive gray.jpg": saved(photo().convert("L"), "JPEG", progressive=True),
        "progressive cmyk.jpg": saved(photo().convert("CMYK"), "JPEG", progressive=True, quality=95),
        "odd 4:2:0.jpg": saved(photo((47, 35)), "JPEG", subsampling="4:2:0"),
        "odd 4:1:1.jpg": saved(photo((47, 35)), "JPEG", subsampling="4:1:1", restart_marker_rows=1),
        "odd progressive 4:1:1.jpg": progressive(size=(47, 35), subsampling="4:1:1"),
        "deep interlaced.png": deep_interlaced(),
        "tiles.tif": tiled(),
        "odd alpha.webp": saved(alpha, "WEBP"),
        "odd alpha lossless.webp": saved(alpha, "WEBP", lossless=True),
        "strips.tif": saved(photo((47, 35)), "TIFF", compression="tiff_lzw", tiffinfo={278: 5}),
    }


FILES = accepted() | more()


def decoded(
    content: bytes,
    windows: list[tuple[int, int, int, int]],
    decode: Literal["default", "whole"] = "default",
) -> list[np.ndarray]:
    files = [np.frombuffer(content, np.uint8)] * len(windows)
    inputs = decode_inputs(files, np.array(windows, np.int32))
    engine = Engine(threads=1, depth=1, decode=decode)
    (images,) = decode_windows(lambda: inputs, engine, len(windows), True).run()
    return [np.array(images[i]) for i in range(len(windows))]


@pytest.mark.parametrize("name", FILES)
def test_a_window_is_part_of_the_whole(name: str) -> None:
    width, height = read_upright_size(io.BytesIO(FILES[name]), verify=False)
    windows = [
        (0, 0, height, width),
        (height // 3, width // 3, max(1, height // 2), max(1, width // 2)),
        (height // 5, 0, 1, width),
        (0, width - 1, height, 1),
        (height // 2, width // 2, height - height // 2, width - width // 2),
    ]
    whole, *parts = decoded(FILES[name], windows)
    for (top, left, h, w), part in zip(windows[1:], parts, strict=True):
        np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])
    for part, again in zip([whole, *parts], decoded(FILES[name], windows, "whole"), strict=True):
        np.testing.assert_array_equal(part, again)


# Luma's samples for each of chroma's, and as what the same bytes are encoded: with as many blocks of luma.
SAMPLINGS = {
    "4:4:4": ((1, 1), "4:4:4"),
    "4:2:2": ((2, 1), "4:2:2"),
    "4:2:0": ((2, 2), "4:2:0"),
    "4:1:1": ((4, 1), "4:2:0"),
    "4:4:0": ((1, 2), "4:2:2"),
}


def sampled(name: str, size: tuple[int, int]) -> bytes:
    """A JPEG of noise, in which every wrong sample of chroma shows.

    Pillow knows no 4:1:1 and 4:4:0. They are written as 4:2:0 and 4:2:2 of equally many minimum coded units,
    and their header is changed: the blocks then mean another picture, in perfect order.
    """
    (across, down), encoded_as = SAMPLINGS[name]
    units = -(-size[0] // (8 * across)) * -(-size[1] // (8 * down))
    (encoded_across, encoded_down), _ = SAMPLINGS[encoded_as]
    one_row = (8 * encoded_across * units, 8 * encoded_down)
    width, height = size if encoded_as == name else one_row
    pixels = np.random.default_rng(units).integers(0, 256, (height, width, 3), np.uint8)
    data = saved(Image.fromarray(pixels), "JPEG", quality=90, subsampling=encoded_as)
    frame = data.index(b"\xff\xc0")
    header = data[frame : frame + 5] + struct.pack(">HHBBB", size[1], size[0], 3, 1, across << 4 | down)
    return data[:frame] + header + data[frame + 12 :]


def at_borders(length: int) -> list[tuple[int, int]]:
    """Starts and lengths of 1 to 4, and all, at the first and the last pixel, one off them, and between."""
    return [
        (start, part)
        for part in sorted({1, 2, 3, 4, length})
        for start in sorted({0, 1, length // 2, length - part - 1, length - part})
        if 0 <= start <= length - part
    ]


@pytest.mark.parametrize("size", [(61, 35), (18, 3), (34, 17), (16, 16), (5, 7), (3, 5), (2, 9), (1, 4)])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_narrow_windows_at_borders_are_part_of_the_whole(name: str, size: tuple[int, int]) -> None:
    content = sampled(name, size)
    with Image.open(io.BytesIO(content)) as opened:
        whole = np.asarray(opened.convert("RGB"))
    windows = [(top, left, h, w) for left, w in at_borders(size[0]) for top, h in at_borders(size[1])]
    for (top, left, h, w), part in zip(windows, decoded(content, windows), strict=True):
        np.testing.assert_array_equal(
            part, whole[top : top + h, left : left + w], f"window {(top, left, h, w)}"
        )


@pytest.mark.parametrize("orientation", range(2, 9))
def test_narrow_windows_of_turned_images_are_part_of_the_whole(orientation: int) -> None:
    content = sampled("4:2:0", (18, 35))
    content = content[:2] + segment(exif((0x0112, 3, 1, orientation))) + content[2:]
    with Image.open(io.BytesIO(content)) as opened:
        whole = np.asarray(ImageOps.exif_transpose(opened))
    height, width = whole.shape[:2]
    windows = [(top, left, h, w) for left, w in at_borders(width) for top, h in at_borders(height)]
    for (top, left, h, w), part in zip(windows, decoded(content, windows), strict=True):
        np.testing.assert_array_equal(part, whole[top : top + h, left : left + w])


def test_dali_takes_the_options_for_a_gpu_and_a_cpu_has_their_pixels_anyway() -> None:
    """Chroma is upsampled on a CPU as `jpeg_fancy_upsampling` asks of a GPU."""
    content = saved(photo((96, 72)), "JPEG", subsampling="4:2:0", quality=90)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        file = fn.external_source(lambda: [np.frombuffer(content, np.uint8)], batch=True)
        options = DecodeOptions("mixed", whole=True).keywords
        return fn.decoders.image(file, device="cpu", output_type=types.RGB, **options)

    (images,) = graph().run()
    np.testing.assert_array_equal(np.array(images[0]), decoded(content, [(0, 0, 72, 96)])[0])
    np.testing.assert_array_equal(np.array(images[0]), np.asarray(Image.open(io.BytesIO(content))))
