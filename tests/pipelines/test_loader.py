"""The loaders: what comes in an epoch, from both implementations, and what an abandoned one leaves."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import GPU, GRAPH, HOST

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import RunError
from qrdali.interfaces import BatchSource
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.schedule.epoch_plan import EpochPlan

PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
REDUCED = ConstantLevels(2, 2, 2)


engines = pytest.mark.parametrize("engine", [HOST, GRAPH, GPU])


def loader(index: Index, engine: Engine, depth: int = 2) -> BatchSource:
    return open_loader(index, PRE, 5, replace(engine, depth=depth))


def plan(index: Index, levels: ConstantLevels, epoch: int, **values: int) -> EpochPlan:
    return EpochPlan(len(index), 5, levels, seed=2, epoch=epoch, training=True, augment="flip", **values)


def emitted(loader: BatchSource, plan: EpochPlan) -> dict[int, torch.Tensor]:
    return {
        int(s): image
        for batch in loader.epoch(plan)
        for s, image in zip(batch.samples, batch.images.cpu(), strict=True)
    }


@engines
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_batch_carries_the_parameters_of_the_epoch_before(
    dataset: Dataset, depth: int, engine: Engine
) -> None:
    index = dataset.index("train")
    made = loader(index, engine, depth)
    for levels, epoch in ((FULL_QUALITY, 1), (REDUCED, 2), (FULL_QUALITY, 3), (REDUCED, 4)):
        seen, fresh = (
            emitted(made, plan(index, levels, epoch)),
            emitted(loader(index, engine, 1), plan(index, levels, epoch)),
        )
        other = emitted(
            loader(index, engine, 1), plan(index, REDUCED if levels == FULL_QUALITY else FULL_QUALITY, epoch)
        )
        assert sorted(seen) == list(range(len(index)))
        for sample, image in seen.items():
            assert torch.equal(image, fresh[sample])
            assert not torch.equal(image, other[sample])


@engines
def test_an_abandoned_epoch_leaves_nothing_behind(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    made = loader(index, engine, 3)
    next(iter(made.epoch(plan(index, FULL_QUALITY, 1))))
    seen, fresh = (
        emitted(made, plan(index, REDUCED, 2)),
        emitted(loader(index, engine), plan(index, REDUCED, 2)),
    )
    assert sorted(seen) == sorted(fresh)
    assert all(torch.equal(seen[s], fresh[s]) for s in fresh)


@engines
def test_batches_are_whole_labelled_and_channels_last(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    batches = list(loader(index, engine).epoch(plan(index, FULL_QUALITY, 1)))
    assert [len(b.labels) for b in batches] == [5, 5, 5, 5, 4]
    order = torch.cat([b.samples for b in batches]).numpy()
    assert sorted(order.tolist()) == list(range(24))
    assert torch.cat([b.labels for b in batches]).tolist() == index.labels(order).tolist()
    assert batches[0].images.shape == (5, 3, 32, 32)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    late = list(loader(index, engine).epoch(plan(index, FULL_QUALITY, 1, first_batch=3)))
    assert torch.cat([b.samples for b in late]).tolist() == order[15:].tolist()
    assert torch.equal(late[0].images, batches[3].images)


@engines
def test_flips_mirror(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    seen = emitted(loader(index, engine), plan(index, FULL_QUALITY, 1))
    plain = emitted(loader(index, engine), EpochPlan(len(index), 5, FULL_QUALITY))
    mirrored = [torch.equal(seen[s], plain[s].flip(-1)) for s in plain]
    assert [torch.equal(seen[s], plain[s]) for s in plain] == [not m for m in mirrored]
    assert 3 < sum(mirrored) < 21


@pytest.mark.parametrize("augment", ["none", "flip", "rrc"])
@pytest.mark.parametrize("fit", ["whole", "center"])
@pytest.mark.parametrize(
    "levels",
    [FULL_QUALITY, ConstantLevels(2, 0, 0), ConstantLevels(0, 2, 0), ConstantLevels(0, 0, 2), REDUCED],
)
def test_host_and_graph_show_the_network_the_same(
    dataset: Dataset, levels: ConstantLevels, fit: str, augment: str
) -> None:
    """Up to what DALI's approximate resize differs, once per resize."""
    index = dataset.index("train")
    pre = Preprocessing(32, fit, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    epoch_plan = EpochPlan(len(index), 5, levels, seed=2, epoch=3, training=True, augment=augment)
    host, graph = (
        emitted(open_loader(index, pre, 5, Engine(whole_graph=g)), epoch_plan) for g in (False, True)
    )
    assert sorted(host) == sorted(graph) == list(range(len(index)))
    difference = torch.stack([(host[s] - graph[s]).abs() for s in host]) * 255 * 0.226
    # A value that the resize puts on the other side of a colour bin's edge moves by a whole bin.
    assert difference.mean() < (0.9 if levels.color else 0.35)
    if not levels.color and not levels.resolution:
        assert difference.max() < 1.1  # only the rounding of two implementations of one transform


@engines
def test_a_vanished_image_is_named_and_the_loader_lives_on(tmp_path: Path, engine: Engine) -> None:
    generate(tmp_path / "images", ShapesSpec(classes=2, train=6, val=0, test=0, size=(60, 40)), workers=1)
    build_dataset(tmp_path / "images", tmp_path / "data")
    index = Dataset.open(tmp_path / "data").index("train")
    made, victim = loader(index, engine), Path(index.paths(np.array([7]))[0])
    kept = victim.read_bytes()
    for change, message in (
        (None, "is gone"),
        (b"\xff\xd8broken", "cannot be decoded"),
        (kept[: len(kept) // 2], "cannot be decoded"),
    ):
        victim.unlink() if change is None else victim.write_bytes(change)
        with pytest.raises(RunError, match=f"sample 7, .*{victim.name}, {message}"):
            emitted(made, plan(index, FULL_QUALITY, 1))
        victim.write_bytes(kept)
        assert len(emitted(made, plan(index, FULL_QUALITY, 1))) == 12


@engines
def test_a_loader_goes_without_the_garbage_collector(dataset: Dataset, engine: Engine) -> None:
    """Nothing that it holds holds it: a GPU's memory would stay taken until a collection."""
    index = dataset.index("train")
    made = loader(index, engine)
    assert len(emitted(made, plan(index, FULL_QUALITY, 1))) == 24
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()
