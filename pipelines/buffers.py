"""Memory for one batch of images after another."""

from __future__ import annotations

import weakref

import numpy as np
import numpy.typing as npt
import torch

_KEPT = 4  # a loader has two batches in hand and whoever asked has one or two


class Buffers:
    """Hands out tensors whose memory comes back when nothing refers to them any more. The kernel clears each page of fresh memory, which
    for images of 224 px takes a tenth of the time that decoding and resizing do."""

    def __init__(self) -> None:
        self._kept: list[tuple[npt.NDArray[np.float32], weakref.ref[npt.NDArray[np.float32]]]] = []

    def take(self, *shape: int) -> torch.Tensor:
        """A float32 tensor of `shape`; its content is arbitrary."""
        size = int(np.prod(shape))
        number = next((i for i, (_, lent) in enumerate(self._kept) if lent() is None), len(self._kept))
        if number == _KEPT:
            return torch.empty(shape)
        buffer = self._kept[number][0] if number < len(self._kept) else np.empty(0, np.float32)
        if len(buffer) < size:
            buffer = np.empty(size, np.float32)
        # The tensor, its views and arrays made of them hold this array, and it holds the buffer.
        view = buffer[:size].reshape(shape)
        self._kept[number:number + 1] = [(buffer, weakref.ref(view))]
        return torch.from_numpy(view)
