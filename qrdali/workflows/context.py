"""Builds the `RunContext` of a job: device, precision and energy meter beside whom it reports to."""

from __future__ import annotations

from qrdali.interfaces import JobControl, RunContext
from qrdali.system.device import autocast_for, resolve_device
from qrdali.system.energy import EnergyMeter


def open_context(device: str, amp: str, control: JobControl) -> RunContext:
    """Returns the context of a job on `device` ("auto", "cpu" or "cuda") with precision `amp` ("auto", "bf16", "fp16", "off").

    Collective: every process of `control.group` calls it. Raises RunError, on all of them, if a GPU was asked for and there is none.
    """
    resolved = control.group.run_on_all(lambda: resolve_device(device))
    autocast, _ = autocast_for(amp, resolved)
    return RunContext(
        resolved, autocast, EnergyMeter(resolved), control.group, control.listener, control.stop
    )
