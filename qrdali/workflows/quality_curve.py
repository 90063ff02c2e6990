"""Accuracy as a function of quality: every level of a step, one reduction at a time, in rows, a summary and a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from qrdali.mepi.folder import SEARCHED

if TYPE_CHECKING:
    import pyarrow as pa

    from qrdali.cli.evaluate import Evaluator
    from qrdali.data.index import Index


def measure(evaluator: Evaluator, name: str, index: Index, num_levels: int) -> pa.Table:
    """A row per image and level: reduction, level, quality, sample, label, prediction, correct, confidence. Crops are centred."""
    import pyarrow as pa

    from qrdali.cli.terminal import Bar
    from qrdali.evaluation.predict import predict
    from qrdali.pipelines.loader import open_loader
    from qrdali.reduction.levels import FULL_QUALITY, constant_levels
    from qrdali.reduction.quality import REDUCTIONS
    from qrdali.schedule.epoch_plan import EpochPlan

    loader = open_loader(index, evaluator.trained.preprocessing, evaluator.batch_size, evaluator.engine)
    tables = []
    with Bar(f"curve of {name}", len(index) * (1 + (num_levels - 1) * len(SEARCHED))) as bar:

        def rows(level: int, reduction: str) -> Any:
            levels = constant_levels(REDUCTIONS[reduction], level) if level else FULL_QUALITY
            plan = EpochPlan(len(index), evaluator.batch_size, levels, num_levels)
            return predict(
                evaluator.model,
                loader,
                plan,
                evaluator.context,
                on_batch=lambda images: bar.advance(images, reduction),
                decide=evaluator.decide,
            )

        full = rows(0, "color")
        for reduction in SEARCHED:
            for level in range(num_levels):
                found = rows(level, reduction) if level else full
                count = len(found.samples)
                tables.append(
                    pa.table(
                        {
                            "reduction": pa.array([reduction] * count),
                            "level": pa.array([level] * count, pa.int32()),
                            "quality": [(num_levels - level) / num_levels] * count,
                            "sample": found.samples,
                            "label": found.labels.astype(np.int32),
                            "prediction": found.predictions.astype(np.int32),
                            "correct": found.labels == found.predictions,
                            "confidence": found.confidence,
                        }
                    )
                )
    return pa.concat_tables(tables)


def summary(rows: pa.Table) -> dict[str, Any]:
    """Per reduction: quality and accuracy, from 1 down, and the area under the accuracy as a share of the range of qualities."""
    result: dict[str, Any] = {}
    found = {key: rows[key].to_numpy(zero_copy_only=False) for key in ("reduction", "quality", "correct")}
    for reduction in SEARCHED:
        own = found["reduction"] == reduction
        quality = np.unique(found["quality"][own])
        accuracy = np.array([found["correct"][own & (found["quality"] == q)].mean() for q in quality])
        area = np.trapezoid(accuracy, quality) / (quality[-1] - quality[0])
        result[reduction] = {
            "quality": quality[::-1].tolist(),
            "accuracy": accuracy[::-1].tolist(),
            "area": float(area),
        }
    return result


def make(evaluator: Evaluator, name: str, index: Index, num_levels: int) -> dict[str, Any]:
    """Writes RUN/curves/NAME.parquet, .json, .png and .svg; returns the summary with the folder. Of several ranks the first writes."""
    rows = measure(evaluator, name, index, num_levels)
    curves, group = summary(rows), evaluator.group
    group.run_on_all(
        lambda: _write(evaluator, name, index, num_levels, rows, curves) if group.is_main else None
    )
    return {"step": 1 / num_levels, "files": str(evaluator.run / "curves" / name), **curves}


def _write(
    evaluator: Evaluator, name: str, index: Index, num_levels: int, rows: pa.Table, curves: dict[str, Any]
) -> None:
    import pyarrow.parquet as pq

    from qrdali.report.plots import quality_curve

    folder = evaluator.run / "curves"
    folder.mkdir(exist_ok=True)
    pq.write_table(rows, folder / f".{name}.partial")
    (folder / f".{name}.partial").rename(folder / f"{name}.parquet")
    chance = evaluator.class_map.chance if evaluator.class_map else 1 / len(evaluator.classes)
    told = {
        "set": name,
        "images": len(index),
        "step": 1 / num_levels,
        "chance": chance,
        "curves": curves,
        **evaluator.metadata,
    }
    partial = folder / f".{name}.json.partial"
    partial.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    partial.rename(folder / f"{name}.json")
    trained = evaluator.trained
    title = f"{evaluator.run.name}, {name}: {trained.model} at {trained.preprocessing.input_size} px"
    figure = quality_curve(curves, chance, name, title, headed=True)
    for kind in ("png", "svg"):
        partial = folder / f".{name}.{kind}.partial"
        partial.write_bytes(figure.render(kind))
        partial.rename(folder / f"{name}.{kind}")
