"""Seconds from SIGTERM to the end of `qrdali train` of ResNet-152, step and save included; JSON on stdout.

    python benchmarks/stopping.py > stopping.json

Slurm and Kubernetes wait 30 s. The signal comes at a random moment of a step or a save, drawn by a seed;
--save-every 1, so that a save may be under way too, which is the longest that there is.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.workflows.bench_loader import machine

SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet152")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--times", type=int, default=3, help="that training is stopped, of each batch size")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--threads", default="1", help="decoding threads; those of the network are OMP_NUM_THREADS"
    )
    parser.add_argument("--note", default="")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "note": args.note,
        "model": args.model,
        "input_size": SIDE,
        "device": args.device,
        "batch_sizes": {},
    }
    with TemporaryDirectory() as folder:
        generate(Path(folder) / "images", ShapesSpec(classes=2, train=128, val=2, test=0, size=(SIDE, SIDE)))
        build_dataset(Path(folder) / "images", Path(folder) / "data")
        for size in args.batch_sizes:
            stops = [
                stopped(args, size, Path(folder) / "data", Path(folder) / f"{size}-{i}", random.Random(i))
                for i in range(args.times)
            ]
            result["batch_sizes"][size] = {
                "seconds_per_step_and_save": [round(stop[0], 2) for stop in stops],
                "seconds_to_stop": [round(stop[1], 2) for stop in stops],
            }
            print(f"{size}: {result['batch_sizes'][size]}", file=sys.stderr)
    print(json.dumps(result, indent=1))


def stopped(
    args: argparse.Namespace, size: int, data: Path, run: Path, draw: random.Random
) -> tuple[float, float]:
    """Trains until a step and a save are measured, then stops it.

    Returns seconds of a step and its save, and seconds from SIGTERM to the end.
    """
    command = [
        sys.executable,
        "-m",
        "qrdali",
        "train",
        "shared",
        "--data",
        str(data),
        "--run",
        str(run),
        "--model",
        args.model,
        "--input-size",
        str(SIDE),
        "--batch-size",
        str(size),
        "--device",
        args.device,
        "--threads",
        args.threads,
        "--save-every",
        "1",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        first = _saved(child, run, 1)
        second = _saved(child, run, 2)
        time.sleep(draw.uniform(0, second - first))
        begun = time.monotonic()
        child.send_signal(signal.SIGTERM)
        status = child.wait()
        taken = time.monotonic() - begun
    assert status == 143, f"it ended with {status}"
    state = json.loads((run / "last" / "state.json").read_text())
    assert state["epoch"]["step"] >= 2
    return second - first, taken


def _saved(child: subprocess.Popen[bytes], run: Path, step: int) -> float:
    """Waits until `step` is saved; returns when that was."""
    while child.poll() is None:
        try:
            if json.loads((run / "last" / "state.json").read_text())["epoch"]["step"] >= step:
                return time.monotonic()
        except (
            OSError,
            ValueError,
            TypeError,
        ):  # not there, or replaced at this moment; or of an epoch's end
            pass
        time.sleep(0.02)
    raise SystemExit(f"training ended before step {step}")


if __name__ == "__main__":
    main()
