"""Run folders and MEPI sets as training and searching leave them, made of nothing: what a report reads."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from qrdali.evaluation.true_class import true_class
from qrdali.mepi.manifest import SCHEMA
from qrdali.models import Preprocessing
from qrdali.runs import checkpoint
from qrdali.runs.folder import BestModel
from qrdali.runs.settings import validate_settings, write_settings

CLASSES = ("ant", "bee", "cat", "dog")


def rows(
    folder: Path, name: str, correct: "np.ndarray[Any, Any]", classes: int = 4, prefix: str = "/data/"
) -> None:
    """Predictions on a set: sample i is of class i modulo the number of classes."""
    count = len(correct)
    labels = np.arange(count) % classes
    table = pa.table(
        {
            "sample": np.arange(count),
            "path": [f"{prefix}{name}/{i}.jpg" for i in range(count)],
            "label": labels.astype(np.int32),
            "prediction": np.where(correct, labels, (labels + 1) % classes).astype(np.int32),
            "correct": correct,
            "confidence": np.full(count, 0.5, np.float32),
        }
    )
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "predictions" / f"{name}.parquet")


def scored_rows(
    folder: Path,
    name: str,
    logits: "np.ndarray[Any, Any]",
    labels: "np.ndarray[Any, Any]",
    paths: list[str] | None = None,
    **metadata: Any,
) -> None:
    """Rows as evaluation writes them of logits [N, K], with rank and probability of the true class."""
    probability = torch.from_numpy(logits).double().softmax(1)
    targets = torch.from_numpy(labels)
    confidence, prediction = probability.max(1)
    rank, of_label = true_class(probability, targets, prediction)
    table = pa.table(
        {
            "sample": np.arange(len(labels)),
            "path": paths or [f"/data/{name}/{i}.jpg" for i in range(len(labels))],
            "label": labels.astype(np.int32),
            "prediction": prediction.numpy().astype(np.int32),
            "correct": prediction.numpy() == labels,
            "confidence": confidence.float().numpy(),
            "rank": rank.numpy().astype(np.int32),
            "true_probability": of_label.numpy(),
        }
    )
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    if metadata:
        table = table.replace_schema_metadata({"qrdali": json.dumps(metadata)})
    pq.write_table(table, folder / "predictions" / f"{name}.parquet")


def run(
    folder: Path,
    accuracies: list[float],
    sets: "dict[str, np.ndarray[Any, Any]]",
    *,
    classes: tuple[str, ...] = CLASSES,
    data: str = "/data/shapes",
    letters: str = "C",
    prefix: str = "/data/",
    extra: dict[str, Any] | None = None,
    weights: str = "",
    **settings: Any,
) -> Path:
    """A run with one validation accuracy per epoch, the start's first, and the given sets of rows.

    weights: a name for what best/ holds; runs of the same name have the same weights, "" is the run's own.
    """
    folder.mkdir(parents=True)
    write_settings(
        folder / "config.toml",
        validate_settings(
            {"method": "baseline", "data": data, "model": "test_resnet", "input_size": 32, **settings}
        ),
    )
    best = int(np.argmax(accuracies))
    pre = Preprocessing(32, "whole", 0.9, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    checkpoint.save(
        folder / "best",
        BestModel(settings.get("model", "test_resnet"), classes, pre, best, accuracies[best]).as_dict(),
        model={"w": torch.tensor(list(hashlib.sha256((weights or str(folder)).encode()).digest()))},
    )
    lines = []
    for epoch, accuracy in enumerate(accuracies):
        line: dict[str, Any] = {
            "epoch": epoch,
            "phase": "start",
            "stage": 1,
            "quality": {},
            "val_accuracy": accuracy,
            **(extra or {}),
        }
        if epoch:
            letter = letters[(epoch - 1) % len(letters)]
            line |= {
                "phase": {"C": "full", "R": "reduced"}[letter],
                "stage": 1 + (epoch - 1) // 2,
                "train_loss": 1.0,
                "seconds": 2.0,
                "images_per_second": 50.0,
                "optimizer_steps": 10 * epoch,
                "forward_images": 140 * epoch,
                "total_seconds": 2.0 * epoch,
            }
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, correct in sets.items():
        rows(folder, name, correct, len(classes), prefix)
    return folder


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "best" / "model.safetensors").read_bytes()).hexdigest()


def mepis(
    folder: Path,
    made_of: Path,
    quotients: dict[str, dict[int, float]],
    tried: int,
    images: Path | None = None,
    **options: Any,
) -> Path:
    """A MEPI set of `made_of`'s weights.

    quotients: by reduction and sample; `tried` images were searched. images: folder of originals SAMPLE.png,
    which are made (40 × 30).
    """
    folder.mkdir(parents=True)
    (folder / "options.json").write_text(
        json.dumps(
            {
                "run": str(made_of),
                "weights": digest(made_of),
                "data": "d",
                "split": "val",
                "step": 0.05,
                "windows": 5,
                "prefer": "confidence",
                "search": "descend",
                "limit": None,
                "batch_size": 32,
                "device": "cpu",
                "amp": "auto",
                **options,
            }
        )
    )
    lines, summary = [], {}
    for reduction, found in quotients.items():
        summary[reduction] = {
            "images": tried,
            "without_mepi": tried - len(found),
            "unreadable": 0,
            "returned": 0,
            "seconds": 2.0,
            "mean_quotient": float(np.mean(list(found.values()))) if found else None,
            "images_per_second": tried / 2,
            "evaluations": 10 * tried,
            "encoder": "Pillow",
            "lowest_state": 0,
            "lowest_state_share": 0.0,
            "near_void_class": "ant",
            "near_void_class_share": 0.5,
        }
        for sample, quotient in found.items():
            path = f"{images or '/gone'}/{sample}.png"
            lines.append(
                {
                    "sample": sample,
                    "path": path,
                    "label": sample % 4,
                    "reduction": reduction,
                    "step": 0.05,
                    "color_level": 1,
                    "crop_level": 0,
                    "resolution_level": 0,
                    "top": 0,
                    "left": 0,
                    "height": 30,
                    "width": 40,
                    "entropy_full": 10_000,
                    "entropy_mepi": round(10_000 * quotient),
                    "quotient": quotient,
                    "evaluations": 10,
                    "confidence": 0.9,
                }
            )
            if images is not None:
                images.mkdir(exist_ok=True)
                noise = np.random.default_rng(sample).integers(0, 255, (30, 40, 3), np.uint8)
                Image.fromarray(noise).save(path)
                target = folder / reduction / CLASSES[sample % 4] / f"{sample}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise // 64 * 64).save(target)
    pq.write_table(pa.Table.from_pylist(lines, SCHEMA), folder / "manifest.parquet")
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
