"""Schedules of the learning rate in two processes: killed, stopped by SIGUSR1 and resumed, and equal to runs
that never were."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torchrun_helpers import rows, torchrun

from qrdali.data.index import Dataset

COMMON: dict[str, Any] = {
    "method": "baseline",
    "model": "test_resnet",
    "input_size": 32,
    "batch_size": 8,
    "device": "cpu",
    "threads": 1,
    "patience": 1,
    "lr": 0.01,
    "save_every": "1",
}
RUNS: dict[str, dict[str, Any]] = {
    "plateau": {
        "lr_schedule": "plateau",
        "plateau_patience": 0,
        "max_epochs": 4,
        "patience": 3,
        "warmup_epochs": 0.5,
        "clip_grad": 0.5,
    },
    "wsd": {
        "lr_schedule": "wsd",
        "decay_epochs": 2,
        "max_epochs": 6,
        "ema": 0.9,
        "ema_warmup": True,
        "layer_decay": 0.8,
    },
    # All at once, from the run START.
    "stage": {
        "method": "linear",
        "reduction": "crop",
        "sequence": "paired-rounds",
        "step": 0.5,
        "lr_schedule": "stage",
        "stage_epochs": 2,
        "warmup_epochs": 0.5,
        "min_lr": 1e-4,
        "max_epochs": 5,
        "ema": 0.9,
        "ema_warmup": True,
        "clip_grad": 0.5,
        "layer_decay": 0.8,
        "freeze": "1",
    },
}
START: dict[str, Any] = {"method": "shared", "epochs": 1}
AVERAGED = [name for name, values in RUNS.items() if "ema" in values]


def entry(folder: Path, data: Path, name: str, **more: Any) -> dict[str, Any]:
    values = {**COMMON, **(START if name == "start" else RUNS[name]), "data": str(data)}
    if "freeze" in values:
        values["init"] = str(folder.parent / "whole" / "start")
    return {"run": str(folder / name), "settings": values, **more}


def test_two_ranks_end_as_if_never_killed_or_stopped(dataset: Dataset, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    # torchrun begins again after a rank is killed in the first run of `again`, and after each signal.
    what = [
        entry(whole, dataset.folder, "start"),
        *(entry(whole, dataset.folder, name) for name in RUNS),
        entry(again, dataset.folder, "plateau", kill=[1, 5]),
        entry(again, dataset.folder, "wsd", end=[1, 4], signal=int(signal.SIGUSR1)),
        entry(again, dataset.folder, "stage", end=[0, 8], signal=int(signal.SIGUSR2)),
    ]
    whole.mkdir()
    again.mkdir()
    done = torchrun(2, what, tmp_path, "--max-restarts", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("continuing after epoch 1") == 2
    assert done.stderr.count("stopped in epoch 2 after step") == 1
    for name in RUNS:
        one, other = (
            [
                {
                    k: v
                    for k, v in row.items()
                    if not any(t in k for t in ("second", "time", "memory", "energy"))
                }
                for row in rows(folder / name)
            ]
            for folder in (whole, again)
        )
        assert one == other
        assert len({row["lr"] for row in one}) > 2  # the schedule has done something
        files = ("last/model", "last/optimizer", "last/random", "best/model")
        for file in (*files, "last/ema") if name in AVERAGED else files:
            first, second = (load_file(folder / name / f"{file}.safetensors") for folder in (whole, again))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), (name, file)
    assert rows(whole / "wsd")[-1]["lr"] == pytest.approx(0, abs=1e-9)
