"""Memory and energy of training, where the machine tells them."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from qrdali.distributed import SINGLE_PROCESS, ProcessGroup

POWERCAP = Path("/sys/class/powercap")
_POLL_SECONDS = (
    30.0  # a RAPL counter begins again after 10 minutes at the earliest: it must be read more often than that
)


def peak_memory(device: torch.device, group: ProcessGroup = SINGLE_PROCESS) -> dict[str, Any]:
    """peak_memory_mb in 10^6 bytes, and memory_of, what it is of; of the rank that needs most.

    "gpu": memory of the device in use now, by every process and DALI too, or the most that torch has reserved since `forget_memory` if
    that is more. "process": the most that this process has had resident since then.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, of = max(total - free, torch.cuda.max_memory_reserved(device)), "gpu"
    else:
        used, of = _resident_peak(), "process"
    found: dict[str, Any] = max(
        group.all_gather_object({"peak_memory_mb": round(used / 1e6, 1), "memory_of": of}),
        key=lambda peak: peak["peak_memory_mb"],
    )
    return found


def reset_peak_memory(device: torch.device) -> None:
    """Gives back what earlier work of this process keeps for later, and begins the peaks anew: they are the next run's own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the kernel's "forget the peak"


def _resident_peak() -> int:
    """Bytes."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


class EnergyMeter:
    """Joules used by the training device since `begin`: of a GPU by NVML's counter, of a CPU by RAPL's counters of its packages.

    They count all that the device does, for other processes too. Where no counter can be read there is no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = device.type == "cpu"
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

    def all_ranks(self, key: str, group: ProcessGroup) -> dict[str, float]:
        """{key: joules} of all GPUs, or of the processors of all hosts; nothing if any has no figure."""
        used = self.used()
        if self._cpu and group.local_rank:
            used = 0.0  # counted by the first rank of this host
        found = group.all_gather_object(used)
        return {} if None in found else {key: round(sum(found), 2)}

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
    for zone in sorted(
        folder.glob("intel-rapl:*")
    ):  # so called on AMD's processors too; cores and memory are zones of their own
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


def _in_parts(pynvml: Any, handle: Any) -> bool:
    """Whether a GPU is divided (MIG)."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:  # most GPUs cannot be
        return False


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
        if _in_parts(pynvml, handle):
            return []  # the counter is the whole GPU's, other tenants' included
        last = joules()
    except (
        pynvml.NVMLError,
        AttributeError,
        _Unreadable,
    ):  # no library, no such GPU or counter, a torch that tells no UUID
        return []

    def more() -> float:
        nonlocal last
        now = joules()
        if now < last:
            raise _Unreadable("the driver was loaded anew")
        passed, last = now - last, now
        return passed

    return [more]
