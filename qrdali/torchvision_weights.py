"""Makes networks of torchvision with their published weights, and executes nothing of the weights' file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch import nn

from qrdali.connection import require_answer
from qrdali.errors import RunError, printable


def with_published_weights(name: str, **options: Any) -> nn.Module:
    """Returns torchvision's network `name` with its published weights; options: keywords of its class.

    torchvision loads them by torch's loader for any pickle, from torch's cache if a file of that name is
    there, whoever put it there. The weights-only loader therefore reads the file first: what it refuses is
    not loaded. Raises RunError for such a file, OSError without a connection, or whatever torchvision raises
    if there is no file to be had.
    """
    import torch
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    require_answer(weights.url, file)
    try:
        weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except pickle.UnpicklingError:
        raise RunError(
            f"{printable(file)} holds more than tensors, which would have to be executed and is not: remove "
            "it, so that it is downloaded again"
        ) from None
    network: nn.Module = torchvision.models.get_model(name, weights=weights, **options)
    return network
