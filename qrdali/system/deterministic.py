"""Switches torch's deterministic algorithms on and off: the same bits each time on the same GPU.

The price is speed, and networks for which torch has none. Only this file sets the switches, for as long as a
command or a training lasts: a process that trains several runs is left as it was.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qrdali.errors import InputError, RunError, printable
from qrdali.system.device import autocast_for

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# The values with which, by NVIDIA's documentation, cuBLAS repeats its bits; the first is the faster.
GOOD = (":4096:8", ":16:8")
_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(wanted: bool, device: str = "auto") -> Iterator[None]:
    """Makes torch, if `wanted`, use deterministic algorithms or refuse, within the block.

    Afterwards its switches are as before. TF32 and --amp stay as they are. device: the value of --device. The
    block must be entered before CUDA is used. Raises InputError for an environment with which cuBLAS does not
    repeat itself, RunError for an operation in the block that has no deterministic form.
    """
    if not wanted:
        yield
        return
    with cublas_workspace(device):
        cudnn: Any = torch.backends.cudnn
        memory: Any = torch.utils.deterministic
        before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn.deterministic,
            cudnn.benchmark,
            memory.fill_uninitialized_memory,
        )
        try:
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
            # What is read before it is written becomes NaN, which ends a run, instead of chance.
            memory.fill_uninitialized_memory = True
            yield
        except RuntimeError as error:
            if refused := _refused(error):
                raise refused from None
            raise
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before[2:]


@contextmanager
def cudnn_benchmark(wanted: bool) -> Iterator[None]:
    """Lets cuDNN, if `wanted`, time its algorithms for each new shape and take the fastest, within the block.

    Afterwards the switch is as before. It pays where the same few shapes come again and again. Which
    algorithm is the fastest is not the same each time, so results repeat only up to rounding: never ask for
    it within `deterministic(True)`, nor where a search or an evaluation is to be repeated.
    """
    if not wanted:
        yield
        return
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark
    try:
        cudnn.benchmark = True
        yield
    finally:
        cudnn.benchmark = before


@contextmanager
def cublas_workspace(device: str) -> Iterator[None]:
    """Makes cuBLAS repeat its results, within the block, by an environment variable.

    cuBLAS reads it when CUDA is initialised, so it must be set before. device: the value of --device. Raises
    InputError if the variable has another value, or if CUDA was initialised without it.
    """
    value = os.environ.get(VARIABLE)
    if device == "cpu" or value in GOOD:
        yield
        return
    if value is not None:
        if torch.cuda.is_available():
            raise InputError(
                f"{VARIABLE} is {printable(value)!r}, with which cuBLAS does not repeat its results: unset "
                f"it, give {' or '.join(GOOD)}, or --no-deterministic"
            )
        yield
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise InputError(
            f"CUDA has begun in this process without {VARIABLE}: set it to {GOOD[0]} before, or give "
            "--no-deterministic"
        )
    os.environ[VARIABLE] = GOOD[0]
    try:
        yield
    finally:
        # Once CUDA is initialised the variable stays: it shows with which value that was.
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            del os.environ[VARIABLE]


def require_deterministic_model(
    model: nn.Module, input_size: int, classes: int, amp: str, device: torch.device
) -> None:
    """Raises RunError if a training step of `model` needs an operation without a deterministic form.

    `model` is not changed. Whatever else may make a step fail is left to the first one of the training.
    """
    autocast, _ = autocast_for(amp, device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trial = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        try:
            with autocast():
                loss = nn.functional.cross_entropy(
                    trial(torch.zeros((2, 3, input_size, input_size), device=device)),
                    torch.arange(2, device=device) % classes,
                )
            loss.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            if refused := _refused(error):
                raise refused from None


def _refused(error: Exception) -> RunError | None:
    """Returns the RunError for a torch error about an operation without a deterministic form, or None."""
    match = None if isinstance(error, RunError) else _REFUSED.search(str(error))
    if match is None:
        return None
    return RunError(
        f"{printable(match[1])[:100]} has no deterministic form on this device: give --no-deterministic, or "
        "choose another --model"
    )
