"""Surveys what a machine has: packages, driver and GPUs.

Each is looked at in a child process, since an import or a driver may crash or hang. Importing this imports
neither torch nor DALI.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from qrdali.system.subprocess_trial import Say, run_in_child

LIMIT = 60.0  # seconds of the whole survey, counted anew after a part that fails


def survey(limit: float = LIMIT) -> dict[str, dict[str, Any]]:
    """Returns by part what its function of PARTS found, or {"error": one line} where that failed."""
    findings: dict[str, dict[str, Any]] = {}
    remaining = list(PARTS)
    while remaining:
        answer = run_in_child("qrdali.pipelines.survey:survey_in_child", remaining, limit=limit)
        findings.update(zip(remaining, answer.said, strict=False))
        remaining = remaining[len(answer.said) :]
        if remaining:  # the first of them is what the child did not survive
            findings[remaining[0]] = {"error": answer.failure or "no answer"}
            remaining = remaining[1:]
    return findings


def survey_in_child(say: Say, parts: Sequence[str]) -> None:
    """Does the work of `survey` in the child: sends one object per part."""
    for part in parts:
        try:
            finding = PARTS[part]()
        except Exception as error:  # a broken package raises anything
            finding = {"error": " ".join(str(error).split()) or type(error).__name__}
        say(finding)


def _driver() -> dict[str, Any]:
    """Returns version, and gpus: the driver's, whether torch sees them or not, each with name, uuid and mig.

    mig is "on", "off", or None for a card without it.
    """
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return {
        "version": _text(pynvml.nvmlSystemGetDriverVersion()),
        "gpus": [
            {
                "name": _text(pynvml.nvmlDeviceGetName(handle)),
                "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
                "mig": _mig(handle),
            }
            for handle in handles
        ],
    }


def _mig(handle: Any) -> str | None:
    import pynvml

    try:
        return "on" if pynvml.nvmlDeviceGetMigMode(handle)[0] else "off"
    except pynvml.NVMLError:
        return None  # a card without it


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _torch() -> dict[str, Any]:
    """Returns version, cuda (what torch is built for, or None) and architectures (those of its kernels)."""
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": list(torch.cuda.get_arch_list()),
    }


def _gpus() -> dict[str, Any]:
    """Returns available, whether `--device auto` takes a GPU, why not (None if it does), and gpus.

    Each GPU has name, uuid (None from an older torch), memory in bytes, capability, and error: why nothing
    can be computed there, or None.
    """
    import torch

    if not torch.cuda.is_available():
        why = "torch is built without CUDA"
        if torch.version.cuda:
            try:
                torch.cuda.init()
                why = "torch sees no GPU"
            except Exception as error:
                why = " ".join(str(error).split())
        return {"available": False, "why": why, "gpus": []}
    return {"available": True, "why": None, "gpus": [_gpu(i) for i in range(torch.cuda.device_count())]}


def _gpu(device: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(device)
    error = None
    try:
        torch.ones(8, device=f"cuda:{device}").add_(1).sum().item()
    except Exception as reason:
        error = " ".join(str(reason).split())
    uuid = getattr(facts, "uuid", None)
    return {
        "name": facts.name,
        "uuid": None if uuid is None else f"GPU-{str(uuid).removeprefix('GPU-')}",
        "memory": facts.total_memory,
        "capability": [facts.major, facts.minor],
        "error": error,
    }


def _torchvision() -> dict[str, Any]:
    return {"version": importlib.import_module("torchvision").__version__}


def _timm() -> dict[str, Any]:
    return {"version": importlib.import_module("timm").__version__}


def _dali() -> dict[str, Any]:
    """Returns version and distribution."""
    from qrdali.system import environment

    importlib.import_module("nvidia.dali")
    return _distribution(environment.dali())


def _codec() -> dict[str, Any]:
    from qrdali.system import environment

    return _distribution(environment.codec())


def _distribution(installed: tuple[str, str] | None) -> dict[str, Any]:
    if installed is None:
        raise ModuleNotFoundError("it is not installed")
    distribution, version = installed
    return {"version": version, "distribution": distribution}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": _driver,
    "torch": _torch,
    "gpus": _gpus,
    "torchvision": _torchvision,
    "timm": _timm,
    "dali": _dali,
    "codec": _codec,
}
