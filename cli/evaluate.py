"""`qrdali evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from qrdali.data.index import Index
    from qrdali.distributed import ProcessGroup
    from qrdali.evaluation.class_map import ClassMap, MapRule
    from qrdali.evaluation.prediction_rows import PredictionRows
    from qrdali.reduction.levels import Levels


@click.command()
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ is evaluated.")
@click.option("--data", type=click.Path(), help="Data set made by `qrdali data index`.")
@click.option("--root", metavar="[OLD=]NEW", help="Where the images of --data are now, if they moved.")
@click.option("--split", default="test", show_default=True, help="train, val or test of --data.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=FOLDER",
    help="A folder of class folders, such as mepi/crop, or s3:// or gs://; repeatable.",
)
@click.option(
    "--curve", is_flag=True, help="Also accuracy at every level of each reduction, into RUN/curves/."
)
@click.option(
    "--reduced",
    type=float,
    help="Also the split at this quality in each reduction, centre crops; such as 0.5.",
)
@click.option(
    "--step", default=0.25, show_default=True, help="Grid of qualities of --curve and --reduced, 1/n."
)
@click.option(
    "--class-map",
    type=click.Path(),
    metavar="TSV",
    help="For a run with other classes than the data: lines of its class, a tab, the data's class.",
)
@click.option(
    "--map-rule",
    type=click.Choice(["argmax", "sum"]),
    help="The first choice, mapped; or the largest sum of probabilities.  [default: argmax]",
)
@click.option("--batch-size", type=click.IntRange(1, 1 << 20), default=32, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "off"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1, 1024), help="Decoding threads.  [default: all it may use]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def evaluate(
    run: str,
    data: str | None,
    root: str | None,
    split: str,
    sets: tuple[str, ...],
    curve: bool,
    reduced: float | None,
    step: float,
    class_map: str | None,
    map_rule: MapRule | None,
    batch_size: int,
    device: str,
    amp: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Accuracy of a run on a split and on named folders; one row per image goes into RUN/predictions/NAME.parquet.

    \b
    Examples: qrdali evaluate --run runs/baseline --data data --split test
              qrdali evaluate --run runs/baseline --set mepi-crop=mepi/crop
              qrdali evaluate --run runs/baseline --data data --curve --step 0.05
              qrdali evaluate --run runs/baseline --data data --reduced 0.5
              qrdali evaluate --run runs/imagenet --data humanet --class-map map.tsv --map-rule sum
    """
    from qrdali.cli.torchrun import job
    from qrdali.data.set_names import parse_named_sets
    from qrdali.errors import InputError
    from qrdali.reduction.quality import num_levels_of
    from qrdali.runs import folder as run_folder
    from qrdali.system.deterministic import deterministic

    folders = parse_named_sets(sets, "--set")
    if data is None and not sets:
        raise InputError("nothing to evaluate: give --data, --set NAME=FOLDER or both")
    if root and data is None:
        raise InputError("--root is of --data: give that too")
    if reduced is not None and data is None:
        raise InputError("--reduced is of a split: give --data too")
    if map_rule and class_map is None:
        raise InputError("--map-rule is of a --class-map: give that too")
    num_levels = num_levels_of(step)
    with deterministic(run_folder.is_deterministic(Path(run)), device), job(device) as group:
        mapped = group.run_on_all(
            lambda: (
                None if class_map is None else _mapped(Path(class_map), map_rule or "argmax", Path(run), data)
            )
        )
        evaluator = Evaluator(
            Path(run),
            batch_size,
            device,
            amp,
            threads,
            num_levels if curve else None,
            reduced,
            num_levels,
            mapped,
            group,
        )
        results = [evaluator.split(Path(data), split, root)] if data is not None else []
        results += [evaluator.folder(name, folder) for name, folder in folders.items()]
        _show(results, as_json)


