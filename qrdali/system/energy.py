"""Measures the memory and energy of training, where the machine has counters of them."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from qrdali.distributed import ProcessGroup

POWERCAP = Path("/sys/class/powercap")
# A RAPL counter wraps around after 10 minutes at the earliest: it must be read more often than that.
_POLL_SECONDS = 30.0


def all_reduce_peak_memory(device: torch.device, group: ProcessGroup) -> dict[str, Any]:
    """Returns `peak_memory` of the rank that needs most. Collective."""
    peaks = group.all_gather_object(peak_memory(device))
    highest: dict[str, Any] = max(peaks, key=lambda peak: peak["peak_memory_mb"])
    return highest


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Returns peak_memory_mb, in 10^6 bytes, and memory_of, what was measured.

    "gpu": memory of the device in use now, by every process and by DALI too, or the most that torch has
    reserved since `reset_peak_memory` if that is more. "process": the most that this process has had resident
    since then.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, measured = max(total - free, torch.cuda.max_memory_reserved(device)), "gpu"
    else:
        used, measured = _resident_peak(), "process"
    return {"peak_memory_mb": round(used / 1e6, 1), "memory_of": measured}


def reset_peak_memory(device: torch.device) -> None:
    """Frees what earlier work of this process has cached, and resets the peaks for the next run."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the kernel's "forget the peak"


def _resident_peak() -> int:
    """Returns the most bytes that this process has had resident."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB


class EnergyMeter:
    """Counts the joules that the training device has used since `begin`.

    A GPU has NVML's counter, a CPU RAPL's counters of its packages. They count all that the device does, for
    other processes too. Where a counter cannot be read there is no figure.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = device.type == "cpu"
        self._counters = _nvml(device) if device.type == "cuda" else _rapl(POWERCAP)
        self._used: float | None = None
        self._polled = 0.0

    def begin(self, before: float | None = 0.0) -> None:
        """Starts to count from `before` joules; None, unknown, stays unknown."""
        self._take_joules()
        self._used = before if self._counters else None

    def poll(self) -> None:
        """Reads the counters if that is due.

        To be called at least every few minutes, because they wrap around.
        """
        if time.monotonic() - self._polled >= _POLL_SECONDS:
            self.used()

    def used(self) -> float | None:
        """Returns the joules since `begin`, or None."""
        more = self._take_joules()
        if self._used is not None:
            self._used = None if more is None else self._used + more
        return self._used

    def all_reduce_joules(self, key: str, group: ProcessGroup) -> dict[str, float]:
        """Returns {key: joules} of all GPUs, or of the processors of all hosts; {} if any has no figure.

        Collective.
        """
        used = self.used()
        if self._cpu and group.local_rank:
            used = 0.0  # counted by the first rank of this host
        by_rank = group.all_gather_object(used)
        return {} if None in by_rank else {key: round(sum(by_rank), 2)}

    def _take_joules(self) -> float | None:
        """Returns the joules since the last call.

        A counter that cannot be read any more ends the count for good.
        """
        self._polled = time.monotonic()
        try:
            return sum(counter() for counter in self._counters)
        except _Unreadable:
            self._counters = []
            return None


class _Unreadable(Exception):
    """A counter cannot be read as a number."""


def _rapl(folder: Path) -> list[Callable[[], float]]:
    """Returns a counter for each package (socket); [] unless every package is readable."""
    counters = []
    # The folder is called so on AMD's processors too. Cores and memory are zones of their own, parts of the
    # packages.
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text("utf-8", "replace").startswith("package"):
                limit = _number(zone / "max_energy_range_uj")
                counters.append(_wrapping_counter(zone / "energy_uj", limit))
        except (OSError, _Unreadable):
            return []
    return counters


def _wrapping_counter(file: Path, limit: int) -> Callable[[], float]:
    """Returns a function that returns the joules since its last call.

    The file counts microjoules up to `limit`.
    """
    last = _number(file)

    def joules_since_last_call() -> float:
        nonlocal last
        now = _number(file)
        microjoules, last = now - last + (limit if now < last else 0), now
        return microjoules / 1e6

    return joules_since_last_call


def _number(file: Path) -> int:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise _Unreadable(file) from error


def _in_parts(pynvml: Any, handle: Any) -> bool:
    """Returns whether a GPU is divided into instances (MIG)."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:  # most GPUs cannot be
        return False


def _nvml(device: torch.device) -> list[Callable[[], float]]:
    """Returns the counter of the whole GPU; [] without one, and for a part of a GPU (MIG).

    The GPU is found by its UUID, because numbers depend on CUDA_VISIBLE_DEVICES.
    """
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
    except (pynvml.NVMLError, AttributeError, _Unreadable):
        return []  # no library, no such GPU or counter, or a torch without UUIDs

    def joules_since_last_call() -> float:
        nonlocal last
        now = joules()
        if now < last:
            raise _Unreadable("the driver was reloaded")
        passed, last = now - last, now
        return passed

    return [joules_since_last_call]
