"""On which stream the reducer of a GPU does what, with streams that are names only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

from qrdali.data.index import Dataset
from qrdali.models import Preprocessing
from qrdali.pipelines import graphs, image_reducer
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import GraphImageReducer
from qrdali.reduction.quality import ReductionParams

PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.5,) * 3, (0.25,) * 3)


class Output:
    """A batch of images of DALI's, and each of them."""

    def __getitem__(self, i: int) -> Any:
        return self

    def as_tensor(self) -> Any:
        return self

    def shape(self) -> list[int]:
        return [72, 96, 3]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was done, and the stream that was current or named then."""
    current = ["the caller's"]
    log: list[tuple[str, str]] = []

    @contextmanager
    def on_stream(stream: str) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    def allocated(*shape: Any, **options: Any) -> torch.Tensor:
        log.append(("allocate", current[-1]))
        return torch.zeros(1, 1, 1, 1)

    def run(self: Pipeline) -> tuple[Output]:
        log.append(("run", current[-1]))
        return (Output(),)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device_id: f"own of GPU {device_id}")
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device_id: current[-1])
    monkeypatch.setattr(torch, "empty", allocated)
    monkeypatch.setattr(Pipeline, "run", run)
    monkeypatch.setattr(
        image_reducer, "feed_ndarray", lambda source, target, cuda_stream: log.append(("copy", cuda_stream))
    )
    return log


def test_originals_are_on_the_own_stream_and_the_networks_inputs_on_the_callers(
    dataset: Dataset, done: list[tuple[str, str]]
) -> None:
    reducer = GraphImageReducer(dataset.index("train"), PRE, Engine(1))
    reducer._take_image(Output(), 0)
    assert done == [("allocate", "own of GPU 1"), ("copy", "own of GPU 1")]
    done.clear()
    window = np.array([[0, 0, 72, 96]], np.int32)
    reducer.network_inputs([None], ReductionParams(window, window[:, 2:], np.ones(1, np.int32)))
    assert done == [("allocate", "the caller's"), ("run", "own of GPU 1"), ("copy", "the caller's")]


def test_a_pipeline_is_built_once_for_all_batches_of_a_search(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    right = graphs.reduce_decoded

    def build(source: Any, engine: Engine, batch_size: int, *rest: Any) -> Any:
        built.append(batch_size)
        return right(source, engine, batch_size, *rest)

    monkeypatch.setattr(graphs, "reduce_decoded", build)
    reducer = GraphImageReducer(dataset.index("train"), PRE, Engine(threads=1, whole_graph=True))
    pixels = np.zeros((8, 8, 3), np.uint8)
    for count in (1, 24, 256, 257, 2):
        window = np.array([[0, 0, 8, 8]] * count, np.int32)
        params = ReductionParams(window, window[:, 2:], np.ones(count, np.int32))
        assert len(reducer.reduced_images([pixels] * count, params)) == count
    assert built == [256, 257]
