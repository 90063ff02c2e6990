"""Builds the `RunContext` of a job: device, precision and energy meter, with the job's listener, stop and
processes."""

from __future__ import annotations

from qrdali.interfaces import JobControl, RunContext
from qrdali.system.device import autocast_for, resolve_device
from qrdali.system.energy import EnergyMeter


def open_context(device: str, amp: str, control: JobControl) -> RunContext:
    """Returns the context of a job. Collective: every process of `control.group` calls it.

    device: "auto", "cpu" or "cuda". amp: "auto", "bf16", "fp16" or "off". Raises RunError, on all processes,
    if a GPU is required and there is none."""
    resolved = control.group.run_on_all(lambda: resolve_device(device))
    autocast, _ = autocast_for(amp, resolved)
    energy = EnergyMeter(resolved)
    return RunContext(resolved, autocast, energy, control.group, control.listener, control.stop)
