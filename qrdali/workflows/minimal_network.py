"""The network whose minimal images are looked for: of a run, or any torch module of the caller's."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qrdali.data.class_matching import ClassList, first_synonym
from qrdali.distributed import SINGLE_PROCESS
from qrdali.errors import InputError, RunError, printable
from qrdali.interfaces import JobControl, RunContext
from qrdali.models import Preprocessing
from qrdali.models import preprocessing as published_preprocessing
from qrdali.pipelines.engine import Engine, engine_of
from qrdali.runs import folder as run_folder
from qrdali.system.deterministic import deterministic
from qrdali.system.device import autocast_for
from qrdali.system.energy import EnergyMeter
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NEAR_NAMES = 5


@dataclass(frozen=True)
class Network:
    """Holds a network that is ready to classify.

    name: what it is called. classes: of its outputs. readable: a readable name of each, or ().
    """

    model: nn.Module
    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    context: RunContext
    engine: Engine
    readable: tuple[str, ...] = ()

    @property
    def shown(self) -> tuple[str, ...]:
        """Returns the names that people read: of readable ones the first synonym."""
        return tuple(map(first_synonym, self.readable)) or self.classes

    def class_number(self, label: int | str | None) -> int | None:
        """Returns the number of a class given by name or number; None for None.

        Raises InputError for one that there is not, naming those near it.
        """
        if label is None:
            return None
        if not isinstance(label, str):
            if not isinstance(label, int) or not 0 <= label < len(self.classes):
                raise InputError(
                    f"label {printable(label)} is none of the {len(self.classes)} classes of {self.name}: "
                    f"give a name, or a number from 0 to {len(self.classes) - 1}"
                )
            return label
        if self.readable and (found := ClassList(self.classes, self.readable).label_of(label)) is not None:
            return found
        numbers = [number for number, name in enumerate(self.classes) if name == label]
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            raise InputError(
                f"{self.name} has {len(numbers)} classes called {printable(label)!r}: their numbers are "
                f"{', '.join(map(str, numbers[:_NEAR_NAMES]))}"
            )
        near = ", ".join(repr(printable(name)) for name in near_names(label, self.readable or self.classes))
        raise InputError(
            f"{self.name} has no class {printable(label)!r}; "
            + (f"near it: {near}" if near else f"it has {', '.join(map(printable, self.classes[:3]))}, …")
        )


def near_names(wanted: str, names: Sequence[str]) -> list[str]:
    """Returns up to five of `names` like `wanted`: those that hold it, then those spelled nearly so."""
    by_fold = {name.casefold(): name for name in reversed(names)}
    folded = wanted.casefold().strip()
    holding = [name for fold, name in sorted(by_fold.items()) if folded and folded in fold]
    spelled = [by_fold[fold] for fold in difflib.get_close_matches(folded, by_fold, _NEAR_NAMES, 0.5)]
    return list(dict.fromkeys(holding + spelled))[:_NEAR_NAMES]


@contextmanager
def open_run_network(
    run: str | Path, device: str, amp: str, threads: int | None, control: JobControl
) -> Iterator[Network]:
    """Yields the network of best/ of a run, which classifies as `build_mepi` does within the block.

    Raises InputError for a folder that is no run, RunError for a damaged one.
    """
    folder = Path(run)
    with deterministic(run_folder.is_deterministic(folder), device):
        evaluator = Evaluator(folder, EvaluateOptions(32, device, amp, threads), control)
        trained = evaluator.trained
        yield Network(
            evaluator.model,
            trained.model,
            trained.classes,
            trained.preprocessing,
            evaluator.context,
            evaluator.engine,
            trained.readable,
        )


@contextmanager
def open_module_network(
    model: nn.Module,
    preprocessing: Preprocessing | None,
    classes: Sequence[str] | None,
    amp: str,
    control: JobControl,
) -> Iterator[Network]:
    """Yields a caller's module, where it is, in evaluation mode within the block; afterwards it is as before.

    preprocessing: None for `module_preprocessing`. classes: names of its outputs; None for "class 0" and so
    on. Raises InputError unless it maps float32 [1, 3, S, S] to logits [1, classes].
    """
    preprocessing = preprocessing or module_preprocessing(model)
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"the model is on {device}: move it to a CPU or a CUDA device")
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        count = _count_logits(model, preprocessing.input_size, device)
        names = tuple(classes) if classes is not None else tuple(f"class {i}" for i in range(count))
        if len(names) != count:
            raise InputError(f"classes has {len(names)} names, and the model answers with {count} logits")
        autocast, _ = autocast_for(amp, device)
        context = RunContext(
            device, autocast, EnergyMeter(device), SINGLE_PROCESS, control.listener, control.stop
        )
        yield Network(
            model,
            _name_of(model),
            names,
            preprocessing,
            context,
            engine_of(device, None, SINGLE_PROCESS),
        )
    finally:
        for module, training in was_training.items():
            module.training = training


def _name_of(model: nn.Module) -> str:
    """Returns what timm calls a network, or else its class."""
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    return name if isinstance(name, str) and name else type(model).__name__


def _count_logits(model: nn.Module, side: int, device: torch.device) -> int:
    """Returns how many classes a module in evaluation mode has. Raises InputError if it gives no logits."""
    try:
        with torch.inference_mode():
            output = model(torch.zeros(1, 3, side, side, device=device))
    except Exception as error:  # of any type: it is the caller's own code
        raise InputError(
            f"the model does not take float32 [1, 3, {side}, {side}] ({printable(error)[:120]}): give the "
            "preprocessing that it was made for"
        ) from None
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != 1 or not output.shape[1]:
        kind = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(f"the model answers one image with {kind} instead of logits [1, classes]")
    return int(output.shape[1])


def module_preprocessing(model: nn.Module) -> Preprocessing:
    """Returns what a module wants of its inputs, as far as it says so; the whole image is shown to it.

    A network of timm says it (`pretrained_cfg`); for any other it is 224 pixels, bilinear, and ImageNet's
    mean and standard deviation.
    """
    if not getattr(model, "pretrained_cfg", None):
        return Preprocessing(224, "whole", 0.875, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    interpolation = config["interpolation"]
    return Preprocessing(
        int(config["input_size"][-1]),
        "whole",
        float(config["crop_pct"]),
        interpolation if interpolation in ("bilinear", "bicubic") else "bicubic",
        tuple(map(float, config["mean"])),
        tuple(map(float, config["std"])),
    )


def preprocessing_option(value: Preprocessing | str | None) -> Preprocessing | None:
    """Returns what an option `preprocessing` means: an object, or that of a network by name.

    Raises InputError for anything else.
    """
    if isinstance(value, str):
        return published_preprocessing(value)
    if value is None or isinstance(value, Preprocessing):
        return value
    raise InputError(
        f"preprocessing is a {type(value).__name__}: give a name of `qrdali models`, `run.preprocessing` or "
        "a qrdali.Preprocessing"
    )


def require_finite(confidence: float, what: str) -> None:
    """Raises RunError where a network's answer is not a number."""
    if confidence != confidence:
        raise RunError(f"the network answers {printable(what)} with values that are not finite: no class")


def is_run(model: object) -> bool:
    """Returns whether `model` is a run or its folder, and not a module."""
    return isinstance(model, str | os.PathLike) and not isinstance(model, nn.Module)
