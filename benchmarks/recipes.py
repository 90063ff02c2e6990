"""Compares schedules of the learning rate, and augmentations as controls, on generated pictures.

    nice -n -8 python benchmarks/recipes.py --work DIR --out benchmarks/results/recipes-demo-cpu.json

Each cell of the table is a configuration that is trained with every seed and evaluated on the test split by
its best/ of full-quality validation; nothing is chosen by its result. A seed stands for weights, order, flips
and crops; the pictures are the same. The runs after `shared` of one seed all begin with the same shared run,
that of a constant rate of 1e-3. Runs that are done are skipped, so the same command goes on where it was
stopped, and adds cells that need options which an older qrdali lacked. One thread computes, another decodes.

The pictures have eight classes, which differ in colour and shape. With the 20 of `qrdali demo`, accuracy
stands still near one half until a network tells textures apart, which takes few epochs or many, depending on
the seed: with three seeds, that would be all that the table shows.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from qrdali.cli.signals import terminal_control
from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.evaluation.predict import predict
from qrdali.interfaces import JobControl
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, constant_levels
from qrdali.reduction.quality import REDUCTIONS
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.environment import environment
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.context import open_context
from qrdali.workflows.train import run_training

Values = dict[str, Any]

PICTURES: Values = {"classes": 8, "train": 100, "val": 25, "test": 100, "size": (160, 120)}
COMMON: Values = {"device": "cpu", "threads": 1, "batch_size": 16}
NETWORK: Values = {"model": "test_resnet", "input_size": 48}
RATES = (1e-3, 4e-3)
SHARED: Values = {"method": "shared", **NETWORK, "epochs": 40}
START = "shared constant, rate 0.001"
AFTER: Values = {"patience": 2, "max_epochs": 36}
LINEAR: Values = {"method": "linear", "reduction": "crop", "sequence": "paired-rounds", **AFTER}
RANDOM: Values = {"method": "random", "reduction": "crop", "sequence": "paired-rounds", **AFTER}
# They take as many optimizer steps as the linear run of the same seed and rate, at a constant rate.
AUGMENTATIONS: dict[str, Values] = {
    "matched": {},
    "rand-m9": {"auto_augment": "rand-m9"},
    "mixup 0.2": {"mixup": 0.2},
}


class Cell(NamedTuple):
    """Holds a configuration of the table; `start` and `match` name the cells whose runs it needs."""

    name: str
    values: Values
    start: str = ""
    match: str = ""


class Work(NamedTuple):
    """Holds the folder of runs and the data they are trained on."""

    folder: Path
    data: Path


def schedules(shared: bool, rate: float) -> dict[str, Values]:
    """Returns the settings of each schedule; all but `constant` have a warm-up and a least rate.

    The only stage of a shared run is the whole of it: there the cosine of `stage` ends after three quarters.
    In runs with patience 2, plateau lowers the rate with the first unit that does not improve.
    """
    warm: Values = {"warmup_epochs": 2.0 if shared else 1.0}
    least: Values = {"min_lr": rate / 100}
    return {
        "constant": {},
        "cosine": {**warm, **least, "lr_schedule": "cosine"},
        "plateau": {
            **warm,
            **least,
            "lr_schedule": "plateau",
            "plateau_factor": 0.3,
            "plateau_patience": 5 if shared else 0,
        },
        "stage": {**warm, **least, "lr_schedule": "stage", "stage_epochs": 30 if shared else 4},
        "wsd": {**warm, **least, "lr_schedule": "wsd"},
    }


def cells() -> list[Cell]:
    """Returns the cells of the table, each behind those that it needs."""
    of_shared = [
        Cell(f"shared {name}, rate {rate:g}", {**SHARED, "lr": rate, **values})
        for rate in RATES
        for name, values in schedules(True, rate).items()
    ]
    later = [rate / 4 for rate in RATES]
    of_linear = [
        Cell(f"linear {name}, rate {rate:g}", {**LINEAR, "lr": rate, **values}, START)
        for rate in later
        for name, values in schedules(False, rate).items()
    ]
    return [*of_shared, *of_linear, *(cell for rate in later for cell in _controls(rate))]


def _controls(rate: float) -> list[Cell]:
    return [
        Cell(f"baseline, rate {rate:g}", {"method": "baseline", **AFTER, "lr": rate}, START),
        Cell(f"random, rate {rate:g}", {**RANDOM, "lr": rate}, START),
        *(
            Cell(
                f"baseline {name}, rate {rate:g}",
                {"method": "baseline", "lr": rate, **more},
                START,
                f"linear constant, rate {rate:g}",
            )
            for name, more in AUGMENTATIONS.items()
        ),
    ]


def run_of(cell: str, seed: int, work: Work) -> Path:
    """Returns the folder of a run."""
    return work.folder / f"seed-{seed}" / re.sub(r"[^a-z0-9.]+", "-", cell)


def settings_of(cell: Cell, seed: int, work: Work) -> Values:
    """Returns everything that is given to one run; what is not is a default."""
    values = {**COMMON, **cell.values, "data": str(work.data), "seed": seed}
    if cell.start:
        values["init"] = str(run_of(cell.start, seed, work))
    if cell.match:
        values["match"] = str(run_of(cell.match, seed, work))
    return values


def evaluated(run: Path, data: Path) -> dict[str, float]:
    """Returns the accuracy of best/ on test, whole and cropped to .5 in the centre."""
    model, trained = run_folder.load_best(run)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    index = Dataset.open(data).index("test")
    result = {}
    for name, levels in {
        "test": FULL_QUALITY,
        "test_cropped": constant_levels(REDUCTIONS["crop"], 2),
    }.items():
        loader = open_loader(index, trained.preprocessing, 50, Engine(threads=1))
        plan = EpochPlan(len(index), 50, levels)
        result[name] = predict(model, loader, plan, open_context("cpu", "off", JobControl())).accuracy
    return result


def trained(cell: Cell, seed: int, work: Work) -> Values:
    """Trains and evaluates a run; returns its row of the file."""
    run, begun = run_of(cell.name, seed, work), time.process_time()
    with terminal_control() as control:
        run_training(validate_settings(settings_of(cell, seed, work)), run, True, control)
    epochs = list(run_folder.metrics_rows(run, whole=True))
    shown = {key: value for key, value in settings_of(cell, seed, work).items() if key != "data"}
    for key in ("init", "match"):
        if key in shown:
            shown[key] = str(Path(shown[key]).relative_to(work.folder))
    return {
        "cell": cell.name,
        "seed": seed,
        "settings": shown,
        **evaluated(run, work.data),
        "best_val": max(row["val_accuracy"] for row in epochs),
        "epochs": epochs[-1]["epoch"],
        "optimizer_steps": epochs[-1]["optimizer_steps"],
        "seconds": epochs[-1]["total_seconds"],
        "cpu_seconds": round(time.process_time() - begun, 1),  # since the run was last begun
        "phases": "".join({"start": "S", "full": "C", "reduced": "R"}[row["phase"]] for row in epochs),
        "val_accuracy": [row["val_accuracy"] for row in epochs],
        "train_accuracy": [round(row.get("train_accuracy", np.nan), 4) for row in epochs[1:]],
        "lr": [float(f"{row['lr']:.4g}") for row in epochs],
    }


def summary(rows: list[Values]) -> dict[str, Values]:
    """Returns mean and standard deviation (n - 1) over seeds of each cell's figures.

    last_tenth: validation accuracy in the last tenth of the epochs. rise: how much higher that is than in the
    tenth before it: near 0 where curves have flattened. gain: test accuracy above that of the shared run that
    a run starts from.
    """
    starts = {row["seed"]: row["test"] for row in rows if row["cell"] == START}
    result: dict[str, Values] = {}
    for name in dict.fromkeys(row["cell"] for row in rows):
        own = [row for row in rows if row["cell"] == name]
        figures: dict[str, list[float]] = {
            key: [row[key] for row in own]
            for key in ("test", "test_cropped", "best_val", "epochs", "seconds")
        }
        tenths = [_last_tenths(row["val_accuracy"]) for row in own]
        figures["last_tenth"] = [last for last, _ in tenths]
        figures["rise"] = [last - before for last, before in tenths]
        if "init" in own[0]["settings"]:
            figures["gain"] = [row["test"] - starts[row["seed"]] for row in own]
        result[name] = {"seeds": [row["seed"] for row in own]} | {
            key: {"mean": round(statistics.mean(values), 4), "sd": round(_spread(values), 4)}
            for key, values in figures.items()
        }
    return result


class _Tenths(NamedTuple):
    last: float
    before: float


def _last_tenths(accuracies: list[float]) -> _Tenths:
    count = max(1, len(accuracies) // 10)
    return _Tenths(
        statistics.mean(accuracies[-count:]), statistics.mean(accuracies[-2 * count : -count] or accuracies)
    )


def _spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def read_rows(work: Path) -> list[Values]:
    """Returns the rows of runs that are done, in the order of the table."""
    file = work / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    order = {cell.name: number for number, cell in enumerate(cells())}
    return sorted(rows, key=lambda row: (order.get(row["cell"], len(order)), row["seed"]))


def write(out: Path, rows: list[Values], facts: Values) -> None:
    """Writes the file of results, a run a line, of the cells of which all seeds are done."""
    seeds = {row["seed"] for row in rows}
    done = {(row["cell"], row["seed"]) for row in rows}
    rows = [row for row in rows if all((row["cell"], seed) in done for seed in seeds)]
    head = json.dumps({**facts, "cells": summary(rows)}, indent=1)
    runs = ",\n  ".join(json.dumps(row) for row in rows)
    out.write_text(f'{head[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n')


def table(cells_of: dict[str, Values]) -> str:
    """Returns the table as Markdown: mean ± standard deviation over seeds."""
    lines = ["| run | test | cropped to .5 | best val | epochs | gain |", "|---|---|---|---|---|---|"]
    for name, cell in cells_of.items():
        shown = [_shown(cell[key], 3) for key in ("test", "test_cropped", "best_val")]
        gain = _shown(cell["gain"], 3) if "gain" in cell else ""
        lines.append(f"| {name} | {' | '.join(shown)} | {cell['epochs']['mean']:.0f} | {gain} |")
    return "\n".join(lines)


def page(cells_of: dict[str, Values]) -> str:
    """Returns a table as docs/how-to/recipes.md has it, with the figures that
    tests/test_documented_figures.py checks.
    """
    columns = {
        "test": "test",
        "test_cropped": "test, cropped to .5",
        "gain": "gain on test",
        "epochs": "epochs",
    }
    keys = [key for key in columns if all(key in cell for cell in cells_of.values())]
    lines, marks = [], []
    for name, cell in cells_of.items():
        shown = []
        for key in keys:
            digits = 0 if key == "epochs" else 3
            parts = ("mean",) if key == "epochs" else ("mean", "sd")
            texts = {part: f"{cell[key][part]:.{digits}f}" for part in parts}
            shown.append(" ± ".join(texts.values()))
            marks += [f"{text} = cells > {name} > {key} > {part}" for part, text in texts.items()]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    head = [f"| run | {' | '.join(columns[key] for key in keys)} |", "|---" * (len(keys) + 1) + "|"]
    comment = ["<!-- figures of benchmarks/results/recipes-demo-cpu.json", *marks, "-->"]
    return "\n".join([*head, *lines, "", *comment])


def _shown(figure: dict[str, float], digits: int) -> str:
    return f"{figure['mean']:.{digits}f} ± {figure['sd']:.{digits}f}"


def options(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of pictures and runs")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file of results, written after every run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="regular expression of cells")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after this time")
    parser.add_argument("--page", action="store_true", help="print --out as docs/how-to/recipes.md has it")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = options(words)
    if args.page:
        every = json.loads(args.out.read_text())["cells"]
        for beginning in ("shared", "linear", ""):
            chosen = {name: cell for name, cell in every.items() if name.startswith(beginning)}
            every = {name: cell for name, cell in every.items() if name not in chosen}
            print(page(chosen), end="\n\n")
        return 0
    torch.set_num_threads(1)
    begun, work = time.monotonic(), Work(args.work, args.work / "data")
    if not (work.data / "classes.tsv").exists():
        generate(args.work / "images", ShapesSpec(**PICTURES), workers=1)
        build_dataset(args.work / "images", work.data)
    versions = {key: environment(torch.device("cpu")).get(key) for key in ("qrdali", "timm", "torchvision")}
    facts: Values = {
        "machine": {**machine(), **versions},
        "command": "python benchmarks/recipes.py --work DIR --out FILE",
        "pictures": PICTURES,
    }
    for cell in cells():
        unknown = [key for key in cell.values if key not in Settings.model_fields]
        if unknown:
            print(f"{cell.name}: this qrdali has no {', '.join(unknown)}", file=sys.stderr)
        if unknown or not re.search(args.only, cell.name):
            continue
        for seed in args.seeds:
            if (cell.name, seed) in {(row["cell"], row["seed"]) for row in read_rows(args.work)}:
                continue
            if time.monotonic() - begun > args.minutes * 60:
                print("time is up: the same command goes on", file=sys.stderr)
                return 0
            print(f"--- {cell.name}, seed {seed}", file=sys.stderr)
            with open(args.work / "rows.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(trained(cell, seed, work)) + "\n")
            write(args.out, read_rows(args.work), facts)
    print(table(summary(read_rows(args.work))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
