"""The settings of a training run: completed by what --init, --match and the network decide, and checked for
the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qrdali import models
from qrdali.data import storage
from qrdali.data.index import Dataset
from qrdali.distributed import ProcessGroup
from qrdali.errors import InputError, printable
from qrdali.models import Preprocessing
from qrdali.reduction.auto_augment import AUGMIX_ON_GPU
from qrdali.runs import automatic
from qrdali.runs import folder as run_folder
from qrdali.runs.configuration import probes
from qrdali.runs.setting_table import describe_refusal, settings_table, takes
from qrdali.runs.settings import MAX_BATCH, Settings, validate_settings
from qrdali.schedule.methods import check_settings
from qrdali.system.device import probe_batch_size, resolve_amp


def settings_of(
    method: str, run: Path, values: dict[str, Any], resume: bool, *, needs_data: bool = True
) -> Settings:
    """Returns the settings of a run: the `values` that are given and, with `resume`, those it was begun with.

    needs_data: whether a run that has not begun must have a data set; if not, `data` may be "". Raises
    InputError for a run of another method, without a data set, and for what `validate_settings` refuses.
    """
    recorded = run_folder.begun_with(run) if resume and run_folder.holds_run(run) else {}
    if recorded.get("method") == run_folder.ADOPTED:
        raise InputError(
            f"{printable(run)} holds an adopted network, which has no training to continue: start one "
            f"from it with --init {printable(run)} and another --run"
        )
    going_on = automatic.continued(values, automatic.recorded(run)) if recorded else {}
    if recorded.get("method", method) != method:
        begun = printable(recorded["method"])[:40]
        raise InputError(
            f"{printable(run)} is a run of {begun}, not of {method}: continue it with `qrdali train {begun} "
            "--run … --resume`"
        )
    if not recorded and "data" not in values:
        if not needs_data:
            return validate_settings({"data": "", **values, "method": method})
        raise InputError(
            f"{printable(run)} has not begun: say with --data what it trains on, a data set made by "
            "`qrdali data index`"
        )
    return validate_settings({**recorded, **values, **going_on, "method": method})


def require_own_options(method: str, values: Mapping[str, Any]) -> None:
    """Raises InputError for a setting that is given to a method without it, unless it is the default.

    Of what is said of one run, not of a file, which may hold the settings of several methods.
    """
    for name, setting in settings_table(Settings).items():
        if name in values and values[name] != setting.default and not takes(setting, method):
            raise InputError(f"{name} = {printable(values[name])[:80]}: {describe_refusal(setting, method)}")


def require_run_folder(run: Path, begun: bool, resume: bool) -> None:
    """Raises InputError if `run` cannot be begun or, with `resume`, continued. begun: whether it holds a
    run."""
    if begun and not resume:
        raise InputError(f"{run} already holds a run: continue it with --resume, or choose another --run")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file: choose another --run")
    if begun or not run.exists():
        return
    # Before config.toml a run writes hidden files and the indexes of tracked sets only; a list of bad images
    # may be brought along.
    expected = ("tracked", "quarantine.tsv")
    others = sorted(name for name in os.listdir(run) if not name.startswith(".") and name not in expected)
    if others:
        raise InputError(f"{run} holds {printable(others[0])!r}, which is no run's: choose another --run")


def require_augmentation(settings: Settings, device: torch.device) -> None:
    """Raises InputError for AugMix on a GPU, whose pixels only the host makes."""
    if settings.auto_augment == "augmix" and device.type != "cpu":
        raise InputError(f"--auto-augment {AUGMIX_ON_GPU}")


def require_shares(settings: Settings, images: int, device: torch.device, group: ProcessGroup) -> None:
    """Raises InputError unless each process of `group` has something to do in a step. images: of the training
    split."""
    if group.is_single:
        return
    if settings.batch_size < group.world_size:
        raise InputError(
            f"--batch-size {settings.batch_size} is of all {group.world_size} processes together: give "
            "at least one image for each"
        )
    if not settings.sync_batch_norm:
        return
    if device.type == "cpu":
        raise InputError("--sync-batch-norm is for GPUs: torch has none for CPUs")
    if settings.accumulate > 1:
        raise InputError(
            "--sync-batch-norm and --accumulate do not go together: ranks may make different numbers of "
            "forward passes"
        )
    if 0 < (left := images % settings.batch_size) < group.world_size:
        raise InputError(
            f"--batch-size {settings.batch_size} leaves {left} of {images} images for the last step of "
            f"{group.world_size} processes: with --sync-batch-norm each needs one, choose another"
        )


def require_no_single_image(settings: Settings, images: int, model: nn.Module, group: ProcessGroup) -> None:
    """Raises InputError where a step would show one image to a network whose batch norm cannot train on one.

    images: of the training split. model: on the CPU.
    """
    if not _has_single_image(settings.batch_size, images, settings.accumulate, group.world_size):
        return
    if not models.fails_on_one_image(model, settings.input_size):
        return
    sizes = (settings.batch_size + i * sign for i in range(1, settings.batch_size + 64) for sign in (1, -1))
    other = next(
        (
            size
            for size in sizes
            if size > 1 and not _has_single_image(size, images, settings.accumulate, group.world_size)
        ),
        None,
    )
    remedy = f"use --batch-size {other}" if other else "use another --batch-size or a smaller --accumulate"
    part = ", a process or a part of one" if settings.accumulate > 1 or not group.is_single else ""
    raise InputError(
        f"--batch-size {settings.batch_size} leaves one of {images} training images alone for a step{part}, "
        f"on which batch norm cannot train: {remedy}, or an --input-size above {settings.input_size}"
    )


def _has_single_image(batch_size: int, images: int, accumulate: int, ranks: int) -> bool:
    """Returns whether any forward pass of an epoch has one image alone."""
    lengths = {min(batch_size, images), images % batch_size or batch_size}
    shares = {
        length * (rank + 1) // ranks - length * rank // ranks for length in lengths for rank in range(ranks)
    }
    # A share is cut into as many parts as --accumulate says, some one image larger than the others.
    return any(share and share // min(accumulate, share) == 1 for share in shares)


def start_of(settings: Settings, run: Path) -> Path | None:
    """Returns the run whose best/ says which network is trained, and None for a network from scratch.

    A run that goes on knows it itself, as last/ has its weights: --init may be gone by then.
    """
    if not settings.init:
        return None
    return run if run_folder.has_checkpoint(run) else Path(settings.init)


def complete_settings(
    settings: Settings, dataset: Dataset, images: int, start: Path | None
) -> tuple[Settings, Preprocessing]:
    """Returns the settings with all that --init, --match and the network decide, paths absolute, and the
    preprocessing.

    images: of the training split. start: as `start_of` gives it. Raises InputError for settings that do not
    go together.
    """
    name, pre, options = _network_of(settings, dataset, start)
    sets = {name: storage.absolute(folder) for name, folder in settings.track_sets.items()}
    settings = settings.model_copy(
        update={
            "model": name,
            "model_options": options,
            "lr": settings.lr or models.learning_rate(name),
            "input_size": pre.input_size,
            "fit": pre.fit,
            "track_sets": sets,
            "data": str(Path(settings.data).absolute()),
            "init": str(Path(settings.init).absolute()) if settings.init else "",
        }
    )
    if settings.match and not settings.match_steps:
        taken = run_folder.optimizer_steps(Path(settings.match))
        steps_per_epoch = -(-images // settings.batch_size)
        settings = settings.model_copy(
            update={
                "match": str(Path(settings.match).absolute()),
                "match_steps": taken,
                "max_epochs": -(-taken // steps_per_epoch),
            }
        )
    check_settings(settings)
    return settings, pre


def settings_for(settings: Settings, device: torch.device) -> Settings:
    """Returns the settings with what `device` decides where they leave it open: amp and the probe's batch."""
    at_once = settings.probe_batch_size
    if probes(settings) and not at_once:
        at_once = min(probe_batch_size(device, settings.batch_size), MAX_BATCH)
    return settings.model_copy(
        update={
            "device": device.type,
            "amp": resolve_amp(settings.amp, device),
            "probe_batch_size": at_once,
        }
    )


