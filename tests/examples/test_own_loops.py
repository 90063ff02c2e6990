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


def test_a_plain_torch_loop_reaches_the_same_weights_bit_for_bit(
    dataset: qrdali.Dataset, run: qrdali.Run
) -> None:
    network, rows = example("own_loop").fit(
        dataset,
        model="test_resnet",
        input_size=32,
        batch_size=8,
        lr=2e-3,
        seed=5,
        device="cpu",
        **SCHEDULE,
    )
    theirs = run.metrics().to_pylist()[1:]
    assert [(number, phase.name.lower(), stage, accuracy) for number, phase, stage, accuracy in rows] == [
        (row["epoch"], row["phase"], row["stage"], row["val_accuracy"]) for row in theirs
    ]
    assert_same_weights(network, run)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and loggers
def test_a_lightning_module_reaches_the_same_weights_bit_for_bit(
    dataset: qrdali.Dataset, run: qrdali.Run, tmp_path: Path
) -> None:
    pytest.importorskip("lightning")
    module = example("lightning_module")
    loaders = [
        qrdali.Loader(dataset[split], model="test_resnet", input_size=32, batch_size=8, device="cpu")
        for split in ("train", "val")
    ]
    torch.manual_seed(5)
    network = module.Linear("test_resnet", len(dataset.classes), lr=2e-3, **SCHEDULE)
    module.fit(
        network,
        *loaders,
        seed=5,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    assert network.schedule.ended
    assert network.schedule.best_epoch == run.best.epoch
    assert_same_weights(network.network, run)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.name)
def test_an_example_fits_on_a_screen(file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 110
