"""--deterministic: in force while a run trains and what is made of it is made, gone afterwards; one line
where torch has no such form."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from ranks_worker import order
from safetensors.torch import load_file
from torch import nn
from torchrun_helpers import rows, torchrun

from qrdali import models
from qrdali.cli.build_mepi import build_mepi
from qrdali.cli.evaluate import evaluate
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings, read_toml, validate_settings
from qrdali.system import deterministic as module
from qrdali.system.deterministic import VARIABLE, cublas_workspace, cudnn_benchmark, deterministic
from qrdali.workflows import reproduce
from qrdali.workflows import train as training
from qrdali.workflows.train import run_training

create = models.create
SMALL = {"model": "test_resnet", "input_size": 32, "batch_size": 8, "device": "cpu", "threads": 1}


def settings(dataset: Dataset, **values: Any) -> Settings:
    return validate_settings(
        {"method": "shared", "data": str(dataset.folder), "epochs": 1, **SMALL, **values}
    )


def switches() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


IN_FORCE = (True, False, True, False, True)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before, variable = switches(), os.environ.get(VARIABLE)
    yield
    assert (switches(), os.environ.get(VARIABLE)) == (before, variable)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, tuple[bool, ...]]]:
    """Whether each forward pass was of training, and under what."""
    found: list[tuple[bool, tuple[bool, ...]]] = []

    def watched(*args: Any, **named: Any) -> nn.Module:
        network = create(*args, **named)
        network.register_forward_hook(lambda network, *_: found.append((network.training, switches())))
        return network

    monkeypatch.setattr(models, "create", watched)
    monkeypatch.setattr(run_folder, "create", watched)
    return found


@pytest.mark.parametrize("wanted", [True, False])
def test_in_force_in_every_pass(
    dataset: Dataset, tmp_path: Path, seen: list[tuple[bool, tuple[bool, ...]]], wanted: bool
) -> None:
    """Covers training, validation and probes; then evaluation and the search for MEPIs, without being
    told."""
    run = tmp_path / "run"
    outside = switches()
    run_training(
        settings(
            dataset, method="adaptive", reduction="crop", patience=1, max_epochs=2, deterministic=wanted
        ),
        run,
        False,
    )
    assert {training for training, _ in seen} == {True, False}
    assert {found for _, found in seen} == {IN_FORCE if wanted else outside}
    assert read_toml(run / "config.toml")["deterministic"] is wanted
    seen.clear()
    for command, words in (
        (evaluate, []),
        (build_mepi, ["--reduction", "color", "--step", ".25", "--out", str(tmp_path / "mepi")]),
    ):
        done = CliRunner().invoke(
            command,
            ["--run", str(run), "--data", str(dataset.folder), "--device", "cpu", "--threads", "1", *words],
        )
        assert done.exit_code == 0, done.output
        assert {found for _, found in seen} == {IN_FORCE if wanted else outside}
        seen.clear()


def test_on_a_cpu_it_changes_no_bit(dataset: Dataset, tmp_path: Path) -> None:
    """Nor does the trial step that asks torch: the network has batch norm."""
    for name, wanted in (("with", True), ("without", False)):
        run_training(settings(dataset, deterministic=wanted, epochs=2), tmp_path / name, False)
    first, second = (
        load_file(tmp_path / name / "last" / "model.safetensors") for name in ("with", "without")
    )
    assert all(torch.equal(first[key], second[key]) for key in first | second)


class Refused(nn.Module):
    """A network with an operation that has no deterministic form, on a CPU neither."""

    def __init__(self, network: nn.Module, when: str) -> None:
        super().__init__()
        self.network, self.when = network, when

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.when == "backward":
            images = Backward.apply(images)
        elif self.training == (self.when == "training"):
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return self.network(images)


class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor) -> torch.Tensor:
        return images.clone().requires_grad_()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return gradient


def test_an_operation_without_such_a_form_is_named_before_anything_is_there(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "create", lambda *args, **named: Refused(create(*args, **named), "training"))
    run = tmp_path / "run"
    with pytest.raises(
        RunError, match="^put_ has no deterministic form on this device: give --no-deterministic, or"
    ) as error:
        run_training(settings(dataset, deterministic=True), run, False)
    assert "\n" not in str(error.value)
    assert not run.exists()
    run_training(settings(dataset), run, False)
    assert len(rows(run)) == 2


def test_an_operation_of_the_backward_pass_is_found_too() -> None:
    """And nothing is left of the trial, in statistics of batch norm, gradients or torch's generator."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)
    )
    backward = nn.Sequential(nn.Conv2d(3, 3, 1), Refused(network, "backward"))
    network(torch.zeros(1, 3, 8, 8))
    before = [value.clone() for value in network.state_dict().values()]
    state = torch.get_rng_state()
    with deterministic(True, "cpu"):
        module.require_deterministic_model(network, 8, 4, "off", torch.device("cpu"))
        module.require_deterministic_model(
            network, 9, 4, "off", torch.device("cpu")
        )  # another failure: not its business
        with pytest.raises(RunError, match="put_ has no deterministic form"):
            module.require_deterministic_model(backward, 8, 4, "off", torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_operation_that_comes_later_ends_the_run_in_one_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        models, "create", lambda *args, **named: Refused(create(*args, **named), "evaluation")
    )
    with pytest.raises(
        RunError, match="^put_ has no deterministic form on this device: give --no-deterministic, or"
    ):
        run_training(settings(dataset, deterministic=True), tmp_path / "run", False)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^something else$") as other, deterministic(True, "cpu"):
        raise RuntimeError("something else")
    assert not isinstance(other.value, RunError)
    with (
        pytest.raises(RunError, match="^x does not have a deterministic implementation$"),
        deterministic(True, "cpu"),
    ):
        raise RunError("x does not have a deterministic implementation")  # of a line that is one already


