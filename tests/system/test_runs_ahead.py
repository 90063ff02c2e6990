"""How many training steps the host queues while the device is busy, and that none of them waits for it.

On a GPU the device is kept busy by one long kernel. On a CPU a clock stands for it, and whatever waits for
the device sleeps until then: this shows that the test itself sees a wait.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from devices import DEVICES
from loop_fakes import CLASSES
from torch import nn

from qrdali import models
from qrdali.data.index import Dataset
from qrdali.distributed import SINGLE_PROCESS
from qrdali.interfaces import Batch, RunContext, SilentListener, never_stop
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import ConstantLevels
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for
from qrdali.system.device_copies import wait_for_device
from qrdali.system.energy import EnergyMeter
from qrdali.training.epoch_totals import EpochSums
from qrdali.training.finite_check import FiniteCheck
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.run_spec import RunSpec

SECONDS = 2.0  # that the device is busy
CYCLES = int(2e9 * SECONDS)  # of a clock of at most 2 GHz
SIDE = 32
STEPS = 8  # their kernels fit into CUDA's queue of about a thousand launches
DEPTH = 3  # batches that DALI prepares ahead
PRE = Preprocessing(SIDE, "whole", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)


class Busy:
    """A device that has work for SECONDS, from its making on."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.until = device, time.monotonic() + SECONDS
        if device.type == "cuda":
            torch.cuda._sleep(CYCLES)
            self.done = torch.cuda.Event()
            self.done.record()

    def __bool__(self) -> bool:
        return not self.done.query() if self.device.type == "cuda" else time.monotonic() < self.until

    def wait(self) -> None:
        """Waits as reading a number off the device does."""
        if self.device.type == "cuda":
            torch.zeros((), device=self.device).item()
        else:
            time.sleep(max(0.0, self.until - time.monotonic()))


@contextmanager
def refused_waits(device: torch.device) -> Iterator[None]:
    """Has torch raise an error where one of its operators would wait for a GPU."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train_step(folder: Path, device: torch.device, model: nn.Module, amp: str = "off") -> TrainStep:
    values = {"method": "baseline", "data": "", "lr": 0.01, "optimizer": "adamw", "amp": amp}
    spec = RunSpec(validate_settings(values), folder, model, PRE, CLASSES, {})
    context = RunContext(
        device,
        autocast_for(amp, device)[0],
        EnergyMeter(device),
        SINGLE_PROCESS,
        SilentListener(),
        never_stop,
    )
    return TrainStep(spec, 64, context)


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


def in_memory(device: torch.device) -> Batch:
    numbers = torch.arange(4, device=device)
    return Batch(torch.rand(4, 3, SIDE, SIDE, device=device), numbers, numbers, 0)


def queued(busy: Busy, steps: Iterator[None]) -> int:
    """How many of `steps` are complete on the host while the device is still busy."""
    count = 0
    for _ in steps:
        if not busy:
            break
        count += 1
    wait_for_device(busy.device)
    return count


def stepping(step: TrainStep, batches: Iterator[Batch], between: Callable[[], None]) -> Iterator[None]:
    """Takes steps as an epoch does, with its sums and its check of losses."""
    sums, finite = EpochSums.zero(next(step.model.parameters()).device), FiniteCheck()
    for number, batch in enumerate(batches):
        outcome = step.step(batch, len(batch.labels))
        assert outcome is not None
        sums = sums.add(*outcome)
        finite.record(number + 1, outcome[0], batch.samples)
        between()
        yield


@pytest.mark.parametrize("device", DEVICES)
def test_steps_are_queued_while_the_device_is_busy(tmp_path: Path, device: torch.device) -> None:
    step, batch = train_step(tmp_path, device, tiny()), in_memory(device)
    warm = list(stepping(step, iter([batch] * STEPS), lambda: None))  # kernels are loaded when first used
    wait_for_device(device)
    assert len(warm) == STEPS
    busy = Busy(device)
    assert queued(busy, stepping(step, iter([batch] * STEPS), lambda: None)) == STEPS


@pytest.mark.parametrize("device", DEVICES)
def test_a_wait_in_a_step_is_seen(tmp_path: Path, device: torch.device) -> None:
    step, batch = train_step(tmp_path, device, tiny()), in_memory(device)
    list(stepping(step, iter([batch] * STEPS), lambda: None))
    wait_for_device(device)
    busy = Busy(device)
    assert queued(busy, stepping(step, iter([batch] * STEPS), busy.wait)) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_a_loader_come_while_the_device_is_busy(
    dataset: Dataset, tmp_path: Path, device: torch.device
) -> None:
    """DALI has some ready; what comes after them waits for the copies of these, which are queued."""
    index = dataset.index("train")
    step = train_step(tmp_path, device, tiny())
    loader = open_loader(index, PRE, 4, Engine(device.index, 2, DEPTH, whole_graph=True))
    plan = EpochPlan(len(index), 4, ConstantLevels(1, 1, 1), seed=1, epoch=1, training=True, augment="flip")
    assert len(list(stepping(step, loader.epoch(plan), lambda: None))) == 6
    steps = stepping(step, loader.epoch(replace(plan, epoch=2)), lambda: None)
    next(steps)
    wait_for_device(device)
    time.sleep(0.2)  # for what DALI prepares ahead
    assert queued(Busy(device), steps) >= DEPTH - 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_no_operator_of_a_step_waits(tmp_path: Path, device: torch.device, amp: str) -> None:
    model = models.create("test_resnet", 4)
    step, batch = train_step(tmp_path, device, model, amp), in_memory(device)
    step.step(batch, 4)  # the optimizer makes its state
    with refused_waits(device):
        outcome = step.step(batch, 4)
        assert outcome is not None
        EpochSums.zero(device).add(*outcome)
    assert torch.isfinite(outcome[0])
