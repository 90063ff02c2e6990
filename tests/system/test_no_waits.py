"""Nothing within a step waits for the device, and no tensor is on another one: shown on tensors that only say
that they are on a device.

What is only forward is shown on CUDA tensors. Gradients on such tensors need a driver, so training steps are
shown on meta tensors: no value can be read off these either.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from loop_fakes import CLASSES, FakeIndex
from no_waits import PERMITTED, QUEUED, NoWaits, Waits
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import adam, adamw, sgd
from torch.optim import optimizer as torch_optimizer
from torch.utils import _foreach_utils

from qrdali import models
from qrdali.distributed import SINGLE_PROCESS
from qrdali.evaluation.class_map import ClassMap
from qrdali.evaluation.predict import predict
from qrdali.interfaces import Batch, CandidateBatch, RunContext, SilentListener, never_stop
from qrdali.mepi.search import Search, SearchLimits, SearchRule, judge_own_classes
from qrdali.mepi.search_path import SearchPath
from qrdali.models import Preprocessing
from qrdali.pipelines import image_reducer, loader
from qrdali.reduction.levels import FULL_QUALITY, PerImageLevels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import QUARTERS, REDUCTIONS
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for
from qrdali.system.energy import EnergyMeter
from qrdali.training import optimizer, probe
from qrdali.training.epoch_totals import EpochSums
from qrdali.training.finite_check import FiniteCheck
from qrdali.training.level_stages import LevelStages
from qrdali.training.optimizer_step import TrainStep
from qrdali.training.probe import ProbeOptions
from qrdali.training.run_spec import RunSpec, Split

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
SIDE = 8
TRAIN_SIDE = 64

Seen = set[str]  # operators


class Event:
    """Stands in for torch.cuda.Event: work within a step may record one and may not wait for it."""

    def record(self, stream: object) -> None: ...

    def synchronize(self) -> None:
        raise Waits("an event")


@contextmanager
def steps() -> Iterator[tuple[nn.Module, NoWaits]]:
    """Gives a network that seems to be on a GPU, and the mode that watches what is done within the block."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = network()
        with NoWaits() as mode:
            yield model, mode


@contextmanager
def without_driver() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        yield patch


def network() -> nn.Module:
    with torch.device(CUDA):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, 2)).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.empty((*shape, SIDE, SIDE, 3), device=CUDA).movedim(-1, -3)


def context(device: torch.device = CUDA) -> RunContext:
    autocast = autocast_for("bf16", CUDA)[0] if device == CUDA else nullcontext
    return RunContext(device, autocast, EnergyMeter(CPU), SINGLE_PROCESS, SilentListener(), never_stop)


class Source:
    """Yields batches on the device, made without the host's waiting."""

    def epoch(self, plan: EpochPlan) -> Iterator[Batch]:
        for number in range(plan.batches):
            count = plan.count(number)
            numbers = torch.zeros(count, dtype=torch.int64, device=CUDA)
            yield Batch(images(count), numbers, numbers, number)


class Done(Exception):
    pass


MAP = ClassMap(("cat", "dog", "owl"), np.array([2, 2]), "argmax")


def evaluation(class_map: ClassMap | None) -> Seen:
    done = []

    def on_batch(count: int) -> None:
        done.append(count)
        if len(done) == 3:
            raise Done  # all is read once, after the last batch

    plan = EpochPlan(11, 4, FULL_QUALITY)
    with steps() as (model, mode), pytest.raises(Done):
        predict(model, cast("Any", Source()), plan, context(), on_batch=on_batch, class_map=class_map)
    assert done == [4, 4, 3]
    assert "convolution" in mode.seen
    assert ("maximum" in mode.seen) == (class_map is MAP)
    return mode.seen