def test_a_change_is_shown_and_refused(dataset: Dataset, tmp_path: Path) -> None:
    run, older = tmp_path / "run", tmp_path / "older"
    run_training(settings(dataset, deterministic=True), run, False)
    with pytest.raises(InputError, match="was begun with other settings: deterministic True → False"):
        run_training(settings(dataset), run, True)
    run_training(settings(dataset), older, False)
    config = older / "config.toml"
    config.write_text(re.sub("deterministic = false\n", "", config.read_text()))
    assert "deterministic" not in config.read_text()
    with pytest.raises(InputError, match="deterministic False → True"):
        run_training(settings(dataset, deterministic=True), older, True)
    run_training(settings(dataset), older, True)  # as it was begun
    assert not run_folder.is_deterministic(older)
    config.write_text("deterministic = 1\n")
    assert not run_folder.is_deterministic(older)
    config.write_text("deterministic = \n")
    with pytest.raises(InputError, match="cannot be read as TOML"):
        run_folder.is_deterministic(older)
    assert not run_folder.is_deterministic(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "expected"), [([], True), (["--no-deterministic"], False), (["--deterministic"], True)]
)
def test_the_command_line_wins(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: bool
) -> None:
    found: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        training,
        "run_training",
        lambda settings, *_: found.append((settings.deterministic, switches() == IN_FORCE)),
    )
    (tmp_path / "config.toml").write_text("deterministic = true\n")
    done = CliRunner().invoke(
        cli,
        [
            "train",
            "shared",
            "--data",
            str(dataset.folder),
            "--run",
            str(tmp_path / "run"),
            "--device",
            "cpu",
            "--config",
            str(tmp_path / "config.toml"),
            *words,
        ],
    )
    assert done.exit_code == 0, done.output
    assert found == [(expected, expected)]  # before the ranks meet, which begins CUDA


def test_what_the_caller_had_comes_back() -> None:
    before = switches()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = True, False
        had = switches()
        with pytest.raises(AssertionError, match="in force"), deterministic(True, "cpu"):
            assert switches() != IN_FORCE, "in force"
        assert switches() == had
        with deterministic(False):
            assert switches() == had
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = before[3:]


def cuda(monkeypatch: pytest.MonkeyPatch, available: bool, begun: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun)


def test_cublas_is_told_before_cuda_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    cuda(monkeypatch, True, False)
    with deterministic(False), deterministic(True, "cpu"):
        assert VARIABLE not in os.environ
    with deterministic(True, "cuda"), deterministic(True, "auto"):
        assert os.environ[VARIABLE] == ":4096:8"
    assert VARIABLE not in os.environ
    with cublas_workspace("auto"):  # of a matrix some of whose runs want it
        cuda(monkeypatch, True, True)
        with deterministic(True, "cuda"):
            assert os.environ[VARIABLE] == ":4096:8"
    with deterministic(True, "cuda"):  # what CUDA has begun with is still known
        assert os.environ[VARIABLE] == ":4096:8"
    del os.environ[VARIABLE]
    with (
        pytest.raises(
            InputError,
            match="CUDA has begun in this process without CUBLAS_WORKSPACE_CONFIG: set it to :4096:8",
        ),
        deterministic(True, "cuda"),
    ):
        pass


