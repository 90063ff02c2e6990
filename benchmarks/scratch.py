"""Shows that the thesis' three networks learn from scratch with the default optimizer and rates; JSON on
stdout.

    python benchmarks/scratch.py > scratch.json

Four classes of generated pictures at small input sizes, so that it runs on a CPU in half an hour.
EfficientNet-B3 gets more pictures: on 800 it learns the training images and little else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scipy.stats import binomtest

from qrdali.cli.signals import terminal_control
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.runs.settings import read_toml, validate_settings
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.train import run_training

# Input size, epochs, training pictures per class.
RUNS = {"squeezenet1_1": (128, 25, 200), "efficientnet_b3": (96, 6, 1000), "resnet152": (64, 6, 200)}
VAL = 50  # per class


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS)
    args = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "classes": 4, "chance": 0.25, "runs": {}}
    with TemporaryDirectory() as folder:
        for model in args.only:
            side, epochs, train = RUNS[model]
            data = Path(folder) / f"data-{train}"
            if not data.exists():
                generate(
                    Path(folder) / f"images-{train}",
                    ShapesSpec(classes=4, train=train, val=VAL, test=0, size=(160, 120)),
                )
                build_dataset(Path(folder) / f"images-{train}", data)
            run = Path(folder) / model
            with terminal_control() as control:
                run_training(
                    validate_settings(
                        {
                            "method": "shared",
                            "data": str(data),
                            "model": model,
                            "input_size": side,
                            "epochs": epochs,
                            "device": "cpu",
                        }
                    ),
                    run,
                    False,
                    control,
                )
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            used, last = read_toml(run / "config.toml"), rows[-1]["val_accuracy"]
            result["runs"][model] = {
                "input_size": side,
                "optimizer": used["optimizer"],
                "lr": used["lr"],
                "batch_size": used["batch_size"],
                "images": {"train": 4 * train, "val": 4 * VAL},
                "train_loss": [round(r["train_loss"], 4) for r in rows[1:]],
                "val_accuracy": [r["val_accuracy"] for r in rows],
                # Of the last epoch, not of the best: that would be the luckiest of several.
                "p_value_of_last_above_chance": float(
                    binomtest(round(last * 4 * VAL), 4 * VAL, 0.25, alternative="greater").pvalue
                ),
            }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
