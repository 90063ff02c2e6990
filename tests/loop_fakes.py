"""A run without files, DALI and command line: a few numbers as images, and a network of one layer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from qrdali.distributed import SINGLE_PROCESS
from qrdali.errors import Interrupted, Unreadable
from qrdali.interfaces import Batch, CandidateBatch, RunContext, SilentListener, never_stop
from qrdali.models import Preprocessing
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for
from qrdali.system.energy import EnergyMeter
from qrdali.training.run_spec import RunSpec, Split, Splits
from qrdali.training.tracked_sets import TrackedSets
from qrdali.training.trainer import Trainer

CPU = torch.device("cpu")
SIDE = 2  # of the network's input
CLASSES = ("even", "odd")


class FakeIndex:
    """An index of `count` images of 8 x 8 pixels, whose labels alternate."""

    fingerprint = "fake"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fingerprint_like(self, recorded: object) -> str:
        return self.fingerprint

    def labels(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return samples % 2

    def sizes(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        return np.full((len(samples), 2), 8, np.int32)

    def paths(self, samples: npt.NDArray[np.int64]) -> list[str]:
        return [f"image-{sample}.jpg" for sample in samples]

    indexed_paths = paths


def pixels(samples: npt.NDArray[np.int64], levels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Images float32 [N, 3, 2, 2] that depend on sample and level alone."""
    values = np.sin(samples * 1.7 + 1) + 2.0 * (samples % 2) - levels.sum(axis=1)
    return torch.from_numpy(values).float()[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()


class FakeSource:
    """Yields the batches of a plan. bad: samples that cannot be read from now on. plans: those that were
    asked for."""

    def __init__(self, index: FakeIndex) -> None:
        self.index, self.bad, self.plans = index, set[int](), list[EpochPlan]()

    def epoch(
        self, plan: EpochPlan, on_unreadable: Callable[[dict[int, str]], None] | None = None
    ) -> Iterator[Batch]:
        self.plans.append(plan)
        for number in range(plan.first_batch, plan.batches):
            samples = plan.batch(number)
            reasons = {
                int(sample): f"sample {sample} is bad" for sample in samples if int(sample) in self.bad
            }
            if reasons and on_unreadable is not None:
                on_unreadable(reasons)
                samples = samples[~np.isin(samples, list(reasons))]
            images = pixels(samples, plan.levels.for_samples(samples))
            yield Batch(
                images, torch.from_numpy(self.index.labels(samples)), torch.from_numpy(samples), number
            )

    def candidates(
        self, requests: Any, max_batch: int, columns: tuple[int, ...], with_images: bool
    ) -> Iterator[CandidateBatch]:
        for request in requests:
            if bad := [int(sample) for sample in request.samples if int(sample) in self.bad]:
                raise Unreadable({sample: f"sample {sample} is bad" for sample in bad})
            levels = request.candidates.levels
            images = [pixels(request.samples, levels[:, k]) for k in range(len(columns))]
            reduced = [
                [_picture(size) for size in request.candidates.size[:, k]] for k in range(len(columns))
            ]
            yield CandidateBatch(request, torch.stack(images), reduced if with_images else None)


def _picture(size: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    return np.full((int(size[0]), int(size[1]), 3), 128, np.uint8)


class Recorder(SilentListener):
    """Keeps lines and warnings, and calls `at_batch` with the pass and its batch, from 1."""

    def __init__(self, at_batch: Callable[[str, int], None] = lambda what, batch: None) -> None:
        self.lines, self.warnings = list[str](), list[str]()
        self.at_batch, self.what, self.batch = at_batch, "", 0

    def begin(self, what: str, total: int, unit: str = "images") -> None:
        self.what, self.batch = what, 0

    def advance(self, images: int, note: Callable[[], str]) -> None:
        self.batch += 1
        self.at_batch(self.what, self.batch)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(3 * SIDE * SIDE, 2))


def trainer_of(
    run: Path, listener: Recorder | None = None, stop: Callable[[], int] = never_stop, **values: Any
) -> Trainer:
    """A trainer of 12 training and 8 validation images, in batches of 4."""
    run.mkdir(exist_ok=True)
    settings = validate_settings(
        {
            "method": "baseline",
            "data": "",
            "batch_size": 4,
            "lr": 0.05,
            "device": "cpu",
            "max_bad": 0.2,
            **values,
        }
    )
    facts = {"environment": {"python": "fake"}}
    preprocessing = Preprocessing(SIDE, "whole", 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)
    spec = RunSpec(settings, run, network(), preprocessing, CLASSES, facts)
    train, val = FakeIndex(12), FakeIndex(8)
    splits = Splits(Split(FakeSource(train), train), Split(FakeSource(val), val), TrackedSets())  # type: ignore[arg-type]
    autocast, _ = autocast_for("off", CPU)
    context = RunContext(CPU, autocast, EnergyMeter(CPU), SINGLE_PROCESS, listener or Recorder(), stop)
    return Trainer(spec, splits, context)


def stopped_again_and_again(run: Path, **values: Any) -> int:
    """Trains by `trainer_of`, is stopped by a signal at one of the first five chances to look for one, and
    continues, until the run has ended. Returns how often it was stopped."""
    for stops in range(100):
        calls = iter(range(10**6))
        due = 1 + stops % 5
        try:
            trainer_of(run, stop=lambda c=calls, due=due: 15 if next(c) >= due else 0, **values).train(True)
            return stops
        except Interrupted:
            pass
    raise AssertionError("the run was stopped 100 times")
