"""Nothing within a step waits for the device, and no tensor is on another one: shown on tensors that only say
that they are on a GPU. Backward passes need a real one and are not covered."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from loop_fakes import FakeIndex
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from qrdali.distributed import SINGLE_PROCESS
from qrdali.evaluation.class_map import ClassMap
from qrdali.evaluation.predict import predict
from qrdali.interfaces import Batch, CandidateBatch, RunContext, SilentListener, never_stop
from qrdali.mepi.search import Search, SearchLimits, SearchRule, judge_own_classes
from qrdali.mepi.search_path import SearchPath
from qrdali.pipelines import loader
from qrdali.reduction.levels import FULL_QUALITY, PerImageLevels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.quality import QUARTERS, REDUCTIONS
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device import autocast_for
from qrdali.system.energy import EnergyMeter
from qrdali.training import probe
from qrdali.training.epoch_totals import EpochSums
from qrdali.training.finite_check import FiniteCheck
from qrdali.training.level_stages import LevelStages
from qrdali.training.probe import ProbeOptions
from qrdali.training.run_spec import Split

CUDA = torch.device("cuda", 0)
SIDE = 8

# Operators of which none reads a value on the host. Whatever is not here may wait: look before adding it.
QUEUED = {
    "_adaptive_avg_pool2d",
    "_native_batch_norm_legit_no_training",
    "_softmax",
    "_to_copy",
    "_unsafe_view",
    "adaptive_avg_pool2d",
    "add",
    "addmm",
    "alias",
    "arange",
    "argmax",
    "as_strided",
    "as_strided_",
    "bitwise_not",
    "cat",
    "clamp",
    "clone",
    "constant_pad_nd",
    "convolution",
    "copy_",
    "cudnn_batch_norm",
    "detach",
    "div",
    "empty",
    "empty_like",
    "empty_strided",
    "eq",
    "expand",
    "fill_",
    "flatten",
    "full",
    "gather",
    "gt",
    "index",
    "index_put_",
    "index_select",
    "isfinite",
    "lift_fresh",
    "lt",
    "max",
    "max_pool2d_with_indices",
    "maximum",
    "mean",
    "mm",
    "mul",
    "native_batch_norm",
    "ne",
    "permute",
    "relu",
    "reshape",
    "select",
    "slice",
    "stack",
    "sum",
    "t",
    "transpose",
    "unsqueeze",
    "view",
    "where",
    "zero_",
    "zeros",
    "zeros_like",
}


class Waits(AssertionError):
    """An operator that may wait for the device."""


class NoWaits(TorchDispatchMode):
    """Refuses whatever may wait: operators that are not in QUEUED, masks, and blocking copies between host
    and device. seen: the operators that came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        # Inference mode hands on operators that are made of others, among them `to`.
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        self.seen.add(name)
        tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)]
        if name not in QUEUED:
            raise Waits(name)
        if name in ("index", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise Waits(f"{name} by a mask")
        if name == "_to_copy":
            devices = {tensors[0].device.type, torch.device(kwargs.get("device") or tensors[0].device).type}
            if len(devices) > 1 and not kwargs.get("non_blocking"):
                raise Waits("a blocking copy")
        if name == "copy_" and len({t.device.type for t in tensors}) > 1 and not (args[2:] or [False])[0]:
            raise Waits("a blocking copy")
        return func(*args, **kwargs)


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


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)


def network() -> nn.Module:
    with torch.device(CUDA):
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, 2)).eval()


def images(*shape: int) -> torch.Tensor:
    return torch.empty((*shape, SIDE, SIDE, 3), device=CUDA).movedim(-1, -3)


def context() -> RunContext:
    autocast, _ = autocast_for("bf16", CUDA)
    cpu = EnergyMeter(torch.device("cpu"))
    return RunContext(CUDA, autocast, cpu, SINGLE_PROCESS, SilentListener(), never_stop)


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


@pytest.mark.parametrize(
    "class_map",
    [None, MAP, ClassMap(MAP.classes, MAP.target, "sum")],
    ids=["top1", "argmax", "sum"],
)
def test_evaluation(class_map: ClassMap | None) -> None:
    done = []

    def on_batch(count: int) -> None:
        done.append(count)
        if len(done) == 3:
            raise Done  # all is read once, after the last batch

    with steps() as (model, mode), pytest.raises(Done):
        predict(
            model,
            cast("Any", Source()),
            EpochPlan(11, 4, FULL_QUALITY),
            context(),
            on_batch=on_batch,
            class_map=class_map,
        )
    assert done == [4, 4, 3]
    assert "convolution" in mode.seen
    assert ("maximum" in mode.seen) == (class_map is MAP)


@pytest.mark.parametrize("some_are_missing", [False, True])
def test_a_batch_of_a_probe(some_are_missing: bool) -> None:
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


@pytest.mark.parametrize(
    "judge",
    [judge_own_classes, MAP.judge, ClassMap(MAP.classes, MAP.target, "sum").judge],
    ids=["own", "argmax", "sum"],
)
def test_a_batch_of_a_search(judge: Any) -> None:
    reducer = SimpleNamespace(network_inputs=lambda pixels, reduction: images(len(pixels)))
    rule, limits = (
        SearchRule(DescentRule(REDUCTIONS["combination"], QUARTERS)),
        SearchLimits(16, 1 << 20, 1),
    )
    with steps() as (model, mode):
        search = Search(model, cast("Any", reducer), rule, limits, context(), judge)
        paths = [SearchPath(s, s % 2, np.empty((9, 9, 3), np.uint8), (9, 9)) for s in range(5)]
        search._take_in(iter(paths))
        answer, confidence, probability = search._classify(list(search._queue)).answers._copies
        assert answer.shape == confidence.shape == probability.shape == (5,)
        assert answer.device.type == "cpu"
    assert "cat" in mode.seen  # filled up to the batch size


def test_labels_and_samples_of_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    output = SimpleNamespace(dtype=SimpleNamespace(name="INT64"), shape=lambda: [4])
    monkeypatch.setattr(loader, "feed_ndarray", lambda source, target: target.fill_(1))
    graph = loader.GraphLoader.__new__(loader.GraphLoader)
    monkeypatch.setattr(graph, "_engine", SimpleNamespace(device_id=0), raising=False)
    with steps() as (_, mode):
        assert graph._tensor(SimpleNamespace(as_tensor=lambda: output)).device == CUDA
    assert "_to_copy" in mode.seen


def test_what_training_adds_up() -> None:
    with steps():
        logits, labels = torch.empty(4, 2, device=CUDA), torch.zeros(4, dtype=torch.int64, device=CUDA)
        loss, right = logits.mean(), logits.argmax(1) == labels
        sums = EpochSums.zero(CUDA).add(loss, right)
        assert sums.loss.device == sums.correct.device == CUDA
        FiniteCheck().record(1, loss, labels)
        stages = LevelStages.__new__(LevelStages)
        stages._epoch_feedback = torch.zeros(9, dtype=torch.uint8, device=CUDA)
        stages.record(labels, right)


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
        lambda x: bool(x.any()),
    ],
)
def test_what_waits_is_seen(work: Callable[[torch.Tensor], object]) -> None:
    with steps(), torch.inference_mode(), pytest.raises(Waits):
        work(torch.empty(3, device=CUDA))
