"""Chooses the engine of a job: its device, threads, and a way of decoding that is known to work there."""

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
    """Says where and how images are made.

    device_id: a GPU, or None for the CPU. threads: of decoding. depth: batches that DALI prepares ahead.
    whole_decode: decodes whole images instead of regions of interest. whole_graph: leaves everything to DALI
    on a CPU too, as on a GPU, instead of the decoding alone.
    """

    device_id: int | None = None
    threads: int = 2
    depth: int = 3
    whole_decode: bool = False
    whole_graph: bool = False

    @property
    def host_ops(self) -> bool:
        """Returns whether DALI decodes and `host_ops` does the rest."""
        return self.device_id is None and not self.whole_graph

    @property
    def decode_device(self) -> str:
        """DALI's name of the device that decodes: a GPU's decoder reads on the host, hence "mixed"."""
        return "cpu" if self.device_id is None else "mixed"


def engine_for(
    device: torch.device, threads: int | None, warn: Callable[[str], None], sharing: int = 1
) -> Engine:
    """Returns the engine that makes images for a network on `device`.

    threads: decoding threads, None or 0 for as many as the process may use at once, divided by how many
    processes are `sharing` them. On a GPU region-of-interest decoding is tried once for each combination of
    versions and card, and `warn` is called with the reason where whole images are decoded instead; on a CPU
    nothing is tried.
    """
    count = threads or max(1, processors().usable // sharing)
    if device.type == "cpu":
        return Engine(None, count)
    regions = _try_regions(device, warn)
    if not regions.works:
        warn(
            f"region-of-interest decoding fails on this GPU ({regions.reason}): whole images are decoded "
            "instead; `qrdali doctor` tries it again"
        )
    return Engine(device.index, count, whole_decode=not regions.works)


def engine_of(
    device: torch.device, threads: int | None, group: ProcessGroup, warn: Callable[[str], None]
) -> Engine:
    """Returns how each process of `group` decodes images for a network on `device`.

    Collective.

    The first process of each host tries what is not known of a GPU's decoding; the others read what it has
    remembered.
    """
    sharing = group.processes_on_these_cpus()
    first = group.run_on_all(lambda: None if group.local_rank else engine_for(device, threads, warn, sharing))
    return group.run_on_all(lambda: first or engine_for(device, threads, warn, sharing))


def describe_decoding(engine: Engine) -> str:
    """Returns the decode path in words."""
    extent = "whole images" if engine.whole_decode else "regions"
    return f"{extent} decoded on the {'CPU' if engine.device_id is None else 'GPU'}"


def _try_regions(device: torch.device, warn: Callable[[str], None]) -> TrialResult:
    """Returns whether region-of-interest decoding works on a GPU, as remembered or as a trial finds."""
    facts, codec = environment.environment(device), environment.codec()
    key = trial_key(facts["dali"], codec and codec[1], facts["driver"], facts["gpu"])
    if remembered := recall(key) if key else None:
        return remembered
    regions = run_trial(device.index, whole=False)
    if not regions.works and not (whole := run_trial(device.index, whole=True)).works:
        # Not regions but all decoding fails there, for now at least: a full GPU, no driver. That is not to be
        # remembered.
        warn(
            f"DALI decodes nothing on this GPU ({whole.reason}); `qrdali doctor` says more, "
            "--device cpu does without it"
        )
    elif key:
        remember(key, regions)
    return regions
