"""What a run keeps from its begin on, and what may differ when it continues.

Everywhere `before` is the run's settings as `automatic.recorded` gives them, empty for a run that begins.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from qrdali.errors import InputError, RunError
from qrdali.files.changes import describe_changes
from qrdali.reduction.quality import num_levels_of
from qrdali.runs import automatic, configuration
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import DEFINITIONS, Settings, default_settings

# Settings that may change between a run and its continuation.
CHANGEABLE_SETTINGS = ("threads", "root", "save_every", "track_sets", "track_reduced", "max_bad", "log")


def begun_with(settings: Settings, run: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a run gets when it begins and keeps: definitions, epochs_before, automatic.

    Raises InputError for definitions that no new run may have, and RunError for a damaged config.toml.
    """
    left = automatic.left_to_machine(settings.model_dump())
    if before:
        recorded = configuration.read_settings(run)
        kept = automatic.still_automatic(settings.device, before)
        left = (*kept, *(name for name in left if name == "threads"))  # that number is each host's own
        definitions, epochs = recorded.definitions, recorded.epochs_before
    else:
        if settings.definitions != DEFINITIONS:
            raise InputError(
                f"definitions = {settings.definitions}: new runs go by definitions {DEFINITIONS}; leave it "
                "out"
            )
        num_levels_of(settings.step)  # refuses a step that only runs of version 0.1 may have
        definitions = DEFINITIONS
        epochs = run_folder.epochs_trained(Path(settings.init)) if settings.init else 0
    unused = set() if configuration.probes(settings) else {"probe_batch_size"}
    names = tuple(name for name in automatic.LEFT if name in {*left} - unused)
    return {"definitions": definitions, "epochs_before": epochs, "automatic": names}


def require_same_settings(
    run: Path, settings: Settings, before: Mapping[str, Any], moved: Collection[str] = ()
) -> None:
    """Raises InputError naming what differs from the settings that the run was begun with, as far as it
    matters. moved: settings that name the same in another place, as `moved_paths` finds them."""
    now = settings.model_dump()
    # Defaults come first: a run may be older than a setting. What was left to the machine agrees with all.
    known = {name: value for name, value in before.items() if value != automatic.LEFT.get(name)}
    left = {name: now[name] for name in automatic.LEFT}
    ignored = {*CHANGEABLE_SETTINGS, *moved, "automatic"}
    if automatic.moves(settings.device, before):
        ignored |= {*automatic.LEFT}
    if changed := describe_changes(default_settings() | left | known, now, ignored):
        raise InputError(
            f"{run} was begun with other settings: {'; '.join(changed)}. Give the same, or another --run"
        )


def require_its_device(run: Path, settings: Settings, before: Mapping[str, Any]) -> None:
    """Raises RunError for a run that was trained on a GPU and is to go on where there is none."""
    if settings.device == before["device"] == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"{run} was trained on a GPU so far, and no usable one is here: give --device cpu to go on "
            "without, with --amp off"
        )


def describe_device(settings: Settings, before: Mapping[str, Any]) -> str:
    """Returns a warning for a run that continues on another device than before, or not on the GPU that is
    here now; else ""."""
    if not before:
        return ""
    if not automatic.moves(settings.device, before):
        if settings.device == "cpu" and "device" in settings.automatic and torch.cuda.is_available():
            return "this run was begun where there was no GPU and stays on the CPU: --device cuda moves it"
        return ""
    return (
        f"this run was trained on {before['device']} with amp {before['amp']} so far and continues on "
        f"{settings.device} with amp {settings.amp}: its results are rounded in another way from here on"
    )
