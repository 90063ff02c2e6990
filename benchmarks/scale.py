"""Measures what 10^8 images cost before the first batch and per batch, and how fast small files are indexed.

The figures are JSON on stdout.

    python benchmarks/scale.py --out benchmarks/results/scale-HOST.json

The large index is a real Arrow file, some 5 GB in a temporary folder (TMPDIR), whose rows name 256 small
JPEGs over and over: nothing is held in memory to pretend. It is opened by a process of its own, as are one of
10^6 rows and one of 10^7, each with the levels, windows and steps of an adaptive run of combinations by
online feedback; first after its files have left the kernel's cache. Then 10^5 small files are indexed, beside
plain reads of them and Pillow's decoding alone with as many threads. --note says what else the machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from qrdali.data.index import ROWS, SCHEMA, Index
from qrdali.data.scan import build_dataset
from qrdali.reduction.counter_rng import Purpose, uniform
from qrdali.reduction.levels import PerImageLevels
from qrdali.reduction.quality import LevelScale

CLASSES, FILES, SIZE = 1000, 256, (64, 48)
BATCH, BATCHES = 32, 200
_MB = 1e6


def small_jpegs(folder: Path, count: int, per_folder: int) -> None:
    """Writes `count` JPEGs of SIZE into folders 0000, 0001, …; 64 different pictures."""
    pictures = []
    for i in range(64):
        draws = uniform(i, 0, np.arange(SIZE[0] * SIZE[1]), Purpose.ORDER)[:, :3]
        image = (
            Image.fromarray((draws.reshape(SIZE[1], SIZE[0], 3) * 255).astype(np.uint8))
            .resize((8, 6))
            .resize(SIZE)
        )
        file = BytesIO()
        image.save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for i in range(count):
        if i % per_folder == 0:
            (folder / f"{i // per_folder:04d}").mkdir(parents=True)
        (folder / f"{i // per_folder:04d}" / f"{i:08d}.jpg").write_bytes(pictures[i % 64])


def write_index(file: Path, images: Path, rows: int) -> None:
    """Writes an index of `rows` rows in the record batches of `data index`.

    Row i is file i modulo FILES, its class i modulo CLASSES.
    """
    path = os.fsencode(images / "0000" / f"{0:08d}.jpg")
    text = np.tile(np.frombuffer(path, np.uint8), (ROWS, 1))
    for digit in range(3):  # FILES has three
        text[:, -5 - digit] = ord("0") + np.arange(ROWS) % FILES // 10**digit % 10
    offsets = np.arange(0, (ROWS + 1) * len(path), len(path), dtype=np.int32)
    paths = pa.Array.from_buffers(pa.string(), ROWS, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    width, height = (pa.array(np.full(ROWS, side, np.int32)) for side in SIZE)
    with pa.ipc.new_file(str(file), SCHEMA) as writer:
        for start in range(0, rows, ROWS):
            label = pa.array((np.arange(start, start + ROWS) % CLASSES).astype(np.int32))
            writer.write_batch(
                pa.record_batch([paths, label, width, height], schema=SCHEMA).slice(
                    0, min(ROWS, rows - start)
                )
            )


def status(key: str) -> float:
    """Returns a figure of /proc/self/status in MB."""
    return int(Path("/proc/self/status").read_text().partition(f"{key}:")[2].split()[0]) * 1024 / _MB


def resident() -> dict[str, float]:
    """Returns MB of this process in private memory, and in pages of mapped files that have been touched."""
    return {"private": status("RssAnon"), "of_files": status("RssFile")}


def mapped(folder: Path) -> float:
    """Returns MB of address space over files below `folder`."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(folder) in line:
            first, last = line.split()[0].split("-")
            total += int(last, 16) - int(first, 16)
    return total / _MB


