"""Accuracy as a function of quality, one reduction at a time, in rows, a summary and a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qrdali.evaluation.predict import predict
from qrdali.files.atomic import write_whole
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import levels_of, moves_of
from qrdali.reduction.names import DISTORTIONS, SEARCHED
from qrdali.reduction.quality import LevelScale
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.schedule.live_levels import live_levels

if TYPE_CHECKING:
    from qrdali.data.index import Index
    from qrdali.evaluation.prediction_rows import PredictionRows
    from qrdali.workflows.evaluate import Evaluator


def measure(evaluator: Evaluator, name: str, index: Index, scale: LevelScale) -> pa.Table:
    """Returns a row per image and level of the grid, and of the tail down to the last that changes an image.

    It does so for each reduction of the evaluator's options. Crops are centred.

    Collective.

    Columns: reduction, level, quality, sample, label, prediction, correct, confidence. Raises Interrupted
    after a signal.
    """
    batch_size, listener = evaluator.options.batch_size, evaluator.context.listener
    source = open_loader(index, evaluator.trained.preprocessing, batch_size, evaluator.engine)

    def classify(level: int, reduction: str) -> PredictionRows:
        plan = EpochPlan(len(index), batch_size, levels_of(reduction, level), scale)

        def on_batch(images: int) -> None:
            listener.advance(images, lambda: reduction)
            evaluator.exit_if_signalled(name)

        return predict(
            evaluator.model,
            source,
            plan,
            evaluator.context,
            on_batch=on_batch,
            class_map=evaluator.class_map,
        )

    reductions, side = evaluator.options.reductions, evaluator.trained.preprocessing.input_size
    levels = {reduction: _curve_levels(index, reduction, scale, side) for reduction in reductions}
    listener.begin(f"curve of {name}", len(index) * (1 + sum(map(len, levels.values()))))
    try:
        tables = []
        # Level 0 is the untouched image whatever the reduction: it is classified once for all of them.
        at_full_quality = classify(0, reductions[0])
        for reduction in reductions:
            for level in (0, *levels[reduction]):
                rows = classify(level, reduction) if level else at_full_quality
                tables.append(_table(rows, reduction, level, scale.quality_of(level)))
        return pa.concat_tables(tables)
    finally:
        listener.end()


def _curve_levels(index: Index, reduction: str, scale: LevelScale, side: int) -> tuple[int, ...]:
    """Returns the levels of a curve below full quality: the grid's, and those of the tail that change an
    image, as a network with inputs of `side` pixels sees it.
    """
    last = scale.grid - 1
    below = range(last, scale.count)
    moves = moves_of(reduction)
    live = live_levels(below, moves.dimensions, scale, index.size_chunks, moves.distortion, side)
    return (*range(1, scale.grid), *(level for level in live if level > last))


def _table(rows: PredictionRows, reduction: str, level: int, quality: float) -> pa.Table:
    count = len(rows.samples)
    return pa.table(
        {
            "reduction": pa.array([reduction] * count),
            "level": pa.array([level] * count, pa.int32()),
            "quality": [quality] * count,
            "sample": rows.samples,
            "label": rows.labels.astype(np.int32),
            "prediction": rows.predictions.astype(np.int32),
            "correct": rows.labels == rows.predictions,
            "confidence": rows.confidence,
        }
    )


def summary(rows: pa.Table, scale: LevelScale) -> dict[str, Any]:
    """Returns by reduction the qualities, from 1 down, the accuracy at each, and the mean accuracy over them.

    "area" is the area under the accuracy (trapezoids) over the grid's qualities, divided by their range, and
    "log_area" that over the logarithm of all qualities; both in [0, 1]. "tail" counts the qualities below the
    grid.
    """
    result: dict[str, Any] = {}
    columns = {key: rows[key].to_numpy(zero_copy_only=False) for key in ("reduction", "quality", "correct")}
    for reduction in (*SEARCHED, *DISTORTIONS):
        of_reduction = columns["reduction"] == reduction
        if not of_reduction.any():
            continue
        quality = np.unique(columns["quality"][of_reduction])
        accuracy = np.array(
            [columns["correct"][of_reduction & (columns["quality"] == q)].mean() for q in quality]
        )
        on_grid = quality > (1 - 1e-9) / scale.grid
        area = np.trapezoid(accuracy[on_grid], quality[on_grid]) / (1 - 1 / scale.grid)
        log_area = np.trapezoid(accuracy, np.log(quality)) / -np.log(quality[0])
        result[reduction] = {
            "quality": quality[::-1].tolist(),
            "accuracy": accuracy[::-1].tolist(),
            "area": float(area),
            "log_area": float(log_area),
            "tail": int((~on_grid).sum()),
        }
    return result


def write_curve(evaluator: Evaluator, name: str, index: Index, scale: LevelScale) -> dict[str, Any]:
    """Measures a curve and writes RUN/curves/NAME.parquet, .json, .png and .svg; rank 0 writes. Collective.

    Returns the summary with the step and, under "files", the files' path without its ending.
    """
    rows = measure(evaluator, name, index, scale)
    curves = summary(rows, scale)
    head: dict[str, Any] = {"step": 1 / scale.grid, "tail": scale.tail}
    result = {**head, "files": str(evaluator.run / "curves" / name), **curves}
    head = {"set": name, "images": len(index), **head}
    evaluator.group.run_on_main(lambda: _write(evaluator, head, rows, curves))
    return result


def _write(evaluator: Evaluator, head: dict[str, Any], rows: pa.Table, curves: dict[str, Any]) -> None:
    # matplotlib takes a second to import, which an evaluation without a curve need not wait for.
    from qrdali.report.plots import quality_curve

    folder, name, trained = evaluator.run / "curves", head["set"], evaluator.trained
    folder.mkdir(exist_ok=True)
    write_whole(folder / f"{name}.parquet", lambda partial: pq.write_table(rows, partial))
    chance = evaluator.class_map.chance if evaluator.class_map else 1 / len(evaluator.classes)
    values = {**head, "chance": chance, "curves": curves, **evaluator.metadata}
    write_whole(folder / f"{name}.json", (json.dumps(values, indent=1) + "\n").encode())
    title = f"{evaluator.run.name}, {name}: {trained.model} at {trained.preprocessing.input_size} px"
    figure = quality_curve(curves, chance, name, title, headed=True)
    kinds = ("png", "svg")
    for kind, content in zip(kinds, figure.render(kinds), strict=True):
        write_whole(folder / f"{name}.{kind}", content)