def batch_of_a_probe(some_are_missing: bool) -> Seen:
    index, rule = FakeIndex(6), DescentRule(REDUCTIONS["combination"], QUARTERS)
    options, states = ProbeOptions(rule, 64), PerImageLevels.at_full_quality(6, True, False)
    split = Split(cast("Any", None), cast("Any", index))
    (request,) = probe.candidate_requests(split, states, options, lambda *_: None, SINGLE_PROCESS)
    request.candidates.exists[0, 1] = not some_are_missing
    with steps() as (model, mode), torch.inference_mode():
        rank = probe._RankProbe(model, split, states, options, context(), lambda *_: None)
        batch = CandidateBatch(request, images(len(options.columns), 6), None)
        right, confidence = rank._classify(batch).answers._copies
        assert right.shape == confidence.shape == (request.candidates.exists.sum(),)
        assert right.device.type == "cpu"
    assert ("index_select" in mode.seen) == some_are_missing
    return mode.seen


def batch_of_a_search(judge: Any) -> Seen:
    reducer = SimpleNamespace(network_inputs=lambda pixels, reduction: images(len(pixels)))
    rule = SearchRule(DescentRule(REDUCTIONS["combination"], QUARTERS))
    with steps() as (model, mode):
        search = Search(model, cast("Any", reducer), rule, SearchLimits(16, 1 << 20, 1), context(), judge)
        paths = [SearchPath(s, s % 2, np.empty((9, 9, 3), np.uint8), (9, 9)) for s in range(5)]
        search._take_in(iter(paths))
        answer, confidence, probability = search._classify(list(search._queue)).answers._copies
        assert answer.shape == confidence.shape == probability.shape == (5,)
        assert answer.device.type == "cpu"
    assert "cat" in mode.seen  # filled up to the batch size
    return mode.seen


def originals_of_a_search() -> Seen:
    """They are copied from DALI's memory on a stream: without one DALI's copy waits."""
    window = SimpleNamespace(shape=lambda: [9, 9, 3])
    with without_driver() as patch, steps() as (_, mode):
        patch.setattr(torch.cuda, "current_stream", lambda device: "stream")
        patch.setattr(image_reducer, "feed_ndarray", fed)
        reducer = image_reducer.GraphImageReducer.__new__(image_reducer.GraphImageReducer)
        reducer._engine, reducer._stream = cast("Any", SimpleNamespace(device_id=0)), None
        assert reducer._take_image([window], 0).device == CUDA
    return mode.seen


def fed(source: object, target: torch.Tensor, cuda_stream: object = None) -> None:
    """What DALI's feed_ndarray does, as far as torch sees it."""
    if target.is_cuda and cuda_stream is None:
        raise Waits("a copy without a stream")
    target.fill_(1)


def batch_of_a_loader() -> Seen:
    numbers = SimpleNamespace(dtype=SimpleNamespace(name="INT64"), shape=lambda: [4])

    class TensorGPU:
        dtype, shape = SimpleNamespace(name="FLOAT"), staticmethod(lambda: [4, SIDE, SIDE, 3])

    outputs = [SimpleNamespace(as_tensor=lambda tensor=t: tensor) for t in (TensorGPU(), numbers, numbers)]
    with without_driver() as patch, steps() as (_, mode):
        patch.setattr(torch.cuda, "current_stream", lambda device: "stream")
        patch.setattr(loader, "feed_ndarray", fed)
        graph = loader.GraphLoader.__new__(loader.GraphLoader)
        graph._engine = cast("Any", SimpleNamespace(device_id=0))
        (batch,) = graph._batches(iter([(cast("Any", SimpleNamespace(number=0)), tuple(outputs))]))
        assert batch.images.device == batch.labels.device == batch.samples.device == CUDA
    assert "_to_copy" in mode.seen
    return mode.seen


def feedback_of_a_step() -> Seen:
    with steps() as (_, mode):
        labels = torch.zeros(4, dtype=torch.int64, device=CUDA)
        stages = LevelStages.__new__(LevelStages)
        stages._epoch_feedback = torch.zeros(9, dtype=torch.uint8, device=CUDA)
        stages.record(labels, labels == 0)
    return mode.seen


