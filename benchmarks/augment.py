"""Images per second of the loader with augmentations, beside torchvision's on the same files; JSON on stdout.

    python benchmarks/augment.py > augment.json

Generated JPEGs, one thread, one process, kinds in turns. torchvision's side is a plain loop over its own
transforms of Pillow images (no DataLoader, whose workers would be other processes): Resize,
RandomHorizontalFlip, the policy, ToTensor, Normalize and, with "erase", RandomErasing(p=0.25). Both flip, and
both draw two operators at magnitude 9 of 31 for rand-m9. Every round draws anew.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.bench_loader import MEAN, STD, machine
from qrdali.workflows.bench_rounds import Done, Rounds, Work, rates, ratio, spread, timed

# By name: the policy and the probability of erasing.
KINDS: dict[str, tuple[str, float]] = {
    "none": ("", 0.0),
    "rand-m9": ("rand-m9", 0.0),
    "trivial": ("trivial", 0.0),
    "augmix": ("augmix", 0.0),
    "erase": ("", 0.25),
}


def torchvision_epoch(paths: list[str], side: int, batch: int, kind: str) -> Work:
    """Returns an epoch by torchvision's transforms."""
    from torchvision import transforms as T

    policies = {
        "rand-m9": [T.RandAugment(2, 9)],
        "trivial": [T.TrivialAugmentWide()],
        "augmix": [T.AugMix()],
    }
    erasing = [T.RandomErasing(0.25)] if kind == "erase" else []
    transform = T.Compose(
        [
            T.Resize((side, side)),
            T.RandomHorizontalFlip(),
            *policies.get(kind, []),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
            *erasing,
        ]
    )

    def run() -> Done:
        done = 0
        for first in range(0, len(paths), batch):
            images = []
            for path in paths[first : first + batch]:
                with Image.open(path) as image:
                    images.append(transform(image.convert("RGB")))
            done += len(torch.stack(images))
        return Done(done)

    return run


def our_epoch(index: Index, side: int, batch: int, kind: str) -> Work:
    """Returns an epoch by the loader of the CPU with one thread."""
    loader = open_loader(
        index, Preprocessing(side, "whole", 1.0, "bilinear", MEAN, STD), batch, Engine(threads=1)
    )
    policy, erase = KINDS[kind]
    epochs = count(1)

    def run() -> Done:
        plan = EpochPlan(
            len(index),
            batch,
            FULL_QUALITY,
            epoch=next(epochs),
            training=True,
            augment="flip",
            auto_augment=policy,
            erase=erase,
        )
        return Done(sum(len(one.labels) for one in loader.epoch(plan)))

    return run


def measured(index: Index, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of all kinds."""
    paths = index.paths(np.arange(len(index)))
    works: dict[str, Work] = {}
    for kind in KINDS:
        works[f"qrdali {kind}"] = our_epoch(index, options.side, options.batch_size, kind)
        works[f"torchvision {kind}"] = torchvision_epoch(paths, options.side, options.batch_size, kind)
    begun = os.getloadavg()[0]
    timings = timed(works, Rounds(options.rounds, lambda: None))
    found = {name: rates(of_name) for name, of_name in timings.items()}
    return {
        "machine": machine(),
        "load_average": [round(begun, 1), round(os.getloadavg()[0], 1)],
        "note": "load averages at the beginning and the end: above 1, other work ran on the same cores",
        "images": len(index),
        "size": options.size,
        "rounds": options.rounds,
        "threads": 1,
        "input_size": options.side,
        "batch_size": options.batch_size,
        "images_per_second": {name: spread(values, 1) for name, values in found.items()},
        "speed_ratio": {
            f"qrdali / torchvision, {kind}": ratio(found[f"qrdali {kind}"], found[f"torchvision {kind}"])
            for kind in KINDS
        },
        "time_over_none": {
            f"{side} {kind}": ratio(found[f"{side} none"], found[f"{side} {kind}"])
            for side in ("qrdali", "torchvision")
            for kind in KINDS
            if kind != "none"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--side", type=int, default=224, help="of the network's input")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, options.size.split("x"))
    with TemporaryDirectory() as folder:
        root, data = Path(folder) / "images", Path(folder) / "data"
        per_class = max(1, options.images // 4)
        generate(root, ShapesSpec(classes=4, train=per_class, val=1, test=1, size=(width, height)), workers=1)
        build_dataset(root, data)
        print(json.dumps(measured(Dataset.open(data).index("train"), options), indent=2))


if __name__ == "__main__":
    main()
