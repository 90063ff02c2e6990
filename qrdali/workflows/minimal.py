"""Finds the minimal image of one photograph, for a run or any other network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from torch import nn

from qrdali.errors import InputError, RunError
from qrdali.interfaces import JobControl, ProgressListener
from qrdali.models import Preprocessing
from qrdali.workflows.images import Pixels, require_image
from qrdali.workflows.minimal_image import MinimalImage
from qrdali.workflows.minimal_network import (
    is_run,
    open_module_network,
    open_run_network,
    preprocessing_option,
)
from qrdali.workflows.minimal_search import Finder, MinimalOptions, Misjudged, index_files
from qrdali.workflows.progress import listener_for
from qrdali.workflows.public import public
from qrdali.workflows.run import Run


@public
def minimal(
    image: Pixels | str | os.PathLike[str],
    model: nn.Module | Run | str | os.PathLike[str],
    label: int | str | None = None,
    reduction: Literal["color", "crop", "resolution", "combination"] = "combination",
    preprocessing: Preprocessing | str | None = None,
    *,
    classes: Sequence[str] | None = None,
    step: float = 0.05,
    tail: str = "full",
    windows: Literal[5, 9] = 5,
    prefer: Literal["confidence", "entropy"] = "confidence",
    search_batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    amp: Literal["auto", "bf16", "fp16", "off"] | None = None,
    threads: int | None = None,
    progress: bool | ProgressListener = False,
) -> MinimalImage:
    """Finds the minimal image of one photograph: what a network needs to see to still take it for its class.

    From the whole photograph the search takes one small step down after the other, in whichever dimension the
    network still answers with the class, until every further step would make it wrong.

    image: the photograph: a file, or its pixels, uint8 [H, W, 3].
    model: a torch module that maps float32 [N, 3, S, S] to logits [N, classes]; or a run or its folder.
    label: the class, by name or number; None for what the network answers at full quality.
    reduction: what may be reduced: "color", "crop", "resolution", or all three, "combination".
    preprocessing: of a module: a `qrdali.Preprocessing`, such as that of the loader that it was trained with
        (`loader.preprocessing`) or `run.preprocessing`; or the name of a network for that network's own. None
        for what a network of timm says of itself, and else 224 pixels with ImageNet's mean and standard
        deviation: not those of a training at another size.
    classes: names of a module's outputs.
    step: how much quality one step takes away, 1/n.
    tail: steps below that grid, each of which halves the quality: "full" (down to one pixel and one colour),
        "none" or their number.
    windows: at how many places a crop may lie within the one before, 5 or 9.
    prefer: of several steps that are right, the one of the highest "confidence" or of the lowest "entropy".
    search_batch_size: reduced images in one forward pass; None for what suits the device.
    device, threads: as in `train`, for a run; a module stays where it is.
    amp: precision of the forward pass, "auto" for a run, "off" for a module, unless given.
    progress: True shows a bar; or a listener (qrdali.ProgressListener).

    Returns a qrdali.MinimalImage. It has image, quotient (the entropy that is left, of 1), levels, window and
    steps, each with its image, probability and quotient; `save` writes the image, `sheet` a picture of the
    whole way. `build_mepi` finds the same image with the same options. Raises InputError for what cannot be
    searched, a class that the network lacks (it names those near it), and an image that the network does
    not take for `label` (it says for what); RunError for a damaged file or run.

    Example:
        >>> found = qrdali.minimal("photo.jpg", "runs/shared", device="cpu", reduction="color")
        >>> found.quotient == qrdali.quotient(found.image, qrdali.read("photo.jpg"))
        True
        >>> found.steps[-1].quotient == found.quotient, found.steps[0].quotient
        (True, 1.0)
        >>> found.sheet("sheet.png")
    """
    options = MinimalOptions(reduction, step, tail, windows, prefer, search_batch_size)
    options.rule()
    control = JobControl(listener_for(progress))
    if isinstance(model, nn.Module):
        opened = open_module_network(
            model, preprocessing_option(preprocessing), classes, amp or "off", control
        )
    elif is_run(model):
        if preprocessing is not None or classes is not None:
            raise InputError("preprocessing and classes are those of a run: leave them out, or give a module")
        opened = open_run_network(os.fspath(model), device, amp or "auto", threads, control)
    else:
        raise InputError(f"model is a {type(model).__name__}: give a torch module, a run or its folder")
    with opened as network:
        finder = Finder(network, options, network.class_number(label))
        if isinstance(image, np.ndarray):
            require_image(image, "image")
            found = finder.of_pixels(image, "")
        else:
            found = _found_of_file(finder, os.fspath(image))
    if isinstance(found, Misjudged):
        raise InputError(str(found))
    return found


def _found_of_file(finder: Finder, file: str) -> MinimalImage | Misjudged:
    with TemporaryDirectory() as scratch:
        (group,) = index_files([file], Path(scratch))
        reasons: list[str] = []
        results = list(finder.of_files(group.index, [file], lambda sample, reason: reasons.append(reason)))
    if reasons:
        raise RunError(reasons[0])
    return results[0][1]
