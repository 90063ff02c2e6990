"""Measures seconds of epochs and probes, kinds interleaved in one process so that the machine's noise
cancels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from qrdali import models
from qrdali.data.index import Index
from qrdali.interfaces import Batch, JobControl, ProgressListener, SilentListener
from qrdali.pipelines.engine import engine_for
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, Levels, PerImageLevels, constant_levels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import QUARTERS, REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.deterministic import cudnn_benchmark
from qrdali.system.device import autocast_for, probe_batch_size
from qrdali.system.device_copies import wait_for_device
from qrdali.training import probe
from qrdali.training.compilation import compile_network
from qrdali.training.optimizer import create_optimizer
from qrdali.training.probe import ProbeOptions
from qrdali.training.run_spec import Split
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.bench_rounds import Done, Rounds, Timing, Work, rates, ratio, spread, timed
from qrdali.workflows.context import open_context

ONE_BY_ONE = "probe crop, a decode per candidate"
_BATCHES_IN_MEMORY = 8
REDUCED = [name for name, dimensions in REDUCTIONS.items() if any(dimensions)]

# Seconds of the thesis' slides, RTX 3090, HumaNet: an epoch in full and reduced, and one adaptive generation.
THESIS: dict[str, dict[str, float]] = {
    "squeezenet1_1": {
        "full": 28.5,
        "color": 32.6,
        "crop": 29.0,
        "resolution": 28.9,
        "combination": 33.5,
        "probe color": 26,
        "probe crop": 465,
        "probe resolution": 26,
        "probe combination": 672,
    },
    "resnet152": {
        "full": 150.5,
        "color": 154.3,
        "crop": 151.0,
        "resolution": 150.9,
        "combination": 155.0,
        "probe color": 56,
        "probe crop": 1734,
        "probe resolution": 56,
        "probe combination": 2584,
    },
    "efficientnet_b3": {
        "full": 90.0,
        "color": 94.3,
        "crop": 91.2,
        "resolution": 90.8,
        "combination": 95.0,
        "probe color": 30,
        "probe crop": 1153,
        "probe resolution": 30,
        "probe combination": 1513,
    },
}


def measure(
    index: Index,
    classes: int,
    *,
    name: str,
    rounds: int,
    side: int | None,
    threads: int | None,
    batch_size: int,
    images: int,
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Returns seconds of each kind of epoch and probe over `images` images, as medians over rounds, and
    ratios to the full epoch.

    Kinds: a full epoch, the same steps fed from the device's memory, a reduced epoch (quality .5) per
    reduction, an online-feedback epoch, a probe per reduction. side: of the network's input in pixels, None:
    the model's. threads: as in `engine_for`. A ratio is that of the same round.
    """
    part = Spread(index, min(images, len(index)))
    network = Network(part, classes, Options(name, side, threads, batch_size), listener)
    timings = timed(network.kinds(), Rounds(rounds, network.wait, listener=listener))
    return {
        "machine": machine(),
        "model": name,
        "images": len(part),
        "rounds": rounds,
        "threads": network.engine.threads,
        "decode_threads": network.engine.num_dali_threads,
        "input_size": network.preprocessing.input_size,
        "batch_size": batch_size,
        **summary(name, timings),
    }


def summary(name: str, timings: dict[str, list[Timing]]) -> dict[str, Any]:
    """Returns seconds and ratios of what `Network.kinds` did, beside the thesis' ratios for `name`.

    data_wait: the share of a full epoch in which the host waited for batches.
    """
    seconds = {kind: [timing.seconds for timing in found] for kind, found in timings.items()}
    over_full = {kind: ratio(taken, seconds["full"]) for kind, taken in seconds.items() if kind != "full"}
    over_full["online over the same epoch without"] = ratio(
        seconds["online combination"], seconds["combination"]
    )
    thesis = THESIS.get(name, {})
    return {
        "seconds": {kind: spread(taken, 2) for kind, taken in seconds.items()},
        "images_per_second": spread(rates(timings["full"]), 1),
        "data_wait": ratio([timing.data_wait for timing in timings["full"]], seconds["full"]),
        "over_full": over_full,
        "thesis_over_full": {
            kind: round(taken / thesis["full"], 3) for kind, taken in thesis.items() if kind != "full"
        },
    }


@dataclass(frozen=True)
class Options:
    """Says what is trained and how. side, threads: as in `measure`. device: the value of --device."""

    name: str
    side: int | None
    threads: int | None
    batch_size: int
    device: str = "auto"


