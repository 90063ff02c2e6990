"""Refuses a matrix that would mix old results with new settings, or that would fail after days for want of an
input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qrdali import models
from qrdali.data.index import Dataset
from qrdali.data.tree import folder_entries
from qrdali.errors import InputError, RunError, printable
from qrdali.experiment.adopted import changed_request, require_files
from qrdali.experiment.expand import PlannedRun
from qrdali.experiment.tasks import Tasks
from qrdali.files.changes import describe_changes
from qrdali.files.json_objects import read_object
from qrdali.runs import automatic
from qrdali.runs import folder as run_folder
from qrdali.runs import settings as run_settings
from qrdali.runs.moved import moved_paths
from qrdali.system.device import resolve_device
from qrdali.workflows.continued_run import CHANGEABLE_SETTINGS

_MOST_SHOWN = 600  # characters of what has changed


def refuse_changes(tasks: Tasks) -> None:
    """Raises InputError for runs, MEPI sets or pictures that were begun with other settings than the file now
    has.
    """
    if tasks.matrix.data.shapes is not None and (changes := tasks.changed_pictures()):
        raise InputError(
            f"the pictures in {printable(tasks.folder.folder)} are others than [data.shapes] now says: "
            f"{'; '.join(changes)}. Say the same, or choose another out"
        )
    for run in tasks.runs.values():
        folder = printable(tasks.folder.run(run.name))
        changes = _changed_settings(tasks, run) if run.adopt is None else _changed_adoption(tasks, run)
        if changes:
            raise InputError(
                f"{folder} was begun with other settings than the file now says: "
                f"{'; '.join(changes)[:_MOST_SHOWN]}. Say the same, choose another out, or remove that run"
            )
        if replaced := tasks.replaced(run):
            raise InputError(
                f"{folder} was trained from others than are there now: {replaced} changed since. "
                "Remove that run, and it is trained anew"
            )
        if changes := _changed_mepi_options(tasks, run):
            raise InputError(
                f"{printable(tasks.folder.mepi(run.name))} was built with other options than the file now "
                "says: "
                f"{'; '.join(changes)[:_MOST_SHOWN]}. Say the same, choose another out, or remove that set"
            )


def compared_settings(tasks: Tasks) -> dict[str, Any]:
    """Returns what all workers of a matrix must agree on while they work, as plain data.

    Folders are left out, which hosts may have in other places; the images count in place of theirs.
    """
    values = tasks.matrix.model_dump(mode="json", exclude={"out": True, "data": {"folder"}})
    values["train"] = {key: value for key, value in values["train"].items() if key not in ("threads", "root")}
    if tasks.matrix.data.folder:
        used = dict.fromkeys(["train", "val", *tasks.matrix.evaluate.splits])
        values["images"] = {split: tasks.fingerprint(split) for split in used}
    return values


def _changed_adoption(tasks: Tasks, run: PlannedRun) -> list[str]:
    """Returns how an adopted run differs from what would be adopted now."""
    assert run.adopt is not None
    return changed_request(run.adopt, tasks.folder.run(run.name))


def _changed_settings(tasks: Tasks, run: PlannedRun) -> list[str]:
    """Returns how a run that was begun differs from what would be trained now."""
    folder = tasks.folder.run(run.name)
    if not (folder / "config.toml").exists():
        return []
    if run_folder.is_adopted(folder):
        return [f"method {run_folder.ADOPTED} → {run.settings.method}"]
    settings, recorded = run.settings, automatic.recorded(folder)
    inherited = recorded.get("model_options") if settings.init else {}
    inherited = inherited if isinstance(inherited, dict) else {}
    # What `qrdali train` fills in, so that like is compared with like.
    now = settings.model_copy(
        update={
            "lr": settings.lr or models.learning_rate(settings.model),
            "input_size": settings.input_size or _own_input_size(tasks, run),
            "model_options": {**inherited, **settings.model_options},
        }
    ).model_dump()
    before = {
        **run_settings.default_settings(),
        **recorded,
    }
    # What is left to the machine is taken as it was, and a run may go on on another device.
    now |= automatic.continued(now, before)
    known = {key for key, left in automatic.LEFT.items() if before[key] != left}
    open_keys = {*automatic.LEFT} - ({*known} if not automatic.moves(now["device"], before) else set())
    matched = ("max_epochs",) if settings.match else ()  # follows from the steps of the other run
    at_begin = ("definitions", "epochs_before", "automatic")  # what a run gets when it begins
    moved: set[str] = set()
    if any(before.get(key) != now[key] for key in ("data", "init", "match")):
        moved = moved_paths(folder, settings, before, tasks.fingerprints("train", "val"))
    return describe_changes(
        before, now, {*CHANGEABLE_SETTINGS, *open_keys, "match_steps", *at_begin, *matched, *moved}
    )


def _own_input_size(tasks: Tasks, run: PlannedRun) -> int:
    """Returns the input size of a run that names none: that of the network it starts with."""
    start = tasks.folder.run(run.needs[0]) if run.needs else Path(run.settings.init)
    if (run.needs or run.settings.init) and run_folder.is_adopted(start):
        return run_folder.describe_best(start).preprocessing.input_size
    return models.preprocessing(run.settings.model).input_size


def _changed_mepi_options(tasks: Tasks, run: PlannedRun) -> list[str]:
    """Returns how a MEPI set that was begun differs from what would be built now."""
    file = tasks.folder.mepi(run.name) / "options.json"
    if run not in tasks.wanted or not file.exists():
        return []
    before, wanted = read_object(file), tasks.matrix.mepi
    now: dict[str, Any] = {
        "split": wanted.split,
        "step": wanted.step,
        "windows": wanted.windows,
        "prefer": wanted.prefer,
        "limit": wanted.limit,
    }
    if tasks.folder.ended(run.name):
        now["weights"] = run_folder.weights_digest(tasks.folder.run(run.name))
    return describe_changes({key: before.get(key) for key in now}, now)


def check_inputs(tasks: Tasks) -> None:
    """Raises InputError for a network, data set, split or folder that is not there, RunError for a device
    that is not.
    """
    matrix = tasks.matrix
    for device in {run.settings.device for run in tasks.wanted}:
        resolve_device(device)
    for network in matrix.network:
        models.preprocessing(network.model, network.input_size or None)
    for run in tasks.wanted:
        if run.adopt is not None:
            require_files(run.adopt, tasks.folder.run(run.name))
        elif run.settings.init and not run.needs:
            _require_start(run, tasks.folder.run(run.name))
    dataset = Dataset.open(tasks.data) if matrix.data.folder else None  # otherwise it is not generated yet
    if dataset is not None:
        searched = [matrix.mepi.split] if matrix.mepi.runs else []
        for split in dict.fromkeys(["train", "val", *matrix.evaluate.splits, *searched]):
            dataset.index(split)
    for name, folder in matrix.evaluate.suites.items():
        if not Path(folder).is_dir():
            raise InputError(
                f"evaluate.suites.{name} = {printable(folder)!r} is not a folder: give that of the suite"
            )
    for name, folder in matrix.evaluate.sets.items():
        if not Path(folder).is_dir():
            raise InputError(
                f"evaluate.sets.{name} = {printable(folder)!r} is not a folder: "
                "a set holds class folders of images"
            )
        if dataset is not None:
            _require_known_classes(name, Path(folder), dataset)


def _require_start(run: PlannedRun, folder: Path) -> None:
    """Raises InputError if the run that a shared run starts from is not there, or has another network."""
    start, model = run.settings.init, run.settings.model
    if run_folder.has_checkpoint(folder):
        return
    try:
        own = run_folder.describe_best(Path(start)).model
    except (InputError, RunError) as error:
        raise InputError(
            f"shared.init of {printable(run.network)}: {error}. Make that run first, or leave init out"
        ) from None
    if own != model:
        raise InputError(
            f"shared.init of {printable(run.network)}: {printable(start)} is a run of {printable(own)}, "
            f"and model is {printable(model)}: give the same"
        )


def _require_known_classes(name: str, folder: Path, dataset: Dataset) -> None:
    unknown = sorted(set(folder_entries(folder).folders) - set(dataset.classes))
    if unknown:
        more = f", and {len(unknown) - 1} more are not" if len(unknown) > 1 else ""
        raise InputError(
            f"evaluate.sets.{name}: {printable(unknown[0])!r} is no class of "
            f"{printable(dataset.folder)}{more}"
        )
