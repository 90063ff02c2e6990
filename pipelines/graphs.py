"""The DALI graphs. Nothing here is random: every number comes from the source, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import do_not_convert

from qrdali.models import Preprocessing
from qrdali.pipelines import dali_ops as ops
from qrdali.pipelines.engine import Engine
from qrdali.reduction.quality import CROP

INTERPOLATION = {
    "nearest": types.INTERP_NN,
    "bilinear": types.INTERP_TRIANGULAR,
    "bicubic": types.INTERP_CUBIC,
    "lanczos": types.INTERP_LANCZOS3,
}

# The arrays a source emits per batch, in this order; [N, …] unless said otherwise.
REDUCTION = (
    "start",  # int32 [2] top, left
    "shape",  # int32 [2] height, width of the window
    "size",  # float32 [2] height, width after the resolution reduction
    "resized",  # bool: size differs from shape
    "bin_width",  # float32
    "mask",  # uint8 256 - d where d is a power of two
    "half",  # uint8 d / 2
    "binned",  # uint8: 0 for d = 1, 1 for a power of two, 2 otherwise
)
INPUTS = (
    "path",  # list of N uint8 [length]: names of files, or their bytes if `apart`
    "sample",  # int64
    *REDUCTION,
    "label",  # int64
    "region",  # float32 [4] top, left, bottom, right of the reduced image that the network sees
    "flip",  # int32
)
WINDOW_INPUTS = ("path", "start", "shape")
DECODED_INPUTS = (*REDUCTION, "region")


def _read_and_reduce(inputs: dict[str, Any], engine: Engine, apart: bool) -> Any:
    """Crop, resolution and colour, each only for the samples that need it."""
    image = ops.read(
        inputs["path"], inputs["start"], inputs["shape"], engine.decode_device, engine.whole_decode, apart
    )
    return _reduce_resolution_and_color(image, inputs)


def _reduce_resolution_and_color(image: Any, inputs: dict[str, Any]) -> Any:
    if inputs["resized"]:
        image = ops.resolution(image, inputs["size"])
    if inputs["binned"] == 1:
        image = ops.color_power_of_two(image, inputs["mask"], inputs["half"])
    elif inputs["binned"] == 2:
        image = ops.color_any(image, inputs["bin_width"])
    return image


def network_input(
    source: Callable[[], Any],
    engine: Engine,
    batch_size: int,
    preprocessing: Preprocessing,
    apart: bool = False,
) -> Any:
    """A pipeline of (images float32 HWC, labels, samples), built at its first run."""

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        inputs = _inputs(source, INPUTS)
        image = _read_and_reduce(inputs, engine, apart)
        image = ops.prepare(
            image,
            inputs["region"],
            inputs["flip"],
            preprocessing.input_size,
            INTERPOLATION[preprocessing.interpolation],
            [255 * m for m in preprocessing.mean],
            [255 * s for s in preprocessing.std],
        )
        return image, inputs["label"], inputs["sample"]

    return _instance(graph, engine, batch_size)


def decode_windows(source: Callable[[], Any], engine: Engine, batch_size: int, apart: bool = False) -> Any:
    """A pipeline of decoded windows, uint8 HWC of their own sizes."""

    @pipeline_def
    def graph() -> Any:
        inputs = _inputs(source, WINDOW_INPUTS)
        return ops.read(
            inputs["path"], inputs["start"], inputs["shape"], engine.decode_device, engine.whole_decode, apart
        )

    return _instance(graph, engine, batch_size)


def _column_inputs(dimension: int) -> tuple[str, ...]:
    return (*REDUCTION[0 if dimension == CROP else 2 :], "region")  # start and shape are a crop's own


def candidate_inputs(columns: tuple[int, ...]) -> tuple[str, ...]:
    """The arrays of `candidates`: the window to decode, then the reduction and region of each column."""
    return (
        "path",
        "start",
        "shape",
        *(f"{name}{k}" for k, d in enumerate(columns) for name in _column_inputs(d)),
    )


def candidates(
    source: Callable[[], Any],
    engine: Engine,
    batch_size: int,
    preprocessing: Preprocessing,
    columns: tuple[int, ...],
    with_images: bool,
    apart: bool = False,
) -> Any:
    """A pipeline of network inputs, one output per column; with `pictures`, then the reduced images, one output per column.

    Each image is decoded once; `dimensions` says what each column moves, and only crops (1) cut the decoded window.
    """
    mean, std = [255 * m for m in preprocessing.mean], [255 * s for s in preprocessing.std]

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        inputs = _inputs(source, candidate_inputs(columns))
        decoded = ops.read(
            inputs["path"], inputs["start"], inputs["shape"], engine.decode_device, engine.whole_decode, apart
        )
        seen, reduced = [], []
        for k, dimension in enumerate(columns):
            own = _column(inputs, k, dimension)
            image = decoded
            if dimension == CROP:
                image = ops.cut(image, own["start"], own["shape"])
            image = _reduce_resolution_and_color(image, own)
            reduced.append(image)
            seen.append(
                ops.prepare(
                    image,
                    own["region"],
                    0,
                    preprocessing.input_size,
                    INTERPOLATION[preprocessing.interpolation],
                    mean,
                    std,
                )
            )
        return tuple(seen + reduced if with_images else seen)

    return _instance(graph, engine, batch_size)


def reduce_decoded(
    source: Callable[[], Any], engine: Engine, batch_size: int, preprocessing: Preprocessing | None
) -> Any:
    """A pipeline over decoded originals instead of files: network inputs float32 HWC, or without `preprocessing` the
    reduced images uint8 HWC. The source gives one batch at each run: pixels uint8 HWC, then `KEPT_INPUTS`."""
    device = "cpu" if engine.device_id is None else "gpu"
    names = REDUCTION if preprocessing is None else DECODED_INPUTS

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        pixels = fn.external_source(lambda: source()[0], batch=True, device=device, layout="HWC")
        inputs = _inputs(lambda: source()[1 : 1 + len(names)], names)
        image = _reduce_resolution_and_color(ops.cut(pixels, inputs["start"], inputs["shape"]), inputs)
        if preprocessing is None:
            return image
        return ops.prepare(
            image,
            inputs["region"],
            0,
            preprocessing.input_size,
            INTERPOLATION[preprocessing.interpolation],
            [255 * m for m in preprocessing.mean],
            [255 * s for s in preprocessing.std],
        )

    return graph(
        batch_size=batch_size,
        num_threads=engine.threads,
        device_id=engine.device_id,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )


@do_not_convert
def _column(inputs: dict[str, Any], k: int, dimension: int) -> dict[str, Any]:
    return {name: inputs[f"{name}{k}"] for name in _column_inputs(dimension)}


@do_not_convert
def _inputs(source: Callable[[], Any], names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, fn.external_source(source, num_outputs=len(names), batch=True), strict=True))


def _instance(graph: Any, engine: Engine, batch_size: int) -> Any:
    return graph(
        batch_size=batch_size,
        num_threads=engine.threads,
        device_id=engine.device_id,
        prefetch_queue_depth=engine.depth,
    )
