"""Memory and energy of training, where the machine tells them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("/sys/class/powercap")
_POLL_SECONDS = 30.0  # a RAPL counter begins again after 10 minutes at the earliest: it must be read more often than that


def peak_memory(device: torch.device) -> dict[str, Any]:
    """peak_memory_mb in 10^6 bytes, and memory_of, what it is of.

    "gpu": memory of the device in use now, by every process and DALI too, or the most that torch has reserved if that is more.
    "process": the most that this process has had resident.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, of = max(total - free, torch.cuda.max_memory_reserved(device)), "gpu"
    else:
        used, of = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"  # Linux counts KiB
    return {"peak_memory_mb": round(used / 1e6, 1), "memory_of": of}


class Energy:
    """Joules used by the training device since `begin`: of a GPU by NVML's counter, of a CPU by RAPL's counters of its packages.

    They count all that the device does, for other processes too. Where no counter can be read there is no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self._counters = _nvml(device) if device.type == "cuda" else _rapl(POWERCAP)
        self._used: float | None = None
        self._polled = 0.0

    def begin(self, before: float | None = 0.0) -> None:
        """Starts to count from `before` joules; None, unknown, stays unknown."""
        self._take()
        self._used = before if self._counters else None

    def poll(self) -> None:
        """To be called now and then, at least every few minutes: counters that begin again are followed only where they are read."""
        if time.monotonic() - self._polled >= _POLL_SECONDS:
            self.used()

    def used(self) -> float | None:
        """Joules since `begin`, or None."""
        more = self._take()
        if self._used is not None:
            self._used = None if more is None else self._used + more
        return self._used

    def _take(self) -> float | None:
        """Joules since the last call. A counter that cannot be read any more ends the count for good."""
        self._polled = time.monotonic()
        try:
            return sum(counter() for counter in self._counters)
        except _Unreadable:
            self._counters = []
            return None


class _Unreadable(Exception):
    """A counter does not answer with a number."""


def _rapl(folder: Path) -> list[Callable[[], float]]:
    """A counter of each package (socket), or none if any cannot be read: half of a machine would be no figure."""
    found = []
    for zone in sorted(folder.glob("intel-rapl:*")):  # so called on AMD's processors too; cores and memory are zones of their own
        try:
            if (zone / "name").read_text("utf-8", "replace").startswith("package"):
                limit = _number(zone / "max_energy_range_uj")
                found.append(_wrapping(zone / "energy_uj", limit))
        except (OSError, _Unreadable):
            return []
    return found


def _wrapping(file: Path, limit: int) -> Callable[[], float]:
    last = _number(file)

    def more() -> float:
        nonlocal last
        now = _number(file)
        passed, last = now - last + (limit if now < last else 0), now
        return passed / 1e6

    return more


def _number(file: Path) -> int:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise _Unreadable(file) from error


def _nvml(device: torch.device) -> list[Callable[[], float]]:
    """The counter of the whole GPU, found by its UUID: numbers depend on CUDA_VISIBLE_DEVICES. None for a part of a GPU (MIG)."""
    import pynvml

    def joules() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise _Unreadable from error

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        last = joules()
    except (pynvml.NVMLError, AttributeError, _Unreadable):  # no library, no such GPU or counter, a torch that tells no UUID
        return []

    def more() -> float:
        nonlocal last
        now = joules()
        if now < last:
            raise _Unreadable("the driver was loaded anew")
        passed, last = now - last, now
        return passed

    return [more]