class Network:
    """Holds a network in training, and does the epochs and probes that are timed on it."""

    def __init__(self, index: Index, classes: int, options: Options, listener: ProgressListener) -> None:
        self._index, self._batch_size = index, options.batch_size
        self._context = open_context(options.device, "auto", JobControl(listener))
        self._device, self._autocast = self._context.device, self._context.autocast
        self.preprocessing = models.preprocessing(options.name, options.side)
        torch.manual_seed(0)
        model = models.create(options.name, classes)
        self._model = model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = create_optimizer(self._model, "adamw", 1e-6, 0.05, self._device)
        _, scaled = autocast_for("auto", self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)
        self.engine = engine_for(self._device, options.threads)
        self._loader = open_loader(index, self.preprocessing, options.batch_size, self.engine)
        self._in_memory: list[Batch] = []
        self._epochs = count(1)

    def kinds(self) -> dict[str, Work]:
        """Returns what is timed, by its name in the result."""
        kinds: dict[str, Work] = {
            "full": lambda: self.train(FULL_QUALITY),
            "from memory": self.train_from_memory,
        }
        for reduction in REDUCED:
            levels = constant_levels(REDUCTIONS[reduction], 2)
            kinds[reduction] = lambda levels=levels: self.train(levels)  # type: ignore[misc]
        combination = constant_levels(REDUCTIONS["combination"], 2)
        kinds["online combination"] = lambda: self.train(combination, feedback=True)
        for reduction in REDUCED:
            kinds[f"probe {reduction}"] = lambda reduction=reduction: self.probe(reduction)  # type: ignore[misc]
        kinds[ONE_BY_ONE] = self.probe_one_by_one
        return kinds

    def train(self, levels: Levels, feedback: bool = False) -> Done:
        """Trains an epoch.

        feedback: each image's correctness is kept and moves its levels at the end, as online feedback does.
        """
        return self._train(self._loader.epoch(self._plan(levels)), feedback, self._model)

    def train_from_memory(self, compiled: bool = False) -> Done:
        """Trains an epoch's steps on a few batches that lie on the device.

        compiled: by torch.compile, as with --compile; the first call compiles.
        """
        plan = self._plan(FULL_QUALITY)
        if not self._in_memory:
            self._in_memory = list(islice(self._loader.epoch(plan), _BATCHES_IN_MEMORY))
        kept = self._in_memory
        batches = (_cut(kept[i % len(kept)], plan.count(i)) for i in range(plan.batches))
        return self._train(batches, False, self._compiled if compiled else self._model)

    @cached_property
    def _compiled(self) -> nn.Module:
        return compile_network(self._model, self._context)

    def wait(self) -> None:
        """Waits until the device has done what was queued on it."""
        wait_for_device(self._device)

    def _plan(self, levels: Levels) -> EpochPlan:
        return EpochPlan(
            len(self._index), self._batch_size, levels, QUARTERS, 0, next(self._epochs), True, "flip"
        )

    def _train(self, batches: Iterator[Batch], feedback: bool, forward: nn.Module) -> Done:
        with cudnn_benchmark(self._device.type == "cuda"):  # as training has it
            return self._steps(batches, feedback, forward)

    def _steps(self, batches: Iterator[Batch], feedback: bool, forward: nn.Module) -> Done:
        self._model.train()
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        kept = torch.zeros(len(self._index), dtype=torch.uint8, device=self._device)
        waited, images, requested = 0.0, 0, time.perf_counter()
        for batch in batches:
            waited += time.perf_counter() - requested
            images += len(batch.labels)
            with self._autocast():
                logits = forward(batch.images)
                loss = nn.functional.cross_entropy(logits, batch.labels)
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self._optimizer)
            self._scaler.update()
            right = logits.argmax(1) == batch.labels
            correct += right.sum()
            if feedback:
                kept[batch.samples] = right.to(torch.uint8)
            requested = time.perf_counter()
        if feedback:
            rule = DescentRule(REDUCTIONS["combination"], QUARTERS)
            at_full = PerImageLevels.at_full_quality(len(self._index), True, True)
            probe.descend_by_feedback(self._index, at_full, kept.cpu().numpy(), rule, 0)
        return Done(images, waited)

    def probe(self, reduction: str) -> Done:
        """Shows every neighbour of every image to the network, as before an adaptive stage."""
        rule = DescentRule(REDUCTIONS[reduction], QUARTERS)
        probe.descend_by_probe(
            self._model,
            Split(self._loader, self._index),
            PerImageLevels.at_full_quality(len(self._index), rule.dimensions.crop, False),
            ProbeOptions(rule, probe_batch_size(self._device, self._batch_size)),
            self._context,
            lambda done, candidates: None,
        )
        return Done(len(self._index))

    def probe_one_by_one(self) -> Done:
        """Does the crop probe's forward passes with every image decoded once per candidate window."""
        self._model.eval()
        levels = constant_levels(REDUCTIONS["crop"], 1)
        with torch.inference_mode():
            for _ in range(5):
                for batch in self._loader.epoch(EpochPlan(len(self._index), self._batch_size, levels)):
                    with self._autocast():
                        self._model(batch.images).softmax(1)
        return Done(len(self._index))


def _cut(batch: Batch, count: int) -> Batch:
    """Returns the first `count` images of a batch."""
    return Batch(batch.images[:count], batch.labels[:count], batch.samples[:count], batch.number)


class Spread(Index):
    """Picks some images of an index, spread over its classes."""

    def __init__(self, index: Index, count: int) -> None:
        self._whole, self._pick = index, np.linspace(0, len(index) - 1, count).astype(np.int64)
        self.file = index.file

    def __len__(self) -> int:
        return len(self._pick)

    def labels(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._whole.labels(self._pick[samples])

    def sizes(self, samples: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self._whole.sizes(self._pick[samples])

    def path_bytes(self, samples: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return self._whole.path_bytes(self._pick[samples])
