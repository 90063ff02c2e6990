"""Resolves the device that trains, the precision of its forward pass, and batch sizes that suit it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from qrdali.errors import RunError


def resolve_device(choice: str) -> torch.device:
    """Returns the device for --device auto, cpu or cuda.

    Raises RunError for cuda where there is no usable GPU.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise RunError(
            "--device cuda: no usable GPU; check nvidia-smi and the driver (in a container: --gpus all), or "
            "use --device auto"
        )
    if choice != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def resolve_amp(choice: str, device: torch.device) -> str:
    """Returns "bf16", "fp16" or "off" for --amp.

    "auto" is bf16 on GPUs that compute in it, fp16 on others, and off on CPUs, where both its gain and its
    results depend on the processor.
    """
    if choice != "auto":
        return choice
    return "off" if device.type == "cpu" else "bf16" if _has_bf16() else "fp16"


def autocast_for(amp: str, device: torch.device) -> tuple[Callable[[], AbstractContextManager[object]], bool]:
    """Returns (context manager for the forward pass, whether gradients need scaling) for --amp."""
    amp = resolve_amp(amp, device)
    if amp == "off":
        return nullcontext, False
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype), amp == "fp16"


def _has_bf16() -> bool:
    # By default torch also says yes for older cards, where it emulates bf16, slowly.
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def probe_batch_size(device: torch.device, batch_size: int) -> int:
    """Returns the candidates per forward pass of a probe: many on a GPU, few on a CPU.

    On a CPU the activations then stay in its caches: SqueezeNet at 224 px took a third less time at 16 than
    at 64.
    """
    return 2 * batch_size if device.type == "cuda" else 16
