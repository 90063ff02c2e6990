"""Defines the DALI graphs. They draw nothing and keep nothing: every number comes from the source.

Each graph is a linear chain: read → decode → cut → resize → colour → prepare for the network, on the GPU from
the decode on. `source` is called once per batch and returns the structure of `graph_inputs` that each
function names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import nvidia.dali
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import do_not_convert

from qrdali.models import Preprocessing
from qrdali.pipelines import dali_augment, definitions_1
from qrdali.pipelines import dali_ops as ops
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.graph_inputs import (
    ANY_WIDTH,
    DECODE,
    POWER_OF_TWO,
    candidate_layout,
    decoded_layout,
    fill,
    flatten,
    network_layout,
)
from qrdali.reduction.auto_augment import Policy
from qrdali.reduction.distortions import BY_NAME
from qrdali.reduction.distortions.interface import Distortion


class GraphKind(NamedTuple):
    """Says what `network_input` is built for.

    definitions: as in `EpochPlan`. distortions: the names of those that a batch may have. policy: by which
    the operators of augmentations were drawn, None for no operators. erases: whether parts of images are
    erased.
    """

    definitions: int = 2
    distortions: tuple[str, ...] = ()
    policy: Policy | None = None
    erases: bool = False


PLAIN = GraphKind()


class CandidateOutputs(NamedTuple):
    """Says what `candidates` gives out.

    columns: the dimension that each of the K columns moves. with_images: whether the reduced images are
    wanted besides the network's inputs.
    """

    columns: tuple[int, ...]
    with_images: bool


def network_input(
    source: Callable[[], Any],
    engine: Engine,
    batch_size: int,
    preprocessing: Preprocessing,
    needs_bytes: bool = False,
    kind: GraphKind = PLAIN,
) -> Any:
    """Returns a pipeline from `NetworkInputs` to (images float32 HWC, labels, samples)."""
    distortions = [BY_NAME[name] for name in kind.distortions]
    policy, erases = kind.policy, kind.erases
    names = network_layout(kind.definitions, kind.distortions, policy is not None, erases)

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        inputs = _receive(source, names)
        image = _read(inputs, engine, needs_bytes)
        image = _reduce_resolution_and_color(image, inputs.image.reduction)
        if kind.definitions == 1:
            square = definitions_1.square_in_graph(image, inputs.image.region, preprocessing)
        else:
            square = ops.square(image, inputs.image.square, preprocessing)
        for i, distortion in enumerate(distortions):
            square = _distort(square, distortion, inputs.distortions[i])
        if policy is None and not erases:
            return ops.normalize(square, inputs.flip, preprocessing), inputs.label, inputs.sample
        # Augmentation comes after the flip, as in torchvision's recipes.
        square = fn.flip(square, horizontal=inputs.flip)
        if policy is not None:
            side = preprocessing.input_size
            square = dali_augment.auto_augment(square, inputs.augment.operators, policy, side)
        images = ops.normalize(square, 0, preprocessing)
        if erases:
            images = dali_augment.erase(images, inputs.augment.erased)
        return images, inputs.label, inputs.sample

    return _instance(graph, engine, batch_size)


def decode_windows(
    source: Callable[[], Any], engine: Engine, batch_size: int, needs_bytes: bool = False
) -> Any:
    """Returns a pipeline from `DecodeInputs` to the decoded windows, uint8 HWC of their own sizes."""

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        return _read(_receive(source, DECODE), engine, needs_bytes)

    return _instance(graph, engine, batch_size)


def candidates(
    source: Callable[[], Any],
    engine: Engine,
    batch_size: int,
    preprocessing: Preprocessing,
    outputs: CandidateOutputs,
    needs_bytes: bool = False,
) -> Any:
    """Returns a pipeline from `CandidateInputs` to network inputs float32 HWC, an output per column.

    With `outputs.with_images` the reduced images uint8 HWC follow, an output per column too. Each image is
    decoded once; only columns that move the crop cut the decoded window.
    """

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        inputs = _receive(source, candidate_layout(outputs.columns))
        decoded = _read(inputs, engine, needs_bytes)
        network_inputs, reduced_images = [], []
        for column in inputs.columns:
            image = decoded
            if column.window is not None:
                image = ops.cut(image, column.window.start, column.window.shape)
            image = _reduce_resolution_and_color(image, column.reduction)
            reduced_images.append(image)
            square = ops.square(image, column.square, preprocessing)
            network_inputs.append(ops.normalize(square, 0, preprocessing))
        return tuple(network_inputs + reduced_images if outputs.with_images else network_inputs)

    return _instance(graph, engine, batch_size)


def reduce_decoded(
    source: Callable[[], Any],
    engine: Engine,
    batch_size: int,
    preprocessing: Preprocessing | None,
    stream: Any = None,
) -> Any:
    """Returns a pipeline from `DecodedInputs`, pixels instead of files, to network inputs float32 HWC.

    Without `preprocessing` it gives the reduced images uint8 HWC. It works on one batch at each run and reads
    none ahead. stream: the CUDA stream on which a GPU's pixels were written and may be overwritten.
    """
    is_gpu = engine.device_id is not None
    feed = {
        "device": "gpu" if is_gpu else "cpu",
        "cuda_stream": stream,
        "use_copy_kernel": is_gpu,  # one for the batch instead of a copy per image
    }
    names = decoded_layout(with_square=preprocessing is not None)

    @pipeline_def(enable_conditionals=True)
    def graph() -> Any:
        pixels = fn.external_source(lambda: source().pixels, batch=True, layout="HWC", **feed)
        inputs = _receive(lambda: source().image, names)
        image = ops.cut(pixels, inputs.window.start, inputs.window.shape)
        image = _reduce_resolution_and_color(image, inputs.reduction)
        if preprocessing is None:
            return image
        return ops.normalize(ops.square(image, inputs.square, preprocessing), 0, preprocessing)

    return graph(
        batch_size=batch_size,
        num_threads=engine.num_dali_threads,
        device_id=engine.device_id,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )


def _read(inputs: Any, engine: Engine, needs_bytes: bool) -> Any:
    window = inputs.window
    return ops.read(inputs.files, window.start, window.shape, engine.decode_options, needs_bytes)


def _reduce_resolution_and_color(image: Any, reduction: Any) -> Any:
    """Reduces resolution, then colours, each only for the samples that need it: DALI splits the batch."""
    if reduction.resized:
        image = ops.resolution(image, reduction.size)
    if reduction.binning == POWER_OF_TWO:
        image = ops.color_power_of_two(image, reduction.mask, reduction.half)
    elif reduction.binning == ANY_WIDTH:
        image = ops.color_any(image, reduction.bin_width)
    return image


def _distort(image: Any, distortion: Distortion, inputs: Any) -> Any:
    if inputs.applied:
        image = _apply(image, distortion, inputs)
    return image


@do_not_convert
def _apply(image: Any, distortion: Distortion, inputs: Any) -> Any:
    field = inputs.field
    if field is not None and image.device == "gpu":
        field = field.gpu()
    return distortion.in_graph(nvidia.dali, image, inputs.amount, field)


@do_not_convert
def _receive(source: Callable[[], Any], names: tuple[Any, ...]) -> Any:
    """Returns the structure that `source` emits, with DALI's nodes in place of the arrays."""
    count = len(flatten(names))
    nodes = fn.external_source(lambda: flatten(source()), num_outputs=count, batch=True)
    return fill(names, iter(nodes))


def _instance(graph: Any, engine: Engine, batch_size: int) -> Any:
    return graph(
        batch_size=batch_size,
        num_threads=engine.num_dali_threads,
        device_id=engine.device_id,
        prefetch_queue_depth=engine.depth,
    )
