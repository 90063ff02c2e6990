"""Every method, sequence and reduction, trained briefly on the CPU; the probe against a slow reference."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import InputError, Interrupted, RunError
from qrdali.interfaces import CandidateRequest, JobControl
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction import neighbors
from qrdali.reduction.levels import ConstantLevels, PerImageLevels
from qrdali.reduction.neighbors import DescentRule
from qrdali.reduction.png_entropy import entropy
from qrdali.reduction.quality import QUARTERS, Dimensions
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.training import probe
from qrdali.training.run_spec import Split
from qrdali.workflows.context import open_context
from qrdali.workflows.train import run_training

REDUCTIONS = ("color", "crop", "resolution", "combination")
SMALL: dict[str, Any] = {
    "model": "test_resnet",
    "input_size": 32,
    "batch_size": 8,
    "device": "cpu",
    "threads": 1,
}


@pytest.fixture(scope="module")
def data(dataset: Dataset) -> str:
    return str(dataset.folder)


@pytest.fixture(scope="module")
def shared(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shared") / "run"
    run_training(validate_settings({"method": "shared", "data": data, "epochs": 3, **SMALL}), run, False)
    return run


def trained(run: Path, data: str, shared: Path, method: str, **values: Any) -> list[dict[str, Any]]:
    base: dict[str, Any] = {
        "method": method,
        "data": data,
        "init": str(shared),
        "patience": 1,
        "batch_size": 8,
        "device": "cpu",
        "threads": 1,
        "max_epochs": 12,
    }
    run_training(validate_settings({**base, **values}), run, False)
    return rows_of(run)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def unmeasured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            k: v
            for k, v in row.items()
            if not any(measured in k for measured in ("second", "time", "memory_mb", "energy"))
        }
        for row in rows
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sequence", ["paired-epochs", "paired-rounds"])
@pytest.mark.parametrize("method", ["fixed", "linear", "adaptive", "online", "random"])
def test_trains(data: str, shared: Path, tmp_path: Path, method: str, sequence: str, reduction: str) -> None:
    values = {"feedback": "online"} if method == "online" else {}
    rows = trained(
        tmp_path / "run",
        data,
        shared,
        "adaptive" if method == "online" else method,
        sequence=sequence,
        reduction=reduction,
        max_epochs=6,
        **values,
    )[1:]
    dimensions = ["color", "crop", "resolution"] if reduction == "combination" else [reduction]
    for row in rows:
        for dimension, q in row["quality"].items():
            if row["phase"] == "full" or dimension not in dimensions:
                assert q == 1
            elif method == "fixed":
                assert q == 0.5
            elif method == "linear":
                assert q == 1 - 0.25 * row["stage"]
            elif method == "random":
                assert 0.25 < q < 1
        if method in ("adaptive", "online"):
            assert all(sum(counts) == 24 for counts in row["levels"].values())
    first = rows[0]
    assert first["phase"] == "reduced"
    assert first["optimizer_steps"] == 3
    expected = 12 + 24 + 12  # the start's validation, an epoch, its validation
    if method == "adaptive":
        columns = 5 * ("crop" in dimensions) + ("color" in dimensions) + ("resolution" in dimensions)
        assert first["probe_candidates"] == 24 * columns
        assert first["probe_seconds"] > 0
        expected += 24 * columns
        assert sum(first["levels"][dimensions[0]][1:]) <= round(24 * first["moved"])
    if method == "online":
        assert first["moved"] == 1
        assert first["probe_candidates"] == 0
    assert first["forward_images"] == expected
    if sequence == "paired-epochs":
        assert [r["phase"] for r in rows[:2]] == ["reduced", "full"]


def test_sham_is_the_baseline_bit_for_bit(data: str, shared: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "sham", tmp_path / "baseline"
    sham = trained(a, data, shared, "fixed", reduction="none", sequence="C", patience=2)
    baseline = trained(b, data, shared, "baseline", patience=2)
    assert unmeasured(sham) == unmeasured(baseline)
    for folder in ("best", "last"):
        one, two = weights(a / folder), weights(b / folder)
        assert all(torch.equal(one[key], two[key]) for key in one)
    # Its R epochs are the baseline's epochs too; only the patience counts pairs.
    pairs = trained(tmp_path / "pairs", data, shared, "fixed", reduction="none", sequence="RC", patience=2)
    common = min(len(pairs), len(baseline))
    assert [row["val_accuracy"] for row in pairs[:common]] == [
        row["val_accuracy"] for row in baseline[:common]
    ]
    assert pairs[1]["phase"] == "reduced"


def test_a_matched_baseline_takes_as_many_steps(data: str, shared: Path, tmp_path: Path) -> None:
    fixed = trained(tmp_path / "f", data, shared, "fixed", reduction="crop", patience=1)
    run_training(
        validate_settings(
            {"method": "baseline", "data": data, "init": str(shared), "match": str(tmp_path / "f"), **SMALL}
            | {"batch_size": 5}
        ),
        tmp_path / "m",
        False,
    )
    rows = rows_of(tmp_path / "m")
    assert rows[-1]["optimizer_steps"] == fixed[-1]["optimizer_steps"] > 0
    with pytest.raises(InputError, match="is it a run folder"):
        run_training(
            validate_settings(
                {"method": "baseline", "data": data, "match": str(tmp_path / "nothing"), **SMALL}
            ),
            tmp_path / "x",
            False,
        )


def test_linear_up_and_all_its_stages(data: str, shared: Path, tmp_path: Path) -> None:
    rows = trained(
        tmp_path / "up", data, shared, "linear", direction="up", reduction="color", max_epochs=300
    )[1:]
    stages = {row["stage"]: row["quality"]["color"] for row in rows if row["phase"] == "reduced"}
    assert stages == {1: 0.25, 2: 0.5, 3: 0.75}


def test_monitor_phase_validates_under_the_epochs_quality(data: str, shared: Path, tmp_path: Path) -> None:
    full = trained(
        tmp_path / "full", data, shared, "fixed", reduction="crop", quality=0.25, max_epochs=6, patience=9
    )
    phase = trained(
        tmp_path / "phase",
        data,
        shared,
        "fixed",
        reduction="crop",
        quality=0.25,
        max_epochs=6,
        patience=9,
        monitor="phase",
    )
    assert full[1]["train_loss"] == phase[1]["train_loss"]
    of_r_epochs = [[row["val_accuracy"] for row in run[1::2]] for run in (full, phase)]
    assert of_r_epochs[0] != of_r_epochs[1]
    assert full[2]["val_accuracy"] == phase[2]["val_accuracy"]


def test_same_order_pairs_differ_in_reductions_only(data: str, shared: Path, tmp_path: Path) -> None:
    """Without any reduction a pair of the same order sees the same batches: with no learning its losses are
    equal."""
    for same in (True, False):
        rows = trained(
            tmp_path / str(same),
            data,
            shared,
            "fixed",
            reduction="none",
            same_order=same,
            max_epochs=2,
            lr=1e-30,
            patience=9,
        )
        assert (rows[1]["train_loss"] == rows[2]["train_loss"]) is same
    with pytest.raises(InputError, match="same-order"):
        trained(
            tmp_path / "x", data, shared, "fixed", reduction="crop", same_order=True, sequence="paired-rounds"
        )


def test_adaptive_stopped_anywhere_resumes_to_the_same(data: str, shared: Path, tmp_path: Path) -> None:
    for feedback in ("probe", "online"):
        values = {
            "reduction": "combination",
            "sequence": "paired-rounds",
            "max_epochs": 9,
            "feedback": feedback,
        }
        once = trained(tmp_path / f"{feedback}1", data, shared, "adaptive", **values)
        run = tmp_path / f"{feedback}2"
        settings = validate_settings(
            {
                "method": "adaptive",
                "data": data,
                "init": str(shared),
                "patience": 1,
                "batch_size": 8,
                "device": "cpu",
                "threads": 1,
                **values,
            }
        )
        _stop_now_and_then(settings, run)
        assert unmeasured(rows_of(run)) == unmeasured(once)
        one, two = weights(tmp_path / f"{feedback}1" / "last"), weights(run / "last")
        assert all(torch.equal(one[key], two[key]) for key in one)
    (run / "last" / "state.json").write_text(
        (run / "last" / "state.json").read_text().replace('"ended": "', '"ended": ""  , "x": "')
    )
    (run / "last" / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match="does not fit this run"):
        run_training(settings, run, True)


def _stop_now_and_then(settings: Settings, run: Path) -> None:
    """Interrupts ever later, up to past a whole probe, until the run ends by itself."""
    for stops in range(200):
        calls = itertools.count(1)
        control = JobControl(stop=lambda calls=calls, due=3 + stops % 13: 15 if next(calls) == due else 0)  # type: ignore[misc]
        try:
            return run_training(settings, run, True, control)
        except Interrupted:
            pass
    raise AssertionError("does not end")


def test_a_changed_data_set_is_refused(shared: Path, tmp_path: Path) -> None:
    generate(tmp_path / "images", ShapesSpec(classes=4, train=4, val=2, test=0, size=(64, 48)), workers=1)
    build_dataset(tmp_path / "images", tmp_path / "data")
    settings = validate_settings(
        {
            "method": "adaptive",
            "data": str(tmp_path / "data"),
            "reduction": "color",
            "sequence": "RC",
            "max_epochs": 3,
            **SMALL,
        }
    )
    run = tmp_path / "run"
    run_training(settings, run, False)
    (run / "last" / "state.json").write_text(
        (run / "last" / "state.json").read_text().replace('"ended": "--max-epochs 3"', '"ended": ""')
    )
    (run / "last" / "SHA256SUMS").unlink()
    victim = next((tmp_path / "images" / "train").rglob("*.jpg"))
    victim.unlink()
    shutil.rmtree(tmp_path / "data")
    build_dataset(tmp_path / "images", tmp_path / "data")
    with pytest.raises(RunError, match="changed since"):
        run_training(settings, run, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 0.3}, "not 1/n"),
        ({"quality": 0}, "greater than 0"),
        ({"sequence": "RXC"}, "neither"),
        ({"sequence": "CC"}, "no R epoch"),
        ({"patience": 0}, "patience"),
        ({"quality": 0.6}, "no level of step"),
        ({"reduction": "blurr"}, "reduction"),
    ],
)
def test_refusals_write_nothing(
    data: str, shared: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trained(tmp_path / "x", data, shared, "fixed", **{"reduction": "crop", "sequence": "RC"} | values)
    assert not (tmp_path / "x").exists()


class ByColor(nn.Module):
    """Sure of class 0 the brighter the middle of an image is: depends on every reduction."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = images[:, 0, 8:24, 8:24].mean((1, 2)) * 5
        return torch.stack([value, -value, value * 0.5, -value * 0.5], dim=1)


