"""What a run records of its machine, its memory and its energy: fake counters, and a run from end to end."""

import itertools
import json
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from click.testing import CliRunner

from qrdali import models
from qrdali.cli.main import cli
from qrdali.data.index import Dataset
from qrdali.errors import Interrupted
from qrdali.interfaces import JobControl
from qrdali.runs.settings import Settings, validate_settings
from qrdali.system import energy, environment
from qrdali.system.energy import EnergyMeter, peak_memory, reset_peak_memory
from qrdali.workflows.train import run_training

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class NVML(ModuleType):
    """A driver with one GPU, whose counter is `millijoules`; None: it has no counter."""

    class NVMLError(Exception):
        pass

    def __init__(self, millijoules: int | None = 0) -> None:
        super().__init__("pynvml")
        self.millijoules = millijoules

    def nvmlInit(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "555.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-12-34":
            raise self.NVMLError(f"{uuid} is not found")
        return "the handle"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "the handle"
        if self.millijoules is None:
            raise self.NVMLError("not supported")
        return self.millijoules


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> NVML:
    fake = NVML()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fake {device.index}")
    return fake


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, and zones that are parts of them or more than them."""
    for zone, name in (
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
    ):
        (tmp_path / zone).mkdir()
        for file, text in (("name", name), ("energy_uj", "5000000"), ("max_energy_range_uj", "10000000")):
            (tmp_path / zone / file).write_text(f"{text}\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_the_environment_names_versions_and_machine() -> None:
    found = environment.environment(CPU)
    assert list(found) == [
        "qrdali",
        "python",
        "torch",
        "torchvision",
        "timm",
        "dali",
        "numpy",
        "pillow",
        "platform",
        "cpu",
        "cores",
        "gpu",
        "driver",
    ]
    assert (found["numpy"], found["pillow"], found["python"]) == (
        np.__version__,
        PIL.__version__,
        platform.python_version(),
    )
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["dali"][0].isdigit()
    assert (found["gpu"], found["driver"]) == (None, None)
    assert json.loads(json.dumps(found)) == found


def test_nothing_is_imported_for_it_and_a_package_that_is_not_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys, torch; from qrdali.system.environment import environment; "
        "environment(torch.device('cpu'));print([m for m in ('torchvision', 'timm', 'nvidia.dali', 'PIL') if "
        "m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )
    monkeypatch.setitem(environment._PACKAGES, "dali", ("no-such-package",))
    assert environment.environment(CPU)["dali"] is None


def test_the_gpu_and_its_driver_are_named(nvml: NVML, monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment.environment(GPU)
    assert (found["gpu"], found["driver"]) == ("Fake 1", "555.1")

    def lost() -> None:
        raise nvml.NVMLError("no driver")

    monkeypatch.setattr(nvml, "nvmlInit", lost)
    assert environment.environment(GPU)["driver"] is None


def test_the_energy_of_a_gpu_is_its_counters_difference(nvml: NVML) -> None:
    nvml.millijoules = 10_000
    used = EnergyMeter(GPU)
    assert used.used() is None  # not begun
    nvml.millijoules = 20_000
    used.begin()
    nvml.millijoules = 23_500
    assert used.used() == 3.5
    nvml.millijoules = 24_000
    assert used.used() == 4
    used.begin(100)
    nvml.millijoules = 25_000
    assert used.used() == 101
    used.begin(None)  # begun by a process that could not count
    assert used.used() is None
    used.begin()
    nvml.millijoules = 1  # the driver was loaded anew
    assert used.used() is None
    used.begin()
    assert used.used() is None


@pytest.mark.parametrize("how", ["no counter", "another GPU", "no UUID"])
def test_a_gpu_without_a_counter_has_no_energy(nvml: NVML, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "no counter":
        nvml.millijoules = None
    else:
        own = SimpleNamespace(uuid="56-78") if how == "another GPU" else SimpleNamespace()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: own)
    used = EnergyMeter(GPU)
    used.begin()
    assert used.used() is None


def test_the_energy_of_a_cpu_is_its_packages(powercap: Path) -> None:
    used = EnergyMeter(CPU)
    used.begin()
    for zone, value in (("0", 6_500_000), ("1", 5_250_000), ("0:0", 9_000_000), ("2", 9_000_000)):
        (powercap / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{value}\n")
    assert used.used() == 1.75
    (powercap / "intel-rapl:0" / "energy_uj").write_text("1000000\n")  # past 10 J it begins again
    assert used.used() == pytest.approx(1.75 + 4.5)
    (powercap / "intel-rapl:1" / "energy_uj").write_text("-\n")
    assert used.used() is None


@pytest.mark.parametrize(
    ("file", "text"), [("energy_uj", None), ("energy_uj", "x"), ("max_energy_range_uj", "")]
)
def test_half_of_a_machine_is_no_figure(powercap: Path, file: str, text: str | None) -> None:
    (powercap / "intel-rapl:1" / file).unlink()
    if text is not None:
        (powercap / "intel-rapl:1" / file).write_text(text)
    used = EnergyMeter(CPU)
    used.begin()
    assert used.used() is None


def test_a_counter_is_read_often_enough_to_follow_it_around(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(energy.time, "monotonic", lambda: now)
    used = EnergyMeter(CPU)
    used.begin()
    for value in (1, 6, 1, 6, 4, 5):  # twice around in 31 s each
        (powercap / "intel-rapl:0" / "energy_uj").write_text(f"{value}000000")
        now += 31
        used.poll()
    assert used.used() == 30
    (powercap / "intel-rapl:0" / "energy_uj").write_text("9000000")
    now += 29
    used.poll()
    (powercap / "intel-rapl:0" / "energy_uj").write_text("6000000")
    assert used.used() == 31  # within the half minute nothing was read


def test_memory_is_of_the_process_or_the_most_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = peak_memory(CPU)
    assert found["memory_of"] == "process"
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    assert found["peak_memory_mb"] == pytest.approx(int(status["VmHWM"].split()[0]) * 1024 / 1e6, rel=0.02)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3_000_000_000, 8_000_000_000))
    for reserved, most in ((4_000_000_000, 5000), (6_000_000_000, 6000)):
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device, reserved=reserved: reserved)
        assert peak_memory(GPU) == {"peak_memory_mb": most, "memory_of": "gpu"}


def test_a_network_is_counted_with_its_own_classes_and_size() -> None:
    # SqueezeNet 1.1's last layer is a 1x1 convolution of 512 channels with bias, on 13 x 13 places at 224 px.
    small, large = models.describe("squeezenet1_1", 10, 224), models.describe("squeezenet1_1")
    assert large.parameters - small.parameters == 990 * 513
    assert large.gmacs - small.gmacs == pytest.approx(990 * 512 * 13 * 13 / 1e9)
    assert models.describe("squeezenet1_1", 10, 96).gmacs < small.gmacs / 4


def settings(dataset: Dataset, **values: object) -> Settings:
    return validate_settings(
        {
            "method": "adaptive",
            "reduction": "color",
            "sequence": "RC",
            "data": str(dataset.folder),
            "model": "test_resnet",
            "input_size": 32,
            "batch_size": 8,
            "device": "cpu",
            "threads": 1,
            "max_epochs": 2,
            **values,
        }
    )


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def counting(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading of a counter finds it half a joule on."""
    readings = iter(range(0, 10**9, 500_000))
    monkeypatch.setattr(
        energy, "_number", lambda file: next(readings) if file.name == "energy_uj" else 10**15
    )


def test_a_network_with_class_tokens_has_its_size_and_cost() -> None:
    described = models.describe("cait_xxs24_224")
    assert described.parameters == 11_956_264
    assert described.gmacs == pytest.approx(2.52, abs=0.01)


def test_a_run_records_what_it_is_and_what_it_costs(dataset: Dataset, tmp_path: Path, counting: None) -> None:
    run = tmp_path / "run"
    run_training(settings(dataset), run, False)
    start, *rows = rows_of(run)
    described = models.describe("test_resnet", 4, 32)
    assert start["environment"] == environment.environment(CPU)
    assert start["network"] == {
        "model": "test_resnet",
        "input_size": 32,
        "parameters": described.parameters,
        "gmacs": described.gmacs,
    }
    assert (start["images"], start["classes"]) == ({"train": 24, "val": 12}, 4)
    for row in rows:
        assert row["memory_of"] == "process"
        assert 50 < row["peak_memory_mb"] < 100_000
        assert (
            row["energy_joules"] == 2
        )  # two packages, each read at the beginning and at the end of the epoch
        assert "environment" not in row
    assert rows[0]["probe_energy_joules"] == 2
    assert "probe_energy_joules" not in rows[1]


def test_without_a_counter_the_keys_are_absent(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "nowhere")
    run_training(settings(dataset, max_epochs=1), tmp_path / "run", False)
    assert "peak_memory_mb" in rows_of(tmp_path / "run")[1]
    assert not any("energy" in key for row in rows_of(tmp_path / "run") for key in row)


def test_another_environment_is_recorded_once(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, own = (
        tmp_path / "run",
        settings(dataset, method="baseline", reduction="none", sequence="C", max_epochs=3, patience=9),
    )
    run_training(own, run, False)
    for processor, done, recorded in (
        ("there", 1, [None, "there", None]),
        ("there", 2, [None, "there", None]),
        ("elsewhere", 2, [None, "there", "elsewhere"]),
    ):
        state = json.loads((run / "last" / "state.json").read_text())
        state["schedule"].update(ended="", epoch=done)  # as if stopped after that epoch
        (run / "last" / "state.json").write_text(json.dumps(state))
        (run / "last" / "SHA256SUMS").unlink()
        monkeypatch.setattr(environment, "_cpu", lambda processor=processor: processor)
        run_training(own, run, True)
        assert [row.get("environment", {}).get("cpu") for row in rows_of(run)[1:]] == recorded


def test_an_interrupted_epoch_keeps_the_energy_it_has_used(
    dataset: Dataset, tmp_path: Path, counting: None
) -> None:
    run, calls = tmp_path / "run", itertools.count(1)
    # From the first step on: the validation of the start has two batches.
    control = JobControl(stop=lambda: 15 if next(calls) > 2 else 0)
    with pytest.raises(Interrupted):
        run_training(
            settings(dataset, method="baseline", reduction="none", sequence="C", max_epochs=1),
            run,
            False,
            control,
        )
    saved = json.loads((run / "last" / "state.json").read_text())["epoch"]
    assert saved["joules"] == 1.5 + 0.5
    run_training(
        settings(dataset, method="baseline", reduction="none", sequence="C", max_epochs=1), run, True
    )
    assert rows_of(run)[1]["energy_joules"] == 4


def test_bench_names_its_machine_as_before() -> None:
    from qrdali.workflows.bench_loader import machine

    driver = ["driver"] if torch.cuda.is_available() else []
    assert list(machine()) == ["cpu", "cores", "gpu", "python", "torch", "dali", *driver]
    assert (
        json.loads(CliRunner().invoke(cli, ["models", "test_resnet", "--json"]).stdout)["models"][0][
            "input_size"
        ]
        == 160
    )


def test_the_peak_is_the_runs_own_not_the_process() -> None:
    large = np.ones(400_000_000, np.uint8)
    high = peak_memory(CPU)["peak_memory_mb"]
    del large
    reset_peak_memory(CPU)
    assert peak_memory(CPU)["peak_memory_mb"] < high - 300


def test_a_divided_gpu_has_no_energy(nvml: NVML, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "nvmlDeviceGetMigMode", lambda handle: [1, 1])
    used = EnergyMeter(GPU)
    used.begin()
    assert used.used() is None
