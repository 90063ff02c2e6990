"""The MEPI search beside a naive one (`benchmarks/naive_mepi.py`) on the same images, reduction by reduction, in one process."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from qrdali import models
from qrdali.cli.terminal import warn
from qrdali.data.index import Index, Samples, Writer
from qrdali.data.scan import index_folder
from qrdali.distributed import SINGLE_PROCESS
from qrdali.errors import InputError
from qrdali.evaluation.predict import predict
from qrdali.interfaces import RunContext, SilentListener, never_stop
from qrdali.mepi.build import Builder
from qrdali.mepi.folder import SEARCHED, MepiSet
from qrdali.mepi.search import Search, SearchRule
from qrdali.pipelines.engine import Engine, engine_for
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction import quality
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.neighbors import DescentRule
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for, probe_batch_size
from qrdali.system.energy import EnergyMeter
from qrdali.workflows.bench_loader import machine

NAIVE = Path(__file__).resolve().parents[2] / "benchmarks" / "naive_mepi.py"

# Images per second of the thesis' slides with EfficientNet-B3 on an RTX 3090, if its hours are for the 25,000 images of ImageNet's
# validation set in the slides: an assumption, the slides do not say.
THESIS = {"color": 0.39, "crop": 0.13, "resolution": 0.60, "combination": 0.13}


class _Centred(nn.Module):
    """A network less its mean output: with random weights it would answer one class for everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean: torch.Tensor | float = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(images) - self.mean
        return logits


