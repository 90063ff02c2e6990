"""Measures the loader's speed against threads, image size, input size, batch size and number of images.

    python benchmarks/loader_curves.py --rounds 5 --json benchmarks/results/loader-curves-cpu.json

One thing at a time differs from `base` in the result. Beside each speed stands that of decoding the same
files alone, with DALI in as many threads: the limit of whatever decodes whole images so. A round measures
every point once, both loaders one after the other; each round begins with another point, and a share is that
of two measurements of one round. The images are generated; where a point has more of them than were generated
for its size, files are linked to several names, and so are read from the page cache, as all are. Seconds of
the processors are measured too: they depend less than the clock's on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from peer_loaders import PEERS, Task

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.system.device import resolve_device
from qrdali.system.device_copies import wait_for_device
from qrdali.system.machine import processors
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.bench_rounds import spread

OURS, LIMIT = "qrdali", "decode alone"
# By width: the height, how many files are generated, and how many images a point has.
PICTURES = {250: (188, 512, 1024), 500: (375, 512, 1024), 1000: (750, 96, 384), 2000: (1500, 24, 96)}
CLASSES = 8
WARMED_UP = 2048  # images, from which on an epoch needs no other before it

Row = dict[str, Any]


class Point(NamedTuple):
    """Says what is measured. width: of the images, which are 4:3, half of them upright. side: of the square
    that comes out. Both are in pixels."""

    threads: int
    width: int = 500
    side: int = 224
    batch: int = 32
    images: int = 1024


def curves(cores: int, scale: float) -> dict[str, dict[str, Point]]:
    """Returns the points of each curve by the text of what differs. scale: of the numbers of images."""

    def images(count: int) -> int:
        return max(CLASSES, round(count * scale) // CLASSES * CLASSES)

    base = Point(min(2, cores), images=images(1024))
    threads = [count for count in (1, 2, 4, 8, 16, 32) if count <= cores]
    return {
        "threads": {str(count): base._replace(threads=count) for count in threads},
        "image_size": {
            f"{width}x{height}": base._replace(width=width, images=images(count))
            for width, (height, _, count) in PICTURES.items()
        },
        "input_size": {str(side): base._replace(side=side) for side in (96, 128, 160, 224, 288, 384)},
        "batch_size": {str(batch): base._replace(batch=batch) for batch in (8, 16, 32, 64, 128, 256)},
        "images": {
            str(images(count)): base._replace(images=images(count)) for count in (104, 520, 1024, 5000, 20000)
        },
    }


class Pictures:
    """Makes the data sets of the points below a folder: each size is generated once, and linked."""

    def __init__(self, folder: Path, scale: float) -> None:
        self._folder, self._scale = folder, scale

    def dataset(self, point: Point) -> Path:
        """Returns the data set with a point's images."""
        data = self._folder / f"data-{point.width}-{point.images}"
        if not data.exists():
            files = self._generated(point.width)
            root = self._folder / f"images-{point.width}-{point.images}"
            for number in range(point.images):
                label, place = number % CLASSES, number // CLASSES
                source = files[label][place % len(files[label])]
                target = root / "train" / source.parent.name / f"{place:06d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, target)
            build_dataset(root, data, verify=False)
        return data

    def _generated(self, width: int) -> list[list[Path]]:
        """Returns the generated files of a size by class."""
        root = self._folder / f"generated-{width}"
        height, count, _ = PICTURES[width]
        if not root.exists():
            each = max(1, round(count * min(1, self._scale)) // CLASSES)
            generate(root, ShapesSpec(classes=CLASSES, train=each, val=0, test=0, size=(width, height)))
        return [sorted(folder.iterdir()) for folder in sorted((root / "train").iterdir())]


class Taken(NamedTuple):
    """What an epoch takes: images per second, and seconds of all processors per 1,000 images."""

    images_per_second: float
    cpu_seconds: float


def taken(name: str, task: Task) -> Taken:
    """Returns what an epoch of a loader takes, after one that warms it up."""
    epoch = PEERS[name].open(task)[name]
    number = 0
    if len(task.paths) < WARMED_UP:
        for _ in epoch(number):
            pass
        number = 1
    begun, cpu_begun = time.perf_counter(), time.process_time()
    images = sum(len(batch) for batch in epoch(number))
    wait_for_device(resolve_device("auto"))
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    if images != len(task.paths):
        raise RuntimeError(f"{name} gave {images} images of {len(task.paths)}")
    return Taken(images / seconds, 1000 * cpu_seconds / images)


def measure(tasks: dict[Point, Task], rounds: int) -> dict[Point, dict[str, list[Taken]]]:
    """Returns the measurements of each loader at each point, one for each round."""
    found: dict[Point, dict[str, list[Taken]]] = {point: {OURS: [], LIMIT: []} for point in tasks}
    points = list(tasks)
    for number in range(rounds):
        turn = number * 7 % len(points)
        for point in points[turn:] + points[:turn]:
            for name in (OURS, LIMIT) if number % 2 else (LIMIT, OURS):
                found[point][name].append(taken(name, tasks[point]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, list[Taken]]) -> Row:
    """Returns the spread of both loaders' measurements at a point, and of ours by the limit in one round."""
    pairs = list(zip(found[OURS], found[LIMIT], strict=True))
    return {
        "images_per_second": {
            name: spread([row.images_per_second for row in rows], 1) for name, rows in found.items()
        },
        "cpu_seconds_per_1000_images": {
            name: spread([row.cpu_seconds for row in rows], 3) for name, rows in found.items()
        },
        "share_of_decode_alone": spread(
            [ours.images_per_second / limit.images_per_second for ours, limit in pairs], 3
        ),
        "share_of_decode_alone_by_cpu_time": spread(
            [limit.cpu_seconds / ours.cpu_seconds for ours, limit in pairs], 3
        ),
    }


def task_of(point: Point, data: Path, device: str) -> Task:
    """Returns what the loaders of a point load."""
    index = Dataset.open(data)["train"]
    paths = [str(path) for path in index.paths(np.arange(len(index)))]
    return Task(data, paths, point.side, point.batch, point.threads, device)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of images, to try it")
    parser.add_argument("--json", type=Path, help="file of the result")
    options = parser.parse_args(words)
    if options.rounds < 1 or not 0 < options.scale <= 1:
        parser.error("--rounds must be 1 or more, --scale above 0 and at most 1")
    wanted = curves(processors().usable, options.scale)
    device = resolve_device("auto").type
    with TemporaryDirectory() as scratch:
        pictures = Pictures(Path(scratch), options.scale)
        points = dict.fromkeys(point for curve in wanted.values() for point in curve.values())
        tasks = {point: task_of(point, pictures.dataset(point), device) for point in points}
        kilobytes = {
            width: round(np.mean([os.path.getsize(path) for path in task.paths]) / 1000, 1)
            for width, task in {point.width: task for point, task in tasks.items()}.items()
        }
        found = measure(tasks, options.rounds)
    result = {
        "machine": machine(),
        "rounds": options.rounds,
        "base": next(iter(wanted["threads"].values()))
        ._replace(threads=min(2, processors().usable))
        ._asdict(),
        "kilobytes_of_a_file": {str(width): size for width, size in kilobytes.items()},
        "curves": {
            name: {text: {"images": point.images, **summary(found[point])} for text, point in curve.items()}
            for name, curve in wanted.items()
        },
        "command": f"python benchmarks/loader_curves.py {shlex.join(words)}".rstrip(),
    }
    for name, curve in result["curves"].items():
        for text, row in curve.items():
            speeds, share = row["images_per_second"], row["share_of_decode_alone"]
            print(
                f"{name} {text}: {speeds[OURS]['median']:.0f} images/s, "
                f"decoding alone {speeds[LIMIT]['median']:.0f}, {share['median']:.2f} of it"
            )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
