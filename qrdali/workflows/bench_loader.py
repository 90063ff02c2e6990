"""Measures the loader's speed beside its peers on the same files and threads.

Rounds alternate, so that the machine's drift cancels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray

from qrdali.data.index import Index
from qrdali.errors import InputError
from qrdali.interfaces import ProgressListener, SilentListener
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine, engine_for
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels, constant_levels
from qrdali.reduction.quality import REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import resolve_device
from qrdali.system.device_copies import wait_for_device
from qrdali.system.environment import environment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Quality .5 of step .25.
REDUCED = {name: constant_levels(dimensions, 2) for name, dimensions in REDUCTIONS.items() if any(dimensions)}


class _Files(torch.utils.data.Dataset[Any]):
    """Peers written as users write them: one file per item, torchvision's transforms as in PyTorch's ImageNet
    example.
    """

    def __init__(self, paths: list[str], side: int, pillow: bool) -> None:
        from torchvision import transforms
        from torchvision.transforms import v2

        self.paths, self.pillow = paths, pillow
        self.transform: Any
        if pillow:
            self.transform = transforms.Compose(
                [
                    transforms.Resize((side, side)),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            )
        else:
            self.transform = v2.Compose(
                [
                    v2.Resize((side, side), antialias=True),
                    v2.RandomHorizontalFlip(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(MEAN, STD),
                ]
            )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> Any:
        if self.pillow:
            from PIL import Image

            return self.transform(Image.open(self.paths[item]).convert("RGB")), 0
        from torchvision.io import ImageReadMode, decode_image

        return self.transform(decode_image(self.paths[item], ImageReadMode.RGB)), 0


def _torchvision(paths: list[str], side: int, batch: int, threads: int, pillow: bool) -> Callable[[], int]:
    data = torch.utils.data.DataLoader(
        _Files(paths, side, pillow),
        batch,
        num_workers=threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return lambda: sum(len(images) for images, _ in data)


def _plain_dali(
    paths: list[str], side: int, batch: int, engine: Engine, decode_only: bool
) -> Callable[[], int]:
    @pipeline_def(
        batch_size=batch,
        num_threads=engine.num_dali_threads,
        device_id=engine.device_id,
        prefetch_queue_depth=engine.depth,
    )  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded, label = fn.readers.file(files=paths, name="reader", random_shuffle=False)
        image = fn.decoders.image(encoded, device=engine.decode_options.device)
        if decode_only:
            return image, label
        image = fn.resize(image, size=[side, side], interp_type=types.INTERP_TRIANGULAR, antialias=True)
        return fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="HWC",
            mean=[255 * m for m in MEAN],
            std=[255 * s for s in STD],
            mirror=fn.random.coin_flip(),
        ), label

    pipe = graph()

    def run() -> int:
        done = 0
        device = "cpu" if engine.device_id is None else "cuda"
        while done < len(paths):
            images, _ = pipe.run()
            if not decode_only:
                tensor = images.as_tensor()
                out = torch.empty(tensor.shape(), device=device)
                stream = None if device == "cpu" else torch.cuda.current_stream()
                feed_ndarray(tensor, out, cuda_stream=stream)
            done += len(images)
        return done

    return run


def _ours(
    index: Index, side: int, batch: int, engine: Engine, levels: dict[str, ConstantLevels]
) -> dict[str, Callable[[], int]]:
    loader = open_loader(index, Preprocessing(side, "whole", 1.0, "bilinear", MEAN, STD), batch, engine)
    epochs = count(1)

    def run(level: ConstantLevels) -> int:
        plan = EpochPlan(len(index), batch, level, training=True, augment="flip", epoch=next(epochs))
        return sum(len(batch.labels) for batch in loader.epoch(plan))

    return {name: lambda level=level: run(level) for name, level in levels.items()}  # type: ignore[misc]


def measure(
    index: Index,
    *,
    rounds: int,
    side: int,
    threads: int,
    batch_size: int,
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Returns images per second (median, minimum, maximum over rounds) of every contender, and ratios between
    them.

    side: of the network's input, in pixels. Raises InputError for images that the peers cannot read.
    """
    if index.needs_bytes:
        raise InputError(
            "the images are in a store or in shards, which torchvision does not read: "
            "index a folder to compare loaders"
        )
    device = resolve_device("auto")
    engine = engine_for(device, threads)
    paths = index.paths(np.arange(len(index)))
    levels = {"qrdali full": FULL_QUALITY, **{f"qrdali {name}": level for name, level in REDUCED.items()}}
    contenders = _ours(index, side, batch_size, engine, levels)
    contenders["plain DALI"] = _plain_dali(paths, side, batch_size, engine, False)
    contenders["DALI decode only"] = _plain_dali(paths, side, batch_size, engine, True)
    contenders["torchvision, Pillow"] = _torchvision(paths, side, batch_size, threads, True)
    contenders["torchvision.io"] = _torchvision(paths, side, batch_size, threads, False)
    rates = _rates(contenders, rounds, listener, device)

    def ratio(a: str, b: str) -> float:
        """Returns the median over rounds of a's rate by b's in the same round."""
        return round(statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True)), 3)

    return {
        "machine": machine(),
        "images": len(index),
        "rounds": rounds,
        "threads": threads,
        "input_size": side,
        "batch_size": batch_size,
        "images_per_second": {
            name: {
                "median": round(statistics.median(rate), 1),
                "min": round(min(rate), 1),
                "max": round(max(rate), 1),
            }
            for name, rate in rates.items()
        },
        "speed_ratio": {
            f"qrdali full / {peer}": ratio("qrdali full", peer)
            for peer in ("torchvision, Pillow", "torchvision.io", "plain DALI")
        },
        "time_reduced_over_full": {name: ratio("qrdali full", f"qrdali {name}") for name in REDUCED},
    }


def _rates(
    contenders: dict[str, Callable[[], int]], rounds: int, listener: ProgressListener, device: torch.device
) -> dict[str, list[float]]:
    """Returns the images per second of each contender in each round; one round before them is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    listener.begin("measure", (rounds + 1) * len(contenders), "runs")
    try:
        for turn in range(rounds + 1):
            for name, run in contenders.items():
                begun = time.perf_counter()
                images = run()
                wait_for_device(device)  # batches come before the device has made them
                if turn:  # the first round warms files, workers and pools
                    rates[name].append(images / (time.perf_counter() - begun))
                listener.advance(1, lambda name=name: name)  # type: ignore[misc]
    finally:
        listener.end()
    return rates


def machine() -> dict[str, Any]:
    """Returns what a figure depends on: processor, GPU, versions."""
    facts = environment(resolve_device("auto"))
    return {key: facts[key] for key in ("cpu", "cores", "gpu", "python", "torch", "dali")}
