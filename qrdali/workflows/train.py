"""A training run, as `qrdali train`, `demo` and `reproduce` do it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qrdali.data.index import Dataset, Index
    from qrdali.distributed import Ranks
    from qrdali.interfaces import Loader
    from qrdali.models import Preprocessing
    from qrdali.pipelines.graphs import Engine
    from qrdali.runs.settings import Settings
    from qrdali.training.tracked_sets import Tracker

# Settings that may change between a run and its continuation.
HARMLESS = ("threads", "root", "save_every", "track_sets", "track_reduced", "max_bad")


def run_training(settings: Settings, run: Path, resume: bool, ranks: Ranks | None = None) -> None:
    """Trains as `settings` say in the folder `run`. Raises InputError or RunError before anything is written where it can."""
    from qrdali.distributed import ALONE
    from qrdali.system.deterministic import deterministic

    with deterministic(settings.deterministic, settings.device):
        _train(settings, run, resume, ranks or ALONE)


def _train(settings: Settings, run: Path, resume: bool, ranks: Ranks) -> None:
    import torch

    from qrdali.cli.signals import Stop
    from qrdali.cli.terminal import TerminalWatcher, say
    from qrdali.cli.torchrun import engine_of
    from qrdali.errors import Elsewhere, InputError, Interrupted, Lost
    from qrdali.evaluation.predict import at_once
    from qrdali.pipelines.engine import described
    from qrdali.pipelines.loader import open_loader
    from qrdali.runs import folder as runs
    from qrdali.runs import settings as settings_file
    from qrdali.system.energy import forget_memory
    from qrdali.training.trainer import Trainer

    begun = ranks.of_main(runs.holds_run(run))
    resume = resume or ranks.marked(str(run.absolute()))
    prepared = ranks.together(lambda: _prepared(settings, run, resume, begun, ranks))
    _require_equal(prepared, ranks)
    if prepared is None:
        say(f"{run} is finished; nothing to do")
        return
    settings, dataset, train_index, val_index, device, pre, model, facts = prepared
    with runs.alone(run) if ranks.main else nullcontext():
        if ranks.main and runs.holds_run(run) != begun:
            raise InputError(f"{run} was begun by another process meanwhile: continue it with --resume, or choose another --run")
        engine = engine_of(device, settings.threads, ranks)
        own, whole = -(-settings.batch_size // ranks.world), at_once(settings.batch_size, ranks.world)
        loaders = [open_loader(train_index, pre, own, engine), open_loader(val_index, pre, whole, engine)]
        tracker = _tracker(settings, run, dataset, (loaders[1], val_index), pre, engine, ranks)
        if ranks.main:
            settings_file.write(run / "config.toml", settings)
            ranks.mark(str(run.absolute()))
        where = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        say(f"{settings.method} {settings.model} at {pre.input_size} px, {len(train_index)} training and {len(val_index)} validation "
            f"images, {len(dataset.classes)} classes, {where if ranks.alone else f'{ranks.world} ranks, {where}'}, {described(engine)}")
        watcher = TerminalWatcher()
        forget_memory(device)
        with Stop(0 if ranks.alone else 5) as stop:
            trainer = Trainer(settings, run, model, pre, dataset.classes, (loaders[0], train_index), (loaders[1], val_index),
                              device, watcher, stop, tracker, facts, ranks)
            try:
                trainer.fit(resume)
            except Interrupted as interruption:
                say(str(interruption))
                raise SystemExit(128 + interruption.signum) from None
            except (Elsewhere, Lost):
                if signum := stop():  # another rank was faster to leave
                    raise SystemExit(128 + signum) from None
                raise
            finally:
                watcher.end()
        ranks.wait()
    say(f"run folder: {run}")
    if signum := stop():  # it came when all was done: whoever called shall not begin the next thing
        raise SystemExit(128 + signum)


def _prepared(settings: Settings, run: Path, resume: bool, begun: bool, ranks: Ranks) -> tuple[
        Settings, Dataset, Index, Index, torch.device, Preprocessing, torch.nn.Module, dict[str, Any]] | None:
    """All that can be refused before anything is written; None if the run is finished. The network is on the CPU."""
    import torch

    from qrdali import models
    from qrdali.data import provenance as source
    from qrdali.data.index import Dataset
    from qrdali.runs import folder as runs
    from qrdali.schedule.methods import check
    from qrdali.system.deterministic import require
    from qrdali.system.device import device_of

    check(settings)
    _require_place(run, begun, resume, settings)
    dataset = Dataset.open(Path(settings.data), settings.root)
    train_index, val_index = dataset.index("train"), dataset.index("val")
    device = device_of(settings.device)
    _require_shares(settings, len(train_index), device, ranks)
    settings, pre = _resolved(settings, dataset, len(train_index))
    if begun:
        _require_same(run, settings)
        if (run / "last").exists() and runs.ended(run):
            return None
    facts = _facts(settings.model, pre.input_size, len(dataset.classes), device, ranks)
    facts |= {"images": {"train": len(train_index), "val": len(val_index)}}
    known = source.brief(source.read(dataset.folder))
    facts |= {"source": known} if known else {}
    torch.manual_seed(settings.seed)
    model = runs.load_best(Path(settings.init))[0] if settings.init else models.create(
        settings.model, len(dataset.classes), pretrained=settings.pretrained)
    models.require_size(model, settings.model, pre.input_size)
    if settings.deterministic:
        require(model, pre.input_size, len(dataset.classes), settings.amp, device)
    return settings, dataset, train_index, val_index, device, pre, model, facts


def _require_equal(prepared: Any, ranks: Ranks) -> None:
    """Raises RunError if the ranks see other images or settings: they would wait for one another in vain."""
    import hashlib

    if ranks.alone:
        return
    if prepared is None:
        ranks.same("the states of the run", "finished")
        return
    settings, _, train, val = prepared[:4]
    ranks.same("the states of the run", "begun")
    ranks.same("the training images", train.fingerprint)
    ranks.same("the validation images", val.fingerprint)
    ranks.same("the settings", hashlib.sha256(settings.model_dump_json().encode()).hexdigest())


def _require_place(run: Path, begun: bool, resume: bool, settings: Settings) -> None:
    from qrdali.errors import InputError, printable

    if begun and not resume:
        raise InputError(f"{run} already holds a run: continue it with --resume, or choose another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file: choose another --run")
    # Before config.toml a run writes the indexes of tracked sets only, and hidden files; a list of bad images may be brought along.
    if not begun and run.exists() and (other := sorted(
            name for name in os.listdir(run) if not name.startswith(".") and name not in ("tracked", "quarantine.tsv"))):
        raise InputError(f"{run} holds {printable(other[0])!r}, which is no run's: choose another --run")
    every = settings.save_every
    if (every and not every.removesuffix("m").isdecimal()) or every in ("0", "0m"):
        raise InputError(f"--save-every is {every!r}: give a number of steps such as 500, or minutes such as 10m")


def _require_shares(settings: Settings, images: int, device: torch.device, ranks: Ranks) -> None:
    """Whether each of the ranks has something to do in a step."""
    from qrdali.errors import InputError

    if ranks.alone:
        return
    if settings.batch_size < ranks.world:
        raise InputError(f"--batch-size {settings.batch_size} is of all {ranks.world} processes together: give at least one image for each")
    if not settings.sync_batch_norm:
        return
    if device.type == "cpu":
        raise InputError("--sync-batch-norm is for GPUs: torch has none for CPUs")
    if settings.accumulate > 1:
        raise InputError("--sync-batch-norm and --accumulate do not go together: ranks may make different numbers of forward passes")
    if 0 < (left := images % settings.batch_size) < ranks.world:
        raise InputError(f"--batch-size {settings.batch_size} leaves {left} of {images} images for the last step of {ranks.world} "
                         "processes: with --sync-batch-norm each needs one, choose another")


def _resolved(settings: Settings, dataset: Dataset, images: int) -> tuple[Settings, Preprocessing]:
    """Settings with all that --init, --match and the network decide; paths absolute."""
    from qrdali import models
    from qrdali.data import storage
    from qrdali.errors import InputError
    from qrdali.runs import folder as runs
    from qrdali.schedule.methods import check

    if settings.init:
        start = runs.describe_best(Path(settings.init))
        dataset.require_classes(start.classes, f"the run {settings.init}")
        if "model" in settings.model_fields_set and settings.model != start.model:
            raise InputError(f"--model is {settings.model}, but {settings.init} trained {start.model}: leave --model out")
        name, pre = start.model, start.preprocessing
        fit = settings.fit if "fit" in settings.model_fields_set else pre.fit
        pre = models.preprocessing(name, settings.input_size or pre.input_size, fit)
    else:
        name = settings.model
        pre = models.preprocessing(name, settings.input_size or None, settings.fit)
    settings = settings.model_copy(update={
        "model": name, "lr": settings.lr or models.learning_rate(name), "input_size": pre.input_size, "fit": pre.fit,
        "track_sets": {name: storage.absolute(folder) for name, folder in settings.track_sets.items()},
        "data": str(Path(settings.data).absolute()), "init": str(Path(settings.init).absolute()) if settings.init else ""})
    if settings.match and not settings.match_steps:
        taken = runs.optimizer_steps(Path(settings.match))
        settings = settings.model_copy(update={"match": str(Path(settings.match).absolute()), "match_steps": taken,
                                               "max_epochs": -(-taken // -(-images // settings.batch_size))})
        check(settings)
    return settings, pre


def _require_same(run: Path, settings: Settings) -> None:
    """Raises InputError showing what differs from the settings the run was begun with, as far as it matters."""
    from qrdali.errors import InputError
    from qrdali.runs import settings as settings_file

    before = settings_file.defaults() | settings_file.read(run / "config.toml")  # a run may be older than a setting
    now = settings.model_dump()
    changed = [f"{key} {before.get(key)!r} → {now.get(key)!r}" for key in sorted({*before, *now} - {*HARMLESS})
               if before.get(key) != now.get(key)]
    if changed:
        raise InputError(f"{run} was begun with other settings: {'; '.join(changed)}. Give the same, or another --run")


def _tracker(settings: Settings, run: Path, dataset: Dataset, val: tuple[Loader, Index], pre: Preprocessing, engine: Engine,
             ranks: Ranks) -> Tracker:
    from qrdali.cli.terminal import warn
    from qrdali.evaluation.predict import at_once
    from qrdali.pipelines.loader import open_loader
    from qrdali.reduction.levels import reduced_sets
    from qrdali.reduction.quality import steps
    from qrdali.training.tracked_sets import Tracked, Tracker, index_sets, indexed_sets

    size, n = at_once(settings.batch_size, ranks.world), steps(settings.step)
    sets = index_sets(run, settings.track_sets, dataset.classes, warn) if ranks.main else {}
    ranks.wait()
    if not ranks.main:
        sets = indexed_sets(run, settings.track_sets, len(dataset.classes))
    tracked = [Tracked(name, open_loader(index, pre, size, engine), len(index)) for name, index in sets.items()]
    if settings.track_reduced:
        tracked += [Tracked(name, val[0], len(val[1]), levels)
                    for name, levels in reduced_sets("val", settings.track_reduced, n).values()]
    return Tracker(tracked, size, n)


def _facts(name: str, input_size: int, classes: int, device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """What a report wants to know of a run years later."""
    from qrdali.models import describe
    from qrdali.system.environment import environment

    network: dict[str, Any] = {"model": name, "input_size": input_size, "parameters": None, "gmacs": None}
    try:
        counted = describe(name, classes, input_size)
        network |= {"parameters": counted.parameters, "gmacs": counted.gmacs}
    except Exception:  # some networks cannot be built on the meta device, in many ways: that is no reason not to train them
        pass
    several = {} if ranks.alone else {"ranks": ranks.world}
    return {"environment": environment(device) | several, "network": network, "classes": classes}
