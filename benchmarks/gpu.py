"""The steps of benchmarks/gpu.sh: what only a GPU can show, as lines of JSON that come as they are measured.

    python benchmarks/gpu.py data gpu-results/data
    python benchmarks/gpu.py loader gpu-results/data --seconds 50
    python benchmarks/gpu.py hardware gpu-results/data --seconds 20
    python benchmarks/gpu.py train gpu-results/data --model resnet152 --seconds 40
    python benchmarks/gpu.py compiled gpu-results/data --model squeezenet1_1 --seconds 25
    python benchmarks/gpu.py mepi gpu-results/data --model efficientnet_b3

The first line says on which machine, the last one is the summary. With QRDALI_GPU_DRY=1 in the environment
everything runs on the CPU with small figures, to show that the steps themselves have no fault.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.interfaces import SilentListener
from qrdali.pipelines.engine import engine_for
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.system.device import resolve_device
from qrdali.system.device_copies import wait_for_device
from qrdali.system.machine import processors
from qrdali.workflows import bench_loader, bench_mepi, bench_rounds, bench_train
from qrdali.workflows.bench_rounds import Rounds, Timing

DRY = os.environ.get("QRDALI_GPU_DRY", "") not in ("", "0")


@dataclass(frozen=True)
class Sizes:
    """Says how much is measured.

    per_class: pictures that are generated for each of 16 classes. copies: of each, as hard links. size: their
    width and height. side: of the networks' input, None for the networks' own. images: of an epoch, by
    network, else those of "". mepi: images searched by ours and by the naive reference, and the step.
    """

    per_class: int = 64
    copies: int = 8
    size: tuple[int, int] = (500, 375)
    side: int | None = None
    loader_batch: int = 64
    train_batch: int = 32
    rounds: int = 5
    images: tuple[tuple[str, int], ...] = (("", 384), ("squeezenet1_1", 2048))
    mepi: tuple[int, int, float] = (64, 2, 0.05)


SIZES = Sizes(1, 2, (96, 72), 64, 8, 4, 1, (("", 8),), (2, 1, 0.5)) if DRY else Sizes()
DEVICE = "cpu" if DRY else "cuda"


class StderrListener(SilentListener):
    """Says on stderr what goes wrong, such as a compiler that is missing; all else is silent."""

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def said(timing: Timing) -> None:
    say(**timing._asdict() | {"seconds": round(timing.seconds, 4), "data_wait": round(timing.data_wait, 4)})


def data(folder: Path) -> None:
    """Generates pictures, links each several times, and indexes them; what is there already is kept."""
    if (folder / "classes.tsv").exists():
        return
    images, begun = folder.with_name(f"{folder.name}-images"), folder.with_name(f"{folder.name}-begun")
    if not images.exists():
        shutil.rmtree(begun, ignore_errors=True)  # of a run that was cut off
        generate(begun, ShapesSpec(16, SIZES.per_class, 0, 0, SIZES.size), workers=processors().usable)
        for file in sorted(begun.glob("train/*/*")):
            for i in range(1, SIZES.copies):
                file.with_name(f"{file.stem}-{i}{file.suffix}").hardlink_to(file)
        begun.rename(images)
    build_dataset(images, folder, verify=False)
    say(images=len(Dataset.open(folder).index("train")))


def loader(folder: Path, seconds: float, hardware: bool) -> None:
    """Measures our loader and its peers, or `hardware`: with and without the GPU's hardware decoder."""
    device, index = resolve_device(DEVICE), Dataset.open(folder).index("train")
    engine = engine_for(device, 1 if DRY else None)
    side, batch = SIZES.side or 224, SIZES.loader_batch
    if hardware:
        works = bench_loader.with_and_without_hardware(index, side, batch, engine)
    else:
        works = bench_loader.contenders(index, side, batch, engine)
        works[bench_loader.DECODE_JPEG] = bench_loader.decode_jpeg_work(
            index, side, batch, engine.num_dali_threads, device
        )
    say(
        images=len(index),
        input_size=side,
        batch_size=batch,
        threads=engine.threads,
        decode_threads=engine.num_dali_threads,
    )
    timings = measured(works, device, seconds)
    rates = {name: bench_rounds.rates(found) for name, found in timings.items()}
    if not hardware:
        say(summary=bench_loader.summary(rates))
        return
    gain = {
        name: bench_rounds.ratio(rates[name + bench_loader.HARDWARE], rates[name])
        for name in ("qrdali full", "plain DALI")
    }
    say(summary={name: bench_rounds.spread(values, 1) for name, values in rates.items()} | {"gain": gain})


