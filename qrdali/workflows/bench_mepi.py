"""Measures the MEPI search beside a naive one (`benchmarks/naive_mepi.py`) on the same images, in one
process.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from qrdali import models
from qrdali.data.index import Index, Samples, Writer
from qrdali.data.scan import Reading, index_folder
from qrdali.errors import InputError
from qrdali.evaluation.predict import predict
from qrdali.evaluation.prediction_rows import PredictionRows
from qrdali.interfaces import JobControl, ProgressListener, SilentListener
from qrdali.mepi.build import Builder
from qrdali.mepi.folder import SEARCHED, MepiSet, MepiSource
from qrdali.mepi.search import Search, SearchLimits, SearchRule
from qrdali.pipelines.engine import engine_for
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction import quality
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import LevelScale
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import probe_batch_size
from qrdali.system.device_copies import wait_for_device
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.context import open_context

NAIVE = Path(__file__).resolve().parents[2] / "benchmarks" / "naive_mepi.py"

CLASSES = 20
CLASS_NAMES = tuple(f"class-{i}" for i in range(CLASSES))

# Images per second of the thesis' slides with EfficientNet-B3 on an RTX 3090, if its hours are for the 25,000
# images of ImageNet's validation set in the slides: an assumption, the slides do not say.
THESIS = {"color": 0.39, "crop": 0.13, "resolution": 0.60, "combination": 0.13}


class _Centred(nn.Module):
    """Wraps a network less its mean output: with random weights it would answer one class for everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean: torch.Tensor | float = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images) - self.mean
        return logits


