"""The settings that a run may leave to its machine (`--device auto` and the like), and what they were there.

config.toml holds what was chosen, and under `automatic` the names of the settings that were left to the
machine. Runs that are older hold `auto` and 0 themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

from qrdali.errors import RunError
from qrdali.files.json_objects import read_object
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs.configuration import on_gpu
from qrdali.runs.settings import read_settings

# By name, the value that leaves a setting to the machine.
LEFT: Final[Mapping[str, Any]] = {"device": "auto", "amp": "auto", "threads": 0, "probe_batch_size": 0}
_KEPT = ("device", "amp", "probe_batch_size")  # from a run's begin on; the number of threads is each host's


def left_to_machine(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the settings that `values` leave to the machine."""
    return tuple(name for name, left in LEFT.items() if values.get(name, left) == left)


def recorded(folder: Path) -> dict[str, Any]:
    """Returns the settings in a run's config.toml, and for `auto` what it meant on the run's own device.

    Where nothing in the folder says what it meant, it stays. `automatic` is there for older runs too. Values
    are not validated. Raises InputError if config.toml cannot be read.
    """
    values = read_settings(folder / "config.toml")
    values = {**LEFT, "automatic": [*left_to_machine(values)], **values}
    if values["device"] == "auto":
        with suppress(RunError):  # there is no first row yet, or it cannot be read
            gpu = on_gpu(next(run_folder.metrics_rows(folder), {}).get("environment"))
            values["device"] = "auto" if gpu is None else "cuda" if gpu else "cpu"
    if values["amp"] == "auto" and values["device"] in ("cpu", "cuda"):
        values["amp"] = "off" if values["device"] == "cpu" else saved_amp(folder)
    return values


def saved_amp(folder: Path) -> Literal["auto", "bf16", "fp16"]:
    """Returns what `--amp auto` was for a run that was trained on a GPU; "auto" if it has no checkpoint.

    The save of a run in fp16 holds the state of the scaler of its gradients.
    """
    try:
        scaler = read_object(checkpoint.current(folder / "last") / "state.json").get("scaler")
    except (RunError, OSError):
        return "auto"
    return "fp16" if scaler else "bf16"


def continued(given: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns device, amp and probe_batch_size of a run that goes on: what is given, else what they were.

    given: what is said now. before: as `recorded` gives it. On another device than before, what was left to
    the machine is left to it again, and on a CPU amp is off.
    """
    said = {name: given[name] for name in _KEPT if given.get(name, LEFT[name]) != LEFT[name]}
    values = {name: before[name] for name in _KEPT}
    if moves(said.get("device"), before):
        values |= {name: LEFT[name] for name in _names(before)}
        if said["device"] == "cpu":
            values["amp"] = "off"
    return values | said


def moves(device: object, before: Mapping[str, Any]) -> bool:
    """Returns whether a run goes on on another device than the one that `before`, as `recorded`, names."""
    return (device, before["device"]) in (("cpu", "cuda"), ("cuda", "cpu"))


def still_automatic(device: str, before: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns those of device, amp and probe_batch_size that a run left to the machine when it began.

    device: on which it goes on; one that it has been moved to was asked for.
    """
    return tuple(name for name in _names(before) if name != "device" or not moves(device, before))


def without_automatic(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run's config.toml for another run, without what was left to its machine."""
    dropped = {"automatic", *_strings(values.get("automatic"))} & {"automatic", *LEFT}
    return {name: value for name, value in values.items() if name not in dropped}


def _names(before: Mapping[str, Any]) -> list[str]:
    automatic = _strings(before["automatic"])
    return [name for name in _KEPT if name in automatic]


def _strings(value: object) -> set[str]:
    """Returns the texts in a list from a file, none if it is not one."""
    return {item for item in value if isinstance(item, str)} if isinstance(value, list | tuple) else set()
