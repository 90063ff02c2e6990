"""Training in several processes on the CPU (gloo), against one process; a rank that dies."""

import json
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks_worker import order, train
from safetensors.torch import load_file
from torch import nn
from torchrun_helpers import rows, torchrun

from qrdali.data.index import Dataset
from qrdali.data.scan import build_dataset
from qrdali.distributed import SINGLE_PROCESS, LaggedMax, ProcessGroup, from_environment
from qrdali.errors import InputError, RunError
from qrdali.evaluation.predict import inference_batch_size
from qrdali.evaluation.prediction_rows import read_rows
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator

STEPS = random.Random(11)  # at which ranks are killed; of six
# Neither batch norm nor dropout. 24 images in batches of 11 leave 2 for the last step: of three ranks the
# first has none there.
PLAIN: dict[str, Any] = {
    "model": "test_convnext",
    "input_size": 32,
    "batch_size": 11,
    "device": "cpu",
    "threads": 1,
    "patience": 1,
    "max_epochs": 3,
}
RUNS: dict[str, dict[str, Any]] = {
    "shared": {"method": "shared", "epochs": 2, "track_reduced": 0.5},
    "parts": {"method": "shared", "epochs": 1, "accumulate": 2},
    "probe": {"method": "adaptive", "reduction": "crop", "sequence": "paired-epochs"},
    "online": {
        "method": "adaptive",
        "reduction": "combination",
        "sequence": "R",
        "feedback": "online",
        "max_epochs": 6,
    },
    "random": {"method": "random", "reduction": "color", "sequence": "paired-rounds"},
}


def entries(folder: Path, data: Path, names: list[str], **more: Any) -> list[dict[str, Any]]:
    return [
        {"run": str(folder / name), "settings": {**PLAIN, **RUNS[name], "data": str(data)}, **more}
        for name in names
    ]


