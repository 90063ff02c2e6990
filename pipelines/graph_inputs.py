"""Names the arrays that a source hands to a DALI graph with each batch, with their dtypes and shapes.

A source returns one of these structures per batch. DALI's external source knows only a flat tuple, so
`flatten` lists the arrays in the order of the fields, and `fill` gives the graph the same structure back with
DALI's nodes in place of the arrays. N is the number of images of the batch; a window is given in pixels of
the upright image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt

from qrdali.pipelines.file_reader import Files
from qrdali.reduction.distortions import BY_NAME, DistortionParams
from qrdali.reduction.quality import CROP

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Gains = list[npt.NDArray[np.float32]]

NO_BINS, POWER_OF_TWO, ANY_WIDTH = 0, 1, 2  # values of `PixelReduction.binning`


class WindowBounds(NamedTuple):
    """Holds the windows to decode or to cut out."""

    start: Int32  # [N, 2] top, left
    shape: Int32  # [N, 2] height, width


class PixelReduction(NamedTuple):
    """Holds the resolution and the colour reduction of decoded windows."""

    size: Float32  # [N, 2] height, width after it, whole numbers: `fn.resize` takes floats only
    resized: Bool  # [N] whether `size` differs from the window's shape
    bin_width: Float32  # [N] width d of a colour bin, 1 to 128, or 256
    mask: UInt8  # [N] 256 - d where d is a power of two, 0 elsewhere
    half: UInt8  # [N] floor(d / 2)
    binning: UInt8  # [N] NO_BINS for d = 1, POWER_OF_TWO, or ANY_WIDTH


class AxisPass(NamedTuple):
    """Holds one of the two resizes, an axis each, that make the square which a network sees."""

    start: Int32  # [N, 2] top, left of the pixels that it reads; beyond the image there are zeros
    shape: Int32  # [N, 2] height, width of them
    size: Float32  # [N, 2] height, width after it, whole numbers
    roi_start: Float32  # [N, 2] top, left of what is resized to `size`, in the pixels read, not always whole
    roi_end: Float32  # [N, 2] bottom, right
    gain: Gains  # N times float32 [height, 1, 1] or [1, width, 1], which the result is multiplied by


class SquareInputs(NamedTuple):
    """Holds how the square that a network sees is made of a reduced image."""

    region: WindowBounds  # what is resized; the rest of the image does not count
    first: AxisPass
    second: AxisPass
    corner: Int32  # [N, 2] top, left of the square in the result, 0 or less: beyond the result it is padded


class ImageInputs(NamedTuple):
    """Holds what becomes of decoded pixels; a field that is None is not part of the graph."""

    window: WindowBounds | None  # what is cut out of the decoded pixels; None: all of them are wanted
    reduction: PixelReduction
    square: SquareInputs | None  # what the network sees of the reduced image
    region: Float32 | None  # [N, 4] top, left, bottom, right: the same under the definitions 1


class DistortionInputs(NamedTuple):
    """Holds what one distortion does to the squares that a network sees."""

    applied: Bool  # [N]
    amount: npt.NDArray[Any]  # [N, …] as `Distortion.amounts`
    field: list[npt.NDArray[np.int16]] | None  # N times [S, S, 3], or [1, 1, 3] where it is not applied


class OperatorInputs(NamedTuple):
    """Holds which K operators each square goes through."""

    operator: Int32  # [N, K] numbers of OPERATORS of `reduction.auto_augment`
    bin: Int32  # [N, K] which of an operator's magnitudes
    negative: Int32  # [N, K] 1 negates it


class AugmentInputs(NamedTuple):
    """Holds how the squares that a network sees are augmented; a field that is None is not part of the
    graph."""

    operators: OperatorInputs | None
    erased: WindowBounds | None  # all 0 for images of which nothing is erased


class DecodeInputs(NamedTuple):
    """Feeds `graphs.decode_windows`."""

    files: Files  # N times uint8 [length]: the file's name, or its bytes
    window: WindowBounds


class NetworkInputs(NamedTuple):
    """Feeds `graphs.network_input`."""

    files: Files  # N times uint8 [length]: the file's name, or its bytes
    window: WindowBounds
    image: ImageInputs
    distortions: tuple[DistortionInputs, ...]  # in the order in which they are applied
    augment: AugmentInputs | None
    flip: Int32  # [N] 1 mirrors
    label: Int64  # [N] class
    sample: Int64  # [N] number of the image in its index


class CandidateInputs(NamedTuple):
    """Feeds `graphs.candidates`: each file is decoded once, then reduced as each column says."""

    files: Files  # N times uint8 [length]: the file's name, or its bytes
    window: WindowBounds
    columns: tuple[ImageInputs, ...]  # K


class DecodedInputs(NamedTuple):
    """Feeds `graphs.reduce_decoded`."""

    pixels: list[Any]  # N times uint8 [height, width, 3], on the graph's device
    image: ImageInputs


def window_bounds(window: Int32) -> WindowBounds:
    """Returns the bounds of windows [N, 4] (top, left, height, width), contiguous: DALI takes no strides."""
    return WindowBounds(np.ascontiguousarray(window[:, :2]), np.ascontiguousarray(window[:, 2:]))


def pixel_reduction(shape: Int32, size: Int32, bin_width: Int32) -> PixelReduction:
    """Returns the reduction of windows of `shape` [N, 2] to `size` [N, 2] and bins of `bin_width` [N]."""
    is_power = bin_width & (bin_width - 1) == 0
    binning = np.where(bin_width == 1, NO_BINS, np.where(is_power, POWER_OF_TWO, ANY_WIDTH))
    return PixelReduction(
        size=size.astype(np.float32),
        resized=(size != shape).any(axis=1),
        bin_width=bin_width.astype(np.float32),
        mask=np.where(is_power, 256 - bin_width, 0).astype(np.uint8),  # 255 for d = 1, which nobody masks
        half=(bin_width // 2).astype(np.uint8),
        binning=binning.astype(np.uint8),
    )


def distortion_inputs(params: DistortionParams, side: int) -> DistortionInputs:
    """Returns the inputs of one distortion of squares of `side` pixels."""
    field = None
    if BY_NAME[params.name].has_field:
        drawn = (params.field(i, (side, side, 3)) for i in range(len(params.applied)))
        field = [one for one in drawn if one is not None]
    return DistortionInputs(params.applied, params.amount, field)


def flatten(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the arrays of a structure in the order of its fields; those that are None are left out."""
    arrays: list[Any] = []
    for value in inputs:
        if isinstance(value, tuple):
            arrays += flatten(value)
        elif value is not None:
            arrays.append(value)
    return tuple(arrays)


