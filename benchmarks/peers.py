"""Compares qrdali's loader with others on the same files, threads and output, and with decoding alone.

    python benchmarks/peers.py --rounds 9 --threads 2 --json benchmarks/results/peers-cpu.json

Every loader reads the same JPEGs of 500 × 375 pixels, those of `qrdali bench loader`, and makes batches of
float32 [N, 3, 224, 224] of them, resized with a filter that averages, and normalised; each has a process of
its own, which waits while another is measured. A round measures each loader once; each round begins with
another, and a ratio is that of two measurements of one round. `pixels` in the result says how far those of a
peer's first batch are from Pillow's, in levels of 0 to 255. `cpu_seconds_per_1000_images` counts all threads
and processes of a loader, `cpu_time_ratio` is a peer's by ours: they depend less than the speed does on what
else runs on the machine.

Peers that are not installed are left out, and a line says so. None of them is a dependency of qrdali. In a
virtual environment of your own that has qrdali:

    pip install spdl spdl-io tensorflow-cpu opencv-python-headless simplejpeg

SPDL also needs the shared libraries of FFmpeg: `apt-get install libavdevice59` on Debian 12.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from peer_loaders import MEAN, PEERS, STD, Task
from peer_process import missing_packages, serve

DISTRIBUTIONS = {
    "SPDL": "spdl",
    "tf.data": "tensorflow-cpu",
    "cv2 + DataLoader": "opencv-python-headless",
    "simplejpeg in threads": "simplejpeg",
}
INSTALL = {**DISTRIBUTIONS, "SPDL": "spdl spdl-io"}
OURS, LIMIT = "qrdali", "decode alone"

Row = dict[str, Any]


class Server(NamedTuple):
    """The process of one peer, its kinds of epochs, and the first batch of each."""

    process: Any
    pipe: Connection
    kinds: list[str]
    firsts: dict[str, npt.NDArray[np.float32]]

    def run(self, kind: str, number: int) -> Row:
        """Returns what an epoch took; raises RuntimeError if it failed."""
        self.pipe.send((kind, number))
        return answer(self.pipe, kind)


def answer(pipe: Connection, kind: str) -> Any:
    """Returns what a peer's process answers; raises RuntimeError if that is an error, or if it has ended."""
    try:
        found = pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process of {kind} has ended: its last words are above") from None
    if isinstance(found, Exception):
        raise found
    return found


def start(name: str, task: Task) -> Server:
    """Returns the process of a peer after an epoch of each kind, which warms it up and is not counted.

    Raises RuntimeError if the peer cannot load the images.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(name, task, there), name=name)
    process.start()
    there.close()
    server = Server(process, here, [], {})
    try:
        server.kinds.extend(answer(here, name))
        for kind in server.kinds:
            warm = server.run(kind, 0)
            if warm["images"] != len(task.paths):
                raise RuntimeError(f"{kind} gave {warm['images']} images of {len(task.paths)}")
            if warm["first"] is not None:
                server.firsts[kind] = warm["first"]
    except BaseException:
        stop(server)
        raise
    return server


def stop(server: Server) -> None:
    """Ends the process of a peer."""
    server.pipe.close()
    server.process.join(20)
    if server.process.is_alive():
        server.process.kill()


@contextmanager
def servers(names: list[str], task: Task) -> Iterator[tuple[dict[str, Server], dict[str, str]]]:
    """Yields the processes of the peers that are there, and why each of the others was skipped."""
    found: dict[str, Server] = {}
    skipped: dict[str, str] = {}
    try:
        for name in names:
            if missing := missing_packages(PEERS[name]):
                skipped[name] = (
                    f"{', '.join(missing)} is not installed: pip install {INSTALL.get(name, name)}"
                )
            else:
                try:
                    found[name] = start(name, task)
                except RuntimeError as error:
                    if name in (OURS, LIMIT):
                        raise
                    skipped[name] = str(error)
            print(f"{name}: {skipped.get(name, 'ready')}", file=sys.stderr, flush=True)
        yield found, skipped
    finally:
        for server in found.values():
            stop(server)


def measure(found: dict[str, Server], rounds: int) -> dict[str, list[Row]]:
    """Returns the measurements of each kind of epoch, one for each round."""
    works = [(kind, server) for server in found.values() for kind in server.kinds]
    rows: dict[str, list[Row]] = {kind: [] for kind, _ in works}
    for number in range(1, rounds + 1):
        turn = number % len(works)
        for kind, server in works[turn:] + works[:turn]:
            rows[kind].append(server.run(kind, number))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return rows


def pillow_batch(paths: list[str], side: int) -> npt.NDArray[np.uint8]:
    """Returns the files as Pillow decodes and resizes them, bytes [N, 3, S, S]."""
    from PIL import Image

    images = [
        Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR) for path in paths
    ]
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


def distance(batch: npt.NDArray[np.float32], reference: npt.NDArray[np.uint8]) -> Row:
    """Returns by how many levels, 0 to 255, a normalised batch is away from `reference`."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (MEAN, STD))
    levels = 255 * (batch.astype(np.float64) * std + mean)
    away = np.abs(levels - reference)
    return {"mean_difference": round(float(away.mean()), 3), "max_difference": round(float(away.max()), 1)}


