"""The graphs for a GPU, as DALI's Python side makes them, which needs no GPU: each operator and its device.

Operators are named as DALI's schemas are. Sources are counted apart: they are the inputs.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import backend

from qrdali.data.index import Dataset
from qrdali.models import Preprocessing
from qrdali.pipelines import engine as chosen
from qrdali.pipelines import graphs
from qrdali.pipelines.decode_options import LARGE_PIXELS, has_large_images
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader

PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GPU = Engine(0, 2, 2)
STREAM = 0x7F00  # any handle

FILE = [("io__file__Read", "cpu")]
# The check that the header can be read and the window lies inside, which works on the host.
INSIDE = [
    ("_Shape", "cpu"),
    ("PeekImageShape", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("Reshape", "cpu"),
    ("Zeros", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("Slice", "cpu"),
    ("_Shape", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("Reshape", "cpu"),
    ("Zeros", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("Slice", "cpu"),
    ("_Shape", "cpu"),
    ("Cat", "cpu"),
    ("_TensorSubscript", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("Reshape", "cpu"),
]
DECODE = [("decoders__Image", "mixed"), ("Slice", "gpu")]
CUT = [("Slice", "gpu")]
# Predicates and numbers are split on the host, images on the GPU.
REDUCE = [
    ("_conditional__Split", "gpu"),
    ("_conditional__Split", "cpu"),
    ("Resize", "gpu"),
    ("_conditional__Merge", "gpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_conditional__Split", "gpu"),
    ("_conditional__Split", "cpu"),
    ("_ArithmeticGenericOp", "gpu"),  # & mask
    ("_conditional__Split", "cpu"),
    ("_ArithmeticGenericOp", "gpu"),  # + half
    ("_conditional__Split", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_conditional__Split", "gpu"),
    ("_conditional__Split", "cpu"),
    ("_conditional__Split", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("BrightnessContrast", "gpu"),
    ("Cast", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("Cast", "cpu"),
    ("_ArithmeticGenericOp", "cpu"),
    ("BrightnessContrast", "gpu"),
    ("_conditional__Merge", "gpu"),
    ("_conditional__Merge", "gpu"),
]
AXIS_PASS = [("Slice", "gpu"), ("Resize", "gpu"), ("_ArithmeticGenericOp", "gpu"), ("Cast", "gpu")]
SQUARE = [*CUT, *AXIS_PASS, *AXIS_PASS, ("Slice", "gpu")]
SQUARE_1 = [("_TensorSubscript", "cpu"), ("_TensorSubscript", "cpu"), ("Resize", "gpu")]
NORMALIZE = [("CropMirrorNormalize", "gpu")]
# Each between the split of the squares, with its number for each, and the merge.
DISTORTIONS = {
    "gray": [("CoordTransform", "gpu")],
    "contrast": [("Contrast", "gpu")],
    "blur": [("GaussianBlur", "gpu")],
    "noise": [
        ("_conditional__Split", "cpu"),  # the field, then copied to the GPU
        ("_ArithmeticGenericOp", "cpu"),
        ("_ArithmeticGenericOp", "gpu"),
        ("_ArithmeticGenericOp", "gpu"),
        ("Cast", "gpu"),
    ],
    "jpeg": [("JpegCompressionDistortion", "gpu")],
}

Graph = Callable[[], Any]
# By name: the graph, its operators, its sources on the host and on the GPU, and the devices of its outputs.
GRAPHS: dict[str, tuple[Graph, list[tuple[str, str]], tuple[int, int], str]] = {
    "decode": (lambda: graphs.decode_windows(source, GPU, 4), FILE + INSIDE + DECODE, (3, 0), "gpu"),
    "decode bytes": (lambda: graphs.decode_windows(source, GPU, 4, True), INSIDE + DECODE, (3, 0), "gpu"),
    "network": (
        lambda: graphs.network_input(source, GPU, 4, PRE),
        FILE + INSIDE + DECODE + REDUCE + SQUARE + NORMALIZE,
        (27, 0),
        "gpu cpu cpu",
    ),
    "network under the definitions 1": (
        lambda: graphs.network_input(source, GPU, 4, PRE, False, graphs.GraphKind(1)),
        FILE + INSIDE + DECODE + REDUCE + SQUARE_1 + NORMALIZE,
        (13, 0),
        "gpu cpu cpu",
    ),
    "candidates of color and crop": (
        lambda: graphs.candidates(source, GPU, 4, PRE, graphs.CandidateOutputs((0, 1), True)),
        FILE + INSIDE + DECODE + (REDUCE + SQUARE + NORMALIZE) + (CUT + REDUCE + SQUARE + NORMALIZE),
        (47, 0),
        "gpu gpu gpu gpu",
    ),
    "reduce for the network": (
        lambda: graphs.reduce_decoded(source, GPU, 4, PRE, STREAM),
        CUT + REDUCE + SQUARE + NORMALIZE,
        (23, 1),
        "gpu",
    ),
    "reduce": (lambda: graphs.reduce_decoded(source, GPU, 4, None, STREAM), CUT + REDUCE, (8, 1), "gpu"),
}


def distorted(name: str) -> Graph:
    return lambda: graphs.network_input(source, GPU, 4, PRE, False, graphs.GraphKind(2, (name,)))


GRAPHS |= {
    f"network with {name}": (
        distorted(name),
        [
            *(FILE + INSIDE + DECODE + REDUCE + SQUARE),
            ("_conditional__Split", "gpu"),
            ("_conditional__Split", "cpu"),
            *operators,
            ("_conditional__Merge", "gpu"),
            *NORMALIZE,
        ],
        (30 if name == "noise" else 29, 0),
        "gpu cpu cpu",
    )
    for name, operators in DISTORTIONS.items()
}


def source() -> Any:
    raise AssertionError("nothing runs")


def made(graph: Graph) -> Any:
    """The pipeline with its graph, which no GPU has seen."""
    pipeline = graph()
    pipeline._build_graph(None)
    return pipeline


def schema_of(operator: Any) -> str:
    return str(operator.spec).splitlines()[0].removeprefix("OpSpec for ").rstrip(":")


def operators(pipeline: Any) -> list[tuple[str, str]]:
    return [(schema_of(operator), operator._op.device) for operator in pipeline._ops]


def arguments(operator: Any) -> dict[str, str]:
    """The operator's constant arguments, as DALI writes them."""
    lines = str(operator.spec).partition("  Arguments:\n")[2].splitlines()
    return dict(line.strip().split(": ", 1) for line in lines if ": " in line and line.startswith("    "))