def _network_of(
    settings: Settings, dataset: Dataset, run: Path | None
) -> tuple[str, Preprocessing, dict[str, Any]]:
    """Returns the network's name, preprocessing and options, those of `run`'s best/ where they are not
    given."""
    if run is None:
        pre = models.preprocessing(settings.model, settings.input_size or None, settings.fit)
        return settings.model, pre, settings.model_options
    start = run_folder.describe_best(run)
    if not run_folder.is_adopted(run):  # of an adopted one of other classes the last layer is replaced
        dataset.require_classes(start.classes, f"the run {run}")
    if "model" in settings.model_fields_set and settings.model != start.model:
        raise InputError(f"--model is {settings.model}, but {run} trained {start.model}: leave --model out")
    fit = settings.fit if "fit" in settings.model_fields_set else start.preprocessing.fit
    input_size = settings.input_size or start.preprocessing.input_size
    pre = models.preprocessing(start.model, input_size, fit)
    # An adopted network may have been made for others than are published with its name.
    of_start = start.preprocessing
    pre = replace(pre, mean=of_start.mean, std=of_start.std, interpolation=of_start.interpolation)
    return start.model, pre, {**start.model_options, **settings.model_options}


def load_start(run: Path, dataset: Dataset, options: dict[str, Any]) -> tuple[nn.Module, str]:
    """Returns the network that a training starts with, on the CPU, and what is to be said of it, or "".

    It is that of `run`'s best/, made with `options`; of an adopted one of other classes than the data set's
    with a fresh last layer.
    """
    model, start = run_folder.load_best(run, options)
    if start.classes == dataset.classes:
        return model, ""
    model = models.with_new_head(start.model, model.state_dict(), len(dataset.classes), options)
    return model, (
        f"{printable(run)} was adopted with {len(start.classes):,} other classes: its last layer is "
        f"replaced by a fresh one of the data set's {len(dataset.classes):,}"
    )