def forgotten(folder: Path) -> None:
    """Writes files below `folder` to the disk and takes them out of the kernel's cache."""
    for file in folder.rglob("*.*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def opening(file: Path, levels: Path, cold: bool) -> dict[str, Any]:
    """Measures what an adaptive run costs before its first batch and at each batch; trains nothing.

    Opens an index and the run's levels and windows of every image. cold: nothing of the files is in the
    kernel's cache.
    """
    from qrdali.models import Preprocessing
    from qrdali.pipelines.engine import Engine
    from qrdali.pipelines.external_source import decode_inputs, prepared_batches
    from qrdali.pipelines.file_reader import FileReader
    from qrdali.pipelines.loader import open_loader
    from qrdali.pipelines.replay import ReplaySource
    from qrdali.schedule.epoch_plan import EpochPlan

    if cold:
        forgotten(file.parent)
    before, peak, begun = resident(), status("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    index = Index(file, CLASSES)
    opened = time.perf_counter() - begun
    states = PerImageLevels.load(levels, 1, len(index), LevelScale(4), True, True)
    plan = EpochPlan(len(index), BATCH, states, LevelScale(4), 1, 1, True, "flip")
    plan.parameters(plan.batch(0), index.sizes(plan.batch(0)))
    with_levels = time.perf_counter() - begun
    ready = resident(), status("VmHWM") - peak
    pre = Preprocessing(SIZE[1], "whole", 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    begun = time.perf_counter()
    batches = open_loader(index, pre, BATCH, Engine(threads=1)).epoch(plan)
    next(batches)
    first = time.perf_counter() - begun
    source = ReplaySource(
        FileReader(index), lambda files, batch: decode_inputs(files, batch.reduction.window)
    )
    source.start(prepared_batches(plan, index, pre))
    emitted = _each(source)
    loaded = _each(lambda: next(batches))
    later = resident()
    return {
        "seconds_to_open": round(opened, 3),
        "seconds_to_open_with_levels": round(with_levels, 3),
        "seconds_to_first_batch": round(first, 3),
        "mapped_mb": round(mapped(file.parent), 1),
        "resident_mb": {key: round(ready[0][key] - before[key], 1) for key in before}
        | {"peak": round(ready[1], 1)},
        "resident_mb_after_batches": {key: round(later[key] - before[key], 1) for key in before},
        "microseconds_per_batch": {"numbers_and_paths": emitted, "with_decoding": loaded},
    }


def _each(work: Callable[[], Any]) -> float:
    """Returns the median microseconds of a call."""
    seconds = []
    for _ in range(BATCHES):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return round(statistics.median(seconds) * 1e6, 1)


def alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Calls `work` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def _files(root: Path) -> list[str]:
    return [str(path) for path in sorted(root.rglob("*.jpg"))]


def _rate(count: int, begun: float, before: float) -> dict[str, Any]:
    return {
        "files_per_second": round(count / (time.perf_counter() - begun)),
        "peak_mb": round(status("VmHWM"), 1),
        "of_it_before_mb": round(before, 1),
    }


def indexed(root: Path, threads: int) -> dict[str, Any]:
    before, begun = status("VmRSS"), time.perf_counter()
    with TemporaryDirectory() as out:
        summary = build_dataset(root, Path(out) / "data", threads=threads)
    return _rate(sum(summary.images.values()), begun, before)


def only_read(root: Path, threads: int) -> dict[str, Any]:
    return _only(root, threads, lambda path: Path(path).read_bytes())


def only_decoded(root: Path, threads: int) -> dict[str, Any]:
    def decode(path: str) -> None:
        with Image.open(path) as image:
            image.load()

    return _only(root, threads, decode)


def _only(root: Path, threads: int, work: Callable[[str], object]) -> dict[str, Any]:
    files = _files(root)
    before, begun = status("VmRSS"), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 1024):
            list(pool.map(work, files[start : start + 1024]))
    return _rate(len(files), begun, before)


class Result:
    """Collects the figures, and writes them to a file after each part: a run that is killed leaves what it
    has.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any]) -> None:
        self.figures, self._file = settings, file

    def add(self, **parts: Any) -> None:
        self.figures |= parts
        print(parts, file=sys.stderr)
        if self._file is not None:
            partial = self._file.with_name(self._file.name + ".partial")
            partial.write_text(json.dumps(self.figures, indent=1) + "\n")
            partial.rename(self._file)


def rows(folder: Path, most: int, rounds: int, result: Result) -> None:
    """Measures 10^6 rows, whose file is mapped; 10^7 and more, whose files are read."""
    small_jpegs(folder / "few", FILES, FILES)
    sizes = {"small": min(10**6, most), "middle": min(10**7, most), "large": most}
    openings: dict[str, list[dict[str, Any]]] = {key: [] for key in sizes}
    parts: dict[str, Any] = {}
    for key, count in sizes.items():
        (folder / key).mkdir()
        write_index(folder / key / "train.arrow", folder / "few", count)
        PerImageLevels.at_full_quality(count, True, True).save(folder / key / "levels", 1)
        cold = alone(opening, folder / key / "train.arrow", folder / key / "levels", True)
        parts[key] = {
            "rows": count,
            "index_mb": round((folder / key / "train.arrow").stat().st_size / _MB, 1),
            "levels_mb": round(
                sum(file.stat().st_size for file in (folder / key / "levels").iterdir()) / _MB, 1
            ),
            "cold": {name: value for name, value in cold.items() if name.startswith("seconds")},
        }
    for _ in range(rounds):
        for key in sizes:
            openings[key].append(alone(opening, folder / key / "train.arrow", folder / key / "levels", False))
        costs = {
            key: [opening_figures["microseconds_per_batch"] for opening_figures in each]
            for key, each in openings.items()
        }
        result.add(
            **{key: parts[key] | _median(each) for key, each in openings.items()},
            cost_per_batch_of_large={
                f"over_{key}": {
                    what: round(
                        statistics.median(
                            a[what] / b[what] for a, b in zip(costs["large"], costs[key], strict=True)
                        ),
                        3,
                    )
                    for what in costs[key][0]
                }
                for key in ("small", "middle")
            },
        )
    for key in sizes:
        shutil.rmtree(folder / key)


def _median(figures: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: _median([each[key] for each in figures])
        if isinstance(value, dict)
        else round(statistics.median(each[key] for each in figures), 3)
        for key, value in figures[0].items()
    }


def indexing(folder: Path, files: int, threads: int, rounds: int, result: Result) -> None:
    small_jpegs(folder / "many" / "train", files, -(-files // 100))
    fixed = {
        "files": files,
        "mean_bytes": round(statistics.mean(os.path.getsize(path) for path in _files(folder / "many")[:64])),
    }
    figures: dict[str, list[dict[str, Any]]] = {"read": [], "decode": [], "index": []}
    for number in range(rounds):
        for key, work in (("read", only_read), ("decode", only_decoded), ("index", indexed)):
            figures[key].append(alone(work, folder / "many", threads))
        medians = {
            key: {what: statistics.median(one[what] for one in each) for what in each[0]}
            for key, each in figures.items()
        }
        shares = [
            a["files_per_second"] / b["files_per_second"]
            for a, b in zip(figures["index"], figures["decode"], strict=True)
        ]
        result.add(
            indexing={
                **fixed,
                "rounds": number + 1,
                **medians,
                "index_over_decode": round(statistics.median(shares), 3),
            }
        )


def main() -> None:
    from qrdali.workflows.bench_loader import machine

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--files", type=int, default=10**5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="of the indexes, and of indexing and its peers; medians are given",
    )
    parser.add_argument("--out", type=Path, help="a file for the figures too, written again after each part")
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    command = shlex.join(["python", "benchmarks/scale.py", *sys.argv[1:]])
    result = Result(
        args.out,
        {
            "machine": machine(),
            "command": command,
            "note": args.note,
            "batch_size": BATCH,
            "threads": args.threads,
            "rounds": args.rounds,
        },
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory() as name:
        print(f"working in {name}", file=sys.stderr)
        try:
            rows(Path(name), args.rows, args.rounds, result)
            indexing(Path(name), args.files, args.threads, args.rounds, result)
        finally:
            print(json.dumps(result.figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