class _Quiet:
    """A watcher that shows nothing."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def naive_module() -> Any:
    """The reference, which is no part of the package. Raises InputError where there is no checkout."""
    if not NAIVE.exists():
        raise InputError(
            f"{NAIVE} is not there: the naive reference is in qrdali's repository, run this command from a checkout"
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
    threads: int,
    images: int,
    naive_images: int,
    step: float,
    rounds: int,
    reductions: tuple[str, ...] = SEARCHED,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Images per second of ours (decoding, search, PNG files, reading back) and of the naive search, their ratio, the time ours
    takes over the forward passes alone, and the share of images with the same answer.

    The network has random weights and its mean output subtracted; its answers at full quality are the labels, so that every
    image has a MEPI. Rounds alternate between the two, so that the machine's drift cancels.
    """
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    naive, n, pre = naive_module(), quality.num_levels_of(step), models.preprocessing(name, side)
    autocast = autocast_for("auto", device)[0]
    engine = engine_for(device, threads, warn)
    torch.manual_seed(0)
    model = _Centred(models.create(name, 20)).to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    at_once = probe_batch_size(device, 128)
    classes = tuple(f"class-{i}" for i in range(20))
    with TemporaryDirectory() as folder:
        part = _labelled(index, images, model, pre, engine, autocast, classes, Path(folder) / "part.arrow")
        samples = list(range(len(part)))
        few = [
            samples[i * len(samples) // min(naive_images, len(samples))]
            for i in range(min(naive_images, len(samples)))
        ]
        paths, labels = part.paths(np.array(few)), part.labels(np.array(few)).tolist()
        reference = naive.Naive(model, device, pre.input_size, pre.mean, pre.std, pre.interpolation, autocast)
        forward = _forward_rate(model, at_once, pre.input_size, device, autocast)
        result: dict[str, Any] = {}
        for reduction in reductions:
            rule = SearchRule(DescentRule(quality.REDUCTIONS[reduction], n))
            ours, theirs, over = [], [], []
            same = 0
            for turn in range(rounds):
                out = Path(folder) / f"{reduction}-{turn}"
                mepis = MepiSet.open(out, part, classes, n, {}, False)
                search = Search(
                    model, open_image_reducer(part, pre, engine), rule, at_once, 1 << 30, threads, autocast
                )

                def read_back(
                    check: Callable[[], None],
                    mepis: MepiSet = mepis,
                    out: Path = out,
                    reduction: str = reduction,
                ) -> list[int]:
                    index_folder(out / reduction, classes, out / "set.arrow", verify=False)
                    rows = _classified(Index(out / "set.arrow", 20), model, pre, engine, autocast)
                    return [
                        int(Path(p).stem)
                        for p in Index(out / "set.arrow", 20).paths(
                            rows.samples[rows.labels != rows.predictions]
                        )
                    ]

                begun = time.perf_counter()
                row = Builder(mepis, reduction, search, threads, read_back, _Quiet(), lambda: 0).build(
                    samples
                )
                taken = time.perf_counter() - begun
                progress(f"{reduction}, ours")
                ours.append(len(samples) / taken)
                over.append(taken * forward() / (row["evaluations"] + len(samples)))
                begun = time.perf_counter()
                dimensions = quality.REDUCTIONS[reduction]
                answers = [
                    reference.search(path, label, dimensions, n)
                    for path, label in zip(paths, labels, strict=True)
                ]
                theirs.append(len(few) / (time.perf_counter() - begun))
                progress(f"{reduction}, naive")
                states = mepis.journal(reduction).rows["state"]
                same = sum(
                    tuple(states[s].tolist()) == answer[0] for s, answer in zip(few, answers, strict=True)
                )
            result[reduction] = {
                "images_per_second": round(float(np.median(ours)), 3),
                "naive_images_per_second": round(float(np.median(theirs)), 3),
                "ratio": round(float(np.median(np.divide(ours, theirs))), 2),
                "over_forward_alone": round(float(np.median(over)), 3),
                "evaluations_per_image": round(row["evaluations"] / len(samples), 1),
                "mean_quotient": row["mean_quotient"],
                "same_answer": f"{same} of {len(few)}",
            }
            if name == "efficientnet_b3":
                result[reduction]["over_thesis"] = round(
                    result[reduction]["images_per_second"] / THESIS[reduction], 1
                )
    return {
        "machine": machine(),
        "model": name,
        "input_size": pre.input_size,
        "step": step,
        "images": len(samples),
        "naive_images": len(few),
        "rounds": rounds,
        "threads": threads,
        "candidates_per_pass": at_once,
        "reductions": result,
    }


def _labelled(
    index: Index,
    images: int,
    model: _Centred,
    pre: models.Preprocessing,
    engine: Engine,
    autocast: Any,
    classes: tuple[str, ...],
    file: Path,
) -> Index:
    """The first images of an index, spread over it, labelled by the model's answers; sets its mean."""
    every = np.linspace(0, len(index) - 1, min(images, len(index))).astype(np.int64)
    _write(file, index, every, np.zeros(len(every), np.int64))
    loader, total, count = open_loader(Index(file, len(classes)), pre, 8, engine), 0.0, 0
    with torch.inference_mode():
        for batch in loader.epoch(EpochPlan(len(every), 8, FULL_QUALITY)):
            with autocast():
                total = total + model(batch.images).float().sum(0)
            count += len(batch.labels)
    model.mean = total / count
    rows = _classified(Index(file, len(classes)), model, pre, engine, autocast)
    _write(file, index, every, rows.predictions)
    return Index(file, len(classes))


def _write(file: Path, index: Index, samples: Samples, labels: Samples) -> None:
    writer = Writer(file.with_suffix(".new"))
    for path, label, (height, width) in zip(
        index.paths(samples), labels.tolist(), index.sizes(samples).tolist(), strict=True
    ):
        writer.add(path, label, width, height)
    writer.close()
    file.with_suffix(".new").rename(file)


def _classified(
    index: Index, model: nn.Module, pre: models.Preprocessing, engine: Engine, autocast: Any
) -> Any:
    device = next(model.parameters()).device
    context = RunContext(device, autocast, EnergyMeter(device), SINGLE_PROCESS, SilentListener(), never_stop)
    return predict(
        model, open_loader(index, pre, 32, engine), EpochPlan(len(index), 32, FULL_QUALITY), context
    )


def _forward_rate(
    model: nn.Module, batch: int, side: int, device: torch.device, autocast: Any
) -> Callable[[], float]:
    """A function that gives images per second of the network alone."""
    images = torch.rand(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)

    def rate() -> float:
        done, begun = 0, time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - begun < 2:
                with autocast():
                    model(images).sum().item()
                done += batch
        return done / (time.perf_counter() - begun)

    rate()
    return rate
