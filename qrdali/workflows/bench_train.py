"""Seconds of epochs and probes, kinds interleaved in one process so that the machine's noise cancels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from qrdali import models
from qrdali.cli.terminal import warn
from qrdali.data.index import Index
from qrdali.distributed import SINGLE_PROCESS
from qrdali.interfaces import RunContext, SilentListener, never_stop
from qrdali.pipelines.engine import engine_for
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, Levels, PerImageLevels, constant_levels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for, probe_batch_size
from qrdali.system.energy import EnergyMeter
from qrdali.training import probe
from qrdali.training.run_spec import Split
from qrdali.workflows.bench_loader import machine

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
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Seconds of a full epoch, a reduced one (quality .5) per reduction, an online-feedback epoch and a probe per reduction,
    over the first `images` images; medians over rounds, and ratios to the full epoch of the same round."""
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    pre = models.preprocessing(name, side)
    torch.manual_seed(0)
    model = models.create(name, classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-6, weight_decay=0.05)
    autocast, scaled = autocast_for("auto", device)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    energy = EnergyMeter(device)
    part = _First(index, min(images, len(index)))
    loader = open_loader(part, pre, batch_size, engine_for(device, threads, warn))
    epochs = iter(range(1, 10**6))

    def train(levels: Levels, feedback: bool = False) -> None:
        model.train()
        correct = torch.zeros((), dtype=torch.int64, device=device)
        kept = torch.zeros(len(part), dtype=torch.uint8, device=device)
        for batch in loader.epoch(EpochPlan(len(part), batch_size, levels, 4, 0, next(epochs), True, "flip")):
            with autocast():
                logits = model(batch.images)
                loss = nn.functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            right = logits.argmax(1) == batch.labels
            correct += right.sum()
            if feedback:
                kept[batch.samples] = right.to(torch.uint8)
        if feedback:
            rule = DescentRule(REDUCTIONS["combination"], 4)
            probe.descend_by_feedback(
                part, PerImageLevels.at_full_quality(len(part), True, True), kept.cpu().numpy(), rule, 0
            )
        correct.item()

    def ask(reduction: str) -> None:
        rule = DescentRule(REDUCTIONS[reduction], 4)
        probe.descend_by_probe(
            model,
            Split(loader, part),
            PerImageLevels.at_full_quality(len(part), rule.dimensions.crop, False),
            probe.ProbeOptions(rule, probe_batch_size(device, batch_size)),
            RunContext(device, autocast, energy, SINGLE_PROCESS, SilentListener(), never_stop),
            lambda done, candidates: None,
        )

    def ask_one_by_one() -> None:
        """The crop probe's forward passes with every image decoded once per candidate window."""
        model.eval()
        with torch.inference_mode():
            for _ in range(5):
                for batch in loader.epoch(
                    EpochPlan(len(part), batch_size, constant_levels(REDUCTIONS["crop"], 1))
                ):
                    with autocast():
                        model(batch.images).softmax(1)

    work: dict[str, Callable[[], None]] = {"full": lambda: train(FULL_QUALITY)}
    for reduction in REDUCED:
        work[reduction] = lambda reduction=reduction: train(constant_levels(REDUCTIONS[reduction], 2))  # type: ignore[misc]
    work["online combination"] = lambda: train(constant_levels(REDUCTIONS["combination"], 2), feedback=True)
    for reduction in REDUCED:
        work[f"probe {reduction}"] = lambda reduction=reduction: ask(reduction)  # type: ignore[misc]
    work["probe crop, a decode per candidate"] = ask_one_by_one
    seconds: dict[str, list[float]] = {what: [] for what in work}
    for turn in range(rounds + 1):
        for what, run in work.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first round warms files, pools and the network's kernels
                seconds[what].append(time.perf_counter() - begun)
            progress(what)
    over_full = {
        what: [a / b for a, b in zip(taken, seconds["full"], strict=True)] for what, taken in seconds.items()
    }
    ratios = {what: round(statistics.median(v), 3) for what, v in over_full.items() if what != "full"}
    ratios["online over the same epoch without"] = round(
        statistics.median(
            a / b for a, b in zip(seconds["online combination"], seconds["combination"], strict=True)
        ),
        3,
    )
    thesis = THESIS.get(name, {})
    return {
        "machine": machine(),
        "model": name,
        "images": len(part),
        "rounds": rounds,
        "threads": threads,
        "input_size": pre.input_size,
        "batch_size": batch_size,
        "seconds": {
            what: {"median": round(statistics.median(v), 2), "min": round(min(v), 2), "max": round(max(v), 2)}
            for what, v in seconds.items()
        },
        "over_full": ratios,
        "thesis_over_full": {
            what: round(v / thesis["full"], 3) for what, v in thesis.items() if what != "full"
        },
    }


class _First(Index):
    """The first images of an index, spread over its classes."""

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
