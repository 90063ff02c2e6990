"""Shows that the thesis' three networks learn from scratch with the default optimizer and rates; JSON on stdout.

    python benchmarks/scratch.py > scratch.json

Four classes of generated pictures at small input sizes, so that it runs on a CPU in a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qrdali.cli.bench_loader import machine
from qrdali.cli.train import run_training
from qrdali.data.scan import build
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.settings import read, validated

RUNS = {"squeezenet1_1": (128, 25), "efficientnet_b3": (96, 10), "resnet152": (64, 6)}  # input size, epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=RUNS)
    args = parser.parse_args()
    spec = ShapesSpec(classes=4, train=200, val=50, test=0, size=(160, 120))
    result: dict[str, Any] = {"machine": machine(), "images": {"train": 800, "val": 200}, "classes": 4, "chance": 0.25, "runs": {}}
    with TemporaryDirectory() as folder:
        generate(Path(folder) / "images", spec)
        build(Path(folder) / "images", Path(folder) / "data")
        for model in args.only:
            side, epochs = RUNS[model]
            run = Path(folder) / model
            run_training(validated({"method": "shared", "data": str(Path(folder) / "data"), "model": model, "input_size": side,
                                    "epochs": epochs, "device": "cpu"}), run, False)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            used = read(run / "config.toml")
            result["runs"][model] = {
                "input_size": side, "optimizer": used["optimizer"], "lr": used["lr"], "batch_size": used["batch_size"],
                "train_loss": [round(r["train_loss"], 4) for r in rows[1:]], "val_accuracy": [r["val_accuracy"] for r in rows]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