def training_step(name: str, **values: Any) -> Seen:
    """Forward, backward, the optimizer's step, the average of weights, and what is added up."""
    settings = validate_settings({"method": "baseline", "data": "", "lr": 0.01, "amp": "off", **values})
    pre = Preprocessing(TRAIN_SIDE, "whole", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    spec = RunSpec(settings, Path(), models.create(name, 2), pre, CLASSES, {})
    generator = torch.Generator
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng([]):
        patch.setattr(
            torch, "Generator", lambda device: generator()
        )  # timm's, of which there is none for meta
        patch.setattr(optimizer, "fused_options", lambda name, device: {"fused": True})
        for module in (_foreach_utils, torch_optimizer, adam, adamw, sgd):
            if hasattr(module, "_get_fused_kernels_supported_devices"):
                patch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
        step = TrainStep(spec, 8, context(META))
        numbers = torch.zeros(4, dtype=torch.int64, device=META)
        batch = Batch(torch.empty(4, 3, TRAIN_SIDE, TRAIN_SIDE, device=META), numbers, numbers, 0)
        with NoWaits() as mode:
            for number in (1, 2):  # the optimizer makes its state in the first
                outcome = step.step(batch, 4)
                assert outcome is not None
                sums = EpochSums.zero(META).add(*outcome)
                FiniteCheck().record(number, outcome[0], batch.samples)
    assert outcome[0].device == outcome[1].device == sums.loss.device == sums.correct.device == META
    assert {"convolution_backward", "nll_loss_forward", step_of(settings.optimizer)} <= mode.seen
    return mode.seen


def step_of(name: str) -> str:
    return {"adamw": "_fused_adamw_", "adam": "_fused_adam_", "sgd": "_fused_sgd_"}[name]


WORKS: dict[str, Callable[[], Seen]] = {
    "evaluation": partial(evaluation, None),
    "evaluation by a class map": partial(evaluation, MAP),
    "evaluation by sums": partial(evaluation, ClassMap(MAP.classes, MAP.target, "sum")),
    "probe": partial(batch_of_a_probe, False),
    "probe with candidates that do not exist": partial(batch_of_a_probe, True),
    "search": partial(batch_of_a_search, judge_own_classes),
    "search by a class map": partial(batch_of_a_search, MAP.judge),
    "search by sums": partial(batch_of_a_search, ClassMap(MAP.classes, MAP.target, "sum").judge),
    "originals of a search": originals_of_a_search,
    "loader": batch_of_a_loader,
    "feedback": feedback_of_a_step,
    "training": partial(training_step, "squeezenet1_1", optimizer="adamw", ema=0.9),
    "training in parts": partial(training_step, "test_resnet", optimizer="sgd", accumulate=2, clip_grad=1.0),
    "training with smoothed labels": partial(
        training_step, "test_efficientnet", optimizer="adam", label_smoothing=0.1
    ),
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Seen | BaseException]:
    """Which operators came in each work, or what ended it."""

    def outcome(work: Callable[[], Seen]) -> Seen | BaseException:
        try:
            with without_driver():
                return work()
        except BaseException as error:
            return error

    return {name: outcome(work) for name, work in WORKS.items()}


@pytest.mark.parametrize("name", WORKS)
def test_nothing_waits(outcomes: dict[str, Seen | BaseException], name: str) -> None:
    outcome = outcomes[name]
    if isinstance(outcome, BaseException):
        raise outcome
    assert outcome


def test_every_permitted_operator_is_used(outcomes: dict[str, Seen | BaseException]) -> None:
    assert not [name for name, outcome in outcomes.items() if isinstance(outcome, BaseException)]
    used = set[str]().union(*cast("Any", outcomes.values()))
    assert used == QUEUED
    assert len(QUEUED) == sum(len(names.split()) for names in PERMITTED.values())  # each for one reason


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(CUDA),
        lambda x: torch.tensor([1, 2], device=CUDA),
        lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.unique(),
        lambda x: x.index_put_((x > 0,), x),
    ],
)
def test_what_waits_is_seen(work: Callable[[torch.Tensor], object]) -> None:
    with steps(), torch.inference_mode(), pytest.raises(Waits):
        work(torch.empty(3, device=CUDA))


@pytest.mark.parametrize(
    "work",
    [lambda x: x[x > 0], lambda x: x.sum().item(), lambda x: x.to(CPU), lambda x: x.copy_(torch.zeros(3))],
)
def test_what_waits_is_seen_on_meta_tensors(work: Callable[[torch.Tensor], object]) -> None:
    with NoWaits(), pytest.raises((Waits, NotImplementedError)):
        work(torch.empty(3, device=META, requires_grad=False))
