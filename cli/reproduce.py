"""`qrdali reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qrdali.experiment.expand import PlannedRun
    from qrdali.experiment.tasks import Task, Tasks


@click.command()
@click.argument("config", type=click.Path())
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Runs of this name, and those they start from; * and ? as in a shell. Repeatable.",
)
@click.option(
    "--dry-run", is_flag=True, help="List every task, its state and the time it may take; nothing is touched."
)
@click.option("--out", type=click.Path(), help="Folder of the matrix in place of the file's.")
@click.option(
    "--data", type=click.Path(), help="Data set made by `qrdali data index` in place of the file's."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="In place of the file's.")
@click.option("--threads", type=click.IntRange(1), help="Decoding threads.  [default: all it may use]")
@click.option(
    "--json", "as_json", is_flag=True, help="With --dry-run: the list as one JSON object on stdout."
)
def reproduce(
    config: str,
    only: tuple[str, ...],
    dry_run: bool,
    out: str | None,
    data: str | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """The thesis' experiment matrix: every run that CONFIG.toml asks for, their evaluation, minimal images and the report.

    The same command goes on where it was stopped, skips what is done and tries again what failed. Three files are part of qrdali:
    humanet.toml, imagenet.toml and demo.toml. A PATTERN without a slash names the last part of a run's name.

    \b
    Examples: qrdali reproduce demo.toml
              qrdali reproduce humanet.toml --dry-run
              qrdali reproduce humanet.toml --only 'efficientnet_b3/*-crop' --only baseline
    """
    from qrdali.errors import InputError
    from qrdali.experiment.config import read
    from qrdali.experiment.expand import expand
    from qrdali.experiment.folder import ExperimentFolder
    from qrdali.experiment.tasks import Tasks

    if as_json and not dry_run:
        raise InputError("--json is for --dry-run")
    matrix = read(_found(config), out=out, data=data)
    extra = {key: value for key, value in (("device", device), ("threads", threads)) if value is not None}
    matrix = matrix.model_copy(update={"train": {**matrix.train, **extra}})
    folder = ExperimentFolder(Path(matrix.out))
    dataset = Path(matrix.data.folder) if matrix.data.folder else folder.folder / "data"
    tasks = Tasks(matrix, folder, dataset, expand(matrix, dataset), only)
    _refuse_changes(tasks)
    if dry_run:
        _list(tasks, as_json)
    else:
        from qrdali.system.deterministic import cublas_workspace

        # A run that wants it may come after others have begun CUDA.
        wanted = [run.settings.device for run in tasks.wanted if run.settings.deterministic]
        with cublas_workspace(next((name for name in wanted if name != "cpu"), "cpu")):
            _check_inputs(tasks)
            _execute(tasks)


def _found(config: str) -> Path:
    """The file, or the one of that name that came with qrdali."""
    import qrdali
    from qrdali.cli.terminal import say
    from qrdali.errors import InputError, printable

    file = Path(config)
    if file.exists():
        return file
    shipped = Path(qrdali.__file__).parent / "configs"
    if str(file.parent) in (".", "configs") and (shipped / file.name).is_file():
        say(f"{config} is not here: the one that came with qrdali is used, {shipped / file.name}")
        return shipped / file.name
    names = ", ".join(sorted(path.name for path in shipped.glob("*.toml")))
    raise InputError(f"{printable(config)} does not exist; {names} came with qrdali")


def _refuse_changes(tasks: Tasks) -> None:
    """Raises InputError for a run or pictures that were begun with other settings than the file now says: no silent mixture."""
    from qrdali.errors import InputError, printable

    if tasks.matrix.data.shapes is not None and (changed := tasks.changed_pictures()):
        raise InputError(
            f"the pictures in {printable(tasks.folder.folder)} are others than [data.shapes] now says: "
            f"{'; '.join(changed)}. Say the same, or choose another out"
        )
    for run in tasks.runs.values():
        if changed := _changed(run, tasks.folder.run(run.name)):
            raise InputError(
                f"{printable(tasks.folder.run(run.name))} was begun with other settings than the file now says: "
                f"{'; '.join(changed)[:600]}. Say the same, choose another out, or remove that run"
            )
        if what := tasks.replaced(run):
            raise InputError(
                f"{printable(tasks.folder.run(run.name))} was trained from others than are there now: {what} changed since. "
                "Remove that run, and it is trained anew"
            )
        if changed := _changed_mepis(tasks, run):
            raise InputError(
                f"{printable(tasks.folder.mepi(run.name))} was built with other options than the file now says: "
                f"{'; '.join(changed)[:600]}. Say the same, choose another out, or remove that set"
            )


def _changed(run: PlannedRun, folder: Path) -> list[str]:
    from qrdali import models
    from qrdali.errors import printable
    from qrdali.runs import settings as run_settings
    from qrdali.runs.settings import Settings
    from qrdali.workflows.train import CHANGEABLE_SETTINGS

    if not (folder / "config.toml").exists():
        return []
    settings = run.settings
    # What `qrdali train` fills in, so that like is compared with like.
    now = settings.model_copy(
        update={
            "lr": settings.lr or models.learning_rate(settings.model),
            "input_size": settings.input_size or models.preprocessing(settings.model).input_size,
        }
    ).model_dump()
    before = {
        **{key: field.default for key, field in Settings.model_fields.items()},
        **run_settings.read_toml(folder / "config.toml"),
    }
    ignored = {*CHANGEABLE_SETTINGS, "match_steps", *(("max_epochs",) if settings.match else ())}
    return [
        f"{printable(key)} {printable(before.get(key))} → {printable(now.get(key))}"
        for key in sorted({*before, *now} - ignored)
        if before.get(key) != now.get(key)
    ]


def _changed_mepis(tasks: Tasks, run: PlannedRun) -> list[str]:
    """How a MEPI set that was begun differs from what would be built now."""
    from qrdali.files.json_objects import read_object
    from qrdali.runs import folder as run_folder

    file = tasks.folder.mepi(run.name) / "options.json"
    if run not in tasks.wanted or not file.exists():
        return []
    before, asked = read_object(file), tasks.matrix.mepi
    now: dict[str, Any] = {
        "split": asked.split,
        "step": asked.step,
        "windows": asked.windows,
        "prefer": asked.prefer,
        "limit": asked.limit,
    }
    if tasks.folder.ended(run.name):
        now["weights"] = run_folder.weights_digest(tasks.folder.run(run.name))
    return [f"{key} {before.get(key)} → {value}" for key, value in now.items() if before.get(key) != value]


def _check_inputs(tasks: Tasks) -> None:
    """Raises InputError for a network, data set, split or folder that is not there, RunError for a device: after days it would be
    too late."""
    from qrdali import models
    from qrdali.data.index import Dataset
    from qrdali.errors import InputError, printable
    from qrdali.system.device import resolve_device

    matrix = tasks.matrix
    for device in {run.settings.device for run in tasks.wanted}:
        resolve_device(device)
    for network in matrix.network:
        models.preprocessing(network.model, network.input_size or None)
    if matrix.data.folder:
        dataset = Dataset.open(tasks.data)
        searched = [matrix.mepi.split] if matrix.mepi.runs else []
        for split in dict.fromkeys(["train", "val", *matrix.evaluate.splits, *searched]):
            dataset.index(split)
    for name, folder in matrix.evaluate.sets.items():
        if not Path(folder).is_dir():
            raise InputError(
                f"evaluate.sets.{name} = {printable(folder)!r} is no folder: a set holds class folders of images"
            )
        if matrix.data.folder:
            unknown = sorted(
                {entry.name for entry in Path(folder).iterdir() if entry.is_dir()} - set(dataset.classes)
            )
            if unknown:
                raise InputError(
                    f"evaluate.sets.{name}: {printable(unknown[0])!r} is no class of {printable(tasks.data)}"
                    + (f", and {len(unknown) - 1} more are not" if len(unknown) > 1 else "")
                )


def _execute(tasks: Tasks) -> None:
    from qrdali.cli.signals import sigterm_exits
    from qrdali.cli.terminal import say
    from qrdali.errors import RunError

    with tasks.folder.lock(), sigterm_exits():
        total, before = len(tasks.all), sum(map(tasks.done, tasks.all))
        say(
            f"{total} tasks in {tasks.folder.folder}" + (f", {before} of them done already" if before else "")
        )
        waiting: list[tuple[Task, str]] = []
        for number, task in enumerate(tasks.all, 1):
            if tasks.done(task):
                continue
            if blocked := tasks.blocked(task):
                waiting.append((task, blocked))
                continue
            say(f"[{number}/{total}] {task.key}")
            try:
                _attempt(tasks, task)
            except (SystemExit, KeyboardInterrupt):
                say(f"[{number}/{total}] {task.key} was stopped: the same command goes on with it")
                raise
        _table(tasks)
        failed = [task for task in tasks.all if task.key in tasks.folder.failures and not tasks.done(task)]
        for task in failed:
            say(f"failed: {task.key}: {tasks.folder.failures[task.key].get('reason', '')}")
        for task, blocked in waiting:
            say(f"waiting for {blocked}: {task.key}")
        if failed or waiting:
            behind = f" and {len(waiting)} wait for them" if waiting else ""
            raise RunError(
                f"{len(failed)} of {total} tasks failed{behind}: the same command tries them again"
            )
        page = tasks.folder.report / "report.html"
        if page.exists():
            say(str(page))


def _attempt(tasks: Tasks, task: Task) -> None:
    """Does a task; an error ends the task, not the matrix."""
    import traceback

    from qrdali.cli.terminal import warn
    from qrdali.errors import InputError, RunError, printable
    from qrdali.workflows.tasks import perform

    try:
        tasks.folder.succeeded(task.key, perform(tasks, task))
    except (InputError, RunError, OSError) as error:
        tasks.folder.failed(task.key, str(error))
        warn(f"{task.key} failed: {printable(error)}")
    except Exception as error:  # of a library: a day's other runs shall not die of it
        tasks.folder.failed(task.key, f"{type(error).__name__}: {error}", traceback.format_exc())
        warn(
            f"{task.key} failed: {type(error).__name__}: {printable(error)[:300]} (failures.json says where)"
        )
    finally:
        _release()


def _release() -> None:
    """Gives memory back: the next network needs what this one had, and DALI and torch cannot use each other's."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        from nvidia.dali import backend

        torch.cuda.empty_cache()
        backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