def _show(results: list[dict[str, Any]], as_json: bool) -> None:
    from qrdali.cli.terminal import emit, say

    if as_json:
        emit({**results[0], "sets": {result["set"]: result for result in results}})
        return
    for result in results:
        _tell(result)
        for found in result.get("reduced", {}).values():
            _tell(found)
        for reduction, found in result.get("curve", {}).items():
            if isinstance(found, dict):
                at = ", ".join(
                    f"{q:g}: {a:.3f}" for q, a in zip(found["quality"], found["accuracy"], strict=True)
                )
                say(f"  {reduction:12s} area {found['area']:.3f}  {at}")
        if "curve" in result:
            say(f"curve: {result['curve']['files']}.png")


def _mapped(file: Path, rule: MapRule, run: Path, data: str | None) -> ClassMap:
    from qrdali.data.index import Dataset
    from qrdali.evaluation.class_map import read_class_map
    from qrdali.runs import folder as run_folder

    return read_class_map(
        file,
        run_folder.describe_best(run).classes,
        None if data is None else Dataset.open(Path(data)).classes,
        rule,
    )


def _tell(result: dict[str, Any]) -> None:
    from qrdali.cli.terminal import say

    notes = f", {result['unreadable']} unreadable" if result["unreadable"] else ""
    if result.get("unmapped"):
        notes += f", {result['unmapped']} of no class of the data"
    say(
        f"{result['set']}: accuracy {result['accuracy']:.4f} ({result['correct']} of {result['images']}{notes}), "
        f"rows in {result['rows']}"
    )


