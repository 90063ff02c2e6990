"""The named structures that feed graphs: their order, and the dtypes and shapes they are said to have."""

from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from qrdali.data.index import Dataset
from qrdali.interfaces import CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import graph_inputs
from qrdali.pipelines.external_source import candidate_inputs, network_inputs, prepared_batches
from qrdali.pipelines.graph_inputs import (
    DECODE,
    CandidateInputs,
    ImageInputs,
    NetworkInputs,
    PixelReduction,
    WindowBounds,
    candidate_layout,
    decoded_layout,
    fill,
    flatten,
    network_layout,
)
from qrdali.reduction.levels import ConstantLevels
from qrdali.reduction.neighbors import column_dimensions, neighbors_of
from qrdali.reduction.quality import QUARTERS, REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan

PRE = Preprocessing(32, "center", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Columns of the fields that are not [N].
WIDTHS = {"start": 2, "shape": 2, "size": 2, "roi_start": 2, "roi_end": 2, "corner": 2}


def check_arrays(structure: Any, count: int) -> None:
    """Every array has the dtype of its annotation, `count` rows, and is contiguous."""
    for name, hint in get_type_hints(type(structure)).items():
        value = getattr(structure, name)
        if name == "files":
            assert [file.dtype for file in value] == [np.uint8] * count
        elif name == "gain":
            assert [gain.dtype for gain in value] == [np.float32] * count
            # In the order of the passes each is one row or one column.
            assert all(1 in gain.shape[:2] and gain.shape[2] == 1 for gain in value)
        elif isinstance(value, tuple):
            for part in [value] if hasattr(value, "_fields") else value:
                check_arrays(part, count)
        elif value is not None:
            declared = next(a for a in (hint, *get_args(hint)) if get_origin(a) is np.ndarray)
            assert value.dtype == get_args(get_args(declared)[1])[0], name
            assert value.shape == ((count, WIDTHS[name]) if name in WIDTHS else (count,)), name
            assert value.flags.c_contiguous, name


def test_the_arrays_of_a_plan_are_as_declared(dataset: Dataset) -> None:
    index = dataset.index("train")
    plan = EpochPlan(len(index), 5, ConstantLevels(1, 2, 3), training=True, augment="flip")
    batch = next(prepared_batches(plan, index, PRE))
    inputs = network_inputs(index.path_bytes(batch.samples), batch, PRE)
    check_arrays(inputs, 5)
    assert len(flatten(inputs)) == len(flatten(network_layout(2))) == 27
    assert inputs.image.reduction.binning.tolist() == [graph_inputs.POWER_OF_TWO] * 5


@pytest.mark.parametrize("reduction", ["color", "crop", "resolution", "combination"])
def test_the_arrays_of_candidates_are_as_declared(dataset: Dataset, reduction: str) -> None:
    index, samples = dataset.index("train"), np.arange(3)
    sizes, levels = index.sizes(samples), np.array([[0, 0, 0], [3, 3, 3], [1, 1, 1]], np.uint8)
    window = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    request = CandidateRequest(
        samples, window, neighbors_of(levels, window, sizes, REDUCTIONS[reduction], QUARTERS)
    )
    columns = column_dimensions(REDUCTIONS[reduction])
    inputs = candidate_inputs(index.path_bytes(samples), request, columns, PRE)
    check_arrays(inputs, 3)
    assert len(flatten(inputs)) == len(flatten(candidate_layout(columns)))


def test_widths_of_bins_choose_how_they_are_computed() -> None:
    shape = np.full((5, 2), 7, np.int32)
    size = shape - np.array([[0, 0], [0, 0], [0, 0], [1, 0], [0, 1]], np.int32)
    reduction = graph_inputs.pixel_reduction(shape, size, np.array([1, 2, 3, 127, 128], np.int32))
    assert reduction.resized.tolist() == [False, False, False, True, True]
    assert reduction.binning.tolist() == [0, 1, 2, 2, 1]
    assert reduction.mask.tolist() == [255, 254, 0, 0, 128]
    assert reduction.half.tolist() == [0, 1, 1, 63, 64]


def test_a_graph_gets_back_the_structure_that_was_flattened() -> None:
    assert flatten(DECODE) == ("files", "start", "shape")
    for names in (
        DECODE,
        network_layout(2),
        decoded_layout(True),
        decoded_layout(False),
        candidate_layout((0, 2, 1, 1)),
    ):
        flat = flatten(names)
        assert fill(names, iter(flat)) == names
        assert fill(names, iter(range(len(flat)))) != names
    network = fill(network_layout(2), iter(range(27)))
    assert isinstance(network, NetworkInputs)
    assert isinstance(network.image, ImageInputs)
    assert isinstance(network.image.reduction, PixelReduction)
    assert network.image.window is None
    assert (network.window, network.flip, network.sample) == (WindowBounds(1, 2), 24, 26)


def test_only_crops_cut_a_window_of_their_own() -> None:
    layout = candidate_layout((0, 2, 1))
    assert isinstance(layout, CandidateInputs)
    assert [column.window for column in layout.columns] == [None, None, WindowBounds("start", "shape")]
    assert decoded_layout(False).square is None


def test_an_epoch_of_definitions_1_has_one_region_for_each_image(dataset: Dataset) -> None:
    index = dataset.index("train")
    plan = EpochPlan(len(index), 5, ConstantLevels(1, 2, 3), training=True, augment="flip", definitions=1)
    batch = next(prepared_batches(plan, index, PRE))
    inputs = network_inputs(index.path_bytes(batch.samples), batch, PRE)
    assert inputs.image.square is None
    assert inputs.image.region is not None
    assert inputs.image.region.shape == (5, 4)
    assert inputs.image.region.dtype == np.float32
    assert len(flatten(inputs)) == len(flatten(network_layout(1))) == 13
