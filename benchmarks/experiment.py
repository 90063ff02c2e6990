"""Trains and evaluates the table of methods on generated pictures; writes rows.jsonl, table.md and
table.json.

    python benchmarks/experiment.py --out experiment --seeds 0 1 2
    python benchmarks/experiment.py --out small --small --only "^(baseline|sham epochs|fixed epochs crop)$"

rows.jsonl has a row for every run and seed, with the accuracy after each epoch; `experiment_table.py`
computes all of table.json from it but machine and settings. Every run is one `qrdali train` function call
with the settings shown in its config.toml. Runs that are done are kept, so the same command goes on where
it was stopped. Nothing is chosen by its result: each run's best/ (by full-quality validation) is evaluated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment_table import REDUCED, read_rows, write

from qrdali.cli.signals import terminal_control
from qrdali.data.index import Dataset, Writer
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.evaluation.predict import predict
from qrdali.interfaces import JobControl
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, constant_levels
from qrdali.reduction.quality import REDUCTIONS
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.context import open_context
from qrdali.workflows.train import run_training

# Options of --small: a table of minutes, whose figures say nothing but that all of it works.
SMALL = {
    "classes": 4,
    "size": "64x48",
    "train": 6,
    "val": 4,
    "test": 4,
    "input_size": 32,
    "epochs": 2,
    "max_epochs": 4,
    "patience": 1,
    "batch_size": 8,
    "seeds": [0, 1],
}


def table(seed: int, folder: Path, data: Path, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Returns the settings of every run of one seed, in the order in which they must run."""
    common = {"data": str(data), "device": "cpu", "batch_size": args.batch_size, "seed": seed}
    later = {
        **common,
        "init": str(folder / "shared"),
        "patience": args.patience,
        "max_epochs": args.max_epochs,
        "lr": args.lr,
    }
    result: dict[str, dict[str, Any]] = {
        "shared": {
            **common,
            "method": "shared",
            "model": args.model,
            "input_size": args.input_size,
            "epochs": args.epochs,
            "lr": args.shared_lr,
        }
    }
    result["baseline"] = {**later, "method": "baseline"}
    for sequence in ("paired-epochs", "paired-rounds"):
        short = sequence.removeprefix("paired-")
        result[f"sham {short}"] = {**later, "method": "fixed", "reduction": "none", "sequence": sequence}
        for reduction in REDUCED:
            for method in ("random", "fixed", "linear", "adaptive"):
                result[f"{method} {short} {reduction}"] = {
                    **later,
                    "method": method,
                    "reduction": reduction,
                    "sequence": sequence,
                }
    result["baseline matched"] = {
        **common,
        "method": "baseline",
        "init": str(folder / "shared"),
        "lr": args.lr,
        "match": str(folder / args.matched.replace(" ", "-")),
    }
    return result


def last_accuracy(run: Path, dataset: Dataset) -> float:
    """Returns accuracy on test of the network as it was when training ended, which is not the best by
    validation.
    """
    model, trained = run_folder.load_best(run)
    model.load_state_dict(checkpoint.load(run / "last", "model")[1][0])
    index = dataset.index("test")
    loader = open_loader(index, trained.preprocessing, 50, Engine())
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    context = open_context("cpu", "off", JobControl())
    return predict(model, loader, EpochPlan(len(index), 50, FULL_QUALITY), context).accuracy


def accuracies(run: Path, dataset: Dataset) -> dict[str, float]:
    """Returns accuracy of best/ on val, test and test reduced to quality .5 in each way (centre crops)."""
    model, trained = run_folder.load_best(run)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = {}
    sets = {"val": ("val", FULL_QUALITY), "test": ("test", FULL_QUALITY)} | {
        f"test {r} .5": ("test", constant_levels(REDUCTIONS[r], 2)) for r in REDUCED
    }
    for name, (split, levels) in sets.items():
        index = dataset.index(split)
        loader = open_loader(index, trained.preprocessing, 50, Engine())
        context = open_context("cpu", "off", JobControl())
        result[name] = predict(model, loader, EpochPlan(len(index), 50, levels), context).accuracy
    return result


def epoch_by_epoch(run: Path) -> dict[str, Any]:
    """Returns what a run's metrics say: counts and seconds in all, phase and accuracy of each epoch."""
    epochs = list(run_folder.metrics_rows(run, whole=True))
    last = epochs[-1]
    letters = {"start": "S", "full": "C", "reduced": "R"}
    return {
        "epochs": last["epoch"],
        "optimizer steps": last["optimizer_steps"],
        "forward images": last["forward_images"],
        "seconds": last["total_seconds"],
        "phases": "".join(letters[epoch["phase"]] for epoch in epochs),
        "val_accuracies": [epoch["val_accuracy"] for epoch in epochs],
    }


def shuffle_labels(data: Path, seed: int = 0) -> None:
    """Gives every image a label drawn without regard to its content: the labels of its split, permuted."""
    dataset = Dataset.open(data)
    for split in dataset.splits:
        index = dataset.index(split)
        every = np.arange(len(index))
        labels = np.random.default_rng(seed).permutation(index.labels(every))
        rows = list(zip(index.paths(every), labels.tolist(), index.sizes(every).tolist(), strict=True))
        writer = Writer(data / f"{split}.partial")
        for path, label, (height, width) in rows:
            writer.add(path, label, width, height)
        writer.close()
        (data / f"{split}.partial").rename(data / f"{split}.arrow")


def options(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line; those given prevail over --small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="tiny pictures, few epochs, two seeds: minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--input-size", type=int, default=64)
    parser.add_argument("--size", default="160x120")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--train", type=int, default=50, help="pictures per class")
    parser.add_argument("--val", type=int, default=20)
    parser.add_argument("--test", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--shared-lr", type=float, default=2e-3)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument(
        "--matched", default="fixed epochs combination", help="the run whose optimizer steps are matched"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after this time")
    parser.add_argument(
        "--shuffled", action="store_true", help="permute all labels: no method may beat chance on test"
    )
    parser.add_argument("--only", default="", help="regular expression of runs; shared always runs")
    if parser.parse_args(words).small:
        parser.set_defaults(**SMALL)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = options(words)
    begun = time.monotonic()
    images, data = args.out / "images", args.out / "data"
    width, height = map(int, args.size.split("x"))
    if not (data / "classes.tsv").exists():
        generate(images, ShapesSpec(args.classes, args.train, args.val, args.test, (width, height)))
        build_dataset(images, data)
        if args.shuffled:
            shuffle_labels(data)
    dataset = Dataset.open(data)
    made_by = {"machine": machine(), "settings": {k: str(v) for k, v in vars(args).items() if k != "out"}}
    done = {(row["run"], row["seed"]) for row in read_rows(args.out)}
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        for name, values in table(seed, folder, data, args).items():
            if (name != "shared" and not re.search(args.only, name)) or (name, seed) in done:
                continue
            if time.monotonic() - begun > args.minutes * 60:
                print("time is up: the same command goes on", file=sys.stderr)
                return 0
            run = folder / name.replace(" ", "-")
            with terminal_control() as control:
                run_training(validate_settings(values), run, True, control)
            row = {"run": name, "seed": seed, **accuracies(run, dataset), **epoch_by_epoch(run)}
            if args.shuffled:
                last = run_folder.last_recorded(run, "train_accuracy")
                row |= {"test last": last_accuracy(run, dataset), "train accuracy": last}
            with open(args.out / "rows.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            write(args.out, made_by)
    if read_rows(args.out):
        write(args.out, made_by)
    return 0


if __name__ == "__main__":
    sys.exit(main())
