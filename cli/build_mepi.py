"""`qrdali build-mepi`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from qrdali.cli.evaluate import Evaluator
    from qrdali.data.index import Index
    from qrdali.distributed import ProcessGroup
    from qrdali.interfaces import ImageReducer
    from qrdali.mepi.folder import MepiSet

REDUCTIONS = ("color", "crop", "resolution", "combination")


@click.command("build-mepi")
@click.option("--run", required=True, type=click.Path(), help="A run folder; its best/ classifies.")
@click.option("--data", required=True, type=click.Path(), help="Data set made by `qrdali data index`.")
@click.option("--root", metavar="[OLD=]NEW", help="Where the images of --data are now, if they moved.")
@click.option("--out", required=True, type=click.Path(), help="Folder for the MEPIs.")
@click.option("--split", default="val", show_default=True, help="train, val or test.")
@click.option("--reduction", type=click.Choice([*REDUCTIONS, "all"]), default="all", show_default=True)
@click.option("--step", default=0.05, show_default=True, help="Grid of qualities, 1/n.")
@click.option(
    "--windows",
    type=click.Choice(["5", "9"]),
    default="5",
    show_default=True,
    help="Candidate windows of a crop.",
)
@click.option(
    "--prefer",
    type=click.Choice(["confidence", "entropy"]),
    default="confidence",
    show_default=True,
    help="Which correct neighbour is taken.",
)
@click.option(
    "--search",
    type=click.Choice(["descend", "exhaustive"]),
    default="descend",
    show_default=True,
    help="Step by step, or try every level (color and resolution).",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Search this many images, spread evenly over the split."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1 << 20),
    default=32,
    show_default=True,
    help="As of `evaluate`, for reading back.",
)
@click.option(
    "--search-batch-size",
    type=click.IntRange(1, 1 << 16),
    help="Candidates per forward pass.  [default: 16 on a CPU, 256 on a GPU]",
)
@click.option(
    "--memory", type=click.IntRange(1), default=1024, show_default=True, help="MiB of decoded originals kept."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--amp", type=click.Choice(["auto", "bf16", "fp16", "off"]), default="auto", show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="Decoding and encoding threads.  [default: all it may use]",
)
@click.option("--resume", is_flag=True, help="Continue this folder; starts it if it has not begun.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object on stdout.")
def build_mepi(as_json: bool, **options: Any) -> None:
    """For each image the run classifies correctly, a reduced image that it still gets right, but no step further (see --search).

    Writes REDUCTION/CLASS/SAMPLE.png, manifest.parquet, summary.json and a contact sheet per reduction.

    \b
    Example: qrdali build-mepi --run runs/baseline --data data --split val --reduction crop --out mepi
    """
    from qrdali.cli.terminal import emit
    from qrdali.cli.torchrun import job
    from qrdali.runs import folder as run_folder
    from qrdali.system.deterministic import deterministic

    with (
        deterministic(run_folder.is_deterministic(Path(options["run"])), options["device"]),
        job(options["device"]) as group,
    ):
        summaries = build(group=group, **options)
        if as_json:
            emit(summaries)


def build(
    *,
    run: str,
    data: str,
    out: str,
    split: str = "val",
    reduction: str = "all",
    step: float = 0.05,
    windows: str = "5",
    prefer: str = "confidence",
    search: str = "descend",
    limit: int | None = None,
    batch_size: int = 32,
    search_batch_size: int | None = None,
    memory: int = 1024,
    device: str = "auto",
    amp: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    group: ProcessGroup | None = None,
    root: str | None = None,
) -> dict[str, Any]:
    """The command; returns summaries by reduction. Raises InputError or RunError before anything is written where it can. Of several
    ranks all call it; they share the images, and the first writes what is of the whole set."""
    import hashlib
    import json
    from contextlib import closing
    from dataclasses import asdict

    import numpy as np

    from qrdali.cli.evaluate import Evaluator
    from qrdali.cli.signals import StopSignal
    from qrdali.cli.terminal import TerminalListener, say
    from qrdali.data.index import Dataset
    from qrdali.distributed import SINGLE_PROCESS
    from qrdali.errors import Interrupted, RunError, printable
    from qrdali.mepi.build import Builder
    from qrdali.mepi.search import Search, SearchRule
    from qrdali.pipelines.image_reducer import open_image_reducer
    from qrdali.reduction import quality
    from qrdali.reduction.neighbors import DescentRule
    from qrdali.reduction.png_entropy import encoder_name
    from qrdali.runs.folder import weights_digest
    from qrdali.system.device import probe_batch_size

    group = group or SINGLE_PROCESS
    num_levels = quality.num_levels_of(step)
    wanted = REDUCTIONS if reduction == "all" else (reduction,)
    rules = group.run_on_all(
        lambda: {
            r: SearchRule(
                DescentRule(quality.REDUCTIONS[r], num_levels, int(windows), prefer), search == "exhaustive"
            )
            for r in wanted
        }
    )
    evaluator = Evaluator(Path(run), batch_size, device, amp, threads, group=group)
    trained, where = evaluator.trained, evaluator.device

    def opened() -> Index:
        dataset = Dataset.open(Path(data), root)
        dataset.require_classes(trained.classes, f"the run {run}")
        return dataset.index(split)

    index = group.run_on_all(opened)
    count = min(limit or len(index), len(index))
    samples = [i * len(index) // count for i in range(count)]
    at_once = search_batch_size or probe_batch_size(where, 128)
    seen = json.loads(json.dumps(asdict(trained.preprocessing)))
    options = {
        "run": str(Path(run).absolute()),
        "weights": weights_digest(Path(run)),
        "preprocessing": seen,
        "data": index.fingerprint,
        "split": split,
        "step": 1 / num_levels,
        "windows": int(windows),
        "prefer": prefer,
        "search": search,
        "limit": limit,
        "batch_size": batch_size,
        "search_batch_size": at_once,
        "device": where.type,
        "amp": amp,
        "encoder": encoder_name(),
    }
    if not group.is_single:
        group.require_equal(
            "weights, images or settings",
            hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest(),
        )
    mepis = _opened(group, Path(out), index, trained.classes, num_levels, options, resume)
    maker = open_image_reducer(index, trained.preprocessing, evaluator.engine)
    listener = TerminalListener()
    say(
        f"MEPIs of {count} {split} images, {trained.model} at {trained.preprocessing.input_size} px, step {1 / num_levels:g}, "
        f"{'CPU' if where.type == 'cpu' else 'GPU'}"
    )
    with closing(mepis), StopSignal() as stop:
        for name in wanted:
            if _is_finished(group, mepis, name, samples):
                say(f"{name} is finished; nothing to do")
                if group.is_main and not (mepis.folder / f"{name}.png").exists():
                    _draw(mepis, name, maker)
                continue
            searching = Search(
                evaluator.model,
                maker,
                rules[name],
                at_once,
                memory << 20,
                evaluator.engine.threads,
                evaluator.context.autocast,
            )
            builder = Builder(
                mepis,
                name,
                searching,
                evaluator.engine.threads,
                lambda check, name=name: _wrong(evaluator, mepis, name, check),  # type: ignore[misc]
                listener,
                stop,
                group,
            )
            try:
                row = builder.build(samples)
            except Interrupted as interruption:
                say(str(interruption))
                raise SystemExit(128 + interruption.signum) from None
            if group.is_main:
                _draw(mepis, name, maker)
            say(_line(name, row))
            if signum := max(group.all_gather_object(stop())):
                more = (
                    ": the same command with --resume continues"
                    if name != wanted[-1]
                    else ", which was the last"
                )
                say(f"stopped after {name}{more}")
                raise SystemExit(128 + signum)

    def summed() -> dict[str, Any]:
        summaries = mepis.summaries()
        if all(summaries[name]["images"] == summaries[name]["unreadable"] for name in wanted):
            raise RunError(
                f"no image of {printable(data)} could be read: see the lines above; --resume tries again"
            )
        return {name: summaries[name] for name in wanted}

    done = group.broadcast_object(group.run_on_all(lambda: summed() if group.is_main else {}))
    if np.all([row["mean_quotient"] is None for row in done.values()]):
        say("the run classifies none of these images correctly: there are no MEPIs")
    say(f"MEPI set: {out}")
    return done


def _is_finished(group: ProcessGroup, mepis: MepiSet, reduction: str, samples: list[int]) -> bool:
    finished = group.run_on_all(lambda: group.is_main and mepis.finished(reduction, samples))
    return group.broadcast_object(finished)


def _opened(
    group: ProcessGroup,
    folder: Path,
    index: Index,
    classes: tuple[str, ...],
    num_levels: int,
    options: dict[str, Any],
    resume: bool,
) -> MepiSet:
    """The set in `folder`: rank 0 holds and loads it before the others read it. What torchrun starts again goes on."""
    from qrdali.mepi.folder import MepiSet

    resume = resume or group.was_started(str(folder.absolute()))

    def held() -> MepiSet:
        mepis = MepiSet.open(folder, index, classes, num_levels, options, resume)
        group.record_started(str(folder.absolute()))
        if not group.is_single:
            mepis.load()
        return mepis

    mepis = group.run_on_all(
        lambda: (
            held()
            if group.is_main
            else MepiSet.open_on_other_rank(folder, index, classes, num_levels, group.rank)
        )
    )
    if not group.is_single:
        group.run_on_all(mepis.load)
    return mepis


def _wrong(evaluator: Evaluator, mepis: MepiSet, reduction: str, check: Callable[[], None]) -> list[int]:
    """Samples whose written MEPI is not classified correctly, exactly as `qrdali evaluate --set` would.

    Raises RunError if the folder holds anything but the set's own readable files: `evaluate` would count it.
    """
    from tempfile import TemporaryDirectory

    import numpy as np

    from qrdali.data.index import Index
    from qrdali.data.scan import index_folder

    expected = {
        str(mepis.png(reduction, s).absolute()): s for s in mepis.journal(reduction).with_mepi().tolist()
    }
    folder, group = mepis.folder / reduction, evaluator.group
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "set.arrow"
        if not expected:
            group.run_on_all(
                lambda: _only({str(p.absolute()) for p in folder.rglob("*.*")}, {}) if group.is_main else None
            )
            return []
        rejected = dict(
            index_folder(
                folder,
                mepis.classes,
                file,
                verify=True,
                group=group,
                threads=None if group.is_single else evaluator.engine.threads,
            )
        )
        index = Index(file, len(mepis.classes))
        found = set(index.paths(np.arange(len(index))))
        group.run_on_all(lambda: _only(found.union(rejected), expected, found) if group.is_main else None)
        rows = evaluator.rows(f"{reduction}, read back", index, check)
        bad = rows.samples[rows.labels != rows.predictions]
        return [expected[path] for path in index.paths(bad.astype(np.int64))]


def _only(there: set[str], expected: dict[str, int], readable: set[str] | None = None) -> None:
    """Raises RunError for a file that is not expected, or that is and cannot be read, which is removed."""
    from qrdali.errors import RunError, printable

    strays = sorted(there - expected.keys())
    if strays:
        raise RunError(
            f"{printable(strays[0])} is no file of this set ({len(strays)} such): remove it, then the same command with "
            "--resume goes on"
        )
    broken = sorted(expected.keys() - (readable or set()))
    if broken:
        for path in broken:
            Path(path).unlink(missing_ok=True)
        raise RunError(
            f"{printable(broken[0])} was not as it had been written ({len(broken)} such): the same command with --resume "
            "makes it again"
        )


def _draw(mepis: MepiSet, reduction: str, maker: ImageReducer) -> None:
    """The contact sheet; what hinders it does not hinder the set."""
    from qrdali.cli.terminal import warn
    from qrdali.errors import RunError
    from qrdali.workflows.mepi_sheet import draw

    try:
        draw(mepis, reduction, maker, mepis.folder / f"{reduction}.png")
    except (OSError, RunError) as error:
        warn(f"no contact sheet of {reduction}: {error}")


def _line(name: str, row: dict[str, Any]) -> str:
    if row["mean_quotient"] is None:
        return f"{name}: none of {row['images']} images has a MEPI"
    text = (
        f"{name}: mean quotient {row['mean_quotient']:.4f} of {row['images'] - row['without_mepi'] - row['unreadable']} MEPIs; "
        f"{row['without_mepi']} images wrong at full quality"
    )
    if row["unreadable"]:
        text += f", {row['unreadable']} unreadable"
    text += f"; {row['lowest_state_share']:.1%} at the lowest state"
    if "near_void_class" in row:
        text += f" (which looks like {row['near_void_class']!r} in {row['near_void_class_share']:.0%})"
    if row["returned"]:
        text += f"; {row['returned']} sent on after reading back"
    return text + f"; {row['images_per_second']:.1f} images/s"
