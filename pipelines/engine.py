"""Chooses the engine of a job: its device, its threads, and its way of decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from qrdali.distributed import ProcessGroup
from qrdali.pipelines.decode_options import DecodeOptions, has_large_images
from qrdali.system.machine import processors

if TYPE_CHECKING:
    from qrdali.data.index import Index

GPU_DECODE_THREADS = 16  # at most, unless more are asked for: each has buffers of its own on the GPU


@dataclass(frozen=True)
class Engine:
    """Says where and how images are made.

    device_id: a GPU, or None for the CPU. threads: of whatever the host does. depth: batches that DALI
    prepares ahead. whole_graph: leaves everything to DALI on a CPU too, as on a GPU, instead of the decoding
    alone. decode: "whole" decodes whole images, "windows" only what is wanted of them; "default" is windows
    on a CPU and whole images on a GPU, where nvJPEG reads the whole file all the same, and nvImageCodec 0.9
    fails or crashes at windows on some cards: `decoder_trial.run_trial` says whether on this one. "hardware"
    is whole images as DALI decodes them by default, for benchmarks alone.
    dali_threads: those of `threads` that DALI has, None for all. has_large_images: as in `DecodeOptions`.
    """

    device_id: int | None = None
    threads: int = 2
    depth: int = 3
    whole_graph: bool = False
    decode: Literal["default", "whole", "windows", "hardware"] = "default"
    dali_threads: int | None = None
    has_large_images: bool = False

    @property
    def host_ops(self) -> bool:
        """Returns whether DALI decodes and `host_ops` does the rest."""
        return self.device_id is None and not self.whole_graph

    @property
    def num_dali_threads(self) -> int:
        """Returns how many threads each of DALI's pipelines has."""
        return self.dali_threads or self.threads

    @property
    def decode_options(self) -> DecodeOptions:
        """Returns how DALI's decoders decode."""
        is_gpu = self.device_id is not None
        return DecodeOptions(
            "mixed" if is_gpu else "cpu",
            is_gpu if self.decode == "default" else self.decode != "windows",
            self.has_large_images,
            self.decode == "hardware",
        )

    def for_images(self, index: Index) -> Engine:
        """Returns the engine with buffers that suit the images of `index`."""
        if self.device_id is None:
            return self
        return replace(self, has_large_images=has_large_images(index))


def engine_for(device: torch.device, threads: int | None, sharing: int = 1) -> Engine:
    """Returns the engine that makes images for a network on `device`.

    threads: None or 0 for as many as the process may use at once, divided by how many processes are `sharing`
    them; of these no more than `GPU_DECODE_THREADS` decode for a GPU.
    """
    count = threads or max(1, processors().usable // sharing)
    if device.type == "cpu":
        return Engine(None, count)
    return Engine(device.index, count, dali_threads=None if threads else min(count, GPU_DECODE_THREADS))


def engine_of(device: torch.device, threads: int | None, group: ProcessGroup) -> Engine:
    """Returns how each process of `group` decodes images for a network on `device`. Collective."""
    return engine_for(device, threads, group.processes_on_these_cpus())


def describe_decoding(engine: Engine) -> str:
    """Returns the decode path in words."""
    extent = "whole images" if engine.decode_options.whole else "regions"
    return f"{extent} decoded on the {'CPU' if engine.device_id is None else 'GPU'}"
