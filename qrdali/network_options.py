"""Checks keywords for a network's class, which come from --model-option or from any checkpoint."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from qrdali.errors import InputError, printable

ModelOptions = Mapping[str, Any]
_LARGEST = (
    4096  # of a whole number: a depth or width beyond it is a mistake, and building it would take minutes
)
# What is set by other means: the classes by the data, the channels by the images.
_OWN_KEYWORDS = frozenset({"self", "num_classes", "in_chans", "device", "dtype"})


def require_model_options(name: str, network: type[nn.Module], options: ModelOptions) -> None:
    """Raises InputError for keywords that the constructor of `network` does not name, and for huge numbers.

    Only these are passed on: functions that make networks take other keywords too, such as a file to load.
    """
    parameters = inspect.signature(network.__init__).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = sorted({p.name for p in parameters if p.kind in named} - _OWN_KEYWORDS)
    for key, value in options.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 3, 0.5)
            raise InputError(
                f"--model-option {printable(key)[:80]}: the network {printable(name)} has no such option; "
                + (f"near it: {', '.join(near)}" if near else f"it has {', '.join(known)}")
            )
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, int) and abs(number) > _LARGEST for number in numbers):
            raise InputError(
                f"--model-option {printable(key)[:80]}={printable(value)[:40]} is larger than {_LARGEST}"
            )


def describe_options(options: ModelOptions) -> str:
    """Returns keywords and values for a message."""
    return printable(", ".join(f"{key}={value}" for key, value in options.items()))[:120]
