"""Measures whether what goes on for days grows the process; JSON on stdout.

It repeats epochs, resets, rebuilds after errors, probes and searches.

    python benchmarks/memory.py > memory-HOST.json

Each kind of work is repeated in this one process. 20 times are noted: its own resident memory; what of it is
allocated, which grows even where a leak is fed from memory that others gave back (glibc 2.33 or newer); on a
GPU also the card's used memory. Growth is the Theil-Sen slope over the last three quarters, as the first one
fills pools and caches. A kind of work grows if the slope's 95% interval lies above zero and what it adds in
the whole time is above --tolerance. Exit status 1 if any does. --leak keeps what it should not, to see that
this is noticed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.stats import theilslopes

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import Unreadable
from qrdali.interfaces import BatchSource, CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine, engine_for
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.reduction.neighbors import column_dimensions, neighbors_of
from qrdali.reduction.quality import Dimensions, LevelScale
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import resolve_device
from qrdali.workflows.bench_loader import machine

POINTS = 20
REDUCED = ConstantLevels(2, 2, 2)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOVING = Dimensions(True, True, True)


@dataclass
class Work:
    """Does what is repeated. kept: what --leak keeps."""

    index: Index
    preprocessing: Preprocessing
    engine: Engine
    batch_size: int
    leak: bool

    def __post_init__(self) -> None:
        self.kept: list[Any] = []
        self._epochs = count(1)
        self._loader = self._open()
        self._batches: Iterator[Any] = iter(())
        self._makers = open_image_reducer(self.index, self.preprocessing, self.engine)

    def _open(self) -> BatchSource:
        return open_loader(self.index, self.preprocessing, self.batch_size, self.engine)

    def _plan(self) -> EpochPlan:
        epoch = next(self._epochs)
        return EpochPlan(
            len(self.index),
            self.batch_size,
            REDUCED if epoch % 2 else FULL_QUALITY,
            training=True,
            augment="flip",
            epoch=epoch,
        )

    def batch(self) -> None:
        """Loads the next batch; at the end of an epoch the first of the next, full and reduced in turn."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = self._loader.epoch(self._plan())
            batch = next(self._batches)
        self._keep(batch)

    def reset(self) -> None:
        """Begins an epoch and leaves it after one batch."""
        self._keep(next(self._loader.epoch(self._plan())))

    def rebuild(self) -> None:
        """Does an epoch that an unreadable file ends, and one that goes on without it: each makes a pipeline
        anew.
        """
        file = Path(self.index.paths(np.zeros(1, np.int64))[0])
        good = file.read_bytes()
        file.write_bytes(b"no image")
        try:
            for batch in self._loader.epoch(self._plan(), lambda found: None):
                self._keep(batch)
            try:
                for batch in self._loader.epoch(self._plan()):
                    self._keep(batch)
                raise AssertionError("an unreadable file was read")
            except Unreadable:
                pass
        finally:
            file.write_bytes(good)

    def reopen(self) -> None:
        """Opens a loader, as each split and tracked set has one, and leaves it after one batch."""
        loader = self._open()
        self._keep((loader if self.leak else None, next(loader.epoch(self._plan()))))

    def probe(self) -> None:
        """Shows the neighbours of every image, as before an adaptive stage."""

        def requests() -> Iterator[CandidateRequest]:
            for start in range(0, len(self.index), 4):
                samples = np.arange(start, min(start + 4, len(self.index)))
                sizes = self.index.sizes(samples)
                window = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
                yield CandidateRequest(
                    samples,
                    window,
                    neighbors_of(np.zeros((len(samples), 3), np.uint8), window, sizes, MOVING, LevelScale(4)),
                )

        for answer in self._loader.candidates(requests(), 4, column_dimensions(MOVING), True):
            self._keep(answer)

    def search(self) -> None:
        """Decodes originals and reduces them to inputs and pictures, as `build-mepi` does."""
        epoch = next(self._epochs)
        samples = np.arange(min(16, len(self.index)))
        pixels = [
            image for _, image in self._makers.decode(iter(samples.tolist()), lambda sample, reason: None)
        ]
        plan = EpochPlan(len(self.index), len(samples), REDUCED, training=True, epoch=epoch)
        numbers = plan.parameters(samples, self.index.sizes(samples))
        self._keep(
            (
                pixels,
                self._makers.network_inputs(pixels, numbers),
                self._makers.reduced_images(pixels, numbers),
            )
        )

    def _keep(self, value: Any) -> None:
        if self.leak:
            self.kept.append(value)


