"""`qrdali evaluate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from qrdali.data.index import Index
    from qrdali.evaluate import Rows


@click.command()
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ is evaluated.")
@click.option("--data", type=click.Path(), help="Data set made by `qrdali data index`.")
@click.option("--split", default="test", show_default=True, help="train, val or test of --data.")
@click.option("--set", "sets", multiple=True, metavar="NAME=FOLDER", help="A folder of class folders, such as mepi/crop; repeatable.")
@click.option("--curve", is_flag=True, help="Also accuracy at every level of each reduction, into RUN/curves/.")
@click.option("--step", default=0.25, show_default=True, help="Grid of qualities of --curve, 1/n.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "off"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Decoding threads.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(run: str, data: str | None, split: str, sets: tuple[str, ...], curve: bool, step: float, batch_size: int, device: str,
             amp: str, threads: int | None, as_json: bool) -> None:
    """Accuracy of a run on a split and on named folders; one row per image goes into RUN/predictions/NAME.parquet.

    \b
    Examples: qrdali evaluate --run runs/baseline --data data --split test
              qrdali evaluate --run runs/baseline --set mepi-crop=mepi/crop
              qrdali evaluate --run runs/baseline --data data --curve --step 0.05
    """
    from qrdali.cli.terminal import emit, say
    from qrdali.errors import InputError
    from qrdali.quality import steps

    folders = dict(map(_named, sets))
    if len(folders) < len(sets):
        raise InputError("--set gives one NAME twice: every set needs a name of its own")
    if data is None and not sets:
        raise InputError("nothing to evaluate: give --data, --set NAME=FOLDER or both")
    n = steps(step)
    evaluator = Evaluator(Path(run), batch_size, device, amp, threads, n if curve else None)
    results = [evaluator.split(Path(data), split)] if data is not None else []
    results += [evaluator.folder(name, folder) for name, folder in folders.items()]
    if as_json:
        emit({**results[0], "sets": {result["set"]: result for result in results}})
        return
    for result in results:
        unreadable = f", {result['unreadable']} unreadable" if result["unreadable"] else ""
        say(f"{result['set']}: accuracy {result['accuracy']:.4f} ({result['correct']} of {result['images']}{unreadable}), "
            f"rows in {result['rows']}")
        for reduction, found in result.get("curve", {}).items():
            if isinstance(found, dict):
                at = ", ".join(f"{q:g}: {a:.3f}" for q, a in zip(found["quality"], found["accuracy"], strict=True))
                say(f"  {reduction:12s} area {found['area']:.3f}  {at}")
        if "curve" in result:
            say(f"curve: {result['curve']['files']}.png")


def _named(text: str) -> tuple[str, Path]:
    from qrdali.data.index import SPLITS
    from qrdali.errors import InputError, printable

    name, equals, folder = text.partition("=")
    if not equals or not folder or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in SPLITS:
        raise InputError(f"--set is {printable(text)!r}: give NAME=FOLDER, NAME of letters, digits, '.', '_' and '-', and not "
                         f"{', '.join(SPLITS)}")
    return name, Path(folder)


class Evaluator:
    """`best/` of a run, ready to classify. Results are dicts of set, images, correct, accuracy, unreadable and the rows' file.
    curve: n of the step 1/n at which accuracy is also measured as a function of quality, under "curve"."""

    def __init__(self, run: Path, batch_size: int = 32, device: str = "auto", amp: str = "auto", threads: int | None = None,
                 curve: int | None = None) -> None:
        import os

        import torch

        from qrdali import runs
        from qrdali.pipelines.graphs import Engine
        from qrdali.trainer import autocast_for, device_of

        self.run, self.batch_size, self.curve = run, batch_size, curve
        model, self.trained = runs.load_best(run)
        self.device = device_of(device)
        self.model: torch.nn.Module = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.autocast = autocast_for(amp, self.device)[0]
        self.engine = Engine(self.device.index if self.device.type == "cuda" else None, threads or os.cpu_count() or 1)

    def split(self, data: Path, split: str) -> dict[str, Any]:
        """Evaluates a split of a data set and writes its rows."""
        from qrdali.data.index import Dataset

        dataset = Dataset.open(data)
        dataset.require_classes(self.trained.classes, f"the run {self.run}")
        index = dataset.index(split)
        return self._written(split, index, self.rows(split, index), 0)

    def folder(self, name: str, folder: Path) -> dict[str, Any]:
        """Evaluates a folder of class folders and writes its rows; files that cannot be read are named and counted."""
        from tempfile import TemporaryDirectory

        from qrdali.cli.terminal import warn
        from qrdali.data.index import Index
        from qrdali.data.scan import index_folder

        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "set.arrow"
            rejected = index_folder(folder, self.trained.classes, file, verify=True)
            for path, reason in rejected[:5]:
                warn(f"left out: {path}: {reason}")
            if len(rejected) > 5:
                warn(f"left out: {len(rejected) - 5} more files that cannot be read")
            index = Index(file, len(self.trained.classes))
            return self._written(name, index, self.rows(name, index), len(rejected))

    def rows(self, name: str, index: Index, check: Callable[[], None] = lambda: None) -> Rows:
        """One row per image of an index. `check` is called at every batch and may raise."""
        from qrdali.cli.terminal import Bar
        from qrdali.evaluate import evaluate as predict
        from qrdali.levels import FULL
        from qrdali.pipelines.loader import open_loader
        from qrdali.plan import Plan

        loader = open_loader(index, self.trained.preprocessing, self.batch_size, self.engine)
        with Bar(f"evaluate {name}", len(index)) as bar:
            def progress(images: int) -> None:
                bar.advance(images)
                check()

            return predict(self.model, loader, Plan(len(index), self.batch_size, FULL), self.autocast, progress)

    def _written(self, name: str, index: Index, rows: Rows, unreadable: int) -> dict[str, Any]:
        from qrdali.evaluate import write_rows

        file = self.run / "predictions" / f"{name}.parquet"
        write_rows(file, rows, index)
        result = {"set": name, "images": len(rows.labels), "correct": int((rows.labels == rows.predictions).sum()),
                  "accuracy": rows.accuracy, "unreadable": unreadable, "rows": str(file)}
        if self.curve is not None:
            from qrdali.cli.curve import make

            result["curve"] = make(self, name, index, self.curve)
        return result
