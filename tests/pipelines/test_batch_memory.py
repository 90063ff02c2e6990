"""Tests that the memory of batches is used again, and never while somebody holds the batch."""

from __future__ import annotations

import gc

import numpy as np
import torch

from qrdali.pipelines.batch_memory import BatchMemory


def filled(memory: BatchMemory, value: float, *shape: int) -> torch.Tensor:
    tensor = memory.lend(*shape)
    tensor.fill_(value)
    return tensor


def test_memory_that_nobody_holds_is_lent_again():
    memory = BatchMemory()
    tensor = memory.lend(2, 3)
    first = tensor.data_ptr()
    del tensor
    again = memory.lend(3, 2)
    assert again.data_ptr() == first
    assert again.shape == (3, 2)
    assert again.is_contiguous()
    assert again.dtype == torch.float32


def test_a_batch_keeps_its_values_however_it_is_held():
    memory = BatchMemory()
    tensor = filled(memory, 1, 4, 8, 8, 3)
    view = tensor.permute(0, 3, 1, 2)[2:]
    array = filled(memory, 2, 4, 8, 8, 3).numpy()[1]
    weight = torch.ones((), requires_grad=True)
    product = weight * filled(memory, 3, 4, 8, 8, 3)  # autograd keeps the factor
    del tensor
    gc.collect()
    for _ in range(8):
        filled(memory, -1, 4, 8, 8, 3)
    assert (view == 1).all()
    assert np.all(array == 2)
    product.sum().backward()
    assert weight.grad == 3 * 4 * 8 * 8 * 3


def test_a_larger_batch_gets_memory_of_its_own_and_a_smaller_one_a_part():
    memory = BatchMemory()
    small = memory.lend(4)
    del small
    large = filled(memory, 5, 9)
    first = large.data_ptr()
    assert (large == 5).all()
    del large
    assert memory.lend(3).data_ptr() == first


def test_no_more_than_three_pieces_wait_for_later():
    memory = BatchMemory()
    lent = [memory.lend(16) for _ in range(5)]
    pointers = {tensor.data_ptr() for tensor in lent}
    lent.clear()
    again = [memory.lend(16) for _ in range(3)]
    assert {tensor.data_ptr() for tensor in again} <= pointers
    assert len(memory._free) == 0