class _Malloc(ctypes.Structure):
    """Mirrors struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def used(engine: Engine) -> dict[str, float]:
    """Returns KiB that this process has of its own, those of them that are allocated, and those used on the
    GPU by everybody.
    """
    gc.collect()
    result = {"resident": float(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])}
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _Malloc
        allocated = libc.mallinfo2()
        result["allocated"] = (allocated.uordblks + allocated.hblkhd) / 1024
    if engine.device_id is not None:
        torch.cuda.synchronize(engine.device_id)
        free, total = torch.cuda.mem_get_info(engine.device_id)
        result["card"] = (total - free) / 1024
    return result


def trend(units: list[int], kib: list[float], tolerance: float) -> dict[str, Any]:
    """Returns how memory grew. units: done at each point. tolerance: KiB that the whole of them may add."""
    first = len(units) // 4
    slope, _, low, _ = theilslopes(kib[first:], units[first:])
    added = slope * units[-1]
    return {
        "mb": [round(value / 1024, 1) for value in kib],
        "kib_per_unit": round(float(slope), 2),
        "mb_added": round(float(added) / 1024, 2),
        "grows": bool(low > 0 and added > tolerance),
    }


def repeated(one: Callable[[], None], times: int, engine: Engine, tolerance: float) -> dict[str, Any]:
    """Does `one` `times` times; returns the trend of each kind of memory."""
    begun = time.perf_counter()
    for _ in range(4):  # pools and the threads' arenas are filled, which takes longer on a busy machine
        one()
    units = [times * point // POINTS for point in range(1, POINTS + 1)]
    curves: dict[str, list[float]] = {}
    for before, after in pairwise([0, *units]):
        for _ in range(before, after):
            one()
        for what, kib in used(engine).items():
            curves.setdefault(what, []).append(kib)
    trends = {what: trend(units, kib, tolerance) for what, kib in curves.items()}
    return {"units": times, **trends, "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--resets", type=int, default=50, help="of each of the others")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=4, help="MB that a kind of work may add in all")
    parser.add_argument("--only", nargs="+", help="kinds of work, such as probe")
    parser.add_argument("--leak", action="store_true")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "command": shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        "note": args.note,
        "images": args.images,
        "input_size": args.input_size,
        "batch_size": args.batch_size,
    }
    engines = {"": engine_for(resolve_device("auto"), args.threads)}
    if engines[""].host_ops:
        engines[", whole graph"] = Engine(threads=args.threads, whole_graph=True)
    grown = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        generate(
            folder / "images",
            ShapesSpec(classes=2, train=args.images // 2, val=0, test=0, size=tuple(args.size)),
            workers=1,
        )
        build_dataset(folder / "images", folder / "data", threads=1)
        index = Dataset.open(folder / "data").index("train")
        for suffix, engine in engines.items():
            work = Work(
                index,
                Preprocessing(args.input_size, "whole", 1.0, "bilinear", MEAN, STD),
                engine,
                args.batch_size,
                args.leak,
            )
            kinds = {"batch": args.batches} | dict.fromkeys(
                ("reset", "rebuild", "reopen", "probe", "search"), args.resets
            )
            for kind, times in kinds.items():
                if args.only and kind not in args.only:
                    continue
                trends = repeated(getattr(work, kind), times, engine, args.tolerance * 1024)
                result[kind + suffix] = trends
                print(f"{kind}{suffix}: {trends}", file=sys.stderr)
                grown += [
                    f"{kind}{suffix}, {what}"
                    for what, value in trends.items()
                    if isinstance(value, dict) and value["grows"]
                ]
                work.kept.clear()
    result["grows"] = grown
    print(json.dumps(result))
    sys.exit(1 if grown else 0)


if __name__ == "__main__":
    main()
