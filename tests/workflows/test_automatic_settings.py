"""What --device auto and the like come to is in config.toml, and holds when a run continues."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner, Result

import qrdali
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError
from qrdali.experiment.expand import PlannedRun
from qrdali.interfaces import JobControl, RunContext
from qrdali.pipelines.engine import engine_for
from qrdali.runs import automatic
from qrdali.runs.settings import Settings, read_toml, validate_settings
from qrdali.system.device import probe_batch_size, resolve_amp
from qrdali.workflows import context as contexts
from qrdali.workflows import continued_run, matrix_checks
from qrdali.workflows import train as training
from qrdali.workflows.train_settings import settings_for, settings_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
SMALL = "--model test_resnet --input-size 32 --batch-size 8"
OWN = engine_for(CPU, None).threads


def train(*words: object) -> Result:
    return CliRunner().invoke(cli, ["train", *map(str, words)])


def config(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


def machine(run: Path) -> tuple[Any, ...]:
    """device, amp, threads, the probe's batch, and which of them were left to the machine."""
    values = config(run)
    return (*(values[name] for name in automatic.LEFT), values["automatic"])


def pretending(patch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Returns what makes a run believe that there is a GPU, or none; it computes on the CPU all the same."""
    plain = {name: getattr(training, name) for name in ("resolve_device", "environment", "open_context")}

    def on_cpu(device: str, amp: str, control: JobControl) -> RunContext:
        assert (device, amp) == ("cuda", "bf16")
        return contexts.open_context("cpu", amp, control)

    def is_there(there: bool) -> None:
        fakes: dict[str, Any] = {
            "resolve_device": lambda choice: CPU if choice == "cpu" else GPU,
            "environment": lambda device: (
                plain["environment"](CPU) | {"gpu": "H100" if device.type == "cuda" else None}
            ),
            "open_context": lambda device, *more: (
                plain["open_context"](device, *more) if device == "cpu" else on_cpu(device, *more)
            ),
        }
        for name, own in plain.items():
            patch.setattr(training, name, fakes[name] if there else own)
        cuda = SimpleNamespace(is_available=lambda: there)
        patch.setattr(continued_run, "torch", SimpleNamespace(cuda=cuda))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "H100")

    return is_there


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    return pretending(monkeypatch)


def stopped(run: Path, key: str = "epochs") -> None:
    """Makes a finished run of one epoch one that was stopped before its second."""
    change(run, **{key: 2})
    state = run / "last" / "state.json"
    saved = json.loads(state.read_text())
    saved["schedule"]["ended"] = ""
    state.write_text(json.dumps(saved))
    (run / "last" / "SHA256SUMS").unlink()


def change(run: Path, without: tuple[str, ...] = (), **values: Any) -> None:
    """Writes other values into a run's config.toml."""
    kept = {name: value for name, value in config(run).items() if name not in without}
    (run / "config.toml").write_text(tomli_w.dumps({**kept, **values}))


def as_older(run: Path) -> None:
    """Makes the config.toml of a run one of an older version, which wrote down what it was given."""
    change(run, ("automatic",), device="auto", amp="auto", threads=0)


def epochs(run: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def begun(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs begun with --device auto where there was a GPU (gpu) and none (cpu), and stopped."""
    folder = tmp_path_factory.mktemp("begun")
    for name in ("cpu", "gpu"):
        with pytest.MonkeyPatch.context() as patch:
            pretending(patch)(name == "gpu")
            words = ["--data", dataset.folder, "--run", folder / name, *SMALL.split(), "--epochs", 1]
            result = train("shared", *words)
        assert result.exit_code == 0, result.exception
        stopped(folder / name)
    return folder


@pytest.fixture
def of_gpu(begun: Path, tmp_path: Path, gpu: Callable[[bool], None]) -> Path:
    """A run of a GPU; there is none now."""
    gpu(False)
    return shutil.copytree(begun / "gpu", tmp_path / "gpu")


@pytest.fixture
def of_cpu(begun: Path, tmp_path: Path, gpu: Callable[[bool], None]) -> Path:
    """A run of a machine without a GPU."""
    gpu(False)
    return shutil.copytree(begun / "cpu", tmp_path / "cpu")


def test_what_was_chosen_is_written(of_cpu: Path, of_gpu: Path) -> None:
    left = ["device", "amp", "threads"]
    assert machine(of_cpu) == ("cpu", "off", OWN, 0, left)
    assert machine(of_gpu) == ("cuda", "bf16", OWN, 0, left)
    settings = qrdali.Run(of_gpu).settings
    assert (settings.device, settings.amp, settings.threads) == ("cuda", "bf16", OWN)
    assert settings.automatic == tuple(left)


def test_what_was_given_is_written_as_given(dataset: Dataset, tmp_path: Path) -> None:
    words = [*SMALL.split(), "--data", dataset.folder, "--device", "cpu", "--amp", "bf16", "--threads", 3]
    assert train("shared", "--run", tmp_path / "r", *words, "--epochs", 1).exit_code == 0
    assert machine(tmp_path / "r") == ("cpu", "bf16", 3, 0, [])


@pytest.mark.parametrize(("device", "expected"), [(CPU, 16), (GPU, 16_384)])
def test_the_batch_of_a_probe_is_of_the_device(device: torch.device, expected: int) -> None:
    probing = validate_settings({"method": "adaptive", "data": "x", "batch_size": 8192})
    assert settings_for(probing, device).probe_batch_size == expected
    given = probing.model_copy(update={"probe_batch_size": 5})
    assert settings_for(given, device).probe_batch_size == 5
    online = validate_settings({"method": "adaptive", "data": "x", "feedback": "online"})
    assert settings_for(online, device).probe_batch_size == 0
    largest = probing.model_copy(update={"batch_size": 1 << 20})
    assert Settings(**settings_for(largest, device).model_dump())
    assert expected == probe_batch_size(device, 8192)


def test_an_adaptive_run_records_its_probe(dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "r"
    words = [*SMALL.split(), "--data", dataset.folder, "--run", run, "--device", "cpu", "--threads", 1]
    assert train("adaptive", *words, "--reduction", "crop", "--max-epochs", 1).exit_code == 0
    assert machine(run) == ("cpu", "off", 1, 16, ["amp", "probe_batch_size"])
    stopped(run, "max_epochs")
    error = train("adaptive", "--run", run, "--resume", "--probe-batch-size", 32).exception
    assert "probe_batch_size 16 → 32" in str(error)
    assert train("adaptive", "--run", run, "--resume", "--probe-batch-size", 0).exit_code == 0
    assert machine(run)[3:] == (16, ["amp", "threads", "probe_batch_size"])


@pytest.mark.parametrize("words", ["", "--device auto --amp auto --threads 0", "--device cpu --amp off"])
def test_what_is_left_open_again_is_as_it_was(of_cpu: Path, gpu: Callable[[bool], None], words: str) -> None:
    """A run that was begun on a CPU stays there, where there is a GPU too."""
    before = machine(of_cpu)
    gpu(True)
    result = train("shared", "--run", of_cpu, "--resume", *words.split())
    assert result.exit_code == 0, result.exception
    assert "this run was trained" not in result.output
    said = "this run was begun where there was no GPU and stays on the CPU: --device cuda moves it"
    assert said in " ".join(result.output.split())
    assert epochs(of_cpu) == [0, 1, 2]
    assert machine(of_cpu) == before


def test_another_amp_is_refused(of_cpu: Path, of_gpu: Path, gpu: Callable[[bool], None]) -> None:
    gpu(True)
    for run, amp, change in ((of_cpu, "bf16", "off → bf16"), (of_gpu, "off", "bf16 → off")):
        error = train("shared", "--run", run, "--resume", "--amp", amp).exception
        assert isinstance(error, InputError)
        assert f"amp {change}" in str(error)
        assert epochs(run) == [0, 1]


def test_threads_are_each_machines_own(of_cpu: Path) -> None:
    assert train("shared", "--run", of_cpu, "--resume", "--threads", OWN + 1).exit_code == 0
    assert machine(of_cpu) == ("cpu", "off", OWN + 1, 0, ["device", "amp"])


def test_a_host_with_another_number_of_cores_goes_on(of_cpu: Path) -> None:
    change(of_cpu, threads=999)
    assert train("shared", "--run", of_cpu, "--resume").exit_code == 0
    assert machine(of_cpu) == ("cpu", "off", OWN, 0, ["device", "amp", "threads"])


@pytest.mark.parametrize("words", ["", "--device auto", "--device cuda"])
def test_a_run_of_a_gpu_where_there_is_none_is_told_what_to_do(of_gpu: Path, words: str) -> None:
    before = (of_gpu / "config.toml").read_bytes()
    error = train("shared", "--run", of_gpu, "--resume", *words.split()).exception
    assert isinstance(error, RunError)
    assert "was trained on a GPU so far" in str(error)
    assert "give --device cpu" in str(error)
    assert "\n" not in str(error)
    assert (of_gpu / "config.toml").read_bytes() == before
    assert epochs(of_gpu) == [0, 1]


@pytest.mark.parametrize("words", ["", "--amp off", "--amp auto"])
def test_a_run_of_a_gpu_goes_on_without(of_gpu: Path, words: str) -> None:
    result = train("shared", "--run", of_gpu, "--resume", "--device", "cpu", *words.split())
    assert result.exit_code == 0, result.exception
    said = "trained on cuda with amp bf16 so far and continues on cpu with amp off"
    assert said in " ".join(result.output.split())
    assert epochs(of_gpu) == [0, 1, 2]
    assert machine(of_gpu) == ("cpu", "off", OWN, 0, ["amp", "threads"])
    # It then stays there without being told again.
    assert "nothing to do" in train("shared", "--run", of_gpu, "--resume").output


def test_a_finished_run_of_a_gpu_is_finished_anywhere(of_gpu: Path) -> None:
    file = of_gpu / "last" / "state.json"
    saved = json.loads(file.read_text())
    saved["schedule"]["ended"] = "the last epoch"
    file.write_text(json.dumps(saved))
    assert "nothing to do" in train("shared", "--run", of_gpu, "--resume").output


def test_a_run_of_a_cpu_is_moved_to_a_gpu_on_demand(of_cpu: Path, gpu: Callable[[bool], None]) -> None:
    gpu(True)
    result = train("shared", "--run", of_cpu, "--resume", "--device", "cuda")
    assert result.exit_code == 0, result.exception
    said = "trained on cpu with amp off so far and continues on cuda with amp bf16"
    assert said in " ".join(result.output.split())
    assert machine(of_cpu) == ("cuda", "bf16", OWN, 0, ["amp", "threads"])


def test_an_older_run_of_a_cpu_stays_there(of_cpu: Path, gpu: Callable[[bool], None]) -> None:
    """Its config.toml holds auto and 0: the first row of its metrics says what that meant."""
    as_older(of_cpu)
    gpu(True)
    error = train("shared", "--run", of_cpu, "--resume", "--amp", "bf16").exception
    assert "amp off → bf16" in str(error)
    result = train("shared", "--run", of_cpu, "--resume")
    assert result.exit_code == 0, result.exception
    assert machine(of_cpu) == ("cpu", "off", OWN, 0, ["device", "amp", "threads"])


@pytest.mark.parametrize("scaler", [{}, {"scale": 65536.0}])
def test_an_older_run_of_a_gpu(of_gpu: Path, gpu: Callable[[bool], None], scaler: dict[str, Any]) -> None:
    as_older(of_gpu)
    state = of_gpu / "last" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "scaler": scaler}))
    amp = "fp16" if scaler else "bf16"
    before = automatic.recorded(of_gpu)
    assert (before["device"], before["amp"]) == ("cuda", amp)
    assert "give --device cpu" in str(train("shared", "--run", of_gpu, "--resume").exception)
    gpu(True)
    error = train("shared", "--run", of_gpu, "--resume", "--amp", "off").exception
    assert f"amp {amp} → off" in str(error)
    if not scaler:
        result = train("shared", "--run", of_gpu, "--resume", "--amp", "bf16")
        assert result.exit_code == 0, result.exception
        assert machine(of_gpu) == ("cuda", "bf16", OWN, 0, ["device", "amp", "threads"])


def test_an_older_run_that_recorded_no_device(of_cpu: Path) -> None:
    as_older(of_cpu)
    metrics = of_cpu / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    del rows[0]["environment"]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert automatic.recorded(of_cpu)["device"] == "auto"
    assert train("shared", "--run", of_cpu, "--resume", "--device", "cpu", "--amp", "off").exit_code == 0


def test_a_run_that_was_killed_before_its_first_row(of_cpu: Path) -> None:
    as_older(of_cpu)
    (of_cpu / "metrics.jsonl").unlink()
    assert automatic.recorded(of_cpu)["device"] == "auto"


def test_another_run_takes_the_settings_but_not_the_machine(
    of_gpu: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """A config.toml as --config: what was left to that machine is left to this one."""
    words = ["--config", of_gpu / "config.toml", "--run", tmp_path / "r", "--epochs", 1]
    result = train("shared", *words)
    assert result.exit_code == 0, result.exception
    assert machine(tmp_path / "r") == ("cpu", "off", OWN, 0, ["device", "amp", "threads"])
    assert config(tmp_path / "r")["batch_size"] == 8
    assert train("shared", *words[:2], "--run", tmp_path / "s", *words[4:], "--threads", 2).exit_code == 0
    assert machine(tmp_path / "s") == ("cpu", "off", 2, 0, ["device", "amp"])


def test_the_line_at_the_begin_names_the_precision(
    dataset: Dataset, tmp_path: Path, gpu: Callable[[bool], None]
) -> None:
    words = [*SMALL.split(), "--data", dataset.folder, "--device", "cpu", "--epochs", 1]
    said = train("shared", *words, "--run", tmp_path / "a", "--amp", "bf16").output
    assert "CPU in bf16, regions decoded" in " ".join(said.split())
    assert "CPU, regions decoded" in " ".join(train("shared", *words, "--run", tmp_path / "b").output.split())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("automatic", value) for value in (5, ["lr"], [["amp"]], "amp", {"amp": 1}, ["amp"] * 5)),
        ("device", 5),
        ("amp", []),
    ],
)
def test_a_damaged_config_is_one_line(of_cpu: Path, tmp_path: Path, name: str, value: object) -> None:
    change(of_cpu, **{name: value})
    for words in ((), ("--device", "cuda"), ("--device", "cpu", "--amp", "off")):
        error = train("shared", "--run", of_cpu, "--resume", *words).exception
        assert isinstance(error, InputError | RunError)
        assert name in str(error)
        assert "\n" not in str(error)
    assert epochs(of_cpu) == [0, 1]
    # As a template of another run it loses what was automatic.
    result = train("shared", "--config", of_cpu / "config.toml", "--run", tmp_path / "new", "--epochs", 1)
    assert result.exit_code == 0 or isinstance(result.exception, InputError)


def test_ranks_that_compute_otherwise_are_told(of_cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts may have other numbers of cores, and must not train in other precisions."""

    class Group:
        is_single = False

        def __init__(self) -> None:
            self.compared: dict[str, str] = {}

        def require_equal(self, what: str, value: str) -> None:
            self.compared[what] = value

    def compared(**changes: Any) -> dict[str, str]:
        settings = validate_settings(read_toml(of_cpu / "config.toml")).model_copy(update=changes)
        index = Dataset.open(Path(settings.data)).index("train")
        spec: Any = type("Spec", (), {"settings": settings})
        group: Any = Group()
        training._require_equal(training.PreparedRun(spec, index, index), group)
        found: dict[str, str] = group.compared
        return found

    one = compared()
    assert compared(threads=7, automatic=("device", "amp")) == one
    other = compared(amp="bf16", device="cuda")
    assert one["the devices and their amp"] == "cpu off"
    assert other["the devices and their amp"] == "cuda bf16"


def test_python_says_auto_too(of_cpu: Path) -> None:
    qrdali.train("shared", run=of_cpu, resume=True, device="auto", amp="auto", threads=0)
    assert epochs(of_cpu) == [0, 1, 2]
    assert machine(of_cpu) == ("cpu", "off", OWN, 0, ["device", "amp", "threads"])


def test_moves_keep_what_was_asked_for() -> None:
    """--amp bf16 that was given stays on another GPU; what is given with the move is taken."""
    gpu = {"device": "cuda", "amp": "bf16", "probe_batch_size": 64, "automatic": ["device", "threads"]}
    cpu = {"device": "cpu", "amp": "off", "probe_batch_size": 16, "automatic": ["probe_batch_size"]}
    moved = automatic.continued
    assert moved({}, gpu) == {"device": "cuda", "amp": "bf16", "probe_batch_size": 64}
    assert moved({"device": "cpu"}, gpu) == {"device": "cpu", "amp": "off", "probe_batch_size": 64}
    assert moved({"device": "cpu", "amp": "bf16"}, gpu)["amp"] == "bf16"
    assert moved({"device": "cuda"}, cpu) == {"device": "cuda", "amp": "off", "probe_batch_size": 0}
    assert automatic.still_automatic("cuda", gpu) == ("device",)
    assert automatic.still_automatic("cpu", gpu) == ()
    assert continued_run.describe_device(validate_settings({"method": "shared", "data": "x"}), {}) == ""


def test_cards_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert resolve_amp("auto", GPU) == "fp16"
    assert resolve_amp("auto", CPU) == "off"
    assert [resolve_amp(amp, CPU) for amp in ("bf16", "fp16", "off")] == ["bf16", "fp16", "off"]


def test_settings_know_the_device_before_the_processes_meet(of_gpu: Path) -> None:
    """torchrun's ranks connect by the settings' device."""
    assert settings_of("shared", of_gpu, {"device": "auto"}, True).device == "cuda"
    moved = settings_of("shared", of_gpu, {"device": "cpu"}, True)
    assert (moved.device, moved.amp, moved.threads) == ("cpu", "off", 0)


def of_matrix(run: Path, **changes: Any) -> Settings:
    """The settings that a matrix gives `run_training`, which leave to the machine what no file names."""
    kept = {name: value for name, value in config(run).items() if name not in ("automatic", *automatic.LEFT)}
    return validate_settings({**kept, **changes})


def test_a_matrix_goes_on_with_what_was_chosen(of_cpu: Path, of_gpu: Path) -> None:
    training.run_training(of_matrix(of_cpu), of_cpu, True)
    assert machine(of_cpu) == ("cpu", "off", OWN, 0, ["device", "amp", "threads"])
    with pytest.raises(RunError, match="give --device cpu"):
        training.run_training(of_matrix(of_gpu), of_gpu, True)
    with pytest.raises(InputError, match="amp bf16 → off"):
        training.run_training(of_matrix(of_gpu, amp="off"), of_gpu, True)
    training.run_training(of_matrix(of_gpu, device="cpu"), of_gpu, True)
    assert epochs(of_cpu) == epochs(of_gpu) == [0, 1, 2]
    assert machine(of_gpu) == ("cpu", "off", OWN, 0, ["amp", "threads"])


@pytest.mark.parametrize("older", [False, True])
def test_a_matrix_compares_what_was_chosen(of_cpu: Path, of_gpu: Path, older: bool) -> None:
    """auto and 0 agree with all; what its file names agrees with what it came to."""
    if older:
        as_older(of_cpu)
        as_older(of_gpu)

    def changes(run: Path, **values: Any) -> list[str]:
        given = of_matrix(run, **values).model_dump(exclude={"automatic"})
        tasks: Any = SimpleNamespace(folder=SimpleNamespace(run=lambda name: run))
        return matrix_checks._changed_settings(tasks, PlannedRun("x", "x", given))

    for run in (of_cpu, of_gpu):
        assert changes(run) == changes(run, threads=3) == changes(run, device="cpu") == []
        assert changes(run, lr=0.5) != []
    assert changes(of_cpu, amp="off") == changes(of_gpu, amp="bf16") == []
    assert changes(of_cpu, amp="bf16") == ["amp off → bf16"]
    assert changes(of_gpu, amp="off") == ["amp bf16 → off"]
    assert changes(of_gpu, device="cpu", amp="off") == []
    change(of_cpu, method="adaptive", reduction="crop", sequence="RC", probe_batch_size=16)
    assert changes(of_cpu) == changes(of_cpu, probe_batch_size=16) == []
    assert changes(of_cpu, probe_batch_size=8) == ["probe_batch_size 16 → 8"]
