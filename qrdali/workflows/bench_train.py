"""Measures seconds of epochs and probes, kinds interleaved in one process so that the machine's noise
cancels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from qrdali import models
from qrdali.data.index import Index
from qrdali.interfaces import JobControl, ProgressListener, SilentListener
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
from qrdali.training.optimizer import create_optimizer
from qrdali.training.probe import ProbeOptions
from qrdali.training.run_spec import Split
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.context import open_context

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
    threads: int,
    batch_size: int,
    images: int,
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Returns seconds of each kind of epoch and probe over `images` images, as medians over rounds, and
    ratios to the full epoch.

    Kinds: a full epoch, a reduced one (quality .5) per reduction, an online-feedback epoch, a probe per
    reduction. side: of the network's input in pixels, None: the model's. A ratio is that of the same round.
    """
    part = _Spread(index, min(images, len(index)))
    network = _Network(part, classes, _Options(name, side, threads, batch_size), listener)
    seconds = _interleaved(network.kinds(), rounds, listener, network.wait)
    over_full = {kind: _ratio(taken, seconds["full"]) for kind, taken in seconds.items() if kind != "full"}
    over_full["online over the same epoch without"] = _ratio(
        seconds["online combination"], seconds["combination"]
    )
    thesis = THESIS.get(name, {})
    return {
        "machine": machine(),
        "model": name,
        "images": len(part),
        "rounds": rounds,
        "threads": threads,
        "input_size": network.preprocessing.input_size,
        "batch_size": batch_size,
        "seconds": {
            kind: {
                "median": round(statistics.median(taken), 2),
                "min": round(min(taken), 2),
                "max": round(max(taken), 2),
            }
            for kind, taken in seconds.items()
        },
        "over_full": over_full,
        "thesis_over_full": {
            kind: round(taken / thesis["full"], 3) for kind, taken in thesis.items() if kind != "full"
        },
    }


def _interleaved(
    kinds: dict[str, Callable[[], None]], rounds: int, listener: ProgressListener, wait: Callable[[], None]
) -> dict[str, list[float]]:
    """Returns the seconds of each kind of work in each round; one round before them is not counted.

    wait: returns once the device has done what was queued on it, before the clock is stopped.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    listener.begin("measure", (rounds + 1) * len(kinds), "runs")
    try:
        for turn in range(rounds + 1):
            for kind, work in kinds.items():
                begun = time.perf_counter()
                work()
                wait()
                if turn:  # the first round warms files, pools and the network's kernels
                    seconds[kind].append(time.perf_counter() - begun)
                listener.advance(1, lambda kind=kind: kind)  # type: ignore[misc]
    finally:
        listener.end()
    return seconds


def _ratio(seconds: list[float], others: list[float]) -> float:
    """Returns the median over rounds of one kind's seconds by those of another."""
    return round(statistics.median(a / b for a, b in zip(seconds, others, strict=True)), 3)


@dataclass(frozen=True)
class _Options:
    name: str
    side: int | None
    threads: int
    batch_size: int


class _Network:
    """Holds a network in training, and does the epochs and probes that are timed on it."""

    def __init__(self, index: Index, classes: int, options: _Options, listener: ProgressListener) -> None:
        self._index, self._batch_size = index, options.batch_size
        self._context = open_context("auto", "auto", JobControl(listener))
        self._device, self._autocast = self._context.device, self._context.autocast
        self.preprocessing = models.preprocessing(options.name, options.side)
        torch.manual_seed(0)
        model = models.create(options.name, classes)
        self._model = model.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = create_optimizer(self._model, "adamw", 1e-6, 0.05, self._device)
        _, scaled = autocast_for("auto", self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=scaled)
        engine = engine_for(self._device, options.threads)
        self._loader = open_loader(index, self.preprocessing, options.batch_size, engine)
        self._epochs = count(1)

    def kinds(self) -> dict[str, Callable[[], None]]:
        """Returns what is timed, by its name in the result."""
        kinds: dict[str, Callable[[], None]] = {"full": lambda: self.train(FULL_QUALITY)}
        for reduction in REDUCED:
            levels = constant_levels(REDUCTIONS[reduction], 2)
            kinds[reduction] = lambda levels=levels: self.train(levels)  # type: ignore[misc]
        combination = constant_levels(REDUCTIONS["combination"], 2)
        kinds["online combination"] = lambda: self.train(combination, feedback=True)
        for reduction in REDUCED:
            kinds[f"probe {reduction}"] = lambda reduction=reduction: self.probe(reduction)  # type: ignore[misc]
        kinds["probe crop, a decode per candidate"] = self.probe_one_by_one
        return kinds

    def train(self, levels: Levels, feedback: bool = False) -> None:
        """Trains an epoch.

        feedback: each image's correctness is kept and moves its levels at the end, as online feedback does.
        """
        with cudnn_benchmark(True):  # as training has it
            self._train(levels, feedback)

    def wait(self) -> None:
        """Waits until the device has done what was queued on it."""
        wait_for_device(self._device)

    def _train(self, levels: Levels, feedback: bool) -> None:
        self._model.train()
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        kept = torch.zeros(len(self._index), dtype=torch.uint8, device=self._device)
        plan = EpochPlan(
            len(self._index), self._batch_size, levels, QUARTERS, 0, next(self._epochs), True, "flip"
        )
        for batch in self._loader.epoch(plan):
            with self._autocast():
                logits = self._model(batch.images)
                loss = nn.functional.cross_entropy(logits, batch.labels)
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self._optimizer)
            self._scaler.update()
            right = logits.argmax(1) == batch.labels
            correct += right.sum()
            if feedback:
                kept[batch.samples] = right.to(torch.uint8)
        if feedback:
            rule = DescentRule(REDUCTIONS["combination"], QUARTERS)
            at_full = PerImageLevels.at_full_quality(len(self._index), True, True)
            probe.descend_by_feedback(self._index, at_full, kept.cpu().numpy(), rule, 0)

    def probe(self, reduction: str) -> None:
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

    def probe_one_by_one(self) -> None:
        """Does the crop probe's forward passes with every image decoded once per candidate window."""
        self._model.eval()
        levels = constant_levels(REDUCTIONS["crop"], 1)
        with torch.inference_mode():
            for _ in range(5):
                for batch in self._loader.epoch(EpochPlan(len(self._index), self._batch_size, levels)):
                    with self._autocast():
                        self._model(batch.images).softmax(1)


class _Spread(Index):
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
