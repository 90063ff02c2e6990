"""Feeds a graph from a plan: path bytes, label, sample number and parameters, batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali.data.index import Index
from qrdali.plan import Plan
from qrdali.quality import Parameters
from qrdali.view import View


def arrays(paths: list[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64], samples: npt.NDArray[np.int64],
           reduction: Parameters, seen: View) -> tuple[Any, ...]:
    """One batch in the order of `graphs.INPUTS`."""
    d = reduction.bin_width
    power = d & (d - 1) == 0
    shape = np.ascontiguousarray(reduction.window[:, 2:])
    return (
        paths,
        samples,
        np.ascontiguousarray(reduction.window[:, :2]),
        shape,
        reduction.size.astype(np.float32),
        (reduction.size != shape).any(axis=1),
        d.astype(np.float32),
        np.where(power, 256 - d, 0).astype(np.uint8),  # d = 1 is never masked
        (d // 2).astype(np.uint8),
        np.where(d == 1, 0, np.where(power, 1, 2)).astype(np.uint8),
        labels,
        seen.region,
        seen.flip.astype(np.int32),
    )


class Source:
    """A callable that DALI asks for one batch at a time. Set a plan before the pipeline is reset: DALI reads ahead."""

    def __init__(self, index: Index, fit: str, crop_share: float, keep: int) -> None:
        self._index, self._fit, self._crop_share = index, fit, crop_share
        self._batches: Iterator[tuple[Any, ...]] = iter(())
        self.recent: deque[npt.NDArray[np.int64]] = deque(maxlen=keep)  # samples in flight, to name one that fails

    def set(self, plan: Plan) -> None:
        self._batches = self._emit(plan)

    def stop(self) -> None:
        self._batches = iter(())

    def __call__(self) -> tuple[Any, ...]:
        return next(self._batches)

    def _emit(self, plan: Plan) -> Iterator[tuple[Any, ...]]:
        for number in range(plan.first_batch, plan.batches):
            samples = plan.batch(number)
            if not len(samples):
                continue
            self.recent.append(samples)
            reduction = plan.parameters(samples, self._index.sizes(samples))
            seen = plan.view(samples, reduction.size, self._fit, self._crop_share)
            yield arrays(self._index.path_bytes(samples), self._index.labels(samples), samples, reduction, seen)