def train(folder: Path, model: str, seconds: float) -> None:
    """Measures epochs of training, the same steps fed from memory, and probes."""
    network = network_in_training(folder, model)
    begun = time.perf_counter()
    network.train(FULL_QUALITY)  # cuDNN times its algorithms here
    network.wait()
    say(name="warm-up", seconds=round(time.perf_counter() - begun, 2))
    kinds = network.kinds()
    del kinds[bench_train.ONE_BY_ONE]  # as long as an epoch, and of no use here
    timings = measured(kinds, resolve_device(DEVICE), seconds)
    say(summary=bench_train.summary(model, timings))


def compiled(folder: Path, model: str, seconds: float) -> None:
    """Measures training steps fed from memory with and without torch.compile, which the first round does."""
    network = network_in_training(folder, model)
    works = {
        "plain": network.train_from_memory,
        "compiled": lambda: network.train_from_memory(compiled=True),
    }
    timings = measured(works, resolve_device(DEVICE), seconds)
    rates = {name: bench_rounds.rates(found) for name, found in timings.items()}
    gain = bench_rounds.ratio(rates["compiled"], rates["plain"])
    say(summary={name: bench_rounds.spread(values, 1) for name, values in rates.items()} | {"gain": gain})


def network_in_training(folder: Path, model: str) -> bench_train.Network:
    """Returns a network on part of the pictures, and says which."""
    dataset, images = Dataset.open(folder), dict(SIZES.images)
    part = bench_train.Spread(dataset.index("train"), images.get(model, images[""]))
    options = bench_train.Options(model, SIZES.side, None, SIZES.train_batch, DEVICE)
    network = bench_train.Network(part, len(dataset.classes), options, StderrListener())
    say(
        model=model,
        images=len(part),
        input_size=network.preprocessing.input_size,
        batch_size=SIZES.train_batch,
        threads=network.engine.threads,
        decode_threads=network.engine.num_dali_threads,
    )
    return network


def mepi(folder: Path, model: str) -> None:
    """Measures the MEPI search beside a naive one."""
    images, naive_images, step = SIZES.mepi
    result = bench_mepi.measure(
        Dataset.open(folder).index("train"),
        name=model,
        side=SIZES.side,
        threads=None,
        images=images,
        naive_images=naive_images,
        step=step,
        tail="full",
        rounds=1,
        device=DEVICE,
        report=lambda reduction, row: say(reduction=reduction, **row),
    )
    say(summary=result)


def measured(
    works: dict[str, bench_rounds.Work], device: torch.device, seconds: float
) -> dict[str, list[Timing]]:
    """Returns the timings of the counted rounds, or of the first one where there was no time for more."""
    first: dict[str, list[Timing]] = {}

    def report(timing: Timing) -> None:
        said(timing)
        first.setdefault(timing.name, [timing])

    wait: Callable[[], None] = lambda: wait_for_device(device)  # noqa: E731
    timings = bench_rounds.timed(works, Rounds(SIZES.rounds, wait, seconds, report))
    if all(timings.values()):
        return timings
    say(note="no time for a second round: the summary is of the first, which warms up")
    return first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("data", "loader", "hardware", "train", "compiled", "mepi"))
    parser.add_argument("folder", type=Path, help="of the data set; `data` makes it")
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--seconds", type=float, default=60, help="after which no round begins")
    args = parser.parse_args()
    say(step=args.step, dry=DRY, machine=bench_loader.machine())
    if args.step == "data":
        data(args.folder)
    elif args.step in ("loader", "hardware"):
        loader(args.folder, args.seconds, args.step == "hardware")
    elif args.step == "train":
        train(args.folder, args.model, args.seconds)
    elif args.step == "compiled":
        compiled(args.folder, args.model, args.seconds)
    else:
        mepi(args.folder, args.model)


if __name__ == "__main__":
    main()
