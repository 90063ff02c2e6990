"""A training run, as `qrdali train`, `demo` and `reproduce` do it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qrdali import models
from qrdali.data import provenance
from qrdali.data.index import Dataset, Index
from qrdali.distributed import ProcessGroup
from qrdali.errors import InputError, Interrupted, OtherRankFailed, RanksLost
from qrdali.evaluation.predict import inference_batch_size
from qrdali.interfaces import NO_CONTROL, JobControl, RunContext
from qrdali.loggers.choice import require_loggers
from qrdali.pipelines.engine import Engine, describe_decoding, engine_of
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import reduced_split_levels
from qrdali.runs import automatic, configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.moved import moved_paths
from qrdali.runs.settings import MAX_THREADS, Settings, write_settings
from qrdali.runs.unfinished import unfinished_note
from qrdali.schedule.methods import check_settings, require_live_levels, stage_levels, tracked_reductions
from qrdali.system.deterministic import deterministic, require_deterministic_model
from qrdali.system.device import resolve_device
from qrdali.system.energy import reset_peak_memory
from qrdali.system.environment import environment
from qrdali.training.learning_rate import note_on_rate
from qrdali.training.network_parts import prepare_network
from qrdali.training.run_spec import RunSpec, Split, Splits
from qrdali.training.save_interval import SaveInterval
from qrdali.training.tracked_sets import TrackedSet, TrackedSets, index_sets, indexed_sets
from qrdali.training.trainer import Trainer
from qrdali.workflows.context import open_context
from qrdali.workflows.continued_run import (
    begun_with,
    describe_device,
    require_its_device,
    require_same_settings,
)
from qrdali.workflows.train_settings import (
    complete_settings,
    load_start,
    require_augmentation,
    require_no_single_image,
    require_run_folder,
    require_shares,
    settings_for,
    start_of,
)


@dataclass(frozen=True)
class PreparedRun:
    """Holds all of a run that can be refused before anything is written. The network of `spec` is on the
    CPU. warning: of the device on which a run continues, or ""; note: what is said of its start weights, or
    ""."""

    spec: RunSpec
    train: Index
    val: Index
    warning: str = ""
    note: str = ""


def run_training(settings: Settings, run: Path, resume: bool, control: JobControl = NO_CONTROL) -> None:
    """Trains as `settings` say in the folder `run`. Collective: every process of `control.group` calls it.

    resume: continues the run that is there, or begins it. Raises InputError or RunError, before anything is
    written where that is possible, and Interrupted after `control.stop` has returned a signal: everything is
    saved then, and the same call with `resume` continues. A signal that comes when the run has ended raises
    Interrupted too."""
    with deterministic(settings.deterministic, settings.device):
        try:
            _train(settings, run, resume, control)
        except (OtherRankFailed, RanksLost):
            # Of several processes one may be faster to leave than this one.
            if signum := control.stop():
                raise Interrupted("stopped with the other processes", signum) from None
            raise
    if signum := control.stop():
        # Whoever called shall not begin the next thing.
        raise Interrupted("the run had ended when the signal came", signum)


def _train(settings: Settings, run: Path, resume: bool, control: JobControl) -> None:
    group, listener = control.group, control.listener
    begun = group.broadcast_object(run_folder.holds_run(run))
    restarted = group.was_started(str(run.absolute()))
    resume = resume or restarted
    prepared = group.run_on_all(lambda: _prepare(settings, run, resume, begun, group))
    _require_equal(prepared, group)
    if prepared is None:
        listener.line(f"{run} is finished; nothing to do")
        return
    with run_folder.lock_run_folder(run, listener.warn) if group.is_main else nullcontext():
        if group.is_main and run_folder.holds_run(run) != begun:
            raise InputError(
                f"{run} was begun by another process meanwhile: continue it with --resume, or choose "
                "another --run"
            )
        settings = prepared.spec.settings
        context = open_context(settings.device, settings.amp, control)
        engine = engine_of(context.device, settings.threads, group)
        splits = _open_splits(prepared, engine, context)
        if prepared.warning:
            listener.warn(prepared.warning)
        if group.is_main:
            threads = min(engine.num_dali_threads, MAX_THREADS)
            write_settings(run / "config.toml", settings.model_copy(update={"threads": threads}))
            group.record_started(str(run.absolute()))
        listener.line(_describe(prepared, engine, context))
        start = prepared.spec.settings.init
        notes = (
            unfinished_note(Path(start)) if start else "",
            prepared.note,
            _dead_levels(prepared.spec),
            note_on_rate(prepared.spec.settings),
        )
        for note in filter(None, notes):
            listener.line(note)
        reset_peak_memory(context.device)
        trainer = Trainer(prepared.spec, splits, context)
        try:
            trainer.train(resume)
        finally:
            listener.end()
            trainer.log.close()
        group.barrier()  # the lock is given back when no rank writes any more
    listener.line(f"run folder: {run}")


def _prepare(
    settings: Settings, run: Path, resume: bool, begun: bool, group: ProcessGroup
) -> PreparedRun | None:
    """Returns all that can be refused before anything is written, or None if the run is finished."""
    check_settings(settings)
    require_run_folder(run, begun, resume)
    SaveInterval.parse(settings.save_every)
    before = automatic.recorded(run) if begun else {}
    if begun:
        settings = settings.model_copy(update=automatic.continued(settings.model_dump(), before))
    else:  # a run that has begun goes on without: metrics.jsonl has it all
        require_loggers(settings.log, run)
    dataset = Dataset.open(Path(settings.data), settings.root)
    train, val = dataset.index("train"), dataset.index("val")
    start = start_of(settings, run)
    settings, pre = complete_settings(settings, dataset, len(train), start)
    settings = settings.model_copy(update=begun_with(settings, run, before))
    require_live_levels(settings, train.size_chunks)
    if begun:
        images = {"train": train.fingerprints, "val": val.fingerprints}
        require_same_settings(run, settings, before, moved_paths(run, settings, before, images))
        if (run / "last").exists() and run_folder.has_ended(run):
            return None
        require_its_device(run, settings, before)
    device = resolve_device(settings.device)
    require_augmentation(settings, device)
    require_shares(settings, len(train), device, group)
    settings = settings_for(settings, device)
    facts = _facts(settings, len(dataset.classes), device, group)
    facts |= {"images": {"train": len(train), "val": len(val)}}
    facts |= {"fingerprints": {"train": train.fingerprints, "val": val.fingerprints}}
    if settings.init or settings.match:
        facts |= {"chain": configuration.chain_of(settings).model_dump(exclude_defaults=True)}
    source = provenance.brief(provenance.read(dataset.folder))
    facts |= {"source": source} if source else {}
    torch.manual_seed(settings.seed)  # start weights are drawn
    note = ""
    if start is not None:
        model, note = load_start(start, dataset, settings.model_options)
    else:
        model = models.create(
            settings.model,
            len(dataset.classes),
            pretrained=settings.pretrained,
            options=settings.model_options,
        )
    models.require_size(model, settings.model, pre.input_size)
    models.require_logits(settings.model, len(dataset.classes), pre.input_size, model, settings.model_options)
    prepare_network(model, settings)
    require_no_single_image(settings, len(train), model, group)
    if settings.deterministic:
        require_deterministic_model(model, pre.input_size, len(dataset.classes), settings.amp, device)
    levels = stage_levels(settings, train.size_chunks)
    spec = RunSpec(settings, run, model, pre, dataset.classes, facts, levels, dataset.readable)
    return PreparedRun(spec, train, val, describe_device(settings, before), note)


def _require_equal(prepared: PreparedRun | None, group: ProcessGroup) -> None:
    """Raises RunError if the ranks see other images or settings: they would wait for one another in vain.
    Collective."""
    if group.is_single:
        return
    group.require_equal("the states of the run", "finished" if prepared is None else "begun")
    if prepared is None:
        return
    settings = prepared.spec.settings
    # Hosts may have different numbers of cores.
    compared = settings.model_dump_json(exclude={"threads", "automatic"})
    group.require_equal("the training images", prepared.train.fingerprint)
    group.require_equal("the validation images", prepared.val.fingerprint)
    group.require_equal("the devices and their amp", f"{settings.device} {settings.amp}")
    group.require_equal("the settings", hashlib.sha256(compared.encode()).hexdigest())


def _open_splits(prepared: PreparedRun, engine: Engine, context: RunContext) -> Splits:
    """Opens the loaders, and indexes tracked sets that are not indexed yet. Collective."""
    settings, pre, world_size = prepared.spec.settings, prepared.spec.preprocessing, context.group.world_size
    share = -(-settings.batch_size // world_size)
    batch_size = inference_batch_size(settings.batch_size, world_size)
    train = Split(open_loader(prepared.train, pre, share, engine), prepared.train)
    val = Split(open_loader(prepared.val, pre, batch_size, engine), prepared.val)
    indexes = _index_tracked_sets(prepared.spec, context)
    tracked = [
        TrackedSet(name, open_loader(index, pre, batch_size, engine), len(index))
        for name, index in indexes.items()
    ]
    if settings.track_reduced:
        splits = reduced_split_levels(
            "val", settings.track_reduced, settings.scale, tracked_reductions(settings)
        )
        tracked += [TrackedSet(name, val.source, len(val.index), levels) for name, levels in splits.values()]
    return Splits(train, val, TrackedSets(tracked, batch_size, settings.scale))


def _index_tracked_sets(spec: RunSpec, context: RunContext) -> dict[str, Index]:
    """Returns the indexes of the tracked folders by name; rank 0 writes what is missing. Collective."""
    group, sets = context.group, spec.settings.track_sets
    indexes = index_sets(spec.run, sets, spec.classes, context.listener.warn) if group.is_main else {}
    group.barrier()  # the others read what rank 0 has written
    return indexes if group.is_main else indexed_sets(spec.run, sets, len(spec.classes))


def _describe(prepared: PreparedRun, engine: Engine, context: RunContext) -> str:
    """Returns a line that says what is trained on what."""
    spec, group = prepared.spec, context.group
    device = "CPU" if context.device.type == "cpu" else torch.cuda.get_device_name(context.device)
    precision = "" if spec.settings.amp == "off" else f" in {spec.settings.amp}"
    return (
        f"{spec.settings.method} {spec.settings.model} at {spec.preprocessing.input_size} px, "
        f"{len(prepared.train)} "
        f"training and {len(prepared.val)} validation images, {len(spec.classes)} classes, "
        f"{device if group.is_single else f'{group.world_size} ranks, {device}'}{precision}, "
        f"{describe_decoding(engine)}"
    )


def _dead_levels(spec: RunSpec) -> str:
    """Returns a line on the levels of linear's grid that have no stage, or ""."""
    settings, live = spec.settings, spec.stage_levels or ()
    dead = sorted(set(range(1, settings.scale.count)) - set(live))
    if settings.method != "linear" or not dead:
        return ""
    qualities = ", ".join(map(settings.scale.describe, dead))
    return f"no stage for quality {qualities}: it changes no training image against the stage before"


def _facts(settings: Settings, classes: int, device: torch.device, group: ProcessGroup) -> dict[str, Any]:
    """Returns what a report needs to know of a run years later."""
    network: dict[str, Any] = {
        "model": settings.model,
        "input_size": settings.input_size,
        "parameters": None,
        "gmacs": None,
    }
    try:
        counted = models.describe(settings.model, classes, settings.input_size, settings.model_options)
        network |= {"parameters": counted.parameters, "gmacs": counted.gmacs}
    except Exception:
        # Some networks cannot be built on the meta device, in many ways: that is no reason not to train them.
        pass
    several = {} if group.is_single else {"ranks": group.world_size}
    return {"environment": environment(device) | several, "network": network, "classes": classes}
