"""The examples that people copy reach what `qrdali.train` reaches: same data, network, optimizer and seed."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import qrdali

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCHEDULE = {"sequence": "paired-rounds", "reduction": "crop", "patience": 2, "max_epochs": 14}


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(dataset: qrdali.Dataset, tmp_path_factory: pytest.TempPathFactory) -> qrdali.Run:
    """What `qrdali.train` makes of it: two stages, both rounds, and a best epoch after the start."""
    run = qrdali.train(
        "linear",
        data=dataset,
        run=tmp_path_factory.mktemp("own-loop") / "run",
        model="test_resnet",
        input_size=32,
        batch_size=8,
        lr=2e-3,
        weight_decay=0,
        seed=5,
        device="cpu",
        threads=1,
        **SCHEDULE,
    )
    rows = run.metrics().to_pylist()
    assert rows[-1]["stage"] > 1
    assert {row["phase"] for row in rows} == {"start", "reduced", "full"}
    assert run.best.epoch > 0
    return run


def assert_same_weights(network: torch.nn.Module, run: qrdali.Run) -> None:
    ours, theirs = network.state_dict(), run.model().state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
    assert not different


def loaders_of(dataset: qrdali.Dataset) -> list[qrdali.Loader]:
    return [
        qrdali.Loader(dataset[split], model="test_resnet", input_size=32, batch_size=8, device="cpu")
        for split in ("train", "val")
    ]


def own_loop(dataset: qrdali.Dataset, file: Path) -> tuple[torch.nn.Module, list[Any]]:
    options = {"model": "test_resnet", "lr": 2e-3, "seed": 5, **SCHEDULE}
    del options["sequence"], options["reduction"]  # the example's own
    network, rows = example("own_loop").fit(*loaders_of(dataset), file, **options)
    return network, rows


def assert_same_epochs(rows: list[Any], run: qrdali.Run) -> None:
    names = {"R": "reduced", "C": "full"}
    theirs = run.metrics().to_pylist()[1:]
    assert [(number, names[phase], stage, accuracy) for number, phase, stage, accuracy in rows] == [
        (row["epoch"], row["phase"], row["stage"], row["val_accuracy"]) for row in theirs
    ]


def test_a_plain_torch_loop_reaches_the_same_weights_bit_for_bit(
    dataset: qrdali.Dataset, run: qrdali.Run, tmp_path: Path
) -> None:
    network, rows = own_loop(dataset, tmp_path / "loop.pt")
    assert_same_epochs(rows, run)
    assert_same_weights(network, run)


class Killed(BaseException):
    """Nothing in a loop catches it, as nothing catches SIGKILL."""


def stop_in_epochs(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """Stops loops in the middle of an epoch of each round and stage, once; returns where they stopped."""
    whole_epoch, done = qrdali.Loader.epoch, set()

    def epoch(loader: qrdali.Loader, number: int, **options: Any) -> Any:
        for batch in whole_epoch(loader, number, **options):
            yield batch
            if number in (1, 4, 7, 11) and number not in done:
                done.add(number)
                raise Killed

    monkeypatch.setattr(qrdali.Loader, "epoch", epoch)
    return done


def test_a_plain_torch_loop_goes_on_wherever_it_was_stopped(
    dataset: qrdali.Dataset, run: qrdali.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within epochs and in the middle of a save: nothing is lost, nothing comes twice."""
    done, whole_save = stop_in_epochs(monkeypatch), torch.save

    def save(value: Any, file: str) -> None:
        whole_save(value, file)
        if len(value["rows"]) == 5 and "save" not in done:
            done.add("save")
            Path(file).write_bytes(Path(file).read_bytes()[:1000])
            raise Killed

    monkeypatch.setattr(torch, "save", save)
    for _ in range(5):
        with pytest.raises(Killed):
            own_loop(dataset, tmp_path / "loop.pt")
    assert done == {1, 4, 7, 11, "save"}
    network, rows = own_loop(dataset, tmp_path / "loop.pt")
    assert_same_epochs(rows, run)
    assert_same_weights(network, run)
    again, _ = own_loop(dataset, tmp_path / "loop.pt")  # what has ended stays as it is
    assert_same_weights(again, run)


def lightning_module(dataset: qrdali.Dataset, folder: Path) -> Any:
    """Trains under Lightning, from the newest of its checkpoints in a folder on, and returns the module."""
    pytest.importorskip("lightning")
    example_module = example("lightning_module")
    torch.manual_seed(5)
    train, val = loaders_of(dataset)
    module = example_module.Linear("test_resnet", train, lr=2e-3, **SCHEDULE)
    checkpoints = sorted(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    example_module.fit(
        module,
        train,
        val,
        checkpoints[-1] if checkpoints else None,
        seed=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    return module


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and loggers
def test_a_lightning_module_reaches_the_same_weights_bit_for_bit(
    dataset: qrdali.Dataset, run: qrdali.Run, tmp_path: Path
) -> None:
    module = lightning_module(dataset, tmp_path)
    assert module.schedule.ended
    assert module.schedule.best_epoch == run.best.epoch
    assert_same_weights(module.network, run)


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_module_goes_on_wherever_it_was_stopped(
    dataset: qrdali.Dataset, run: qrdali.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = stop_in_epochs(monkeypatch)
    for _ in range(4):
        with pytest.raises(Killed):
            lightning_module(dataset, tmp_path)
    assert stopped == {1, 4, 7, 11}
    module = lightning_module(dataset, tmp_path)
    assert module.schedule.best_epoch == run.best.epoch
    assert_same_weights(module.network, run)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_fits_on_a_screen(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 110
