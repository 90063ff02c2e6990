"""A training loop of one's own: qrdali.Schedule says which epochs are reduced, qrdali.Loader reduces them.

The method is `linear` in paired rounds: a round of reduced epochs, a round of full ones, then one level
further down. With the same network, optimizer and seed it reaches what `qrdali.train("linear", …)` reaches,
on a CPU bit for bit. It may be stopped at any time; the same call goes on after the last whole epoch.

    qrdali data shapes images && qrdali data index images --out data
    python examples/own_loop.py data own_loop.pt
"""

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

import qrdali

Row = tuple[int, str, int, float]  # epoch, phase, stage, accuracy


def fit(
    train: qrdali.Loader, val: qrdali.Loader, file: Path, *, model: str, lr: float, seed: int, **bounds: Any
) -> tuple[nn.Module, list[Row]]:
    """Returns the network with its best weights, and a row per epoch; `file` is where it goes on."""
    torch.manual_seed(seed)
    network = timm.create_model(model, num_classes=len(train.classes))
    network.to(next(val.epoch(0, shuffle=False)).images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0)
    bounds["sizes"] = train.split.sizes(np.arange(len(train.split)))  # some levels may change no image
    bounds["start_accuracy"] = accuracy(network, val)  # the start counts as epoch 0 of the run's best
    schedule = qrdali.Schedule("linear", sequence="paired-rounds", reduction="crop", **bounds)

    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    saved: Any = {"best": copy.deepcopy(network.state_dict()), "kept": None, "rows": []}
    if file.exists():
        saved = torch.load(file)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    for epoch in schedule:
        torch.manual_seed(seed + epoch.number)  # dropout then is the same after a stop
        network.train()
        for batch in train.epoch(epoch.number, quality=epoch.quality, augment="flip", seed=seed):
            loss = nn.functional.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        event = schedule.report(reached := accuracy(network, val))
        if event.is_best_of_run:
            saved["best"] = copy.deepcopy(network.state_dict())
        if event.is_best_of_stage:  # what the round returns to: weights, batch norm and optimizer together
            saved["kept"] = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        if event.stage_end_reason:
            network.load_state_dict(saved["kept"][0])
            optimizer.load_state_dict(saved["kept"][1])
        saved["rows"].append((epoch.number, str(epoch.phase), epoch.stage, reached))
        torch.save(saved | {name: part.state_dict() for name, part in parts.items()}, f"{file}.new")
        Path(f"{file}.new").replace(file)  # whole or not at all
        print(f"epoch {epoch.number:3d} {epoch.phase} val {reached:.4f} {event.stage_end_reason}")
    network.load_state_dict(saved["best"])
    return network.eval(), saved["rows"]


@torch.inference_mode()
def accuracy(network: nn.Module, val: qrdali.Loader) -> float:
    """Returns the share of images that the network classifies correctly, at full quality."""
    network.eval()
    batches = val.epoch(0, shuffle=False)
    return sum(int((network(b.images).argmax(1) == b.labels).sum()) for b in batches) / len(val.split)


if __name__ == "__main__":
    data = qrdali.Dataset.open(sys.argv[1])
    train, val = (qrdali.Loader(data[split], model="resnet10t", input_size=96) for split in ("train", "val"))
    fit(train, val, Path(sys.argv[2]), model="resnet10t", lr=1e-3, seed=0)