@pytest.mark.parametrize("windows", [5, 9])
def test_both_makers_show_the_same_candidates(dataset: Dataset, windows: int) -> None:
    index = dataset.index("train")
    pre = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    every = np.arange(8)
    sizes, levels = index.sizes(every), np.zeros((8, 3), np.uint8)
    levels[1] = (3, 3, 3)  # has no neighbours
    places = np.array([[0, 0], [5, 3], *[[0, 0]] * 6], np.int32)
    window = neighbors.window_of(levels, places, sizes, QUARTERS)
    ask = CandidateRequest(
        every,
        window,
        neighbors.neighbors_of(levels, window, sizes, Dimensions(True, True, True), QUARTERS, windows),
    )
    dimensions = neighbors.column_dimensions(Dimensions(True, True, True), windows)
    host, graph = (
        next(open_loader(index, pre, 8, Engine(whole_graph=g)).candidates(iter([ask]), 8, dimensions, True))
        for g in (False, True)
    )
    exists = torch.from_numpy(ask.candidates.exists.T)
    assert host.images.shape == (windows + 2, 8, 3, 32, 32)
    assert ((host.images - graph.images)[exists].abs() * 255 * 0.226).mean() < 0.35
    assert host.reduced_images is not None
    assert graph.reduced_images is not None
    for k, i in zip(*np.nonzero(ask.candidates.exists.T), strict=True):
        assert (
            host.reduced_images[k][i].shape
            == graph.reduced_images[k][i].shape
            == (*ask.candidates.size[i, k], 3)
        )
        assert np.abs(host.reduced_images[k][i].astype(int) - graph.reduced_images[k][i]).mean() < 0.6