def layout(kind: Any, **parts: Any) -> Any:
    """Returns a structure of `kind` that holds each field's name instead of an array, also in nested ones.

    parts: fields that are given instead, which those that may be None or repeated must be.
    """
    fields = dict(parts)
    for name, hint in get_type_hints(kind).items():
        if name not in parts:
            fields[name] = layout(hint) if hasattr(hint, "_fields") else name
    return kind(**fields)


def fill(names: tuple[Any, ...], nodes: Iterator[Any]) -> Any:
    """Returns a structure like `names` with one of `nodes` for each name, in the order of `flatten`."""
    values: list[Any] = []
    for value in names:
        if isinstance(value, tuple):
            values.append(fill(value, nodes))
        else:
            values.append(None if value is None else next(nodes))
    return type(names)(*values) if hasattr(names, "_fields") else tuple(values)


DECODE = layout(DecodeInputs)
SQUARE = layout(SquareInputs)
NETWORK = layout(
    NetworkInputs,
    image=layout(ImageInputs, window=None, square=SQUARE, region=None),
    distortions=(),
    augment=None,
)
NETWORK_1 = NETWORK._replace(image=layout(ImageInputs, window=None, square=None, region="region"))


def network_layout(
    definitions: int, distortions: Sequence[str] = (), has_operators: bool = False, erases: bool = False
) -> Any:
    """Returns the layout of `NetworkInputs` under definitions 1 or 2, with distortions by name, and with or
    without operators of augmentations and windows that are erased.
    """
    base = NETWORK_1 if definitions == 1 else NETWORK
    fields = ("field" if BY_NAME[name].has_field else None for name in distortions)
    augment = None
    if has_operators or erases:
        augment = AugmentInputs(
            layout(OperatorInputs) if has_operators else None, layout(WindowBounds) if erases else None
        )
    distorted = tuple(layout(DistortionInputs, field=field) for field in fields)
    return base._replace(distortions=distorted, augment=augment)


def candidate_layout(columns: tuple[int, ...]) -> Any:
    """Returns the layout of `CandidateInputs` whose columns move the dimensions `columns`.

    Only crops cut a window of their own.
    """
    return layout(
        CandidateInputs,
        columns=tuple(
            layout(
                ImageInputs,
                window=layout(WindowBounds) if dimension == CROP else None,
                square=SQUARE,
                region=None,
            )
            for dimension in columns
        ),
    )


def decoded_layout(with_square: bool) -> Any:
    """Returns the layout of `DecodedInputs.image`, with the square where the network's input is wanted."""
    return layout(
        ImageInputs, window=layout(WindowBounds), square=SQUARE if with_square else None, region=None
    )
