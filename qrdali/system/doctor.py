"""Judges the facts of a machine for training on it, and advises.

Pure: `pipelines.survey` and `machine` gather the facts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qrdali.system.machine import Memory, Processors, Space

OK: Literal["ok"] = "ok"
WARNING: Literal["warning"] = "warning"  # training works
PROBLEM: Literal["problem"] = "problem"  # it does not, as it stands
State = Literal["ok", "warning", "problem"]

OLDEST_PYTHON = (3, 10)
# The oldest driver per major version of CUDA: NVIDIA's table of minor version compatibility.
DRIVERS: dict[int, tuple[int, ...]] = {11: (450,), 12: (525,), 13: (580,)}
# nvImageCodec's documentation asks for more than CUDA 12 does.
CODEC_DRIVERS: dict[int, tuple[int, ...]] = {12: (530, 30)}
# Bytes: of shared memory, memory and free disk below which to warn, and of disk below which no run fits.
LITTLE_SHARED, LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 64 << 20, 2 << 30, 1 << 30, 10 << 20

_AGAIN = "install it again, in the version of constraints.txt"
_CHECK = (
    "check nvidia-smi and the driver on the host; a container needs --gpus all and the NVIDIA Container "
    "Toolkit"
)


@dataclass(frozen=True)
class Finding:
    """One finding: what was examined, its value and state, and advice, "" where nothing is to be done."""

    name: str
    value: str
    state: State = OK
    advice: str = ""


@dataclass(frozen=True)
class Facts:
    """Holds what is known of a machine.

    python: its version. parts: what `pipelines.survey` found of driver, torch, gpus, torchvision, timm, dali
    and codec. visible: the variable CUDA_VISIBLE_DEVICES. decoding: for "cpu" and "gpu" why it fails,
    None where it works; absent if it was not tried. run: the folder that `disk` describes.
    """

    python: tuple[int, int, int]
    parts: Mapping[str, Mapping[str, Any]]
    visible: str | None
    decoding: Mapping[str, str | None]
    processors: Processors
    memory: Memory
    shared: Space | None
    run: str
    disk: Space


def examine(facts: Facts) -> list[Finding]:
    """Returns every finding, in the order in which they are to be read."""
    return [
        _python(facts.python),
        *_packages(facts.parts),
        *_drivers(facts.parts),
        *_gpus(facts),
        *_decoding(facts),
        _processors(facts.processors),
        _memory(facts.memory),
        _shared(facts.shared),
        _disk(facts.run, facts.disk),
    ]


def verdict(findings: list[Finding]) -> State:
    """Returns the worst state of the findings."""
    return max((finding.state for finding in findings), key=(OK, WARNING, PROBLEM).index, default=OK)


def _python(version: tuple[int, int, int]) -> Finding:
    value = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        return Finding("Python", value, PROBLEM, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    return Finding("Python", value)


def _packages(parts: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    findings = []
    for part, name in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("timm", "timm"),
        ("dali", "DALI"),
        ("codec", "nvImageCodec"),
    ):
        facts = parts[part]
        if "error" in facts:
            advice = (
                "torch and torchvision must be a pair: install both in the versions of constraints.txt"
                if part == "torchvision"
                else _AGAIN
            )
            findings.append(Finding(name, facts["error"], PROBLEM, advice))
            continue
        value = str(facts["version"])
        if part == "torch":
            value += f", built for CUDA {facts['cuda']}" if facts["cuda"] else ", built without CUDA"
        elif (cuda := _cuda_of(facts)) is not None:
            value += f", built for CUDA {cuda}"
        findings.append(Finding(name, value))
    return findings


def _drivers(parts: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Compares the driver with what each package needs.

    One that is too old is a warning: the CPU still trains.
    """
    driver = parts["driver"]
    if "error" in driver:
        return [
            Finding("driver", f"not found: {driver['error']}", WARNING, f"for training on a GPU {_CHECK}")
        ]
    version = _numbers(driver["version"])
    lacking = [
        f"{name} needs {'.'.join(map(str, least))} or newer"
        for name, least in needs(parts).items()
        if version < least
    ]
    if lacking:
        return [
            Finding(
                "driver",
                driver["version"],
                WARNING,
                f"{'; '.join(lacking)}: update the driver, or install packages built for the CUDA it has "
                "(torch's CUDA 12 builds)",
            )
        ]
    return [Finding("driver", driver["version"])]


