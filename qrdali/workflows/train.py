"""A training run, as `qrdali train`, `demo` and `reproduce` do it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qrdali.data.index import Dataset, Index
    from qrdali.distributed import ProcessGroup
    from qrdali.interfaces import BatchSource
    from qrdali.models import Preprocessing
    from qrdali.pipelines.engine import Engine
    from qrdali.runs.settings import Settings
    from qrdali.training.tracked_sets import TrackedSets

# Settings that may change between a run and its continuation.
CHANGEABLE_SETTINGS = ("threads", "root", "save_every", "track_sets", "track_reduced", "max_bad")


def run_training(settings: Settings, run: Path, resume: bool, group: ProcessGroup | None = None) -> None:
    """Trains as `settings` say in the folder `run`. Raises InputError or RunError before anything is written where it can."""
    from qrdali.distributed import SINGLE_PROCESS
    from qrdali.system.deterministic import deterministic

    with deterministic(settings.deterministic, settings.device):
        _train(settings, run, resume, group or SINGLE_PROCESS)


def _train(settings: Settings, run: Path, resume: bool, group: ProcessGroup) -> None:
    import torch

    from qrdali.cli.signals import StopSignal
    from qrdali.cli.terminal import TerminalListener, say, warn
    from qrdali.errors import InputError, Interrupted, OtherRankFailed, RanksLost
    from qrdali.evaluation.predict import inference_batch_size
    from qrdali.pipelines.engine import describe_decoding, engine_of
    from qrdali.pipelines.loader import open_loader
    from qrdali.runs import folder as run_folder
    from qrdali.runs import settings as run_settings
    from qrdali.system.energy import reset_peak_memory
    from qrdali.training.trainer import Trainer

    begun = group.broadcast_object(run_folder.holds_run(run))
    resume = resume or group.was_started(str(run.absolute()))
    prepared = group.run_on_all(lambda: _prepared(settings, run, resume, begun, group))
    _require_equal(prepared, group)
    if prepared is None:
        say(f"{run} is finished; nothing to do")
        return
    settings, dataset, train_index, val_index, device, pre, model, facts = prepared
    with run_folder.lock_run_folder(run) if group.is_main else nullcontext():
        if group.is_main and run_folder.holds_run(run) != begun:
            raise InputError(
                f"{run} was begun by another process meanwhile: continue it with --resume, or choose another --run"
            )
        engine = engine_of(device, settings.threads, group, warn)
        own, whole = (
            -(-settings.batch_size // group.world_size),
            inference_batch_size(settings.batch_size, group.world_size),
        )
        loaders = [open_loader(train_index, pre, own, engine), open_loader(val_index, pre, whole, engine)]
        tracker = _tracker(settings, run, dataset, (loaders[1], val_index), pre, engine, group)
        if group.is_main:
            run_settings.write_settings(run / "config.toml", settings)
            group.record_started(str(run.absolute()))
        where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        say(
            f"{settings.method} {settings.model} at {pre.input_size} px, {len(train_index)} training and {len(val_index)} validation "
            f"images, {len(dataset.classes)} classes, {where if group.is_single else f'{group.world_size} ranks, {where}'}, {describe_decoding(engine)}"
        )
        listener = TerminalListener()
        reset_peak_memory(device)
        with StopSignal(0 if group.is_single else 5) as stop:
            trainer = Trainer(
                settings,
                run,
                model,
                pre,
                dataset.classes,
                (loaders[0], train_index),
                (loaders[1], val_index),
                device,
                listener,
                stop,
                tracker,
                facts,
                group,
            )
            try:
                trainer.fit(resume)
            except Interrupted as interruption:
                say(str(interruption))
                raise SystemExit(128 + interruption.signum) from None
            except (OtherRankFailed, RanksLost):
                if signum := stop():  # another rank was faster to leave
                    raise SystemExit(128 + signum) from None
                raise
            finally:
                listener.end()
        group.barrier()
    say(f"run folder: {run}")
    if signum := stop():  # it came when all was done: whoever called shall not begin the next thing
        raise SystemExit(128 + signum)


def _prepared(
    settings: Settings, run: Path, resume: bool, begun: bool, group: ProcessGroup
) -> (
    tuple[Settings, Dataset, Index, Index, torch.device, Preprocessing, torch.nn.Module, dict[str, Any]]
    | None
):
    """All that can be refused before anything is written; None if the run is finished. The network is on the CPU."""
    import torch

    from qrdali import models
    from qrdali.data import provenance as source
    from qrdali.data.index import Dataset
    from qrdali.runs import folder as run_folder
    from qrdali.schedule.methods import check_settings
    from qrdali.system.deterministic import require_deterministic_model
    from qrdali.system.device import resolve_device

    check_settings(settings)
    _require_place(run, begun, resume, settings)
    dataset = Dataset.open(Path(settings.data), settings.root)
    train_index, val_index = dataset.index("train"), dataset.index("val")
    device = resolve_device(settings.device)
    _require_shares(settings, len(train_index), device, group)
    settings, pre = _resolved(settings, dataset, len(train_index))
    if begun:
        _require_same(run, settings)
        if (run / "last").exists() and run_folder.has_ended(run):
            return None
    facts = _facts(settings.model, pre.input_size, len(dataset.classes), device, group)
    facts |= {"images": {"train": len(train_index), "val": len(val_index)}}
    known = source.brief(source.read(dataset.folder))
    facts |= {"source": known} if known else {}
    torch.manual_seed(settings.seed)
    model = (
        run_folder.load_best(Path(settings.init))[0]
        if settings.init
        else models.create(settings.model, len(dataset.classes), pretrained=settings.pretrained)
    )
    models.require_size(model, settings.model, pre.input_size)
    if settings.deterministic:
        require_deterministic_model(model, pre.input_size, len(dataset.classes), settings.amp, device)
    return settings, dataset, train_index, val_index, device, pre, model, facts


def _require_equal(prepared: Any, group: ProcessGroup) -> None:
    """Raises RunError if the ranks see other images or settings: they would wait for one another in vain."""
    import hashlib

    if group.is_single:
        return
    if prepared is None:
        group.require_equal("the states of the run", "finished")
        return
    settings, _, train, val = prepared[:4]
    group.require_equal("the states of the run", "begun")
    group.require_equal("the training images", train.fingerprint)
    group.require_equal("the validation images", val.fingerprint)
    group.require_equal("the settings", hashlib.sha256(settings.model_dump_json().encode()).hexdigest())


def _require_place(run: Path, begun: bool, resume: bool, settings: Settings) -> None:
    from qrdali.errors import InputError, printable

    if begun and not resume:
        raise InputError(f"{run} already holds a run: continue it with --resume, or choose another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file: choose another --run")
    # Before config.toml a run writes the indexes of tracked sets only, and hidden files; a list of bad images may be brought along.
    if (
        not begun
        and run.exists()
        and (
            other := sorted(
                name
                for name in os.listdir(run)
                if not name.startswith(".") and name not in ("tracked", "quarantine.tsv")
            )
        )
    ):
        raise InputError(f"{run} holds {printable(other[0])!r}, which is no run's: choose another --run")
    every = settings.save_every
    if (every and not every.removesuffix("m").isdecimal()) or every in ("0", "0m"):
        raise InputError(
            f"--save-every is {every!r}: give a number of steps such as 500, or minutes such as 10m"
        )


def _require_shares(settings: Settings, images: int, device: torch.device, group: ProcessGroup) -> None:
    """Whether each of the ranks has something to do in a step."""
    from qrdali.errors import InputError

    if group.is_single:
        return
    if settings.batch_size < group.world_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is of all {group.world_size} processes together: give at least one image for each"
        )
    if not settings.sync_batch_norm:
        return
    if device.type == "cpu":
        raise InputError("--sync-batch-norm is for GPUs: torch has none for CPUs")
    if settings.accumulate > 1:
        raise InputError(
            "--sync-batch-norm and --accumulate do not go together: ranks may make different numbers of forward passes"
        )
    if 0 < (left := images % settings.batch_size) < group.world_size:
        raise InputError(
            f"--batch-size {settings.batch_size} leaves {left} of {images} images for the last step of {group.world_size} "
            "processes: with --sync-batch-norm each needs one, choose another"
        )


def _resolved(settings: Settings, dataset: Dataset, images: int) -> tuple[Settings, Preprocessing]:
    """Settings with all that --init, --match and the network decide; paths absolute."""
    from qrdali import models
    from qrdali.data import storage
    from qrdali.errors import InputError
    from qrdali.runs import folder as run_folder
    from qrdali.schedule.methods import check_settings

    if settings.init:
        start = run_folder.describe_best(Path(settings.init))
        dataset.require_classes(start.classes, f"the run {settings.init}")
        if "model" in settings.model_fields_set and settings.model != start.model:
            raise InputError(
                f"--model is {settings.model}, but {settings.init} trained {start.model}: leave --model out"
            )
        name, pre = start.model, start.preprocessing
        fit = settings.fit if "fit" in settings.model_fields_set else pre.fit
        pre = models.preprocessing(name, settings.input_size or pre.input_size, fit)
    else:
        name = settings.model
        pre = models.preprocessing(name, settings.input_size or None, settings.fit)
    settings = settings.model_copy(
        update={
            "model": name,
            "lr": settings.lr or models.learning_rate(name),
            "input_size": pre.input_size,
            "fit": pre.fit,
            "track_sets": {name: storage.absolute(folder) for name, folder in settings.track_sets.items()},
            "data": str(Path(settings.data).absolute()),
            "init": str(Path(settings.init).absolute()) if settings.init else "",
        }
    )
    if settings.match and not settings.match_steps:
        taken = run_folder.optimizer_steps(Path(settings.match))
        settings = settings.model_copy(
            update={
                "match": str(Path(settings.match).absolute()),
                "match_steps": taken,
                "max_epochs": -(-taken // -(-images // settings.batch_size)),
            }
        )
        check_settings(settings)
    return settings, pre


def _require_same(run: Path, settings: Settings) -> None:
    """Raises InputError showing what differs from the settings the run was begun with, as far as it matters."""
    from qrdali.errors import InputError
    from qrdali.runs import settings as run_settings

    before = run_settings.default_settings() | run_settings.read_toml(
        run / "config.toml"
    )  # a run may be older than a setting
    now = settings.model_dump()
    changed = [
        f"{key} {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted({*before, *now} - {*CHANGEABLE_SETTINGS})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(
            f"{run} was begun with other settings: {'; '.join(changed)}. Give the same, or another --run"
        )


def _tracker(
    settings: Settings,
    run: Path,
    dataset: Dataset,
    val: tuple[BatchSource, Index],
    pre: Preprocessing,
    engine: Engine,
    group: ProcessGroup,
) -> TrackedSets:
    from qrdali.cli.terminal import warn
    from qrdali.evaluation.predict import inference_batch_size
    from qrdali.pipelines.loader import open_loader
    from qrdali.reduction.levels import reduced_split_levels
    from qrdali.reduction.quality import num_levels_of
    from qrdali.training.tracked_sets import TrackedSet, TrackedSets, index_sets, indexed_sets

    size, num_levels = (
        inference_batch_size(settings.batch_size, group.world_size),
        num_levels_of(settings.step),
    )
    sets = index_sets(run, settings.track_sets, dataset.classes, warn) if group.is_main else {}
    group.barrier()
    if not group.is_main:
        sets = indexed_sets(run, settings.track_sets, len(dataset.classes))
    tracked = [
        TrackedSet(name, open_loader(index, pre, size, engine), len(index)) for name, index in sets.items()
    ]
    if settings.track_reduced:
        tracked += [
            TrackedSet(name, val[0], len(val[1]), levels)
            for name, levels in reduced_split_levels("val", settings.track_reduced, num_levels).values()
        ]
    return TrackedSets(tracked, size, num_levels)


def _facts(
    name: str, input_size: int, classes: int, device: torch.device, group: ProcessGroup
) -> dict[str, Any]:
    """What a report wants to know of a run years later."""
    from qrdali.models import describe
    from qrdali.system.environment import environment

    network: dict[str, Any] = {"model": name, "input_size": input_size, "parameters": None, "gmacs": None}
    try:
        counted = describe(name, classes, input_size)
        network |= {"parameters": counted.parameters, "gmacs": counted.gmacs}
    except (
        Exception
    ):  # some networks cannot be built on the meta device, in many ways: that is no reason not to train them
        pass
    several = {} if group.is_single else {"ranks": group.world_size}
    return {"environment": environment(device) | several, "network": network, "classes": classes}