class Evaluator:
    """`best/` of a run, ready to classify. Results are dicts of set, images, correct, accuracy, unreadable and the rows' file.
    curve: n of the step 1/n at which accuracy is also measured as a function of quality, under "curve". reduced: a quality of the
    step 1/n at which splits are evaluated too, in each reduction, under "reduced". class_map: for data of other classes; results then
    have map_rule and unmapped, the number of predictions that are no class of the data. ranks: who evaluates together; all must call
    the same methods in the same order and get the same results, rank 0 writes."""

    def __init__(
        self,
        run: Path,
        batch_size: int = 32,
        device: str = "auto",
        amp: str = "auto",
        threads: int | None = None,
        curve: int | None = None,
        reduced: float | None = None,
        num_levels: int = 4,
        class_map: ClassMap | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        import torch

        from qrdali.cli.terminal import warn
        from qrdali.distributed import SINGLE_PROCESS
        from qrdali.evaluation.predict import top1
        from qrdali.interfaces import RunContext, SilentListener, never_stop
        from qrdali.pipelines.engine import engine_of
        from qrdali.reduction.levels import reduced_split_levels
        from qrdali.runs import folder as run_folder
        from qrdali.system.device import autocast_for, resolve_device
        from qrdali.system.energy import EnergyMeter

        self.run, self.batch_size, self.curve, self.reduced, self.num_levels = (
            run,
            batch_size,
            curve,
            reduced,
            num_levels,
        )
        self.group = group or SINGLE_PROCESS
        if reduced is not None:
            self.group.run_on_all(
                lambda: reduced_split_levels("", reduced, num_levels)
            )  # refused before the network is loaded
        model, self.trained = self.group.run_on_all(lambda: run_folder.load_best(run))
        if not self.group.is_single:
            self.group.require_equal(
                f"the weights of {run}", self.group.run_on_all(lambda: run_folder.weights_digest(run))
            )
        self.class_map, self.classes = class_map, class_map.classes if class_map else self.trained.classes
        self.decide = class_map.decide if class_map else top1
        self.device = self.group.run_on_all(lambda: resolve_device(device))
        self.model: torch.nn.Module = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        autocast = autocast_for(amp, self.device)[0]
        self.context = RunContext(
            self.device, autocast, EnergyMeter(self.device), self.group, SilentListener(), never_stop
        )
        self.engine = engine_of(self.device, threads, self.group, warn)

    def split(self, data: Path, split: str, root: str | None = None) -> dict[str, Any]:
        """Evaluates a split of a data set and writes its rows, and those of the split at a reduced quality where one was asked for."""
        from qrdali.data.index import Dataset
        from qrdali.reduction.levels import reduced_split_levels

        def opened() -> Index:
            dataset = Dataset.open(data, root)
            dataset.require_classes(
                self.classes, "the --class-map" if self.class_map else f"the run {self.run}"
            )
            return dataset.index(split)

        index = self.group.run_on_all(opened)
        if not self.group.is_single:
            self.group.require_equal(f"the images of {data}", index.fingerprint)
        result = self._result(split, index, 0)
        if self.reduced is not None:
            result["reduced"] = {
                reduction: self._written(name, index, self.rows(name, index, levels=levels), 0)
                | {"quality": self.reduced}
                for reduction, (name, levels) in reduced_split_levels(
                    split, self.reduced, self.num_levels
                ).items()
            }
        return result

    def folder(self, name: str, folder: Path | str) -> dict[str, Any]:
        """Evaluates a folder of class folders, on the disk or in a store, and writes its rows; files that cannot be read are named and
        counted."""
        from tempfile import TemporaryDirectory

        from qrdali.cli.terminal import warn
        from qrdali.data.index import Index
        from qrdali.data.scan import index_folder
        from qrdali.errors import printable

        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "set.arrow"
            rejected = index_folder(
                folder,
                self.classes,
                file,
                verify=True,
                whose="the --class-map" if self.class_map else "the run",
                group=self.group,
                threads=None if self.group.is_single else self.engine.threads,
            )
            for path, reason in rejected[:5]:
                warn(f"left out: {path}: {reason}")
            if len(rejected) > 5:
                warn(f"left out: {len(rejected) - 5} more files that cannot be read; --json names all")
            index = Index(file, len(self.classes))
            return self._result(name, index, len(rejected)) | {
                "unreadable_files": [[printable(p), printable(why)] for p, why in rejected]
            }

    def rows(
        self, name: str, index: Index, check: Callable[[], None] = lambda: None, levels: Levels | None = None
    ) -> PredictionRows:
        """One row per image of an index, at `levels` of the step 1/n where given. `check` is called at every batch and may raise."""
        from qrdali.cli.terminal import Bar
        from qrdali.evaluation.predict import predict
        from qrdali.pipelines.loader import open_loader
        from qrdali.reduction.levels import FULL_QUALITY
        from qrdali.schedule.epoch_plan import EpochPlan

        loader = open_loader(index, self.trained.preprocessing, self.batch_size, self.engine)
        with Bar(f"evaluate {name}", len(index)) as bar:

            def progress(images: int) -> None:
                bar.advance(images)
                check()

            return predict(
                self.model,
                loader,
                EpochPlan(len(index), self.batch_size, levels or FULL_QUALITY, self.num_levels),
                self.context,
                on_batch=progress,
                decide=self.decide,
            )

    def _result(self, name: str, index: Index, unreadable: int) -> dict[str, Any]:
        result = self._written(name, index, self.rows(name, index), unreadable)
        if self.curve is not None:
            from qrdali.workflows.quality_curve import make

            result["curve"] = make(self, self._named(name), index, self.curve)
        return result

    def _named(self, name: str) -> str:
        """Mapped results have names of their own: they are of other labels, and shall not take the place of the run's."""
        return f"{name}-mapped-{self.class_map.rule}" if self.class_map else name

    def _written(self, name: str, index: Index, rows: PredictionRows, unreadable: int) -> dict[str, Any]:
        from qrdali.evaluation.prediction_rows import write_rows

        name = self._named(name)
        file = self.run / "predictions" / f"{name}.parquet"
        self.group.run_on_all(
            lambda: write_rows(file, rows, index, self.metadata) if self.group.is_main else None
        )
        result = {
            "set": name,
            "images": len(rows.labels),
            "correct": int((rows.labels == rows.predictions).sum()),
            "accuracy": rows.accuracy,
            "unreadable": unreadable,
            "rows": str(file),
        }
        if self.class_map is not None:
            result |= {"map_rule": self.class_map.rule, "unmapped": int((rows.predictions < 0).sum())}
        return result

    @property
    def metadata(self) -> dict[str, Any]:
        """What rows say of themselves: the epoch of the weights; of mapped classes also their names and the rule."""
        mapped = {"classes": list(self.classes), "map_rule": self.class_map.rule} if self.class_map else {}
        return {"epoch": self.trained.epoch, **mapped}
