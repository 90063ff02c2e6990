"""Measures the loader's speed beside its peers on the same files and threads.

Rounds alternate, so that the machine's drift cancels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from qrdali.workflows.bench_rounds import Done, Rounds, Work, rates, ratio, spread, timed

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Quality .5 of step .25.
REDUCED = {name: constant_levels(dimensions, 2) for name, dimensions in REDUCTIONS.items() if any(dimensions)}
DECODE_JPEG, HARDWARE = "torchvision decode_jpeg", ", hardware decoder"
PEERS = ("torchvision, Pillow", "torchvision.io", "plain DALI", DECODE_JPEG)


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


def _torchvision(paths: list[str], side: int, batch: int, threads: int, pillow: bool) -> Work:
    data = torch.utils.data.DataLoader(
        _Files(paths, side, pillow),
        batch,
        num_workers=threads,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    return lambda: Done(sum(len(images) for images, _ in data))


def decode_jpeg_work(index: Index, side: int, batch: int, threads: int, device: torch.device) -> Work:
    """Returns an epoch that reads files in threads, a batch ahead, and has torchvision decode on `device`.

    It takes JPEGs of one or three channels only; torchvision raises RuntimeError for others.
    """
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    paths = index.paths(np.arange(len(index)))
    resize = v2.Resize((side, side), antialias=True)
    prepare = v2.Compose(
        [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    pool = ThreadPoolExecutor(threads, "read")
    batches = [paths[first : first + batch] for first in range(0, len(paths), batch)]

    def run() -> Done:
        done = 0
        reading = [pool.submit(read_file, path) for path in batches[0]]
        for following in (*batches[1:], []):
            encoded = [file.result() for file in reading]
            reading = [pool.submit(read_file, path) for path in following]
            images = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
            done += len(prepare(torch.stack([resize(image) for image in images])))
        return Done(done)

    return run


def _plain_dali(paths: list[str], side: int, batch: int, engine: Engine, decode_only: bool) -> Work:
    @pipeline_def(
        batch_size=batch,
        num_threads=engine.num_dali_threads,
        device_id=engine.device_id,
        prefetch_queue_depth=engine.depth,
    )  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded, label = fn.readers.file(files=paths, name="reader", random_shuffle=False)
        options = engine.decode_options
        image = fn.decoders.image(encoded, device=options.device, **options.keywords)
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

    def run() -> Done:
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
        return Done(done)

    return run


def _ours(
    index: Index, side: int, batch: int, engine: Engine, levels: dict[str, ConstantLevels]
) -> dict[str, Work]:
    loader = open_loader(index, Preprocessing(side, "whole", 1.0, "bilinear", MEAN, STD), batch, engine)
    epochs = count(1)

    def run(level: ConstantLevels) -> Done:
        plan = EpochPlan(len(index), batch, level, training=True, augment="flip", epoch=next(epochs))
        return Done(sum(len(batch.labels) for batch in loader.epoch(plan)))

    return {name: lambda level=level: run(level) for name, level in levels.items()}  # type: ignore[misc]


def contenders(index: Index, side: int, batch_size: int, engine: Engine) -> dict[str, Work]:
    """Returns an epoch of ours at full quality, of each reduction, and of each peer, by its name.

    side: of the network's input, in pixels. Raises InputError for images
    that the peers cannot read.
    """
    if index.needs_bytes:
        raise InputError(
            "the images are in a store or in shards, which torchvision does not read: "
            "index a folder to compare loaders"
        )
    paths = index.paths(np.arange(len(index)))
    levels = {"qrdali full": FULL_QUALITY, **{f"qrdali {name}": level for name, level in REDUCED.items()}}
    works = _ours(index, side, batch_size, engine, levels)
    works["plain DALI"] = _plain_dali(paths, side, batch_size, engine, False)
    works["DALI decode only"] = _plain_dali(paths, side, batch_size, engine, True)
    workers = engine.num_dali_threads
    works["torchvision, Pillow"] = _torchvision(paths, side, batch_size, workers, True)
    works["torchvision.io"] = _torchvision(paths, side, batch_size, workers, False)
    return works


def with_and_without_hardware(index: Index, side: int, batch_size: int, engine: Engine) -> dict[str, Work]:
    """Returns epochs of ours and of a plain DALI graph, and the same as DALI decodes by default on a GPU.

    DALI then uses the hardware decoder that some GPUs have. There are reports of crashes in it, so this
    belongs into a process of its own.
    """
    paths = index.paths(np.arange(len(index)))
    works: dict[str, Work] = {}
    for words, decoding in (("", engine), (HARDWARE, replace(engine, decode="hardware"))):
        works |= _ours(index, side, batch_size, decoding, {f"qrdali full{words}": FULL_QUALITY})
        works[f"plain DALI{words}"] = _plain_dali(paths, side, batch_size, decoding, False)
    return works


def measure(
    index: Index,
    *,
    rounds: int,
    side: int,
    threads: int | None,
    batch_size: int,
    listener: ProgressListener = SilentListener(),
) -> dict[str, Any]:
    """Returns images per second (median, minimum, maximum over rounds) of every contender, and ratios between
    them.

    side: of the network's input, in pixels. threads: as in `engine_for`. Raises InputError for images that
    the peers cannot read.
    """
    device = resolve_device("auto")
    engine = engine_for(device, threads)
    works = contenders(index, side, batch_size, engine)
    # Batches come before the device has made them.
    timings = timed(works, Rounds(rounds, lambda: wait_for_device(device), listener=listener))
    return {
        "machine": machine(),
        "images": len(index),
        "rounds": rounds,
        "threads": engine.threads,
        "decode_threads": engine.num_dali_threads,
        "input_size": side,
        "batch_size": batch_size,
        **summary({name: rates(found) for name, found in timings.items()}),
    }


def summary(rates_of: dict[str, list[float]]) -> dict[str, Any]:
    """Returns the spread of each contender's images per second, and ours by each peer's of the same round."""
    full = rates_of["qrdali full"]
    peers = [name for name in PEERS if name in rates_of]
    return {
        "images_per_second": {name: spread(values, 1) for name, values in rates_of.items()},
        "speed_ratio": {f"qrdali full / {peer}": ratio(full, rates_of[peer]) for peer in peers},
        "time_reduced_over_full": {name: ratio(full, rates_of[f"qrdali {name}"]) for name in REDUCED},
    }


def machine() -> dict[str, Any]:
    """Returns what a figure depends on: processor, GPU with its driver, versions."""
    facts = environment(resolve_device("auto"))
    driver = {"driver": facts["driver"]} if facts["gpu"] else {}
    return {key: facts[key] for key in ("cpu", "cores", "gpu", "python", "torch", "dali")} | driver