def _table(tasks: Tasks) -> None:
    """Run, accuracies, state and seconds, on stderr."""
    from rich.console import Console
    from rich.table import Table

    from qrdali.errors import RunError, printable
    from qrdali.experiment import estimate as matrix_time
    from qrdali.experiment.tasks import Task
    from qrdali.runs import folder as run_folder

    split = tasks.matrix.evaluate.splits[0]
    table = Table(box=None, pad_edge=False)
    for column in ("run", "val", split if split != "val" else "val again", "state", "seconds"):
        table.add_column(column, justify="left" if column in ("run", "state") else "right", overflow="fold")
    for run in tasks.wanted:
        rows = matrix_time.rows(tasks.folder.run(run.name))
        found = (
            tasks.folder.done[f"evaluate {run.name}"].get("accuracy")
            if tasks.done(Task("evaluate", run.name))
            else None
        )
        accuracy = found.get(split) if isinstance(found, dict) else None
        try:
            val = f"{run_folder.describe_best(tasks.folder.run(run.name)).val_accuracy:.4f}"
        except (RunError, ValueError):
            val = ""
        table.add_row(
            printable(run.name),
            val,
            f"{accuracy:.4f}" if isinstance(accuracy, float) else "",
            tasks.state(Task("train", run.name))[0],
            f"{rows[-1].get('total_seconds', 0):,.0f}" if rows else "",
        )
    Console(stderr=True, markup=False, highlight=False).print(table)