@pytest.mark.parametrize("name", GRAPHS)
def test_each_operator_is_where_it_should_be(name: str) -> None:
    graph, expected, sources, outputs = GRAPHS[name]
    pipeline = made(graph)
    found = operators(pipeline)
    assert [operator for operator in found if operator[0] != "ExternalSource"] == expected
    counts = Counter(found)
    assert (counts["ExternalSource", "cpu"], counts["ExternalSource", "gpu"]) == sources
    assert " ".join(output.device for output in pipeline._graph_outputs) == outputs


@pytest.mark.parametrize("name", GRAPHS)
def test_dali_has_each_operator_for_its_device(name: str) -> None:
    for operator, device in operators(made(GRAPHS[name][0])):
        assert device in backend.GetSchema(operator).GetSupportedBackends(), operator


@pytest.mark.parametrize("name", GRAPHS)
def test_whatever_works_on_images_gets_them_on_the_gpu(name: str) -> None:
    for operator in made(GRAPHS[name][0])._ops:
        regular = operator.inputs[: operator.spec.NumRegularInput()]
        if operator._op.device == "gpu" and regular:
            assert regular[0].device == "gpu"
            if schema_of(operator) == "_ArithmeticGenericOp":
                assert {node.device for node in regular} == {"gpu"}
        elif operator._op.device == "mixed":
            assert [node.device for node in regular] == ["cpu"]


WHOLE = {"hw_decoder_load": "0.000000", "jpeg_fancy_upsampling": "True", "device": "mixed"}
SMALL = {"device_memory_padding": "4194304", "host_memory_padding": "2097152"}


