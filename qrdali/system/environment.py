"""Describes where a run is made: versions, machine and GPU."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from qrdali.version import __version__

# Name recorded and the distributions that may hold it.
_PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
    "dali": ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-dali-cuda110"),
    "numpy": ("numpy",),
    "pillow": ("pillow",),
}
_CODEC = ("nvidia-nvimgcodec-cu12", "nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu11")  # decodes for DALI


def environment(device: torch.device) -> dict[str, Any]:
    """Returns the versions and devices that a run records, so that its figures can be told from others.

    qrdali, python, torch, torchvision, timm, dali, numpy, pillow: versions as text, None where not installed.
    platform, cpu: text. cores: logical ones. gpu, driver: name of the GPU that `device` is and version of its
    driver, None on a CPU. Versions are read from the distributions' metadata; nothing is imported for them.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "qrdali": __version__,
        "python": platform.python_version(),
        **{name: _version(names) for name, names in _PACKAGES.items()},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "driver": _driver() if gpu else None,
    }


def dali() -> tuple[str, str] | None:
    """Returns the installed distribution of DALI, which names its CUDA, and its version; or None."""
    return _installed(_PACKAGES["dali"])


def codec() -> tuple[str, str] | None:
    """Returns the installed distribution of nvImageCodec and its version, or None."""
    return _installed(_CODEC)


def _version(distributions: tuple[str, ...]) -> str | None:
    installed = _installed(distributions)
    return None if installed is None else installed[1]


def _installed(distributions: tuple[str, ...]) -> tuple[str, str] | None:
    for name in distributions:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text("utf-8", "replace").splitlines() if file.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except pynvml.NVMLError:
        return None
