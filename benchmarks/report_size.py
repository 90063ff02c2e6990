"""Measures the time and memory of a report of many runs with many rows each.

The figures are JSON on stdout.

    python benchmarks/report_size.py --out benchmarks/results/report-size-HOST.json

The runs are made up: folders as training and evaluation leave them, of configurations with several seeds,
each with predictions on one test set of a thousand classes. The report is made by a process of its own, whose
peak memory is told. Beside it stands pyarrow alone, which reads the same prediction files whole in another
process, one after the other. --note says what else the machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from qrdali.models import Preprocessing
from qrdali.runs import checkpoint
from qrdali.runs.folder import BestModel
from qrdali.runs.settings import validate_settings, write_settings

CLASSES = 1000
SEEDS = 5
EPOCHS = 20
# Not getrusage, whose maximum a process inherits from the one that started it.
_PEAK = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024"
_REPORT = f"""
import json, sys, time
from pathlib import Path
from qrdali.report.build import build
begin = time.perf_counter()
build([Path(run) for run in sys.argv[2:]], [], Path(sys.argv[1]))
print(json.dumps({{"seconds": time.perf_counter() - begin, "peak_mib": {_PEAK}}}))
"""
_PYARROW = f"""
import json, sys, time
import pyarrow.parquet as pq
begin = time.perf_counter()
for run in sys.argv[2:]:
    table = pq.read_table(run + "/predictions/test.parquet")
print(json.dumps({{"seconds": time.perf_counter() - begin, "peak_mib": {_PEAK}}}))
"""


def configurations() -> list[dict[str, Any]]:
    """Returns the settings of a baseline and of 19 methods."""
    found: list[dict[str, Any]] = [{"method": "baseline"}]
    for reduction in ("crop", "resolution", "color", "combination"):
        for sequence in ("paired-rounds", "paired-epochs"):
            for method in ("linear", "adaptive"):
                found.append({"method": method, "reduction": reduction, "sequence": sequence})
    for reduction in ("crop", "resolution", "color"):
        found.append({"method": "random", "reduction": reduction, "sequence": "paired-rounds"})
    return found


def make_run(folder: Path, settings: dict[str, Any], images: int, draw: np.random.Generator) -> None:
    """Writes a run folder with rows of `images` images; networks often err on the same images."""
    folder.mkdir(parents=True)
    known = {"data": "/data/many", "model": "test_resnet", "input_size": 32, "pretrained": False}
    write_settings(folder / "config.toml", validate_settings({**known, **settings}))
    names = tuple(f"class-{i:04}" for i in range(CLASSES))
    shown = Preprocessing(32, "whole", 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    accuracies = np.round(0.6 + 0.01 * np.sort(draw.random(EPOCHS + 1)), 4).tolist()
    best = BestModel("test_resnet", names, shown, EPOCHS, accuracies[-1])
    weight = torch.from_numpy(draw.standard_normal(1).astype(np.float32))
    checkpoint.save(folder / "best", best.as_dict(), model={"w": weight})
    lines = []
    for epoch, accuracy in enumerate(accuracies):
        is_reduced = epoch % 2 == 1 and settings["method"] != "baseline"
        line = {
            "epoch": epoch,
            "phase": "start" if not epoch else "reduced" if is_reduced else "full",
            "stage": 1 + max(0, epoch - 1) // 2,
            "val_accuracy": accuracy,
            "seconds": 2.0,
            "optimizer_steps": 10 * epoch,
            "forward_images": 140 * epoch,
            "total_seconds": 2.0 * epoch,
        }
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "predictions").mkdir()
    pq.write_table(_rows(images, draw), folder / "predictions" / "test.parquet")


def _rows(images: int, draw: np.random.Generator) -> pa.Table:
    labels = np.arange(images) * CLASSES // images
    hardness = np.random.default_rng(0).random(images)
    correct = hardness + 0.15 * draw.standard_normal(images) < 0.65
    wrong = (labels + draw.integers(1, 40, images)) % CLASSES
    confidence = np.clip(0.9 - 0.6 * hardness + 0.1 * draw.standard_normal(images), 0.01, 0.999)
    own = np.where(correct, confidence, confidence * draw.random(images))
    return pa.table(
        {
            "sample": np.arange(images),
            "path": [f"/data/many/test/class-{label:04}/{i:08}.jpg" for i, label in enumerate(labels)],
            "label": labels.astype(np.int32),
            "prediction": np.where(correct, labels, wrong).astype(np.int32),
            "correct": correct,
            "confidence": confidence.astype(np.float32),
            "rank": np.where(correct, 1, draw.integers(2, 30, images)).astype(np.int32),
            "true_probability": own,
        }
    )


def measured(program: str, folder: Path, runs: list[Path]) -> dict[str, float]:
    """Returns the seconds and the peak memory in MiB of a program in a process of its own."""
    command = [sys.executable, "-c", program, str(folder), *map(str, runs)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100, help="a multiple of the 5 seeds")
    parser.add_argument("--rows", type=int, default=50_000, help="images of the test set")
    parser.add_argument("--repeats", type=int, default=3, help="reports that are made; medians are given")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        root, folders = Path(temporary), []
        kinds = configurations()
        for i in range(options.runs):
            seed, kind = i % SEEDS, kinds[i // SEEDS % len(kinds)]
            settings = {**kind, "seed": seed, "lr": 0.01 * (1 + i // SEEDS // len(kinds))}
            folders.append(root / f"run-{i:03}-{kind['method']}-seed-{seed}")
            make_run(folders[-1], settings, options.rows, np.random.default_rng(i))
        reports, reads = [], []
        for _ in range(options.repeats):
            reads.append(measured(_PYARROW, root / "unused", folders))
            reports.append(measured(_REPORT, root / "report", folders))
            print(f"report {reports[-1]}, pyarrow alone {reads[-1]}", file=sys.stderr)
        page = (root / "report" / "report.html").stat().st_size
    seconds, reading = (statistics.median(one["seconds"] for one in kind) for kind in (reports, reads))
    figures = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "note": options.note,
        "runs": options.runs,
        "rows_of_each": options.rows,
        "classes": CLASSES,
        "report": {
            "seconds": round(seconds, 2),
            "seconds_of_each": [round(one["seconds"], 2) for one in reports],
            "peak_mib": round(max(one["peak_mib"] for one in reports)),
            "page_mib": round(page / 2**20, 1),
        },
        "pyarrow_alone": {
            "seconds": round(reading, 2),
            "seconds_of_each": [round(one["seconds"], 2) for one in reads],
            "peak_mib": round(max(one["peak_mib"] for one in reads)),
        },
        "report_per_pyarrow": round(seconds / reading, 2),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "pyarrow": pa.__version__,
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