def _list(tasks: Tasks, as_json: bool) -> None:
    """Every task with its state, on stdout."""
    from qrdali.cli.terminal import emit
    from qrdali.experiment.estimate import Estimate, lasting

    estimate = Estimate(tasks)
    entries: list[dict[str, Any]] = []
    for task in tasks.all:
        state, why = tasks.state(task)
        entry: dict[str, Any] = {"kind": task.kind, "name": task.name, "state": state, "why": why}
        if task.kind == "train":
            epochs, seconds = estimate.left(tasks.runs[task.name])
            entry |= {"epochs": epochs, "seconds": seconds}
        elif task.kind in ("evaluate", "mepi"):
            entry["seconds"] = (0.0, 0.0) if state == "done" else estimate.like(task)
        entries.append(entry)
    known = [entry["seconds"] for entry in entries if entry["kind"] == "train"]
    unknown = any(seconds is None for pair in known for seconds in pair)
    total = None if unknown else [sum(pair[0] for pair in known), sum(pair[1] for pair in known)]
    if as_json:
        emit(
            {
                "out": str(tasks.folder.folder),
                "tasks": entries,
                "seconds": total,
                "source": estimate.sources(),
            }
        )
        return
    width = max(len(entry["name"]) for entry in entries)
    for number, entry in enumerate(entries, 1):
        left = ""
        if entry["kind"] == "train" and entry["state"] != "done":
            (low, high), seconds = entry["epochs"], entry["seconds"]
            left = f"{low}–{high} epochs" if low != high else f"{low} epochs"
            left = f"{left:14} {lasting(*seconds)}"
        elif "seconds" in entry and entry["state"] != "done":
            left = f"{'':14} {lasting(*entry['seconds'])}"
        click.echo(
            f"{number:4d}  {entry['kind']:8}  {entry['name']:{width}}  {entry['state']:7}  {left}  {entry['why']}".rstrip()
        )
    states = [entry["state"] for entry in entries]
    click.echo(
        f"# {len(entries)} tasks: "
        + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    )
    click.echo(f"# training left: {lasting(*(total or (None, None)))} on one machine, without validation")
    rest = [entry["seconds"] for entry in entries if "seconds" in entry and entry["kind"] != "train"]
    counted = [pair for pair in rest if pair[0] is not None]
    if rest:
        missing = len(rest) - len(counted)
        unknown_too = f"; {missing} more take an unknown time until one like them is done" if missing else ""
        click.echo(
            f"# evaluation and MEPIs left: {lasting(*(sum(pair[i] for pair in counted) for i in (0, 1)))}{unknown_too}"
        )
    for network, source in estimate.sources().items():
        click.echo(f"# time of {network}: {source}")
