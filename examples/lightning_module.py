"""The loop of own_loop.py under Lightning: after each validation the schedule says what is reduced next.

qrdali data shapes images && qrdali data index images --out data
pip install lightning && python examples/lightning_module.py data [CHECKPOINT, to go on from]
"""

import copy
import sys
from typing import Any

import timm
import torch
from lightning import LightningModule, Trainer

import qrdali


class Linear(LightningModule):
    """The method `linear`. Unlike in own_loop.py the weights before the first epoch are never the best."""

    def __init__(self, model: str, images: qrdali.Loader, lr: float = 1e-3, **bounds: Any) -> None:
        super().__init__()
        network = timm.create_model(model, num_classes=len(images.classes))
        self.network = network.to(memory_format=torch.channels_last)
        sizes = images.split.sizes(torch.arange(len(images.split)).numpy())  # some levels may change nothing
        self.schedule = qrdali.Schedule("linear", sizes=sizes, **bounds)
        self.lr, self.best, self.kept, self.right = lr, None, None, []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), self.lr, weight_decay=0)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, number: int) -> None:
        self.right.append(self.network(batch[0]).argmax(1) == batch[1])

    def on_validation_epoch_end(self) -> None:
        event = self.schedule.report(float(torch.cat(self.right).double().mean()))
        parts, self.right = (self.network, *self.trainer.optimizers), []
        if event.is_best_of_run:
            self.best = copy.deepcopy(self.network.state_dict())
        if event.is_best_of_stage:
            self.kept = copy.deepcopy([part.state_dict() for part in parts])
        if event.stage_end_reason:
            for part, state in zip(parts, self.kept, strict=True):
                part.load_state_dict(state)
        self.trainer.should_stop = bool(self.schedule.ended)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["linear"] = (self.schedule.state_dict(), self.best, self.kept)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state, self.best, self.kept = checkpoint["linear"]
        self.schedule.load_state_dict(state)


class Batches:  # what Lightning goes through once per epoch
    def __init__(self, begin: Any) -> None:
        self.begin = begin

    def __iter__(self) -> Any:
        for batch in self.begin():  # a pass of a loader, begun at the first batch
            yield batch.images, batch.labels


def fit(module: Linear, train: qrdali.Loader, val: qrdali.Loader, file: Any = None, **options: Any) -> None:
    """Trains to the end of the schedule, from a checkpoint on; the module then has the run's best weights."""
    how: Any = {"augment": "flip", "seed": options.pop("seed", 0)}
    full = Batches(lambda: val.epoch(0, shuffle=False))
    reduced = Batches(lambda: train.epoch((due := next(module.schedule)).number, quality=due.quality, **how))
    Trainer(max_epochs=-1, num_sanity_val_steps=0, **options).fit(module, reduced, full, ckpt_path=file)
    module.network.load_state_dict(module.best)


if __name__ == "__main__":
    data = qrdali.Dataset.open(sys.argv[1])
    train, val = (qrdali.Loader(data[split], model="resnet10t", input_size=96) for split in ("train", "val"))
    fit(Linear("resnet10t", train, sequence="paired-rounds", reduction="crop"), train, val, *sys.argv[2:])
