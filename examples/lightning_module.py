"""The loop of own_loop.py under Lightning: after each validation the schedule says what is reduced next.

qrdali data shapes images && qrdali data index images --out data
pip install lightning && python examples/lightning_module.py data
"""

import copy
import sys
from typing import Any

import lightning
import timm
import torch

import qrdali


class Linear(lightning.LightningModule):
    """The method `linear` at the learning rate `lr`, with `options` of qrdali.Schedule."""

    def __init__(self, model: str, classes: int, lr: float = 1e-3, **options: Any) -> None:
        super().__init__()
        self.network = timm.create_model(model, num_classes=classes).to(memory_format=torch.channels_last)
        self.lr, self.options, self.schedule, self.right = lr, options, None, []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), self.lr, weight_decay=0)

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, number: int) -> None:
        self.right.append(self.network(batch[0]).argmax(1) == batch[1])

    def on_validation_epoch_end(self) -> None:
        accuracy, self.right = float(torch.cat(self.right).double().mean()), []
        self.log("val_accuracy", accuracy)
        if self.schedule is None:  # the weights before the first epoch
            self.schedule = qrdali.Schedule("linear", start_accuracy=accuracy, **self.options)
            self.best = copy.deepcopy(self.network.state_dict())
            self.epoch = next(self.schedule)
            return
        event, optimizer = self.schedule.report(accuracy), self.trainer.optimizers[0]
        if event.is_best_of_run:
            self.best = copy.deepcopy(self.network.state_dict())
        if event.is_best_of_stage:
            self.kept = copy.deepcopy((self.network.state_dict(), optimizer.state_dict()))
        if event.stage_end_reason:
            self.network.load_state_dict(self.kept[0])
            optimizer.load_state_dict(self.kept[1])
        self.epoch = next(self.schedule, None)
        self.trainer.should_stop = self.epoch is None


class Batches:
    """What Lightning goes through once per epoch: a loader's pass, as `how()` says at that moment."""

    def __init__(self, loader: qrdali.Loader, how: Any) -> None:
        self.loader, self.how = loader, how

    def __iter__(self) -> Any:
        return ((batch.images, batch.labels) for batch in self.loader.epoch(**self.how()))


def fit(module: Linear, train: qrdali.Loader, val: qrdali.Loader, seed: int = 0, **options: Any) -> None:
    """Trains to the end of the schedule; the module then has the best weights of the run."""
    full = Batches(val, lambda: {"number": 0, "shuffle": False})
    seen = {"augment": "flip", "seed": seed}
    reduced = Batches(train, lambda: {"number": module.epoch.number, "quality": module.epoch.quality, **seen})
    trainer = lightning.Trainer(max_epochs=-1, enable_checkpointing=False, num_sanity_val_steps=0, **options)
    trainer.validate(module, full, verbose=False)
    trainer.fit(module, reduced, full)
    module.network.load_state_dict(module.best)


if __name__ == "__main__":
    data = qrdali.Dataset.open(sys.argv[1])
    train, val = (qrdali.Loader(data[split], model="resnet10t", input_size=96) for split in ("train", "val"))
    fit(Linear("resnet10t", len(data.classes), sequence="paired-rounds", reduction="crop"), train, val)
