"""What a machine has: packages, driver and GPUs, each looked at in a child process, for an import or a driver may crash or hang.

Importing this imports neither torch nor DALI.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from qrdali.system.subprocess_trial import Say, run_in_child

LIMIT = 60.0  # seconds of the whole survey, counted anew after a part that fails


def survey(limit: float = LIMIT) -> dict[str, dict[str, Any]]:
    """By part: what `look` says of it, or {"error": one line} where looking failed."""
    found: dict[str, dict[str, Any]] = {}
    left = list(PARTS)
    while left:
        answer = run_in_child("qrdali.pipelines.survey:survey_in_child", left, limit=limit)
        found.update(zip(left, answer.said, strict=False))
        left = left[len(answer.said) :]
        if left:  # the first of them is what the child did not survive
            found[left[0]] = {"error": answer.failure or "no answer"}
            left = left[1:]
    return found


def survey_in_child(say: Say, parts: Sequence[str]) -> None:
    """The child's side of `survey`: says one object per part."""
    for part in parts:
        try:
            said = PARTS[part]()
        except Exception as error:  # a broken package raises anything
            said = {"error": " ".join(str(error).split()) or type(error).__name__}
        say(said)


def _driver() -> dict[str, Any]:
    """version; gpus: of the driver's, whether torch sees them or not: name, uuid, mig (None, "on" or "off")."""
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
    """version; cuda: what it is built for, or None; architectures: those its kernels are for."""
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": list(torch.cuda.get_arch_list()),
    }


def _gpus() -> dict[str, Any]:
    """available: what `--device auto` asks; why: not, as torch has it. gpus: name, uuid (None from an older torch), memory in bytes,
    capability, and error: why nothing can be computed there, or None."""
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
    """version, distribution."""
    from qrdali.system import environment

    importlib.import_module("nvidia.dali")
    return _distribution(environment.dali())


def _codec() -> dict[str, Any]:
    from qrdali.system import environment

    return _distribution(environment.codec())


def _distribution(found: tuple[str, str] | None) -> dict[str, Any]:
    if found is None:
        raise ModuleNotFoundError("it is not installed")
    return {"version": found[1], "distribution": found[0]}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": _driver,
    "torch": _torch,
    "gpus": _gpus,
    "torchvision": _torchvision,
    "timm": _timm,
    "dali": _dali,
    "codec": _codec,
}
