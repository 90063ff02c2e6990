"""Augmentations in two processes: killed, stopped by a signal and resumed, and equal to runs that never
were."""

import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchrun_helpers import rows, torchrun

from qrdali.data.index import Dataset

COMMON: dict[str, Any] = {
    "model": "test_resnet",
    "input_size": 32,
    "batch_size": 8,
    "device": "cpu",
    "threads": 1,
    "lr": 0.01,
    "save_every": "1",
    "mixup": 0.4,
    "cutmix": 1.0,
    "erase": 0.5,
    "label_smoothing": 0.1,
}
RUNS: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline", "auto_augment": "rand-m9", "patience": 5, "max_epochs": 3},
    "linear": {
        "method": "linear",
        "reduction": "combination",
        "sequence": "RC",
        "auto_augment": "trivial",
        "patience": 1,
        "max_epochs": 4,
    },
}


def entry(folder: Path, data: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"run": str(folder / name), "settings": {**COMMON, **RUNS[name], "data": str(data)}, **more}


def test_two_ranks_end_as_if_never_killed_or_stopped(dataset: Dataset, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    whole.mkdir()
    again.mkdir()
    # torchrun begins again after a rank is killed in the third run, and after SIGUSR1 in the fourth.
    what = [
        *(entry(whole, dataset.folder, name) for name in RUNS),
        entry(again, dataset.folder, "baseline", kill=[1, 5]),
        entry(again, dataset.folder, "linear", end=[1, 4], signal=int(signal.SIGUSR1)),
    ]
    done = torchrun(2, what, tmp_path, "--max-restarts", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("continuing after epoch 1") == 2
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
        for file in ("last/model", "last/optimizer", "last/random", "best/model"):
            first, second = (load_file(folder / name / f"{file}.safetensors") for folder in (whole, again))
            assert first.keys() == second.keys()
            assert all(torch.equal(first[key], second[key]) for key in first), (name, file)
