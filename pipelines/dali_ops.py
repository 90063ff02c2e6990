"""Implements the reductions as short functions of DALI operators; host_ops.py is the twin on the host.

A reduced image is produced by one of these two files everywhere. All functions take and return uint8 HWC RGB
images, per sample, and hold neither randomness nor state.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import do_not_convert

from qrdali.pipelines.decode_options import DecodeOptions
from qrdali.pipelines.host_ops import padding_color

if TYPE_CHECKING:  # they import torch and pyarrow, which the process that checks files does without
    from qrdali.models import Preprocessing
    from qrdali.pipelines.graph_inputs import AxisPass, SquareInputs

Node = Any  # DALI's DataNode; its stubs stand in the wheel for editors only

RESOLUTION_FILTER = types.INTERP_TRIANGULAR  # antialiased linear; the definition's one filter
INTERPOLATION = {  # by `Preprocessing.interpolation`
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_TRIANGULAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}
_ON_CPU = DecodeOptions()
_LEAST_DECODED = np.array([1, 2], np.int32)  # height and width


class _Region(NamedTuple):
    """Holds nodes: decoded pixels, where in them the wanted window lies, and whether that has one column."""

    image: Node
    start: Node
    shape: Node
    is_column: Node


def read(
    file: Node, start: Node, shape: Node, options: DecodeOptions = _ON_CPU, needs_bytes: bool = False
) -> Node:
    """Reads an image file and decodes the window `start`, `shape` of it, int32 [2] in upright pixels.

    file: uint8 [length], the file's name as UTF-8, or if `needs_bytes` its bytes. The pipeline must have
    `enable_conditionals`.
    """
    if options.whole:
        image = _decode_whole(file, start, shape, options, needs_bytes)
    else:
        region = _decode_region(file, start, shape, options, needs_bytes)
        image = region.image
        if region.is_column:
            image = cut(image, region.start, region.shape)
    return image


@do_not_convert
def _decode_whole(file: Node, start: Node, shape: Node, options: DecodeOptions, needs_bytes: bool) -> Node:
    encoded = _encoded(file, needs_bytes)
    _, shape = _inside(encoded, start, shape)
    # The decoder takes no window, so this has it wait for the check; nothing is copied.
    encoded = fn.reshape(encoded, shape=encoded.shape(dtype=types.INT32) + 0 * shape[0:1])
    image = fn.decoders.image(encoded, device=options.device, output_type=types.RGB, **options.keywords)
    return cut(image, start, shape)


@do_not_convert
def _decode_region(
    file: Node, start: Node, shape: Node, options: DecodeOptions, needs_bytes: bool
) -> _Region:
    """Decodes a window, or two columns where one is wanted and the image has more.

    Of a window of one column at the left border of a JPEG with 4:2:0 (at the right one too, of some widths),
    libjpeg-turbo repeats the chroma, which it interpolates of every wider window and of the whole.
    """
    encoded = _encoded(file, needs_bytes)
    size, shape = _inside(encoded, start, shape)
    decoded_shape = math.max(shape, math.min(size, _LEAST_DECODED))
    decoded_start = math.min(start, size - decoded_shape)
    image = fn.decoders.image_slice(
        encoded,
        start=decoded_start,
        shape=decoded_shape,
        axis_names="HW",
        device=options.device,
        output_type=types.RGB,
        **options.keywords,
    )
    return _Region(image, start - decoded_start, shape, shape[1] < _LEAST_DECODED[1])


def _encoded(file: Node, needs_bytes: bool) -> Node:
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # the codec's copy of OpenCV prints what DALI raises
    # Some of FUSE map no files; reading is as fast, and a file that becomes shorter meanwhile is no crash.
    return file if needs_bytes else fn.io.file.read(file, dont_use_mmap=True)


class _Checked(NamedTuple):
    """Holds nodes, int32 [2] each: an image's upright height and width, and a window's that lies inside."""

    size: Node
    shape: Node


def _inside(encoded: Node, start: Node, shape: Node) -> _Checked:
    """Returns `shape` once it is known that the header can be read and the window lies inside the image.

    DALI's decoders (2.4) find that out themselves, but when they raise for an image in the last part of a
    batch they free what their threads still work on, and now and then the process crashes. The operators here
    wait for their threads. This takes about 1% of a decode.
    """
    size = fn.peek_image_shape(encoded, image_type=types.ANY_DATA, dtype=types.INT32)
    has_channels = math.min(size[2], 1)  # no channels: a depth that the decoders do not know
    height = _inside_line(size[0] * has_channels, start[0:1], shape[0:1])
    width = _inside_line(size[1], start[1:2], shape[1:2])
    return _Checked(size[0:2], fn.cat(height, width, axis=0))


def _inside_line(length: Node, start: Node, extent: Node) -> Node:
    """Returns `extent`, int32 [1], once it is known that `start` and it lie within 0..length."""
    line = fn.zeros(shape=fn.reshape(length, shape=[1]), dtype=types.UINT8)
    part = fn.slice(line, start=start, shape=extent, axes=[0], out_of_bounds_policy="error")
    return part.shape(dtype=types.INT32)


def cut(image: Node, start: Node, shape: Node) -> Node:
    """Returns the window `start`, `shape` (int32 [2], pixels) of a decoded image."""
    return fn.slice(image, start=start, shape=shape, axis_names="HW")


def resolution(image: Node, size: Node) -> Node:
    """Resizes to `size` (float32 [2], whole numbers: height and width)."""
    return fn.resize(image, size=size, interp_type=RESOLUTION_FILTER, antialias=True, dtype=types.UINT8)


def color_power_of_two(image: Node, mask: Node, half: Node) -> Node:
    """Maps values to bins of a width d that is a power of two: (v & mask) + half.

    mask: 256 - d. half: d / 2, both uint8 scalars. The sum is at most (256 - d) + d / 2 < 256, so uint8
    cannot overflow.
    """
    return (image & mask) + half


def color_any(image: Node, bin_width: Node) -> Node:
    """Maps values to bins of any width d, 1 to 128: min(255, floor(v / d)·d + floor(d / 2)).

    bin_width: d, float32 scalar. Two saturating linear maps, a tenth of the cost of arithmetic in floats: the
    first rounds (v - (d - 1) / 2) / d to the nearest integer, which is floor(v / d); the second multiplies
    and adds.
    """
    bin_index = fn.brightness_contrast(
        image,
        brightness=1.0 / bin_width,
        brightness_shift=-(bin_width - 1.0) / 2.0 / bin_width / 255.0,
        dtype=types.UINT8,
    )
    return fn.brightness_contrast(
        bin_index,
        brightness=bin_width,
        brightness_shift=fn.cast(fn.cast(bin_width, dtype=types.INT32) // 2, dtype=types.FLOAT) / 255.0,
        dtype=types.UINT8,
    )


def square(image: Node, inputs: SquareInputs, preprocessing: Preprocessing) -> Node:
    """Returns what a network sees of a reduced image, uint8 HWC [S, S, 3]. inputs: of nodes."""
    image = cut(image, inputs.region.start, inputs.region.shape)
    for axis_pass in (inputs.first, inputs.second):
        image = _resize_axis(image, axis_pass, INTERPOLATION[preprocessing.interpolation])
    return fn.slice(
        image,
        start=inputs.corner,
        shape=[preprocessing.input_size] * 2,
        axis_names="HW",
        out_of_bounds_policy="pad",
        fill_values=list(padding_color(preprocessing)),
    )


def _resize_axis(image: Node, inputs: AxisPass, interpolation: types.DALIInterpType) -> Node:
    read = fn.slice(
        image, start=inputs.start, shape=inputs.shape, axis_names="HW", out_of_bounds_policy="pad"
    )
    resized: Node = fn.resize(
        read,
        size=inputs.size,
        roi_start=inputs.roi_start,
        roi_end=inputs.roi_end,
        interp_type=interpolation,
        antialias=True,
        dtype=types.FLOAT,
    )
    # Rounded between the passes, as Pillow's are.
    return fn.cast(resized * inputs.gain, dtype=types.UINT8)


def normalize(square: Node, flip: Node, preprocessing: Preprocessing) -> Node:
    """Returns (v / 255 - mean) / std of a square, float32 HWC. flip: int32 scalar, 1 mirrors."""
    return fn.crop_mirror_normalize(
        square,
        dtype=types.FLOAT,
        output_layout="HWC",
        mirror=flip,
        mean=[255 * m for m in preprocessing.mean],
        std=[255 * s for s in preprocessing.std],
    )
