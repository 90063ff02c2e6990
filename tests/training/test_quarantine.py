"""Files that go bad after they were indexed: between epochs, inside one, in a probe, and too many."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from refused_images import refused
from safetensors.torch import load_file

from qrdali.cli.main import cli
from qrdali.cli.terminal import TerminalListener
from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.data.shapes import ShapesSpec, generate
from qrdali.errors import RunError, Unreadable
from qrdali.interfaces import JobControl
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import GraphLoader, HostLoader, open_loader
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.train import run_training

PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generate(tmp_path / "images", ShapesSpec(classes=3, train=10, val=2, test=2, size=(48, 36)), workers=1)
    build_dataset(tmp_path / "images", tmp_path / "data")
    return tmp_path / "data"


def spoil(data: Path, *samples: int) -> None:
    for path in Dataset.open(data).index("train").paths(np.array(samples, np.int64)):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])


def plan(index: Index, epoch: int, **values: Any) -> EpochPlan:
    return EpochPlan(
        len(index), 4, FULL_QUALITY, seed=2, epoch=epoch, training=True, augment="flip", **values
    )


@pytest.mark.parametrize("graph", [False, True])
def test_inside_an_epoch_every_good_image_comes_once_in_its_batch(data: Path, graph: bool) -> None:
    index = Dataset.open(data).index("train")
    made = open_loader(index, PRE, 4, Engine(threads=1, depth=2, whole_graph=graph))
    what = plan(index, 1)
    fresh = {batch.number: batch for batch in made.epoch(what)}
    assert sorted(fresh) == list(range(8))
    bad = [
        int(what.batch(5)[2]),
        int(what.batch(7)[0]),
        *what.batch(6).tolist(),
    ]  # one of four, one of two, and a whole batch
    told: dict[int, str] = {}
    seen = {}
    for batch in made.epoch(what, told.update):
        if batch.number == 0:
            spoil(data, *bad)
        seen[batch.number] = batch
    assert list(seen) == [0, 1, 2, 3, 4, 5, 7]
    assert sorted(told) == sorted(bad)
    assert all(
        reason.startswith(f"sample {sample}, /") and "cannot be decoded" in reason
        for sample, reason in told.items()
    )
    for number, batch in seen.items():
        good = ~torch.isin(fresh[number].samples, torch.tensor(bad))
        assert torch.equal(batch.samples, fresh[number].samples[good])
        assert torch.equal(batch.labels, fresh[number].labels[good])
        assert torch.equal(batch.images, fresh[number].images[good])
    for after in (plan(index, 2, excluded=tuple(bad)), plan(index, 3, excluded=tuple(bad), first_batch=3)):
        came = [sample for batch in made.epoch(after) for sample in batch.samples.tolist()]
        assert came == [
            s
            for n in range(after.first_batch, 8)
            for s in plan(index, after.epoch).batch(n).tolist()
            if s not in bad
        ]
    with pytest.raises(Unreadable) as raised:
        list(made.epoch(plan(index, 2)))
    assert set(raised.value.reasons) <= set(bad)


def settings(data: Path, method: str = "shared", **values: object) -> Settings:
    return validate_settings(
        {
            "method": method,
            "data": str(data),
            "model": "test_resnet",
            "input_size": 32,
            "batch_size": 4,
            "epochs": 3,
            "device": "cpu",
            "threads": 1,
            "max_bad": 0.1,
            **values,
        }
    )


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "time", "memory_mb")
    return [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in rows]


def quarantined(run: Path) -> list[list[str]]:
    return [line.split("\t") for line in (run / "quarantine.tsv").read_text("utf-8").splitlines()]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], None]], None]:
    """Calls something after the given number of batches of a pass, such as "epoch 2 C"."""

    def install(name: str, step: int, action: Callable[[], None]) -> None:
        begin, advance, now = TerminalListener.begin, TerminalListener.advance, ["", 0]

        def begun(self: TerminalListener, what: str, total: int, unit: str = "images") -> None:
            now[:] = [what, 0]
            begin(self, what, total, unit)

        def advanced(self: TerminalListener, images: int, note: Callable[[], str]) -> None:
            advance(self, images, note)
            now[1] += 1  # type: ignore[operator]
            if now == [name, step]:
                action()

        monkeypatch.setattr(TerminalListener, "begin", begun)
        monkeypatch.setattr(TerminalListener, "advance", advanced)

    return install


@pytest.mark.parametrize("graph", [False, True])
def test_training_goes_on(
    data: Path,
    tmp_path: Path,
    graph: bool,
    at_step: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Engine, "host_ops", property(lambda self: not graph))
    seen: dict[int, list[int]] = {}
    without: dict[int, tuple[int, ...]] = {}
    loader = GraphLoader if graph else HostLoader
    inner = loader.epoch

    def spied(self: Any, plan: EpochPlan, *more: Any) -> Any:
        for batch in inner(self, plan, *more):
            if plan.training:
                without[plan.epoch] = plan.excluded
                seen.setdefault(plan.epoch, []).extend(batch.samples.tolist())
            yield batch

    monkeypatch.setattr(loader, "epoch", spied)
    index = Dataset.open(data).index("train")
    later = int(EpochPlan(30, 4, FULL_QUALITY, seed=0, epoch=2, training=True).batch(6)[0])
    last = int(
        EpochPlan(30, 4, FULL_QUALITY, seed=0, epoch=3, training=True, excluded=(later,)).batch(7)[0]
    )  # of two
    first = next(
        sample
        for sample in range(30)
        if sample not in (later, *EpochPlan(30, 4, FULL_QUALITY, seed=0, epoch=3, training=True).batch(7))
    )
    at_step("epoch 1 val", 1, lambda: spoil(data, first))
    at_step("epoch 2 C", 1, lambda: spoil(data, later))
    at_step("epoch 3 C", 1, lambda: spoil(data, last))
    run_training(settings(data, epochs=4), tmp_path / "run", False, JobControl(TerminalListener()))
    assert [row.get("quarantined") for row in metrics(tmp_path / "run")] == [None, 0, 2, 3, 3]
    assert sorted(seen[1]) == list(range(30))
    assert sorted(seen[2]) == sorted({*range(30)} - {first, later})
    assert sorted(seen[3]) == sorted(seen[4]) == sorted({*range(30)} - {first, later, last})
    assert set(without[4]) == {first, later, last}  # known ones cost nothing any more
    assert without[2] == ()
    head, *rows = quarantined(tmp_path / "run")
    assert head == ["epoch", "sample", "path", "reason"]
    assert {(row[0], int(row[1])) for row in rows} == {("2", first), ("2", later), ("3", last)}
    assert [row[2] for row in rows] == index.paths(np.array([int(row[1]) for row in rows]))
    assert all(row[3].startswith("cannot be decoded: ") for row in rows)
    warned = capsys.readouterr().err.replace("\n", "")
    assert warned.count("training goes on without it") == 3
    assert "the one image left of step 8: it is passed over" in warned


def test_stopped_inside_such_an_epoch_and_resumed_equals_uninterrupted(
    data: Path, tmp_path: Path, at_step: Any
) -> None:
    what = EpochPlan(30, 4, FULL_QUALITY, seed=0, epoch=2, training=True)
    spoil(data, *what.batch(2).tolist())  # a batch without an image before the stop
    spoil(data, int(what.batch(5)[1]))
    run_training(
        settings(data, epochs=2, save_every="1", max_bad=0.2),
        tmp_path / "once",
        False,
        JobControl(TerminalListener()),
    )

    stopped: list[int] = []

    def stop() -> None:
        if not stopped:
            stopped.append(1)
            raise KeyboardInterrupt

    at_step("epoch 2 C", 4, stop)
    with pytest.raises(KeyboardInterrupt):
        run_training(
            settings(data, epochs=2, save_every="1", max_bad=0.2),
            tmp_path / "twice",
            False,
            JobControl(TerminalListener()),
        )
    with open(tmp_path / "twice/quarantine.tsv", "a") as file:
        file.write("2\t9")  # as a kill leaves it
    run_training(settings(data, epochs=2, save_every="1", max_bad=0.2), tmp_path / "twice", True)
    assert metrics(tmp_path / "once") == metrics(tmp_path / "twice")
    assert metrics(tmp_path / "once")[-1]["quarantined"] == 5
    assert sorted(quarantined(tmp_path / "once")) == sorted(quarantined(tmp_path / "twice"))
    once, twice = (load_file(tmp_path / run / "last/model.safetensors") for run in ("once", "twice"))
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_too_many_end_the_run(data: Path, tmp_path: Path) -> None:
    kept = {path: path.read_bytes() for path in (tmp_path / "images").rglob("*.jpg")}
    spoil(data, 1, 20)
    one = settings(data, max_bad=0.001)  # of 30: at least one may
    for resume in (False, True):
        with pytest.raises(RunError, match="2 of 30 training images cannot be read, 1 may"):
            run_training(one, tmp_path / "run", resume)
    run_training(settings(data, max_bad=0.07, epochs=3), tmp_path / "run", True)
    assert [row.get("quarantined") for row in metrics(tmp_path / "run")] == [None, 2, 2, 2]
    with pytest.raises(RunError, match="^sample (1|20), "):
        run_training(settings(data, max_bad=0), tmp_path / "strict", False)
    assert not (tmp_path / "strict/quarantine.tsv").exists()
    spoil(data, *range(30))
    with pytest.raises(RunError, match="no training image can be read"):
        run_training(settings(data, max_bad=1), tmp_path / "all", False)
    for path, content in kept.items():
        path.write_bytes(content)
    (tmp_path / "strict2").mkdir()
    (tmp_path / "strict2/quarantine.tsv").write_text("epoch\tsample\tpath\treason\n1\t30\t/x\ty\n")
    with pytest.raises(RunError, match="line 2 names no training image"):
        run_training(settings(data, max_bad=1), tmp_path / "strict2", False)


def test_a_probe_goes_on_too(data: Path, tmp_path: Path) -> None:
    spoil(data, 4)
    run_training(
        settings(data, "adaptive", reduction="crop", sequence="RC", max_epochs=2), tmp_path / "run", False
    )
    rows = metrics(tmp_path / "run")
    assert [row.get("quarantined") for row in rows] == [None, 1, 1]
    assert [row[:2] for row in quarantined(tmp_path / "run")[1:]] == [["1", "4"]]
    assert np.load(tmp_path / "run/levels/0001.levels.npy")[4].tolist() == [0, 0, 0]


def test_a_file_that_only_pillow_reads_ends_no_run(data: Path, tmp_path: Path) -> None:
    index = Dataset.open(data).index("train")
    sample = int(np.flatnonzero((index.sizes(np.arange(30)) == (36, 48)).all(axis=1))[0])
    Path(index.paths(np.array([sample]))[0]).write_bytes(refused()["header twice.png"])
    run_training(
        settings(data, "adaptive", reduction="crop", sequence="RC", max_epochs=2), tmp_path / "run", False
    )
    (row,) = quarantined(tmp_path / "run")[1:]
    assert row[1] == str(sample)
    assert row[3].startswith("cannot be decoded: Pillow reads it, but DALI's decoder does not")
    assert [row.get("quarantined") for row in metrics(tmp_path / "run")] == [None, 1, 1]


def test_validation_is_strict(data: Path, tmp_path: Path) -> None:
    path = Path(Dataset.open(data).index("val").paths(np.array([2]))[0])
    path.write_bytes(b"")
    with pytest.raises(RunError, match=f"sample 2, .*{path.name}, cannot be decoded"):
        run_training(settings(data), tmp_path / "run", False)


@pytest.mark.parametrize(
    ("text", "why"),
    [("0.5%", ""), ("0.005", ""), ("many", "'many' is not a share"), ("150%", "max_bad = 1.5")],
)
def test_the_option_takes_a_share_or_percent(text: str, why: str) -> None:
    done = CliRunner().invoke(
        cli, ["train", "shared", "--data", "d", "--run", "r", "--max-bad", text, "--dry-run"]
    )
    assert (done.exit_code == 0) == (not why)
    assert why in done.output + str(done.exception)