@pytest.mark.parametrize("prefer", ["confidence", "entropy"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_probe_equals_one_image_and_candidate_at_a_time(
    dataset: Dataset, reduction: str, prefer: str
) -> None:
    index = dataset.index("train")
    pre = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    loader = open_loader(index, pre, 8, Engine(threads=2))
    rule = DescentRule(descent_moving(reduction), QUARTERS, 5, prefer)
    states, model = PerImageLevels.at_full_quality(len(index), rule.dimensions.crop, False), ByColor()
    seen: list[int] = []
    for _ in range(2):  # the second step starts from states that differ
        after, moved = probe.descend_by_probe(
            model,
            Split(loader, index),
            states,
            probe.ProbeOptions(rule, 16),
            open_context("cpu", "off", JobControl()),
            lambda images, candidates: seen.append(images),
        )
        expected = _slow_step(model, index, pre, states, rule)
        every = np.arange(len(index))
        assert after.for_samples(every).tolist() == [e[0] for e in expected]
        assert after.window_origins_or_zero(every).tolist() == [e[1] for e in expected]
        changed = (after.for_samples(every) != states.for_samples(every)).any(axis=1).sum()
        assert 0 < changed == moved.images
        states = after
    assert sum(seen) == 2 * len(index)
    assert model.training


def descent_moving(reduction: str) -> tuple[bool, bool, bool]:
    from qrdali.reduction.quality import REDUCTIONS as MOVING

    return MOVING[reduction]


def _slow_step(
    model: nn.Module, index: Any, pre: Preprocessing, states: PerImageLevels, rule: DescentRule
) -> list[tuple[list[int], list[int]]]:
    """Every candidate as an image of its own through the ordinary loader."""
    every, result = np.arange(len(index)), []
    sizes, labels = index.sizes(every), index.labels(every)
    window = neighbors.window_of(
        states.for_samples(every), states.window_origins_or_zero(every), sizes, rule.scale
    )
    found = neighbors.neighbors_of(
        states.for_samples(every), window, sizes, rule.dimensions, rule.scale, rule.windows
    )
    k = found.exists.shape[1]
    right, confidence, size = (
        np.zeros((len(every), k), bool),
        np.zeros((len(every), k)),
        np.zeros((len(every), k), int),
    )
    for column in range(k):
        levels = PerImageLevels(
            found.levels[:, column], np.ascontiguousarray(found.window[:, column, :2]), None
        )
        for batch in open_loader(index, pre, 8, Engine(threads=1)).epoch(EpochPlan(len(index), 8, levels)):
            with torch.inference_mode():
                p = model(batch.images).softmax(1)
            for s, row in zip(batch.samples.tolist(), p, strict=True):
                right[s, column] = row.argmax() == labels[s]
                confidence[s, column] = row[labels[s]]
        if rule.prefer == "entropy":
            for s in every.tolist():
                size[s, column] = entropy(_reduced(index, s, found, column))
    choice = neighbors.choose_neighbor(
        right & found.exists, confidence.astype(np.float32), size if rule.prefer == "entropy" else None
    )
    levels, window = neighbors.accept_neighbor(states.for_samples(every), window, found, choice)
    for s in every.tolist():
        result.append((levels[s].tolist(), window[s, :2].tolist() if rule.dimensions.crop else [0, 0]))
    return result


def _reduced(index: Any, sample: int, found: neighbors.Candidates, column: int) -> np.ndarray:
    from qrdali.pipelines import host_ops as host
    from qrdali.pipelines.external_source import decode_inputs
    from qrdali.pipelines.graphs import decode_windows

    (pixels,) = decode_windows(
        lambda: decode_inputs(index.path_bytes(np.array([sample])), found.window[sample, column][None]),
        Engine(depth=1),
        1,
    ).run()
    return host.reduce(
        np.array(pixels.at(0)), found.size[sample, column], int(found.bin_width[sample, column])
    )


def test_online_feedback_steps_down_where_right_and_undoes_where_wrong(dataset: Dataset) -> None:
    index = dataset.index("train")
    rule = DescentRule(Dimensions(True, True, True), QUARTERS)
    states, moved = probe.descend_by_feedback(
        index, PerImageLevels.at_full_quality(len(index), True, True), None, rule, 5
    )
    every = np.arange(len(index))
    assert moved.images == len(index)
    assert states.for_samples(every).tolist() == [[1, 0, 0]] * len(index)
    right = (every % 2 == 0).astype(np.uint8)
    states, _ = probe.descend_by_feedback(index, states, right, rule, 5)
    assert states.for_samples(every).tolist() == [[1, 0, 1] if r else [0, 0, 0] for r in right]
    deeper, _ = probe.descend_by_feedback(index, states, np.ones(len(index), np.uint8), rule, 5)
    assert deeper.for_samples(every).tolist() == [[1, 1, 1] if r else [1, 0, 0] for r in right]
    undone, _ = probe.descend_by_feedback(index, deeper, np.zeros(len(index), np.uint8), rule, 5)
    assert undone.for_samples(every).tolist() == states.for_samples(every).tolist()
    assert undone.window_origins_or_zero(every).tolist() == states.window_origins_or_zero(every).tolist()


def test_validation_rows_stay_at_full_quality(data: str, shared: Path, tmp_path: Path) -> None:
    trained(
        tmp_path / "r",
        data,
        shared,
        "fixed",
        reduction="crop",
        quality=0.25,
        max_epochs=1,
        monitor="phase",
        patience=9,
    )
    table = pq.read_table(tmp_path / "r" / "predictions" / "val.parquet")
    full = pq.read_table(shared / "predictions" / "val.parquet")
    assert table["prediction"].to_pylist() == full["prediction"].to_pylist()


def test_levels_of_a_plan_keep_their_windows(dataset: Dataset) -> None:
    index = dataset.index("train")
    places = np.tile(np.array([[3, 5]], np.int32), (len(index), 1))
    images = PerImageLevels(np.tile(np.array([[0, 2, 0]], np.uint8), (len(index), 1)), places, None)
    samples = np.arange(4)
    plan = EpochPlan(len(index), 4, images, training=True, epoch=3)
    assert plan.parameters(samples, index.sizes(samples)).window[:, :2].tolist() == [[3, 5]] * 4
    free = (
        EpochPlan(len(index), 4, ConstantLevels(0, 2, 0), training=True, epoch=3)
        .parameters(samples, index.sizes(samples))
        .window[:, :2]
    )
    assert len({tuple(place) for place in free.tolist()}) > 1
