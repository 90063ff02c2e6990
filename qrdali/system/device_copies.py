"""Copies small arrays to and from the device without making the host wait for what the device has queued."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[Any] | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Returns `values` as a tensor on `device`; on a CPU it may share their memory.

    A blocking copy would wait on a GPU for all the work queued before it. This one may be queued behind that
    work: what is not pinned is staged before the call returns, so `values` may go or change afterwards.
    """
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(values)
    return tensor.to(device, non_blocking=True)


class HostCopies:
    """Holds copies of tensors of one device on their way to the host.

    They are queued at once, so that reading them waits for no work that is queued on the device later.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        # torch puts the copies into pinned memory: anywhere else they would wait here.
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._copied: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(tensors[0].device))

    def read(self) -> list[npt.NDArray[Any]]:
        """Returns the tensors as arrays. Waits for their copies."""
        if self._copied is not None:
            self._copied.synchronize()
        return [np.asarray(copy) for copy in self._copies]


def wait_for_device(device: torch.device) -> None:
    """Waits until a GPU has done all that was queued on it: before a clock is stopped."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
