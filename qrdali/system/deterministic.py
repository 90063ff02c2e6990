"""Deterministic algorithms: on the same GPU the same bits each time, at the price of speed, and of networks for which torch has none.

The only file that sets them, for as long as a command or a training lasts: a process that trains several runs is left as it was found.
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
GOOD = (
    ":4096:8",
    ":16:8",
)  # those with which NVIDIA says that cuBLAS repeats its bits; the first is the faster
_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(wanted: bool, device: str = "auto") -> Iterator[None]:
    """Within, if `wanted`, torch takes deterministic algorithms or refuses; afterwards all is as it was. TF32 and --amp stay as they are.

    device: as --device. To be entered before CUDA is used. Raises InputError for an environment with which cuBLAS does not repeat itself,
    RunError for an operation within that has no deterministic form.
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
            memory.fill_uninitialized_memory = (
                True  # what is read before it is written becomes NaN, which ends a run, and not chance
            )
            yield
        except RuntimeError as error:
            if refused := _refused(error):
                raise refused from None
            raise
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.deterministic, cudnn.benchmark, memory.fill_uninitialized_memory = before[2:]


@contextmanager
def cublas_workspace(device: str) -> Iterator[None]:
    """Within, cuBLAS repeats its results: it reads an environment variable when CUDA begins, which is therefore set before. device: as
    --device. Raises InputError if it has another value, or CUDA has begun without."""
    value = os.environ.get(VARIABLE)
    if device == "cpu" or value in GOOD:
        yield
        return
    if value is not None:
        if torch.cuda.is_available():
            raise InputError(
                f"{VARIABLE} is {printable(value)!r}, with which cuBLAS does not repeat its results: unset it, give "
                f"{' or '.join(GOOD)}, or --no-deterministic"
            )
        yield
        return
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise InputError(
            f"CUDA has begun in this process without {VARIABLE}: set it to {GOOD[0]} before, or give --no-deterministic"
        )
    os.environ[VARIABLE] = GOOD[0]
    try:
        yield
    finally:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # else it tells what CUDA has begun with
            del os.environ[VARIABLE]


def require_deterministic_model(
    model: nn.Module, input_size: int, classes: int, amp: str, device: torch.device
) -> None:
    """Raises RunError, naming the operation, if a training step of `model`, which stays as it is, needs one that has no deterministic
    form. Whatever else a step may fail of is left to the first."""
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
    found = None if isinstance(error, RunError) else _REFUSED.search(str(error))
    return (
        RunError(
            f"{printable(found[1])[:100]} has no deterministic form on this device: give --no-deterministic, or choose another "
            "--model"
        )
        if found
        else None
    )