@pytest.mark.parametrize("value", [":4096:8", ":16:8"])
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    cuda(monkeypatch, True, True)
    with deterministic(True, "cuda"):
        assert os.environ[VARIABLE] == value


@pytest.mark.parametrize("value", [":0:0", "", ":4096:2:16:8", "\x1b[31m"])
def test_what_the_user_chose_is_refused_where_it_hinders(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    cuda(monkeypatch, True, False)
    with (
        pytest.raises(
            InputError,
            match="CUBLAS_WORKSPACE_CONFIG is .*, with which cuBLAS does not repeat its results: unset",
        ) as error,
        deterministic(True, "auto"),
    ):
        pass
    assert str(error.value).isprintable()
    cuda(monkeypatch, False, False)
    with deterministic(True, "auto"):  # there is no GPU
        assert os.environ[VARIABLE] == value


def test_in_two_ranks_a_kill_leaves_no_trace(dataset: Dataset, tmp_path: Path) -> None:
    """A rank is killed, torchrun begins again; in every step of every rank it was in force."""
    found = []
    for name, kill in (("whole", None), ("killed", [1, 4])):
        entry = {
            "run": str(tmp_path / name),
            "kill": kill,
            "switches": list(IN_FORCE),
            "settings": settings(dataset, epochs=2, save_every="2", deterministic=True).model_dump(),
        }
        done = torchrun(2, [entry], tmp_path / f"{name}-files", "--max-restarts", "1")
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(tmp_path / name)
    assert order(found[0]) == order(found[1])
    for file in ("best/model", "last/model", "last/optimizer", "last/random"):
        first, second = (load_file(run / f"{file}.safetensors") for run in found)
        assert all(torch.equal(first[key], second[key]) for key in first | second), file


def test_a_matrix_sets_it(
    dataset: Dataset, tmp_path: Path, seen: list[tuple[bool, tuple[bool, ...]]]
) -> None:
    """As a setting of [train], for the runs and for what is evaluated of them."""
    config = tmp_path / "matrix.toml"
    config.write_text(f"""out = {str(tmp_path / "out")!r}
data = {{ folder = {str(dataset.folder)!r} }}
train = {{ device = "cpu", threads = 1, batch_size = 8, patience = 1, max_epochs = 1, deterministic = true }}
network = [{{ model = "test_resnet", input_size = 32, epochs = 1 }}]
runs = {{ methods = ["baseline"] }}
""")
    done = CliRunner().invoke(cli, ["reproduce", str(config), "--only", "shared"])
    assert done.exit_code == 0, done.output
    assert {found for _, found in seen} == {IN_FORCE}
    run = next((tmp_path / "out" / "runs").rglob("config.toml")).parent
    assert read_toml(run / "config.toml")["deterministic"] is True
    assert (run / "predictions" / "test.parquet").exists()
    shutil.rmtree(tmp_path / "out" / "report", ignore_errors=True)
    config.write_text(config.read_text().replace("true", "false"))
    refused = CliRunner().invoke(cli, ["reproduce", str(config), "--only", "shared"])
    assert isinstance(refused.exception, InputError)
    assert "deterministic True → False" in str(refused.exception)


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [("auto", "true", ":4096:8"), ("auto", "false", None), ("cpu", "true", None)],
)
def test_a_matrix_tells_cublas_before_its_first_run(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    wanted: str,
    expected: str | None,
) -> None:
    """Whichever of its runs wants it."""
    found: list[str | None] = []

    def noted(tasks: Any) -> None:
        found.append(os.environ.get(VARIABLE))
        raise InputError("enough seen")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(reproduce, "check_inputs", noted)
    config = tmp_path / "matrix.toml"
    config.write_text(f"""out = {str(tmp_path / "out")!r}
data = {{ folder = {str(dataset.folder)!r} }}
train = {{ device = "{device}" }}
network = [{{ model = "test_resnet", epochs = 1 }}]
runs = {{ methods = ["baseline"], baseline = {{ deterministic = {wanted} }} }}
""")
    done = CliRunner().invoke(cli, ["reproduce", str(config)])
    assert str(done.exception) == "enough seen"
    assert found == [expected]


def test_cudnn_times_its_algorithms_within_the_block_alone() -> None:
    before = torch.backends.cudnn.benchmark
    try:
        for had in (False, True):
            torch.backends.cudnn.benchmark = had
            with cudnn_benchmark(False):
                assert torch.backends.cudnn.benchmark == had
            with pytest.raises(AssertionError, match="on"), cudnn_benchmark(True):
                assert not torch.backends.cudnn.benchmark, "on"
            assert torch.backends.cudnn.benchmark == had
    finally:
        torch.backends.cudnn.benchmark = before
