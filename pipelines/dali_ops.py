"""Implements the reductions as short functions of DALI operators; host_ops.py is the twin on the host.

A reduced image is produced by one of these two files everywhere. All functions take and return uint8 HWC RGB
images, per sample, and hold neither randomness nor state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nvidia.dali import fn, types

if TYPE_CHECKING:  # it imports torch, which the process that checks files does without
    from qrdali.models import Preprocessing

Node = Any  # DALI's DataNode; its stubs stand in the wheel for editors only

RESOLUTION_FILTER = types.INTERP_TRIANGULAR  # antialiased linear; the definition's one filter
INTERPOLATION = {  # by `Preprocessing.interpolation`
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_TRIANGULAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}


def read(file: Node, start: Node, shape: Node, device: str, whole: bool, needs_bytes: bool = False) -> Node:
    """Reads an image file and decodes the window `start`, `shape` of it, int32 [2] in upright pixels.

    file: uint8 [length], the file's name as UTF-8, or if `needs_bytes` its bytes. device: "cpu" or "mixed".
    whole: decodes the whole image and slices it, for decoders whose region-of-interest path cannot be
    trusted; the pixels are the same.
    """
    encoded = file if needs_bytes else fn.io.file.read(file)
    if whole:
        image = fn.decoders.image(encoded, device=device, output_type=types.RGB)
        return cut(image, start, shape)
    return fn.decoders.image_slice(
        encoded, start=start, shape=shape, axis_names="HW", device=device, output_type=types.RGB
    )


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


def prepare(image: Node, region: Node, flip: Node, preprocessing: Preprocessing) -> Node:
    """Returns the network's input, float32 HWC [S, S, 3]: `region` resized to the input size S, normalised.

    region: float32 [4], top, left, bottom, right in pixels. flip: int32 scalar, 1 mirrors.
    """
    side = preprocessing.input_size
    square = fn.resize(
        image,
        size=[side, side],
        roi_start=region[0:2],
        roi_end=region[2:4],
        interp_type=INTERPOLATION[preprocessing.interpolation],
        antialias=True,
        dtype=types.UINT8,
    )
    return fn.crop_mirror_normalize(
        square,
        dtype=types.FLOAT,
        output_layout="HWC",
        mirror=flip,
        mean=[255 * m for m in preprocessing.mean],
        std=[255 * s for s in preprocessing.std],
    )
