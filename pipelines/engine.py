"""The engine of a command: threads, device, and a way of decoding that is known to work there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qrdali.distributed import ProcessGroup
from qrdali.pipelines.decoder_trial import TrialResult, recall, remember, run_trial, trial_key
from qrdali.system import environment
from qrdali.system.machine import processors


@dataclass(frozen=True)
class Engine:
    """Where and how images are made. device_id None is the CPU; `whole_decode` avoids region-of-interest decoding;
    `whole_graph` leaves everything to DALI on a CPU too, as on a GPU, instead of the decoding alone."""

    device_id: int | None = None
    threads: int = 2
    depth: int = 3
    whole_decode: bool = False
    whole_graph: bool = False

    @property
    def host_ops(self) -> bool:
        """Whether DALI decodes and `host.py` does the rest."""
        return self.device_id is None and not self.whole_graph

    @property
    def decode_device(self) -> str:
        return "cpu" if self.device_id is None else "mixed"


def engine_for(
    device: torch.device, threads: int | None, warn: Callable[[str], None], sharing: int = 1
) -> Engine:
    """Images for a network on `device`. threads: decoding threads, None or 0 for as many as the process may use at once,
    divided by how many processes are `sharing` them.

    On a GPU region-of-interest decoding is tried once per place, and `warn` hears why whole images are decoded instead; on a CPU
    nothing is tried.
    """
    count = threads or max(1, processors().usable // sharing)
    if device.type == "cpu":
        return Engine(None, count)
    found = _regions(device, warn)
    if not found.works:
        warn(
            f"region-of-interest decoding fails on this GPU ({found.reason}): whole images are decoded instead; "
            "`qrdali doctor` tries it again"
        )
    return Engine(device.index, count, whole_decode=not found.works)


def engine_of(
    device: torch.device, threads: int | None, group: ProcessGroup, warn: Callable[[str], None]
) -> Engine:
    """Returns how each process of `group` decodes images for a network on `device`. Collective.

    The first process of each host tries what is not known of a GPU's decoding; the others read what it has remembered.
    """
    sharing = group.processes_on_these_cpus()
    first = group.run_on_all(lambda: None if group.local_rank else engine_for(device, threads, warn, sharing))
    return group.run_on_all(lambda: first or engine_for(device, threads, warn, sharing))


def describe_decoding(engine: Engine) -> str:
    """The decode path in words."""
    return f"{'whole images' if engine.whole_decode else 'regions'} decoded on the {'CPU' if engine.device_id is None else 'GPU'}"


def _regions(device: torch.device, warn: Callable[[str], None]) -> TrialResult:
    """What is known of region-of-interest decoding on a GPU, or is found now."""
    facts, codec = environment.environment(device), environment.codec()
    place = trial_key(facts["dali"], codec and codec[1], facts["driver"], facts["gpu"])
    if known := recall(place) if place else None:
        return known
    found = run_trial(device.index, whole=False)
    if not found.works and not (control := run_trial(device.index, whole=True)).works:
        # Not regions fail but all decoding there, for now at least: a full GPU, no driver. That is not to be remembered.
        warn(
            f"DALI decodes nothing on this GPU ({control.reason}); `qrdali doctor` says more, --device cpu does without it"
        )
    elif place:
        remember(place, found)
    return found
