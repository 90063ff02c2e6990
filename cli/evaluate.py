"""`qrdali evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ is evaluated.")
@click.option("--data", required=True, type=click.Path(), help="Data set made by `qrdali data index`.")
@click.option("--split", default="test", show_default=True, help="train, val or test.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "off"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Decoding threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(run: str, data: str, split: str, batch_size: int, device: str, amp: str, threads: int | None,
             as_json: bool) -> None:
    """Accuracy of a run on a split; one row per image goes into RUN/predictions/SPLIT.parquet.

    \b
    Example: qrdali evaluate --run runs/baseline --data data --split test
    """
    from qrdali.cli.terminal import emit, say

    result = evaluate_run(Path(run), Path(data), split, batch_size, device, amp, threads)
    if as_json:
        emit(result)
    else:
        say(f"{split}: accuracy {result['accuracy']:.4f} ({result['correct']} of {result['images']}), "
            f"rows in {result['rows']}")


def evaluate_run(run: Path, data: Path, split: str, batch_size: int = 32, device: str = "auto", amp: str = "auto",
                 threads: int | None = None) -> dict[str, Any]:
    """Evaluates `best/` of `run`, writes its rows and returns set, images, correct, accuracy and the rows' file."""
    import os

    import torch

    from qrdali import runs
    from qrdali.cli.terminal import Bar
    from qrdali.data.index import Dataset
    from qrdali.evaluate import evaluate as predict
    from qrdali.evaluate import write_rows
    from qrdali.levels import FULL
    from qrdali.pipelines.graphs import Engine
    from qrdali.pipelines.loader import open_loader
    from qrdali.plan import Plan
    from qrdali.trainer import autocast_for, device_of

    model, trained = runs.load_best(run)
    dataset = Dataset.open(data)
    dataset.require_classes(trained.classes, f"the run {run}")
    index = dataset.index(split)
    where = device_of(device)
    model = model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = open_loader(index, trained.preprocessing, batch_size,
                        Engine(where.index if where.type == "cuda" else None, threads or os.cpu_count() or 1))
    with Bar(f"evaluate {split}", len(index)) as bar:
        rows = predict(model, loader, Plan(len(index), batch_size, FULL), autocast_for(amp, where)[0], bar.advance)
    file = run / "predictions" / f"{split}.parquet"
    write_rows(file, rows, index)
    return {"set": split, "images": len(rows.labels), "correct": int((rows.labels == rows.predictions).sum()),
            "accuracy": rows.accuracy, "rows": str(file)}
