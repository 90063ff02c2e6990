"""Memory of batches that is used again."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from qrdali.batch import Loader
from qrdali.data.index import Dataset
from qrdali.levels import FULL
from qrdali.models import Preprocessing
from qrdali.pipelines.buffers import Buffers
from qrdali.pipelines.graphs import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.plan import Plan

PRE = Preprocessing(32, "whole", .875, "bilinear", (.485, .456, .406), (.229, .224, .225))


@pytest.mark.parametrize("held", [lambda t: t, lambda t: t.permute(0, 2, 1)[1:], lambda t: t.numpy(), lambda t: t.numpy()[0, 0],
                                  lambda t: t.detach(), lambda t: torch.from_numpy(t.numpy()).view(-1)])
def test_memory_comes_back_when_nothing_refers_to_it(held: Callable[[torch.Tensor], Any]) -> None:
    buffers = Buffers()
    first = buffers.take(2, 3, 4)
    place = first.data_ptr()
    first[:] = 7
    part = held(first)
    del first
    other = buffers.take(2, 3, 4)
    other[:] = 1
    assert other.data_ptr() != place
    assert (np.asarray(part) == 7).all()
    del part
    again = buffers.take(4, 3, 1)  # a last batch may be smaller
    assert (again.data_ptr(), again.shape, again.dtype, again.is_contiguous()) == (place, (4, 3, 1), torch.float32, True)
    del again
    assert buffers.take(9, 9).shape == (9, 9)  # or larger


def test_any_number_of_batches_may_be_kept() -> None:
    buffers, kept = Buffers(), []
    for i in range(9):
        kept.append(buffers.take(5, 5))
        kept[-1][:] = i
    assert [int(t.unique()) for t in kept] == list(range(9))
    assert len({t.data_ptr() for t in kept}) == 9


def places(loader: Loader, plan: Plan, keep: bool) -> tuple[set[int], list[Any]]:
    found, kept = set(), []
    for batch in loader.epoch(plan):
        found.add(batch.images.data_ptr())
        if keep:
            kept.append((batch, batch.images.clone()))
    return found, kept


def test_an_epoch_uses_the_memory_of_few_batches_and_none_that_is_held(dataset: Dataset) -> None:
    index = dataset.index("train")
    ours, plan = open_loader(index, PRE, 2, Engine(threads=2)), Plan(len(index), 2, FULL, training=True, augment="flip")
    assert len(places(ours, plan, False)[0]) <= 3
    found, kept = places(ours, plan, True)
    assert len(found) == 12
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)
