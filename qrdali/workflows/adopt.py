"""Makes a run of a network that was trained elsewhere: published weights, or a file of one's own."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qrdali import models
from qrdali.data.class_lists import NamedClasses, classes_of
from qrdali.data.class_matching import ClassList
from qrdali.errors import InputError, RunError, printable
from qrdali.files.atomic import replace_atomically
from qrdali.interfaces import JobControl
from qrdali.models import INTERPOLATIONS, Preprocessing
from qrdali.runs import checkpoint
from qrdali.runs.adopted_weights import read_weights
from qrdali.runs.adoption import HUB, Adoption, AdoptRequest, write_adopted_config
from qrdali.runs.folder import BestModel, weights_digest
from qrdali.runs.published_weights import HubFiles, fetch_from_hub, load_published, published
from qrdali.workflows.train_settings import require_run_folder

_CHANNELS = 3


@dataclass(frozen=True)
class _Adopted:
    """Holds a network with its weights, and what is recorded of them: fields of `Adoption`."""

    model: nn.Module
    record: dict[str, Any]


def adopt(request: AdoptRequest, run: Path, control: JobControl = JobControl()) -> BestModel:
    """Makes the run folder `run` of a network that was trained elsewhere; it holds config.toml and best/.

    Published weights are downloaded by timm or torchvision, or come from their caches. Returns the network's
    description. Raises InputError for a request, a file or a list of classes that cannot be used, RunError
    where weights cannot be downloaded; nothing is left behind then.
    """
    request = _checked(request)
    require_run_folder(run, (run / "config.toml").exists(), False)
    hub = _fetch(request, control) if request.weights.startswith(HUB) else None
    named = _classes_of(request, hub)
    pre = _preprocessing_of(request, hub)
    adopted = _load(request, named, hub, control)
    _require_answers(adopted.model, request.model, pre, len(named.classes))
    best = BestModel(request.model, named.classes.names, pre, 0, None, named.classes.readable)
    adoption = _write(run, best, adopted, named, request)
    control.listener.line(
        f"{request.model} at {pre.input_size} px, fit {pre.fit}, {len(named.classes):,} classes "
        f"({printable(named.source)}), from {adoption.text}"
    )
    control.listener.line(f"run folder: {run}")
    return best


def _checked(request: AdoptRequest) -> AdoptRequest:
    """Returns a request with the absolute paths of its files. Raises InputError for what cannot be used."""
    models.find_library(request.model)
    if request.fit not in models.FITS:
        raise InputError(f"--fit is {printable(request.fit)!r}: give one of {', '.join(models.FITS)}")
    if request.interpolation and request.interpolation not in INTERPOLATIONS:
        raise InputError(
            f"--interpolation is {printable(request.interpolation)!r}: give one of "
            f"{', '.join(INTERPOLATIONS)}"
        )
    for option, values in (("--mean", request.mean), ("--std", request.std)):
        least = 0.0 if option == "--mean" else 0.001
        if values and (
            len(values) != _CHANNELS or not all(math.isfinite(v) and least <= v <= 1 for v in values)
        ):
            raise InputError(
                f"{option} is {','.join(f'{value:g}' for value in values)}: give {_CHANNELS} numbers, "
                "of red, "
                f"green and blue, from {least:g} to 1; those for values up to 255 are to be divided by 255"
            )
    return request.with_absolute_paths()


def _fetch(request: AdoptRequest, control: JobControl) -> HubFiles:
    control.listener.line(f"{request.weights}: from the cache, or downloaded")
    files = fetch_from_hub(request.weights.removeprefix(HUB))
    own = models.find_library(request.model)[1].partition(".")[0]
    held = files.config.get("architecture")
    if isinstance(held, str) and held.partition(".")[0] != own:
        raise InputError(
            f"{request.weights} holds weights of {printable(held)[:80]}, not of {request.model}: adopt that"
        )
    return files


def _classes_of(request: AdoptRequest, hub: HubFiles | None) -> NamedClasses:
    """Returns the classes of the network's outputs. Raises InputError where nothing says what they are."""
    outputs = published(request.model).outputs
    if hub is not None and type(hub.config.get("num_classes")) is int:
        outputs = hub.config["num_classes"]
    named_by_hub = _hub_classes(hub, outputs) if hub is not None and not request.classes else None
    return named_by_hub or classes_of(request, outputs)