@pytest.mark.parametrize(
    ("engine", "operator", "expected"),
    [
        (Engine(0), "decoders__Image", WHOLE | SMALL),
        (Engine(3, has_large_images=True), "decoders__Image", WHOLE),
        (
            Engine(0, decode="windows"),
            "decoders__ImageSlice",
            {"hw_decoder_load": "0.000000", "device": "mixed", **SMALL},
        ),
        (Engine(), "decoders__ImageSlice", {"device": "cpu"}),
        (Engine(decode="whole"), "decoders__Image", {"device": "cpu"}),
    ],
)
def test_how_the_decoder_decodes(engine: Engine, operator: str, expected: dict[str, str]) -> None:
    pipeline = made(lambda: graphs.decode_windows(source, engine, 4))
    (decoder,) = [found for found in pipeline._ops if schema_of(found).startswith("decoders__")]
    assert schema_of(decoder) == operator
    told = arguments(decoder)
    options = ("device", "hw_decoder_load", "jpeg_fancy_upsampling", *SMALL)
    assert {name: told[name] for name in options if name in told} == expected


def test_originals_come_on_the_reducers_stream_and_are_copied_at_once() -> None:
    pipeline = made(lambda: graphs.reduce_decoded(source, GPU, 4, None, STREAM))
    (group,) = [group for group in pipeline._input_callbacks if group.instances[0]._op.device == "gpu"]
    assert (group._cuda_stream, group.use_copy_kernel) == (STREAM, True)


@pytest.mark.parametrize("is_large", [False, True])
def test_loader_and_reducer_look_at_their_images(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    monkeypatch.setattr(chosen, "has_large_images", lambda index: is_large)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device_id: None)
    index = dataset.index("train")
    loader, reducer = open_loader(index, PRE, 4, GPU), open_image_reducer(index, PRE, GPU)
    for made_of in (loader, reducer):
        assert made_of._engine.decode_options.has_large_images == is_large  # type: ignore[attr-defined]
    pipeline = made(loader._graph(None))  # type: ignore[attr-defined]
    (decoder,) = [found for found in pipeline._ops if schema_of(found).startswith("decoders__")]
    assert ("device_memory_padding" in arguments(decoder)) != is_large


@pytest.mark.parametrize("name", GRAPHS)
def test_each_pipeline_has_dalis_share_of_the_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "GPU", Engine(0, 64, 2, dali_threads=16))
    assert made(GRAPHS[name][0]).num_threads == 16


def test_building_a_graph_prints_nothing() -> None:
    """DALI's translation of Python would warn of what it cannot read, the whole environment included."""
    code = (
        "from qrdali.models import Preprocessing; from qrdali.pipelines import graphs;"
        "from qrdali.pipelines.engine import Engine;"
        "pre = Preprocessing(32, 'whole', 1, 'bilinear', (0,) * 3, (1,) * 3);"
        "graphs.network_input(None, Engine(0), 4, pre)._build_graph(None)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


class Sizes:
    """An index of `large` images among small ones."""

    def __init__(self, count: int, large: int) -> None:
        self.all = np.full((count, 2), 375)
        self.all[:: max(1, count // large) if large else count + 1][:large] = (700, 500)

    def __len__(self) -> int:
        return len(self.all)

    def sizes(self, samples: Any) -> Any:
        return self.all[samples]


@pytest.mark.parametrize(
    ("count", "large", "expected"),
    [(1, 0, False), (1, 1, True), (100, 10, False), (100, 11, True), (3000, 3000, True), (3000, 0, False)],
)
def test_buffers_are_for_nine_images_of_ten(count: int, large: int, expected: bool) -> None:
    assert 375 * 375 <= LARGE_PIXELS < 700 * 500
    assert has_large_images(Sizes(count, large)) == expected  # type: ignore[arg-type]
    engine = Engine(0).for_images(Sizes(count, large))  # type: ignore[arg-type]
    assert engine.decode_options.has_large_images == expected
    assert Engine().for_images(Sizes(count, large)) == Engine()  # type: ignore[arg-type]
