"""The device that trains, and the precision of its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from qrdali.errors import RunError


def resolve_device(choice: str) -> torch.device:
    """Raises RunError if a GPU was asked for and there is none."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise RunError(
            "--device cuda: no usable GPU; check nvidia-smi and the driver (in a container: --gpus all), or use --device auto"
        )
    return (
        torch.device("cuda", torch.cuda.current_device())
        if choice != "cpu" and torch.cuda.is_available()
        else torch.device("cpu")
    )


def autocast_for(amp: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[object]], bool]:
    """(context of the forward pass, whether gradients need scaling). "auto": bf16 on GPUs that have it, fp16 on others,
    off on CPUs, where its gain depends on the processor and the results with it."""
    if amp == "auto":
        amp = "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if amp == "off":
        return nullcontext, False
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype), amp == "fp16"


def probe_batch_size(device: torch.device, batch_size: int) -> int:
    """Candidates per forward pass: many on a GPU; on a CPU few, whose activations stay in its caches (SqueezeNet at 224 px
    took a third less time at 16 than at 64)."""
    return 2 * batch_size if device.type == "cuda" else 16
