"""A training loop of one's own: qrdali.Schedule says which epochs are reduced, qrdali.Loader reduces them.

The method is `linear` in paired rounds: a round of reduced epochs, a round of full ones, then one level
further down. With the same network, optimizer and seed it reaches what `qrdali.train("linear", …)` reaches,
on a CPU bit for bit.

    qrdali data shapes images && qrdali data index images --out data
    python examples/own_loop.py data
"""

import copy
import sys
from typing import Any

import timm
import torch
from torch import nn

import qrdali


def fit(
    data: qrdali.Dataset,
    *,
    model: str = "resnet10t",
    input_size: int = 96,
    batch_size: int = 32,
    lr: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
    **bounds: Any,  # of the schedule: patience, max_epochs, …
) -> tuple[nn.Module, list[tuple[int, str, int, float]]]:
    """Returns the network with its best weights, and (number, phase, stage, accuracy) of each epoch."""
    options: Any = {"model": model, "input_size": input_size, "batch_size": batch_size, "device": device}
    train, val = qrdali.Loader(data["train"], **options), qrdali.Loader(data["val"], **options)
    torch.manual_seed(seed)
    network = timm.create_model(model, num_classes=len(data.classes))
    network.to(next(val.epoch(0, shuffle=False)).images.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0)

    start = accuracy(network, val)  # the start counts as epoch 0 of the run's best
    rounds = {"sequence": "paired-rounds", "reduction": "crop", "start_accuracy": start, **bounds}
    schedule = qrdali.Schedule("linear", **rounds)
    best, rows = copy.deepcopy(network.state_dict()), []
    for epoch in schedule:
        network.train()
        for batch in train.epoch(epoch.number, quality=epoch.quality, augment="flip", seed=seed):
            loss = nn.functional.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        reached = accuracy(network, val)
        event = schedule.report(reached)
        if event.is_best_of_run:
            best = copy.deepcopy(network.state_dict())
        if event.is_best_of_stage:  # what the round returns to: weights, batch norm and optimizer together
            kept = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
        if event.stage_end_reason:
            network.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
        rows.append((epoch.number, epoch.phase, epoch.stage, reached))
        print(f"epoch {epoch.number:3d} {epoch.phase} val {reached:.4f} {event.stage_end_reason}")
    network.load_state_dict(best)
    return network.eval(), rows


@torch.inference_mode()
def accuracy(network: nn.Module, val: qrdali.Loader) -> float:
    """Returns the share of images that the network classifies correctly, at full quality."""
    network.eval()
    batches = val.epoch(0, shuffle=False)
    return sum(int((network(b.images).argmax(1) == b.labels).sum()) for b in batches) / len(val.split)


if __name__ == "__main__":
    fit(qrdali.Dataset.open(sys.argv[1]))