def summary(rows: dict[str, list[Row]]) -> Row:
    """Returns each loader's speed and processor time, and ours by each other's of the same round."""
    from qrdali.workflows.bench_rounds import spread

    speeds = {kind: [row["images"] / row["seconds"] for row in found] for kind, found in rows.items()}
    cpu = {kind: [1000 * row["cpu_seconds"] / row["images"] for row in found] for kind, found in rows.items()}

    def ratios(kind: str, other: str) -> dict[str, float]:
        return spread([a / b for a, b in zip(speeds[kind], speeds[other], strict=True)], 3)

    peers = [kind for kind in rows if not kind.startswith(OURS) and not kind.endswith(" combination")]
    reduced = [kind for kind in rows if kind.startswith(f"{OURS} ")]
    combined = [kind for kind in rows if kind.endswith(" combination") and kind not in reduced]
    return {
        "images_per_second": {kind: spread(values, 1) for kind, values in speeds.items()},
        "cpu_seconds_per_1000_images": {kind: spread(values, 3) for kind, values in cpu.items()},
        "speed_ratio": {peer: ratios(OURS, peer) for peer in peers},
        "cpu_time_ratio": {
            peer: spread([b / a for a, b in zip(cpu[OURS], cpu[peer], strict=True)], 3) for peer in peers
        },
        "share_of_decode_alone": {kind: ratios(kind, LIMIT) for kind in rows if kind != LIMIT},
        "time_reduced_over_full": {kind.removeprefix(f"{OURS} "): ratios(OURS, kind) for kind in reduced},
        "speed_ratio_combination": {
            kind.removesuffix(" combination"): ratios(f"{OURS} combination", kind) for kind in combined
        },
    }


def versions(names: list[str]) -> dict[str, str]:
    """Returns the versions of the peers' packages, of torchvision and of Pillow."""
    distributions = {
        "torchvision",
        "Pillow",
        *(DISTRIBUTIONS[name] for name in names if name in DISTRIBUTIONS),
    }
    return {name: metadata.version(name) for name in sorted(distributions)}


def classes_of(images: int) -> int:
    """Returns how many classes of equal size `images` pictures make, at most 16; or raises ValueError."""
    for classes in range(16, 1, -1):
        if images > 0 and images % classes == 0:
            return classes
    raise ValueError(f"--images is {images}: choose a multiple of 16, or of a number from 2 to 15")


def compare(options: argparse.Namespace, data: Path) -> Row:
    """Returns the result file of the data set in the folder `data`."""
    from qrdali.data.index import Dataset
    from qrdali.system.device import resolve_device
    from qrdali.workflows.bench_loader import machine

    device = resolve_device("auto").type
    index = Dataset.open(data)["train"]
    paths = [str(path) for path in index.paths(np.arange(len(index)))]
    task = Task(data, paths, options.input_size, options.batch_size, options.threads, device)
    names = [name for name in PEERS if options.only is None or name in (OURS, LIMIT, *options.only)]
    with servers(names, task) as (found, skipped):
        rows = measure(found, options.rounds)
    firsts = {kind: first for server in found.values() for kind, first in server.firsts.items()}
    reference = pillow_batch(task.batches[0], task.side)
    return {
        "machine": machine(),
        "versions": versions(list(found)),
        "images": len(task.paths),
        "rounds": options.rounds,
        "threads": options.threads,
        "input_size": options.input_size,
        "batch_size": options.batch_size,
        **summary(rows),
        "output_shape": {kind: list(first.shape[1:]) for kind, first in firsts.items()},
        "pixels": {
            name: {**distance(firsts[name], reference), "why": PEERS[name].pixels}
            for name in found
            if name in firsts
        },
        "skipped": skipped,
        "command": f"python benchmarks/peers.py {shlex.join(options.words)}".rstrip(),
    }


def show(result: Row) -> None:
    """Prints the speeds and ratios as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("loader", "images/s", "qrdali is … times as fast", "of decode alone", "CPU s / 1000")
    for kind, speed in result["images_per_second"].items():
        ratios = result["speed_ratio"].get(kind)
        share = result["share_of_decode_alone"].get(kind)
        table.add_row(
            kind,
            f"{speed['median']:.0f}",
            f"{ratios['median']:.2f} ({ratios['min']:.2f} to {ratios['max']:.2f})" if ratios else "",
            f"{share['median']:.2f}" if share else "",
            f"{result['cpu_seconds_per_1000_images'][kind]['median']:.2f}",
        )
    Console().print(table)


def arguments(words: list[str]) -> argparse.Namespace:
    """Returns the options; `words` are kept beside them, for the result names its command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2048, help="generated pictures (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each loader (default: %(default)s)")
    parser.add_argument("--input-size", type=int, default=224, help="side in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument(
        "--only", action="append", choices=list(PEERS), help="this peer, and qrdali; may be repeated"
    )
    parser.add_argument("--json", type=Path, help="file of the result")
    options = parser.parse_args(words)
    for name in ("rounds", "threads", "input_size", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}: give 1 or more")
    try:
        options.classes = classes_of(options.images)
    except ValueError as error:
        parser.error(str(error))
    options.words = words
    return options


def main(words: list[str]) -> None:
    options = arguments(words)
    from qrdali.data.scan import build_dataset
    from qrdali.data.shapes import ShapesSpec, generate

    with TemporaryDirectory() as scratch:
        images, data = Path(scratch) / "images", Path(scratch) / "data"
        spec = ShapesSpec(classes=options.classes, train=options.images // options.classes, val=0, test=0)
        print(f"generating {spec.total} pictures", file=sys.stderr, flush=True)
        generate(images, spec)
        build_dataset(images, data)
        result = compare(options, data)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
