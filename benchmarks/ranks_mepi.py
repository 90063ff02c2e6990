"""Measures `qrdali build-mepi` in one process and in two, each on a core of its own; JSON on stdout.

What counts is the share of their time that ranks have nothing to do.

    OMP_NUM_THREADS=1 python benchmarks/ranks_mepi.py > benchmarks/results/ranks-mepi-HOST.json

Generated pictures, a small network trained for some epochs. The idle share is the command's own: the time
that ranks spend on exchanging messages and on waiting, from the first image to the manifest. Manifests are
compared byte for byte. Then the work of each image (network passes, as the journals have it) is handed out to
more ranks in a simulation: in contiguous parts, every world-th, and as qrdali does.
"""

from __future__ import annotations

import argparse
import heapq
import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from qrdali import distributed as ranks
from qrdali.distributed.work_queue import WorkQueue
from qrdali.mepi.folder import SEARCHED
from qrdali.workflows.bench_loader import machine

REDUCTIONS = ("crop", "combination")
IMAGES, WORLDS = 25_000, (2, 8, 64)  # of the simulation
_AHEAD = 2  # blocks that are decoded ahead


def qrdali(*words: object, world: int = 1) -> None:
    command = [sys.executable, "-m", "qrdali", *map(str, words)]
    if world == 1:
        command = ["taskset", "-c", "0", *command]
    else:
        pinned = ["bash", "-c", 'exec taskset -c "$LOCAL_RANK" "$0" "$@"', *command]
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
            "--no-python",
            "--",
        ]
        command = [*torchrun, *pinned]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def works(journal: Path) -> npt.NDArray[np.float64]:
    """Returns the network passes of each image, in sample order."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    passes = {entry["sample"]: float(entry["evaluations"]) for entry in entries if "sample" in entry}
    return np.array([passes[sample] for sample in sorted(passes)])


def idle(taken: list[float]) -> float:
    """Returns the share of the time of the slowest rank that ranks are idle."""
    return round(1 - float(np.sum(taken)) / (len(taken) * max(taken)), 4)


def dealt(work: npt.NDArray[np.float64], world: int) -> float:
    """Returns the idle share when ranks take blocks from a `WorkQueue`, some blocks ahead of their search."""
    total = 0

    def add(_: Any, amount: int) -> int:
        nonlocal total
        total += amount
        return total

    real, ranks.SharedCounter.add = ranks.SharedCounter.add, add  # type: ignore[method-assign]
    deals = [WorkQueue(ranks.ProcessGroup(rank, world), len(work)) for rank in range(world)]
    blocks: list[deque[float]] = [deque() for _ in deals]

    def take(rank: int) -> None:
        numbers = [
            n for n in (next(deals[rank], None) for _ in range(deals[rank].chunk_size())) if n is not None
        ]
        if numbers:
            blocks[rank].append(float(work[numbers].sum()))

    events = [(0.0, rank) for rank in range(world)]
    ends = [0.0] * world
    while events:
        now, rank = heapq.heappop(events)
        while len(blocks[rank]) <= _AHEAD:
            before = len(blocks[rank])
            take(rank)
            if len(blocks[rank]) == before:
                break
        if blocks[rank]:
            ends[rank] = now + blocks[rank].popleft()
            heapq.heappush(events, (ends[rank], rank))
    ranks.SharedCounter.add = real  # type: ignore[method-assign]
    return idle(ends)


def simulated(work: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Returns idle shares of IMAGES images whose work is that of these, in the same order."""
    many = work[np.arange(IMAGES) * len(work) // IMAGES]
    return {
        str(world): {
            "contiguous": idle([float(part.sum()) for part in np.array_split(many, world)]),
            "every_world_th": idle([float(many[rank::world].sum()) for rank in range(world)]),
            "as_asked": dealt(many, world),
        }
        for world in WORLDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-class", type=int, default=40, help="pictures of each of six classes")
    parser.add_argument("--reductions", nargs="+", default=REDUCTIONS, choices=SEARCHED)
    parser.add_argument("--note", default="", help="what else the machine did")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "command": " ".join(["python", *sys.argv]),
        "note": args.note,
        "model": "test_resnet",
        "input_size": 64,
        "step": 0.05,
        "images": 6 * args.per_class,
        "reductions": {},
    }
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        qrdali(
            "data",
            "shapes",
            folder / "images",
            "--classes",
            6,
            "--train",
            args.per_class,
            "--val",
            4,
            "--test",
            4,
            "--size",
            "192x144",
        )
        qrdali("data", "index", folder / "images", "--out", folder / "data")
        qrdali(
            "train",
            "shared",
            "--data",
            folder / "data",
            "--run",
            folder / "run",
            "--model",
            "test_resnet",
            "--input-size",
            64,
            "--lr",
            "0.002",
            "--epochs",
            12,
            "--device",
            "cpu",
        )
        for reduction in args.reductions:
            for world in (1, 2):
                qrdali(
                    "build-mepi",
                    "--run",
                    folder / "run",
                    "--data",
                    folder / "data",
                    "--split",
                    "train",
                    "--reduction",
                    reduction,
                    "--device",
                    "cpu",
                    "--threads",
                    1,
                    "--out",
                    folder / f"{reduction}-{world}",
                    world=world,
                )
            rows = [
                json.loads((folder / f"{reduction}-{world}" / "summary.json").read_text())[reduction]
                for world in (1, 2)
            ]
            same = (
                len({(folder / f"{reduction}-{world}" / "manifest.parquet").read_bytes() for world in (1, 2)})
                == 1
            )
            work = works(folder / f"{reduction}-1" / ".progress" / f"{reduction}.jsonl")
            result["reductions"][reduction] = {
                "seconds": [row["seconds"] for row in rows],
                "speedup": round(rows[0]["seconds"] / rows[1]["seconds"], 3),
                "idle_share": rows[1]["idle_share"],
                "same_manifest": same,
                "passes_per_image": round(float(work.mean()), 1),
                "passes_deviation": round(float(work.std()), 1),
                f"idle_share_of_{IMAGES}_simulated": simulated(work),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