@pytest.fixture(scope="module")
def alone(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(entries(folder, dataset.folder, list(RUNS)), SINGLE_PROCESS)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="module")
def several(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    found = {}
    for world in (2, 3):
        found[world] = tmp_path_factory.mktemp(f"ranks{world}")
        names = list(RUNS) if world == 2 else ["shared", "probe"]
        done = torchrun(world, entries(found[world], dataset.folder, names), found[world])
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("run folder:") == len(names), "rank 0 alone speaks"
    return found


@pytest.mark.parametrize(("world", "name"), [*((2, name) for name in RUNS), (3, "shared"), (3, "probe")])
def test_ranks_train_as_one_process(alone: Path, several: dict[int, Path], world: int, name: str) -> None:
    """Ranks train on the same samples in the same order, with equal levels.

    Without batch norm and dropout weights within 2e-4 and metrics within 1e-3.
    """
    one, ranks = alone / name, several[world] / name
    assert order(one) == order(ranks)
    # A sample is seen once in an epoch, by one rank.
    assert sorted(sample for epoch, _, samples in order(ranks) if epoch == 1 for sample in samples) == list(
        range(24)
    )
    mine, theirs = rows(one), rows(ranks)
    assert len(mine) == len(theirs)
    if name == "online":
        assert mine[-1]["stage"] > 1, "no feedback was used: this test shows nothing"
    for a, b in zip(mine, theirs, strict=True):
        for key in (
            "epoch",
            "phase",
            "stage",
            "quality",
            "levels",
            "optimizer_steps",
            "forward_images",
            "moved",
            "probe_candidates",
        ):
            assert a.get(key) == b.get(key), key
        for key in ("train_loss", "train_accuracy", "val_accuracy"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-3), key
        assert a.get("tracked") == b.get("tracked")
    assert mine[0]["environment"] | {"ranks": world} == theirs[0]["environment"]
    first, second = (load_file(run / "last" / "model.safetensors") for run in (one, ranks))
    assert first.keys() == second.keys()
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 2e-4
    for file in sorted((one / "levels").glob("*.npy")) if (one / "levels").exists() else ():
        assert np.array_equal(np.load(file), np.load(ranks / "levels" / file.name))
    assert all((run / "predictions" / "val.parquet").exists() for run in (one, ranks))


def test_only_rank_0_logs(dataset: Dataset, tmp_path: Path) -> None:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (entry,) = entries(tmp_path, dataset.folder, ["random"])
    entry["settings"] |= {"log": "tensorboard", "max_epochs": 2}
    done = torchrun(2, [entry], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "warning" not in done.stderr
    (file,) = (tmp_path / "random" / "tensorboard").iterdir()
    steps = [
        event.step
        for event in loader.EventFileLoader(str(file)).Load()
        if any(value.tag == "val_accuracy" for value in event.summary.value)
    ]
    assert steps == [row["epoch"] for row in rows(tmp_path / "random")]
    assert [sheet.name for sheet in (tmp_path / "random" / "previews").iterdir()] == ["stage-1-epoch-1.png"]


def test_a_dead_rank_ends_the_job_and_one_process_goes_on(
    dataset: Dataset, alone: Path, several: dict[int, Path], tmp_path: Path
) -> None:
    """Killed before its fifth step, saved every second: the job ends at once and names what happened.

    The rest is done by one.
    """
    what = entries(tmp_path, dataset.folder, ["shared"], kill=[1, 4])
    what[0]["settings"]["save_every"] = "2"
    begun = time.monotonic()
    done = torchrun(2, what, tmp_path)
    assert done.returncode != 0
    assert time.monotonic() - begun < 60
    assert "rank 0 of 2 lost the others" in done.stderr or "SIGKILL" in done.stderr
    train([{**what[0], "kill": None, "resume": True}], SINGLE_PROCESS)
    assert order(tmp_path / "shared") == order(alone / "shared")
    first, second = (
        load_file(folder / "shared" / "last" / "model.safetensors") for folder in (alone, tmp_path)
    )
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 2e-4


def test_a_signal_saves_what_all_ranks_have_done(
    dataset: Dataset, alone: Path, several: dict[int, Path], tmp_path: Path
) -> None:
    """One rank hears SIGTERM; all leave after the same step, and one process ends the run."""
    what = entries(tmp_path, dataset.folder, ["shared"], end=[1, 1])
    what[0]["settings"]["epochs"] = 5
    done = torchrun(2, what, tmp_path)
    assert done.returncode != 0
    stopped = re.search(r"stopped in (epoch (\d+) after step (\d+)|validation), saved", done.stderr)
    assert stopped, done.stderr[-2000:]
    assert done.stderr.count("stopped in") == 1
    state = json.loads((tmp_path / "shared" / "last" / "state.json").read_text())
    within = state["epoch"]["step"]
    assert state["totals"]["optimizer_steps"] == 3 * state["schedule"]["epoch"] + within
    seen = sum(
        len(samples)
        for epoch, number, samples in order(tmp_path / "shared")
        if epoch == state["schedule"]["epoch"] + 1 and number < within
    )
    assert state["epoch"]["images"] == seen
    assert len(state["epoch"]["ranks"]) == 2
    train([{**what[0], "end": None, "resume": True, "settings": what[0]["settings"]}], SINGLE_PROCESS)
    orders = order(tmp_path / "shared")
    assert orders[:6] == order(alone / "shared")
    assert len(orders) == 3 * 5


def test_a_training_image_that_went_bad_is_left_out_by_all(
    dataset: Dataset, images: Path, tmp_path: Path
) -> None:
    """Found by one rank, written once, and every other image is seen once in every epoch."""
    shutil.copytree(images, tmp_path / "images")
    build_dataset(tmp_path / "images", tmp_path / "data")
    bad = 13
    Path(Dataset.open(tmp_path / "data").index("train").paths(np.array([bad]))[0]).write_bytes(b"gone bad")
    what = entries(tmp_path, tmp_path / "data", ["shared"])
    what[0]["settings"] |= {"max_bad": 0.1}
    what[0]["settings"].pop("track_reduced")
    done = torchrun(2, what, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "shared" / "quarantine.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in lines[1:]] == [str(bad)]
    assert done.stderr.count("training goes on without it") == 1
    for epoch in (1, 2):
        assert sorted(
            s for number, _, samples in order(tmp_path / "shared") if number == epoch for s in samples
        ) == [s for s in range(24) if s != bad]
    assert [row["quarantined"] for row in rows(tmp_path / "shared")[1:]] == [1, 1]


@pytest.mark.parametrize(
    ("rank", "step", "model", "world"),
    [(0, STEPS.randrange(1, 6), "test_resnet", 2), (1, STEPS.randrange(1, 6), "squeezenet1_1", 3)],
)
def test_torchrun_begins_again_and_ends_the_same(
    dataset: Dataset, tmp_path: Path, rank: int, step: int, model: str, world: int
) -> None:
    """A rank is killed in one run and not in the other; torchrun restarts all, without --resume.

    Weights, generators and metrics are bit for bit the same, also with batch norm, whose statistics are rank
    0's, and with dropout, which each rank draws for itself.
    """
    runs = []
    for name, kill in (("whole", None), ("killed", [rank, step])):
        what = entries(tmp_path, dataset.folder, ["shared"], kill=kill)
        what[0]["run"] = str(tmp_path / name)
        what[0]["settings"] |= {"model": model, "save_every": "2", "batch_size": 8}
        what[0]["settings"].pop("track_reduced", None)
        done = torchrun(world, what, tmp_path / f"{name}-files", "--max-restarts", "1")
        assert done.returncode == 0, done.stderr[-3000:]
        assert (kill is not None) == (
            "continuing after" in done.stderr or done.stderr.count("start weights") == 2
        )
        runs.append(tmp_path / name)
    for file in ("best/model", "last/model", "last/optimizer", "last/random"):
        first, second = (load_file(run / f"{file}.safetensors") for run in runs)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), file
    timed = ("second", "time", "memory", "energy")
    one, other = (
        [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows(run)]
        for run in runs
    )
    assert one == other
    assert order(runs[0]) == order(runs[1])
    assert "cpu.1" in load_file(runs[0] / "last" / "random.safetensors")
    # What was validated on both ranks is the network that was saved.
    rows_of_val = read_rows(runs[0], "val")
    evaluated = Evaluator(runs[0], EvaluateOptions(device="cpu", threads=1)).rows("val", dataset.index("val"))
    assert rows_of_val["prediction"].tolist() == evaluated.predictions.tolist()
    assert np.allclose(rows_of_val["confidence"], evaluated.confidence, atol=1e-5)


def test_a_restart_does_not_continue_a_run_that_was_refused(
    dataset: Dataset, several: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(several[2] / "parts", tmp_path / "parts")
    done = torchrun(2, entries(tmp_path, dataset.folder, ["parts"]), tmp_path, "--max-restarts", "1")
    assert done.returncode != 0
    assert "nothing to do" not in done.stderr
    assert done.stderr.count("already holds a run") >= 2  # said by each attempt


def test_a_loss_that_is_no_number_is_named_by_the_rank_that_saw_it(dataset: Dataset, tmp_path: Path) -> None:
    what = entries(tmp_path, dataset.folder, ["shared"], spoil=[1, 2])
    done = torchrun(2, what, tmp_path)
    assert done.returncode != 0
    assert "the loss of step 3 is nan" in done.stderr
    samples = {
        s for epoch, number, part in order(tmp_path / "shared") if (epoch, number) == (1, 2) for s in part
    }
    named = re.search(r"is nan \(samples ([0-9, ]+)\)", done.stderr)
    assert named
    assert {int(s) for s in named[1].split(",")} < samples


def test_batch_norm_over_ranks_keeps_the_network() -> None:
    """timm's layers hold their activations within batch norm; torch's own conversion would drop them."""
    from timm.layers import convert_sync_batchnorm

    from qrdali import models
    from qrdali.training import optimizer_step as learner

    assert learner.convert_sync_batchnorm is convert_sync_batchnorm
    torch.manual_seed(0)
    model = models.create("test_efficientnet", 4).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = model(images)
        keys = list(model.state_dict())
        after = convert_sync_batchnorm(model).eval()
        assert torch.equal(before, after(images))
    assert list(after.state_dict()) == keys


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (from_environment(), from_environment().is_main, from_environment().is_single) == (
        ProcessGroup(),
        True,
        True,
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="RANK, LOCAL_RANK, LOCAL_WORLD_SIZE is not set"):
        from_environment()
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (from_environment(), from_environment().is_main) == (ProcessGroup(3, 4, 1, 2, 0), False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert from_environment().restarts == 2
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InputError, match="start with torchrun"):
        from_environment()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(InputError, match="not numbers"):
        from_environment()


def test_alone_nothing_is_asked() -> None:
    values = np.arange(3)
    assert (
        SINGLE_PROCESS.all_gather(values)[0] is values,
        SINGLE_PROCESS.all_gather_object("x"),
        SINGLE_PROCESS.broadcast_object(7),
    ) == (True, ["x"], 7)
    model = nn.Linear(1, 1)
    assert SINGLE_PROCESS.wrap_ddp(model, torch.device("cpu")) is model
    assert LaggedMax(SINGLE_PROCESS).update(15, 1) == (15, 1)
    with pytest.raises(RunError, match="gone"):
        SINGLE_PROCESS.run_on_all(lambda: (_ for _ in ()).throw(RunError("gone")))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_whole_batches_are_dealt_once(world: int) -> None:
    plans = [
        EpochPlan(50, 8, FULL_QUALITY, rank=rank, world_size=world, whole_batches=True)
        for rank in range(world)
    ]
    for number in range(plans[0].batches):
        parts = [plan.batch(number) for plan in plans]
        assert [len(part) > 0 for part in parts] == [rank == number % world for rank in range(world)]
        assert np.concatenate(parts).tolist() == list(range(8 * number, min(50, 8 * number + 8)))
        assert plans[0].count(number) == sum(map(len, parts))
    assert EpochPlan(50, 8, FULL_QUALITY, excluded=(48, 49)).count(6) == 0


def test_a_pass_without_gradients_has_the_shape_of_one_process() -> None:
    assert [inference_batch_size(32, world) for world in (1, 2, 8)] == [32, 32, 32]
    assert [inference_batch_size(1024, world) for world in (1, 2, 8)] == [1024, 512, 256]