def naive_module() -> Any:
    """Imports the reference, which is no part of the package.

    Raises InputError where there is no checkout.
    """
    if not NAIVE.exists():
        raise InputError(
            f"{NAIVE} is not there: the naive reference is in qrdali's repository, "
            "run this command from a checkout"
        )
    spec = importlib.util.spec_from_file_location("naive_mepi", NAIVE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(
    index: Index,
    *,
    name: str,
    side: int | None,
    threads: int | None,
    images: int,
    naive_images: int,
    step: float,
    tail: str,
    rounds: int,
    reductions: tuple[str, ...] = SEARCHED,
    device: str = "auto",
    report: Callable[[str, dict[str, Any]], None] = lambda reduction, row: None,
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Returns images per second of our search and of the naive one, their ratio and how often their answers
    agree, per reduction.

    Ours includes decoding, search, PNG files and reading back; over_forward_alone is its time by that of the
    forward passes alone. The network has random weights and its mean output subtracted; its answers at full
    quality are the labels, so that every image has a MEPI. Rounds alternate between the two, so that the
    machine's drift cancels.

    threads: as in `engine_for`. report: is called with each reduction's row at once.
    """
    naive, scale = naive_module(), quality.scale_of(step, tail)
    network = _Network(name, side, threads, device, listener)
    rates: dict[str, Any] = {}
    listener.begin("measure", rounds * 2 * len(reductions), "runs")
    try:
        with TemporaryDirectory() as scratch:
            part = network.labelled_part(index, images, Path(scratch) / "part.arrow")
            few_count = min(naive_images, len(part))
            few = [i * len(part) // few_count for i in range(few_count)]
            duel = _Duel(network, naive, part, few, scale, Path(scratch))
            forward_rate = network.forward_rate()
            for reduction in reductions:
                rates[reduction] = duel.measure(reduction, rounds, forward_rate, listener)
                if name == "efficientnet_b3":
                    ours = rates[reduction]["images_per_second"]
                    rates[reduction]["over_thesis"] = round(ours / THESIS[reduction], 1)
                report(reduction, rates[reduction])
    finally:
        listener.end()
    return {
        "machine": machine(),
        "model": name,
        "input_size": network.preprocessing.input_size,
        "step": step,
        "tail": tail,
        "images": len(part),
        "naive_images": len(few),
        "rounds": rounds,
        "threads": network.engine.threads,
        "candidates_per_pass": network.max_batch,
        "reductions": rates,
    }


class _Network:
    """Holds a network with random weights, and what it needs to classify."""

    def __init__(
        self, name: str, side: int | None, threads: int | None, device: str, listener: ProgressListener
    ) -> None:
        self.context = open_context(device, "auto", JobControl(listener))
        self.preprocessing = models.preprocessing(name, side)
        self.engine = engine_for(self.context.device, threads)
        self.max_batch = probe_batch_size(self.context.device, 128)
        torch.manual_seed(0)
        model = _Centred(models.create(name, CLASSES))
        self.model = model.to(self.context.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def labelled_part(self, index: Index, images: int, file: Path) -> Index:
        """Writes an index of images spread over `index`, labelled by the network's answers, into `file`; sets
        the network's mean.
        """
        samples = np.linspace(0, len(index) - 1, min(images, len(index))).astype(np.int64)
        _write(file, index, samples, np.zeros(len(samples), np.int64))
        loader = open_loader(Index(file, CLASSES), self.preprocessing, 8, self.engine)
        total, count = torch.zeros(CLASSES, device=self.context.device), 0
        with torch.inference_mode():
            for batch in loader.epoch(EpochPlan(len(samples), 8, FULL_QUALITY)):
                with self.context.autocast():
                    total = total + self.model(batch.images).float().sum(0)
                count += len(batch.labels)
        self.model.mean = total / count
        _write(file, index, samples, self.classify(Index(file, CLASSES)).predictions)
        return Index(file, CLASSES)

    def classify(self, index: Index) -> PredictionRows:
        """Returns the network's answers at full quality."""
        loader = open_loader(index, self.preprocessing, 32, self.engine)
        plan = EpochPlan(len(index), 32, FULL_QUALITY)
        return predict(self.model, loader, plan, self.context)

    def forward_rate(self) -> Callable[[], float]:
        """Returns a function that measures images per second of the network alone, for two seconds."""
        side = self.preprocessing.input_size
        images = torch.rand(self.max_batch, 3, side, side, device=self.context.device)
        images = images.to(memory_format=torch.channels_last)

        def rate() -> float:
            done, begun = 0, time.perf_counter()
            with torch.inference_mode():
                while time.perf_counter() - begun < 2:
                    with self.context.autocast():
                        self.model(images).sum().item()
                    done += self.max_batch
            return done / (time.perf_counter() - begun)

        rate()  # warms up
        return rate


@dataclass(frozen=True)
class _Duel:
    """Searches with ours and with the naive reference.

    few: the samples of `part` that the reference searches.
    """

    network: _Network
    naive: Any
    part: Index
    few: list[int]
    scale: LevelScale
    scratch: Path

    def measure(
        self, reduction: str, rounds: int, forward_rate: Callable[[], float], listener: ProgressListener
    ) -> dict[str, Any]:
        """Returns the row of a reduction in the result."""
        context = self.network.context
        reference = self.naive.Naive(
            self.network.model,
            context.device,
            self.network.preprocessing,
            context.autocast,
        )
        dimensions = quality.REDUCTIONS[reduction]
        paths, labels = self.part.paths(np.array(self.few)), self.part.labels(np.array(self.few)).tolist()
        ours, theirs, over_forward = [], [], []
        same = 0
        for turn in range(rounds):
            out = self.scratch / f"{reduction}-{turn}"
            mepis = MepiSet.open(out, MepiSource(self.part, CLASS_NAMES, self.scale), {}, None)
            begun = time.perf_counter()
            row = self._build(mepis, reduction)
            wait_for_device(context.device)
            taken = time.perf_counter() - begun
            listener.advance(1, lambda: f"{reduction}, ours")
            ours.append(len(self.part) / taken)
            over_forward.append(taken * forward_rate() / (row["evaluations"] + len(self.part)))
            begun = time.perf_counter()
            answers = [
                reference.search(path, label, dimensions, self.scale.grid, self.scale.tail)
                for path, label in zip(paths, labels, strict=True)
            ]
            wait_for_device(context.device)
            theirs.append(len(self.few) / (time.perf_counter() - begun))
            listener.advance(1, lambda: f"{reduction}, naive")
            states = mepis.journal(reduction).rows["state"]
            same = sum(
                tuple(states[sample].tolist()) == answer[0]
                for sample, answer in zip(self.few, answers, strict=True)
            )
        return {
            "images_per_second": round(float(np.median(ours)), 3),
            "naive_images_per_second": round(float(np.median(theirs)), 3),
            "ratio": round(float(np.median(np.divide(ours, theirs))), 2),
            "over_forward_alone": round(float(np.median(over_forward)), 3),
            "evaluations_per_image": round(row["evaluations"] / len(self.part), 1),
            "mean_quotient": row["mean_quotient"],
            "same_answer": f"{same} of {len(self.few)}",
        }

    def _build(self, mepis: MepiSet, reduction: str) -> dict[str, Any]:
        """Builds a reduction of a set as `qrdali build-mepi` does; returns its row of the summary."""
        network = self.network
        rule = SearchRule(DescentRule(quality.REDUCTIONS[reduction], self.scale))
        reducer = open_image_reducer(self.part, network.preprocessing, network.engine)
        # The benchmark's own listener shows rounds; the search's passes would add lines between them.
        quiet = replace(network.context, listener=SilentListener())
        search = Search(
            network.model,
            reducer,
            rule,
            SearchLimits(network.max_batch, 1 << 30, network.engine.threads),
            quiet,
        )

        def read_back(check: Callable[[], None]) -> list[int]:
            index_folder(
                mepis.folder / reduction, CLASS_NAMES, mepis.folder / "set.arrow", Reading(verify=False)
            )
            written = Index(mepis.folder / "set.arrow", CLASSES)
            rows = network.classify(written)
            wrong = rows.samples[rows.labels != rows.predictions]
            return [int(Path(path).stem) for path in written.paths(wrong)]

        builder = Builder(mepis, reduction, search, read_back, quiet)
        return builder.build(list(range(len(self.part))))


def _write(file: Path, index: Index, samples: Samples, labels: Samples) -> None:
    """Writes an index of some images of another with labels of its own."""
    writer = Writer(file.with_suffix(".new"))
    for path, label, (height, width) in zip(
        index.paths(samples), labels.tolist(), index.sizes(samples).tolist(), strict=True
    ):
        writer.add(path, label, width, height)
    writer.close()
    file.with_suffix(".new").rename(file)
