"""What the choices of the MEPI search are worth, for one run on one data set; JSON on stdout.

    python benchmarks/mepi_choices.py --run RUN --data DATASET --images 40 > choices.json

Per reduction: the mean quotient with --prefer confidence (the default) and entropy, and for color and
resolution of the exhaustive search. For the combination at step 0.25: the descent's mean quotient beside the
true minimum over every state that nested candidate windows can reach, on the first images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from qrdali.cli.terminal import TerminalListener
from qrdali.data.index import Dataset
from qrdali.interfaces import JobControl
from qrdali.mepi.folder import SEARCHED
from qrdali.mepi.search_path import FULL_STATE, ReductionState, params_of_states
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.reduction.neighbors import ANCHORS
from qrdali.reduction.png_entropy import encoder_name, entropy, entropy_within
from qrdali.reduction.quality import LevelScale, scaled_size, window_offset
from qrdali.workflows.bench_loader import machine
from qrdali.workflows.build_mepi import build_mepi
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator

N = 4  # of the step at which everything is tried


def reachable(height: int, width: int) -> list[ReductionState]:
    """Returns every state of the combination at step 0.25."""
    places = {0: {(0, 0)}}
    for level in range(1, N):
        outer, inner = (
            scaled_size(np.array([[height, width]]), np.array([k]), LevelScale(N)) for k in (level - 1, level)
        )
        places[level] = {
            (top + y, left + x)
            for top, left in places[level - 1]
            for y, x in window_offset(np.repeat(outer, 5, 0), np.repeat(inner, 5, 0), ANCHORS[5]).tolist()
        }
    return [
        ReductionState(color, crop, resolution, *place)
        for color, crop, resolution in product(range(N), repeat=3)
        for place in sorted(places[crop])
    ]


def minimum(evaluator: Evaluator, maker: Any, pixels: Any, label: int) -> int:
    """Returns the fewest PNG bytes among all states that are classified correctly."""
    height, width = pixels.shape[:2]
    states, correct = reachable(height, width), []
    for start in range(0, len(states), 64):
        batch = states[start : start + 64]
        reduction = params_of_states(
            batch, np.tile(np.array([[height, width]], np.int32), (len(batch), 1)), LevelScale(N)
        )
        with torch.inference_mode(), evaluator.context.autocast():
            is_correct = (
                evaluator.model(maker.network_inputs([pixels] * len(batch), reduction)).argmax(1) == label
            )
        correct += [
            (int(np.prod(reduction.size[i])) * (8 - float(np.log2(reduction.bin_width[i]))), state)
            for i, state in enumerate(batch)
            if is_correct[i]
        ]
    best = 1 << 60
    for _, state in sorted(correct):
        picture = maker.reduced_images(
            [pixels], params_of_states([state], np.array([[height, width]], np.int32), LevelScale(N))
        )[0]
        best = entropy_within(picture, best) or best
    return best


def gap(run: Path, data: Path, split: str, images: int) -> dict[str, Any]:
    """Compares the descent (both preferences) with the true minimum of the combination at step 0.25."""
    evaluator = Evaluator(run, EvaluateOptions(device="cpu"))
    evaluator.model.eval()
    index = Dataset.open(data).index(split)
    maker = open_image_reducer(index, evaluator.trained.preprocessing, evaluator.engine)
    with TemporaryDirectory() as folder:
        quotients_by_preference = {}
        for prefer in ("confidence", "entropy"):
            out = Path(folder) / prefer
            build_mepi(
                run=str(run),
                data=str(data),
                out=str(out),
                split=split,
                reduction="combination",
                step=1 / N,
                prefer=prefer,
                limit=images,
                device="cpu",
                control=JobControl(TerminalListener()),
            )
            lines = (out / ".progress" / "combination.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            quotients_by_preference[prefer] = {
                r["sample"]: r["mepi"] / r["full"] for r in rows if r.get("outcome") == "mepi"
            }
        best = {}
        for sample, pixels in maker.decode(
            iter(sorted(quotients_by_preference["confidence"])), lambda sample, reason: None
        ):
            label = int(index.labels(np.array([sample]))[0])
            whole = maker.reduced_images(
                [pixels],
                params_of_states([FULL_STATE], np.array([pixels.shape[:2]], np.int32), LevelScale(N)),
            )[0]
            best[sample] = minimum(evaluator, maker, pixels, label) / entropy(whole)
            print(f"{len(best)} of {len(quotients_by_preference['confidence'])}", file=sys.stderr)
    result = {"images": len(best), "true minimum": statistics.mean(best.values())}
    for prefer, quotients in quotients_by_preference.items():
        result[prefer] = statistics.mean(quotients.values())
        result[f"{prefer} at the minimum"] = statistics.mean(
            quotients[s] <= best[s] * (1 + 1e-12) for s in best
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--gap-images", type=int, default=12)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "machine": machine(),
        "encoder": encoder_name(),
        "images": args.images,
        "step": 0.05,
        "mean_quotient": {},
    }
    with TemporaryDirectory() as folder:
        for name, values in {
            "confidence": {},
            "entropy": {"prefer": "entropy"},
            "exhaustive": {"search": "exhaustive"},
        }.items():
            for reduction in SEARCHED if name != "exhaustive" else ("color", "resolution"):
                row = build_mepi(
                    run=str(args.run),
                    data=str(args.data),
                    out=str(Path(folder) / f"{name}-{reduction}"),
                    split=args.split,
                    reduction=reduction,
                    limit=args.images,
                    device="cpu",
                    control=JobControl(TerminalListener()),
                    **values,
                )[reduction]
                result["mean_quotient"].setdefault(reduction, {})[name] = row["mean_quotient"]
                result["mean_quotient"][reduction][f"{name}, images/s"] = row["images_per_second"]
    result["combination at step 0.25"] = gap(args.run, args.data, args.split, args.gap_images)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
