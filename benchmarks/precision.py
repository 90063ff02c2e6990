"""Measures what mixed precision and the channels-last layout are worth here; JSON on stdout.

Seconds of a training step, kinds alternating.

    python benchmarks/precision.py > precision.json

Ratios are to float32 in channels-last, which is what `qrdali train` uses on a CPU; on a GPU it adds bf16, or
fp16 where the card has none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qrdali import models
from qrdali.system.device import autocast_for, resolve_device
from qrdali.workflows.bench_loader import machine

MODELS = {"squeezenet1_1": 224, "test_resnet": 96, "efficientnet_b3": 96, "resnet152": 64}


def step(
    name: str, side: int, batch: int, device: torch.device, amp: str, layout: torch.memory_format
) -> Callable[[], None]:
    """Returns a function that does one training step of a fresh network on fixed random images."""
    torch.manual_seed(0)
    model = models.create(name, 20).to(device, memory_format=layout).train()  # type: ignore[call-overload]
    images = torch.rand(batch, 3, side, side, device=device).to(memory_format=layout)
    labels = torch.arange(batch, device=device) % 20
    optimizer, loss = torch.optim.AdamW(model.parameters(), 1e-4), nn.CrossEntropyLoss()
    autocast, scaled = autocast_for(amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def run() -> None:
        with autocast():
            value = loss(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        value.item()  # waits for the device

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=MODELS)
    args = parser.parse_args()
    device = resolve_device("auto")
    amps = ["off", "bf16"] + (["fp16"] if device.type == "cuda" else [])
    result: dict[str, Any] = {
        "machine": machine(),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "models": {},
    }
    for name in args.only:
        kinds = {f"{amp}, channels-last": (amp, torch.channels_last) for amp in amps}
        kinds["off, contiguous"] = ("off", torch.contiguous_format)
        steps = {kind: step(name, MODELS[name], args.batch_size, device, *how) for kind, how in kinds.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(args.rounds + 1):
            for kind, run in steps.items():
                begun = time.perf_counter()
                run()
                if turn:  # the first warms up
                    seconds[kind].append(time.perf_counter() - begun)
        base = seconds["off, channels-last"]
        result["models"][name] = {
            "input_size": MODELS[name],
            **{
                kind: {
                    "seconds": round(statistics.median(taken), 4),
                    "ratio": round(statistics.median(a / b for a, b in zip(taken, base, strict=True)), 3),
                }
                for kind, taken in seconds.items()
            },
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