def _hub_classes(hub: HubFiles, outputs: int | None) -> NamedClasses | None:
    """Returns the classes that a repository's config.json names, None where it does not."""
    config = hub.config.get("pretrained_cfg")
    config = config if isinstance(config, dict) else {}
    names = hub.config.get("label_names", config.get("label_names"))
    if not isinstance(names, list) or len(names) != outputs or len(set(map(str, names))) < len(names):
        return None
    described = hub.config.get("label_descriptions", config.get("label_descriptions"))
    texts = tuple(map(str, names))
    readable = tuple(str(described.get(name, name)) for name in texts) if isinstance(described, dict) else ()
    return NamedClasses(ClassList(texts, readable), "its config.json")


def _preprocessing_of(request: AdoptRequest, hub: HubFiles | None) -> Preprocessing:
    """Returns the preprocessing that the weights were made for: as asked, as the repository says, or the
    network's published one.
    """
    recorded = hub.config.get("pretrained_cfg") if hub is not None else None
    config: dict[str, Any] = recorded if isinstance(recorded, dict) else {}
    try:
        side = int(config["input_size"][-1]) if "input_size" in config else None
        mean, std = (tuple(map(float, config.get(key, ()))) for key in ("mean", "std"))
        share = float(config.get("crop_pct", 0.0))
        if not all(len(v) in (0, _CHANNELS) and all(map(math.isfinite, v)) for v in (mean, std)):
            raise ValueError
    except (TypeError, ValueError, LookupError, OverflowError):
        raise RunError(
            f"config.json of {request.weights} describes no preprocessing: download its weights and "
            "give them with --weights FILE, --mean, --std and --input-size"
        ) from None
    pre = models.preprocessing(request.model, request.input_size or side, request.fit)
    interpolation = request.interpolation or config.get("interpolation")
    values: dict[str, Any] = {
        "mean": request.mean or mean,
        "std": request.std or std,
        "crop_share": share if 0.01 <= share <= 10 else 0,
        "interpolation": interpolation if interpolation in INTERPOLATIONS else "",
    }
    return replace(pre, **{key: value for key, value in values.items() if value})


def _load(request: AdoptRequest, named: NamedClasses, hub: HubFiles | None, control: JobControl) -> _Adopted:
    """Returns the network with its weights."""
    outputs = len(named.classes)
    model = models.create(request.model, outputs)
    if request.weights:
        file = hub.weights if hub is not None else Path(request.weights)
        read = read_weights(file, model, request.model, outputs)
        model.load_state_dict(read.weights, strict=False)  # what may be missing is not used in evaluation
        source = "hub" if hub is not None else "file"
        record = {"source": source, "weights": request.weights, "part": read.part, "file_sha256": read.sha256}
        return _Adopted(model, record)
    known = published(request.model)
    control.listener.line(f"the published weights {known.text}: from the cache, or downloaded")
    weights = load_published(request.model).state_dict()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"the weights {known.text} do not fit the network as it is built here: {printable(error)[:160]}"
        ) from None
    return _Adopted(model, {"source": "published", "weights": known.text})


def _require_answers(model: nn.Module, name: str, pre: Preprocessing, classes: int) -> None:
    """Raises InputError unless the network gives finite logits, one per class, for a black image."""
    models.require_size(model, name, pre.input_size)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, _CHANNELS, pre.input_size, pre.input_size))
    except Exception as error:  # of any type: it is the network's own code
        raise InputError(
            f"{name} does not take an image of {pre.input_size} px ({printable(error)[:120]}): choose "
            "another --input-size, or another network"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        kind = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"{name} answers with {kind} instead of {classes:,} logits: it is no classifier")
    if not torch.isfinite(logits).all():
        raise InputError(
            f"{name} answers a black image with values that are not finite: its weights are damaged"
        )


def _write(
    run: Path, best: BestModel, adopted: _Adopted, named: NamedClasses, request: AdoptRequest
) -> Adoption:
    """Writes the run folder, whole or not at all."""
    partial = run.with_name(f"{run.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        checkpoint.save(partial / "best", best.as_dict(), model=adopted.model.state_dict())
        counted = models.describe(best.model, len(best.classes), best.preprocessing.input_size)
        adoption = Adoption(
            **adopted.record,
            sha256=weights_digest(partial),
            classes=named.source,
            parameters=counted.parameters,
            gmacs=counted.gmacs,
            asked=request.as_dict(),
        )
        write_adopted_config(partial / "config.toml", best.model, best.preprocessing, adoption)
        if run.exists():
            run.rmdir()  # it is empty: require_run_folder
        replace_atomically(partial, run)
        return adoption
    except OSError as error:
        raise RunError(
            f"{printable(run)} cannot be written ({printable(error.strerror or error)}): nothing has been "
            "changed; choose another --run"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