def needs(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Returns the oldest driver that each package works with, by package and CUDA.

    Only packages that name their CUDA have one; a CUDA that is newer than the table needs nothing.
    """
    oldest: dict[str, tuple[int, ...]] = {}
    if (cuda := parts["torch"].get("cuda")) and (least := DRIVERS.get(_numbers(cuda)[0])):
        oldest[f"torch for CUDA {cuda}"] = least
    for part, name, table in (
        ("dali", "DALI", DRIVERS),
        ("codec", "nvImageCodec", {**DRIVERS, **CODEC_DRIVERS}),
    ):
        if (major := _cuda_of(parts[part])) is not None and (least := table.get(major)):
            oldest[f"{name} for CUDA {major}"] = least
    return oldest


def _gpus(facts: Facts) -> list[Finding]:
    seen, driver, torch = facts.parts["gpus"], facts.parts["driver"], facts.parts["torch"]
    if "error" in seen:
        if "error" in torch:
            return []  # torch's own finding says it
        return [
            Finding(
                "GPU",
                f"torch cannot look: {seen['error']}",
                PROBLEM,
                "train with CUDA_VISIBLE_DEVICES= set to nothing, which hides the GPUs; restart the machine "
                "or its driver",
            )
        ]
    if seen["available"]:
        return [_gpu(i, gpu, torch, driver) for i, gpu in enumerate(seen["gpus"])]
    cards = driver.get("gpus", [])
    if not cards:
        return [
            Finding(
                "GPU",
                "none",
                WARNING,
                f"training uses the CPU; {_CHECK}"
                if "error" not in driver
                else "training uses the CPU: see the driver",
            )
        ]
    value = f"torch sees none of {len(cards)} ({cards[0]['name']}): {seen['why']}"
    if facts.visible is not None:
        advice = f"CUDA_VISIBLE_DEVICES is {facts.visible!r}: unset it, or give the number of a GPU"
    elif any(gpu["mig"] == "on" for gpu in cards):
        advice = "MIG is on: make an instance (nvidia-smi mig -cgi … -C), or turn MIG off"
    elif not torch.get("cuda"):
        advice = "install torch's CUDA build"
    else:
        advice = "see the driver above; training uses the CPU"
    return [Finding("GPU", value, WARNING, advice)]


def _gpu(number: int, gpu: Mapping[str, Any], torch: Mapping[str, Any], driver: Mapping[str, Any]) -> Finding:
    major, minor = gpu["capability"]
    value = f"{gpu['name']}, {_size(gpu['memory'])}, compute capability {major}.{minor}"
    if "MIG" in gpu["name"]:
        value += ", a part of a card"
    elif (mig := {card["uuid"]: card["mig"] for card in driver.get("gpus", [])}.get(gpu["uuid"])) is not None:
        value += f", MIG {mig}"
    if gpu["error"] is None:
        return Finding(f"GPU {number}", value)
    built = ", ".join(torch.get("architectures", [])) or "none"
    return Finding(
        f"GPU {number}",
        f"{value}: {gpu['error']}",
        PROBLEM if number == 0 else WARNING,
        f"torch computes nothing here: is the card in use, or older than this build (made for {built})? "
        "--device cpu does without it",
    )


def _decoding(facts: Facts) -> list[Finding]:
    tried, cpu = facts.decoding, facts.decoding.get("cpu", "it was not tried")
    findings = [
        Finding("CPU decode", "works, with the pixels of Pillow")
        if cpu is None
        else Finding(
            "CPU decode", f"fails: {cpu}", PROBLEM, "see DALI above; install DALI and nvImageCodec again"
        )
    ]
    if "gpu" in tried:
        findings.append(
            Finding("GPU decode", "works")
            if tried["gpu"] is None
            else Finding(
                "GPU decode",
                f"fails: {tried['gpu']}",
                PROBLEM,
                "see the driver and DALI above, free the GPU if it is full; --device cpu trains without it",
            )
        )
    return findings


def _processors(processors: Processors) -> Finding:
    value = f"{processors.usable} of {processors.machine}"
    if processors.quota is not None and processors.quota < processors.affinity:
        return Finding(
            "CPU threads",
            f"{value}: this container may use the time of {processors.quota:g}",
            WARNING,
            f"qrdali decodes with {processors.usable}; set OMP_NUM_THREADS={processors.usable}, for torch "
            "counts processors, or give the container more (--cpus)",
        )
    if processors.usable == 1:
        return Finding(
            "CPU threads",
            value,
            WARNING,
            "decoding and training share one: give more (--cpus, --cpuset-cpus, taskset)",
        )
    return Finding("CPU threads", value)


def _memory(memory: Memory) -> Finding:
    usable = memory.machine if memory.limit is None else memory.limit
    value = _size(usable)
    if memory.limit is not None:
        value += f" is this container's limit, of {_size(memory.machine)}"
    if usable < LITTLE_MEMORY:
        return Finding(
            "memory",
            value,
            WARNING,
            "torch and DALI alone take nearly 1 GiB: give more (--memory), or a small --batch-size",
        )
    return Finding("memory", value)


def _shared(space: Space | None) -> Finding:
    if space is not None and space.total > LITTLE_SHARED:
        return Finding("shared memory", f"{_size(space.free)} free of {_size(space.total)}")
    return Finding(
        "shared memory",
        "there is no /dev/shm" if space is None else f"{_size(space.total)} in /dev/shm",
        WARNING,
        "enough for one process; several GPUs exchange gradients through it, and `qrdali bench loader` "
        "images: start the container with --ipc=host or --shm-size=8g",
    )


def _disk(run: str, space: Space) -> Finding:
    value = f"{_size(space.free)} free of {_size(space.total)} in {run}"
    if space.problem is not None:
        return Finding(
            "run folder",
            f"{run} cannot be written: {space.problem}",
            PROBLEM,
            "choose another folder; in a container mount a volume that its user may write (-v, --user)",
        )
    if not space.total:  # some of FUSE and mounts of object stores
        return Finding("run folder", f"{run}: its file system does not tell how much is free")
    if space.free < NO_DISK:
        return Finding(
            "run folder", value, PROBLEM, "a run needs room for two copies of its weights: free some"
        )
    if space.free < LITTLE_DISK:
        return Finding("run folder", value, WARNING, "a run of a large network does not fit: free some")
    return Finding("run folder", value)


def _cuda_of(package: Mapping[str, Any]) -> int | None:
    """Returns the major version of CUDA in the name of a distribution, such as -cuda120 or -cu12, or None."""
    match = re.search(r"-cu(?:da)?(\d\d)", package.get("distribution", ""))
    return int(match[1]) if match else None


def _numbers(version: str) -> tuple[int, ...]:
    """Returns 535.183.01 as (535, 183, 1); (0,) where nothing is a number."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:4]) or (0,)


def _size(count: int) -> str:
    """Returns a number of bytes as people read it, such as 7.5 GiB."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.{0 if count >= 10 * size else 1}f} {unit}"
    return f"{count / 1024:.0f} KiB"
