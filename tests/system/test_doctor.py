"""The doctor: facts to findings, the survey of a machine, and the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from qrdali.cli.main import cli
from qrdali.errors import RunError
from qrdali.pipelines import decoder_trial as decoding
from qrdali.pipelines import survey
from qrdali.pipelines.decoder_trial import TrialResult
from qrdali.system import machine
from qrdali.system.device import resolve_device
from qrdali.system.doctor import OK, PROBLEM, WARNING, Facts, Finding, examine, verdict
from qrdali.system.machine import Memory, Processors, Space
from qrdali.system.subprocess_trial import Answer

GIB = 1 << 30
CARD = {"name": "NVIDIA Card", "uuid": "GPU-1", "memory": 24 * GIB, "capability": [8, 6], "error": None}
NONE = {"available": False, "why": "Found no NVIDIA driver", "gpus": []}
LOST = {"error": "NVML Shared Library Not Found"}


def parts(**changes: Any) -> dict[str, dict[str, Any]]:
    """A GPU host in order."""
    return {
        "driver": {"version": "580.65.06", "gpus": [{"name": "NVIDIA Card", "uuid": "GPU-1", "mig": "off"}]},
        "torch": {"version": "2.15.0+cu132", "cuda": "13.2", "architectures": ["sm_80", "sm_90"]},
        "gpus": {"available": True, "why": None, "gpus": [CARD]},
        "torchvision": {"version": "0.29.2"},
        "timm": {"version": "1.0.31"},
        "dali": {"version": "2.4.0", "distribution": "nvidia-dali-cuda120"},
        "codec": {"version": "0.9.0", "distribution": "nvidia-nvimgcodec-cu12"},
        **changes,
    }


HOST = Facts(
    (3, 12, 1),
    parts(),
    None,
    {"cpu": None, "gpu": None},
    Processors(8, 8, None),
    Memory(64 * GIB, None),
    Space(32 * GIB, 32 * GIB),
    "runs",
    Space(900 * GIB, 500 * GIB),
)
CPU_HOST = replace(HOST, parts=parts(driver=LOST, gpus=NONE), decoding={"cpu": None})


def finding_of(name: str, facts: Facts) -> Finding:
    (finding,) = [finding for finding in examine(facts) if finding.name == name]
    return finding


def of_parts(name: str, **changes: Any) -> Finding:
    return finding_of(name, replace(HOST, parts=parts(**changes)))


def test_a_gpu_host_in_order_has_no_advice() -> None:
    findings = examine(HOST)
    assert verdict(findings) == OK
    assert not any(finding.advice for finding in findings)
    values = {finding.name: finding.value for finding in findings}
    assert values["torch"] == "2.15.0+cu132, built for CUDA 13.2"
    assert values["DALI"] == "2.4.0, built for CUDA 12"
    assert values["GPU 0"] == "NVIDIA Card, 24 GiB, compute capability 8.6, MIG off"
    assert values["run folder"] == "500 GiB free of 900 GiB in runs"
    assert values["CPU threads"] == "8 of 8"


def test_without_a_gpu_training_works_and_the_advice_says_what_to_check() -> None:
    findings = examine(CPU_HOST)
    assert verdict(findings) == WARNING
    assert {finding.name for finding in findings if finding.state == WARNING} == {"driver", "GPU"}
    assert "GPU decode" not in {finding.name for finding in findings}
    for word in ("nvidia-smi", "driver", "--gpus all"):
        assert word in finding_of("driver", CPU_HOST).advice


@pytest.mark.parametrize(
    ("changes", "version", "lacking"),
    [
        ({}, "580", []),
        ({}, "579.99.9", ["torch for CUDA 13.2 needs 580"]),
        ({"torch": {"version": "2.9", "cuda": "12.8"}}, "530.30.02", []),
        ({"torch": {"version": "2.9", "cuda": "12.8"}}, "530.29", ["nvImageCodec for CUDA 12 needs 530.30"]),
        (
            {"torch": {"version": "2.9", "cuda": "12.8"}},
            "524.9",
            ["torch for CUDA 12.8 needs 525", "DALI for CUDA 12 needs 525", "nvImageC"],
        ),
        (
            {
                "dali": {"version": "2", "distribution": "nvidia-dali-cuda130"},
                "torch": {"version": "2", "cuda": None},
            },
            "579",
            ["DALI for CUDA 13 needs 580"],
        ),
        (
            {
                "dali": {"version": "1", "distribution": "nvidia-dali-cuda110"},
                "codec": {"error": "gone"},
                "torch": {"error": "gone"},
            },
            "450",
            [],
        ),
        ({"torch": {"version": "9", "cuda": "19.0"}}, "531", []),  # nobody knows
        ({}, "no number", ["torch for CUDA 13.2", "DALI", "nvImageCodec"]),
    ],
)
def test_the_driver_is_held_against_each_package(
    changes: dict[str, Any], version: str, lacking: list[str]
) -> None:
    finding = of_parts("driver", driver={"version": version, "gpus": []}, **changes)
    assert finding.state == (WARNING if lacking else OK)
    libraries = finding.advice.partition(": ")[0].split("; ") if lacking else []
    assert [a.startswith(b) for a, b in zip(libraries, lacking, strict=True)] == [True] * len(lacking)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("timm", "timm"),
        ("dali", "DALI"),
        ("codec", "nvImageCodec"),
    ],
)
def test_a_package_that_does_not_import_is_a_problem(part: str, name: str) -> None:
    finding = of_parts(name, **{part: {"error": "crashed: SIGILL"}})
    assert (finding.state, finding.value) == (PROBLEM, "crashed: SIGILL")
    assert "constraints.txt" in finding.advice


@pytest.mark.parametrize(("version", "state"), [((3, 9, 20), PROBLEM), ((3, 10, 0), OK)])
def test_python_has_a_least_version(version: tuple[int, int, int], state: str) -> None:
    assert finding_of("Python", replace(HOST, python=version)).state == state


def test_a_card_on_which_nothing_is_computed_stops_the_default_device() -> None:
    broken = {**CARD, "error": "no kernel image is available"}
    first = of_parts("GPU 0", gpus={"available": True, "why": None, "gpus": [broken, CARD]})
    second = of_parts("GPU 1", gpus={"available": True, "why": None, "gpus": [CARD, broken]})
    assert (first.state, second.state) == (PROBLEM, WARNING)
    assert "no kernel image" in first.value
    assert "sm_80, sm_90" in first.advice
    assert of_parts("GPU", gpus={"error": "crashed: SIGSEGV"}).state == PROBLEM


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (replace(HOST, parts=parts(gpus=NONE), visible=""), "CUDA_VISIBLE_DEVICES is ''"),
        (
            replace(
                HOST,
                parts=parts(
                    gpus=NONE, driver={"version": "580", "gpus": [{"name": "A100", "uuid": "", "mig": "on"}]}
                ),
            ),
            "MIG is on",
        ),
        (replace(HOST, parts=parts(gpus=NONE, torch={"version": "2.15.0+cpu", "cuda": None})), "CUDA build"),
        (replace(HOST, parts=parts(gpus=NONE)), "see the driver"),
        (replace(HOST, parts=parts(gpus=NONE, driver={"version": "580", "gpus": []})), "--gpus all"),
    ],
)
def test_a_gpu_that_torch_does_not_see_has_a_reason(facts: Facts, words: str) -> None:
    finding = finding_of("GPU", facts)
    assert finding.state == WARNING
    assert words in finding.advice


def test_a_part_of_a_card_and_one_without_mig_are_told() -> None:
    def value(**changes: Any) -> str:
        return of_parts("GPU 0", gpus={"available": True, "why": None, "gpus": [{**CARD, **changes}]}).value

    assert value(name="NVIDIA A100 MIG 1g.5gb").endswith("8.6, a part of a card")
    assert value(uuid="GPU-2").endswith("8.6")
    assert value(uuid=None).endswith("8.6")


@pytest.mark.parametrize(
    ("way", "name", "state"),
    [("cpu", "CPU decode", PROBLEM), ("gpu", "GPU decode", PROBLEM)],
)
def test_a_way_of_decoding_that_fails(way: str, name: str, state: str) -> None:
    finding = finding_of(name, replace(HOST, decoding={**HOST.decoding, way: "crashed: SIGSEGV"}))
    assert finding.state == state
    assert "SIGSEGV" in finding.value
    assert finding.advice


@pytest.mark.parametrize(
    ("changes", "name", "state", "words"),
    [
        ({"shared": Space(64 << 20, 1)}, "shared memory", WARNING, "--ipc=host or --shm-size"),
        ({"shared": Space((64 << 20) + 1, 1)}, "shared memory", OK, ""),
        ({"shared": None}, "shared memory", WARNING, "--shm-size"),
        ({"memory": Memory(64 * GIB, 2 * GIB - 1)}, "memory", WARNING, "--memory"),
        ({"memory": Memory(64 * GIB, 2 * GIB)}, "memory", OK, ""),
        ({"memory": Memory(GIB, None)}, "memory", WARNING, "--memory"),
        ({"disk": Space(GIB, GIB, "Read-only file system")}, "run folder", PROBLEM, "volume"),
        ({"disk": Space(GIB, (10 << 20) - 1)}, "run folder", PROBLEM, "free some"),
        ({"disk": Space(GIB, 10 << 20)}, "run folder", WARNING, "free some"),
        ({"disk": Space(GIB, GIB)}, "run folder", OK, ""),
        ({"processors": Processors(64, 16, 2.5)}, "CPU threads", WARNING, "OMP_NUM_THREADS=3"),
        ({"processors": Processors(64, 16, 16.0)}, "CPU threads", OK, ""),
        ({"processors": Processors(64, 1, None)}, "CPU threads", WARNING, "--cpus"),
    ],
)
def test_little_of_something_is_a_warning_and_none_a_problem(
    changes: dict[str, Any], name: str, state: str, words: str
) -> None:
    finding = finding_of(name, replace(HOST, **changes))
    assert finding.state == state
    assert words in finding.advice
    assert bool(finding.advice) == (state != OK)


def groups(root: Path, own: str, **files: str) -> Path:
    """A machine whose /proc/self/cgroup is `own`; files: text by path below /sys/fs/cgroup, with __ for /."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(own)
    (root / "sys").mkdir()
    (root / "sys" / "cpu.max").write_text("1 100000")  # outside: not to be reached by a path with dots
    for path, text in files.items():
        file = root / "sys" / "fs" / "cgroup" / path.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("own", "files", "quota", "limit"),
    [
        ("0::/\n", {}, None, None),
        ("0::/\n", {"cpu_DOT_max": "max 100000", "memory_DOT_max": "max"}, None, None),
        ("0::/\n", {"cpu_DOT_max": "150000 100000", "memory_DOT_max": "1073741824"}, 1.5, GIB),
        (
            "0::/a/b\n",
            {
                "a__cpu_DOT_max": "200000 100000",
                "a__b__cpu_DOT_max": "400000 100000",
                "a__b__memory_DOT_max": "512",
            },
            2,
            512,
        ),
        ("0::/../..\n", {"cpu_DOT_max": "50000 100000"}, 0.5, None),
        (
            "4:cpu,cpuacct:/docker/x\n3:memory:/docker/x\n",
            {  # version 1 in a container: its own group is mounted as the root
                "cpu__cpu_DOT_cfs_quota_us": "300000",
                "cpu__cpu_DOT_cfs_period_us": "100000",
                "memory__memory_DOT_limit_in_bytes": "1000",
            },
            3,
            1000,
        ),
        (
            "4:cpu:/x\n3:memory:/\n0::/\n",
            {
                "cpu__x__cpu_DOT_cfs_quota_us": "-1",
                "cpu__x__cpu_DOT_cfs_period_us": "100000",
                "memory__memory_DOT_limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
        ("0::/\n", {"cpu_DOT_max": "nonsense", "memory_DOT_max": "-5"}, None, None),
        ("0::/\n", {"cpu_DOT_max": "100000 0"}, None, None),
    ],
)
def test_a_control_groups_limits_are_read(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None, limit: int | None
) -> None:
    root = groups(tmp_path, own, **files)
    assert machine.processors(root).quota == quota
    assert machine.memory(root).limit == limit


def test_usable_threads_are_the_least_of_affinity_and_quota() -> None:
    assert [Processors(64, *rest).usable for rest in ((8, None), (8, 2.0), (8, 2.1), (8, 0.1), (2, 6.0))] == [
        8,
        2,
        3,
        1,
        2,
    ]
    assert machine.processors().affinity == len(os.sched_getaffinity(0))


def test_the_disk_of_a_folder_that_is_still_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = machine.disk(tmp_path / "not" / "yet")
    assert space.problem is None
    assert 0 < space.free <= space.total
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert machine.disk(tmp_path / "file" / "run").problem == "not a folder"
    assert machine.disk(Path("/proc/run")).problem  # where not even root can write
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop/run", "n" * 300, "a\0b"):
        assert machine.disk(tmp_path / name).problem
    assert machine.shared_memory(tmp_path) is None


def test_a_part_that_crashes_does_not_hide_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fake(function: str, names: list[str], limit: float) -> Answer:
        asked.append(list(names))
        answers = (
            tuple({"of": name} for name in names[: names.index("gpus")])
            if "gpus" in names
            else tuple({"of": name} for name in names)
        )
        return Answer(answers, "crashed: SIGSEGV" if "gpus" in names else None)

    monkeypatch.setattr(survey, "run_in_child", fake)
    assert survey.survey() == {
        name: {"error": "crashed: SIGSEGV"} if name == "gpus" else {"of": name} for name in survey.PARTS
    }
    assert asked == [list(survey.PARTS), ["torchvision", "timm", "dali", "codec"]]


def test_a_part_that_raises_is_named_and_the_rest_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    monkeypatch.setitem(survey.PARTS, "torchvision", broken)
    answers: list[dict[str, Any]] = []
    survey.survey_in_child(answers.append, ["torchvision", "codec"])
    assert answers[0] == {"error": "operator torchvision::nms does not exist"}
    assert answers[1]["version"][0].isdigit()


class NVML(ModuleType):
    """A driver with two cards, the second without MIG."""

    class NVMLError(Exception):
        pass

    nvmlInit = staticmethod(lambda: None)
    nvmlSystemGetDriverVersion = staticmethod(lambda: b"580.65.06")  # bytes from older bindings
    nvmlDeviceGetCount = staticmethod(lambda: 2)
    nvmlDeviceGetHandleByIndex = staticmethod(lambda i: i)
    nvmlDeviceGetName = staticmethod(lambda handle: f"Card {handle}")
    nvmlDeviceGetUUID = staticmethod(lambda handle: f"GPU-{handle}")

    @classmethod
    def nvmlDeviceGetMigMode(cls, handle: int) -> list[int]:
        if handle:
            raise cls.NVMLError("Not Supported")
        return [1, 0]


def surveyed(part: str) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    survey.survey_in_child(answers.append, [part])
    return answers[0]


def test_the_driver_tells_its_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", NVML("pynvml"))
    assert surveyed("driver") == {
        "version": "580.65.06",
        "gpus": [
            {"name": "Card 0", "uuid": "GPU-0", "mig": "on"},
            {"name": "Card 1", "uuid": "GPU-1", "mig": None},
        ],
    }


def test_each_card_that_torch_sees_computes_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: SimpleNamespace(
            name=f"Card {i}", total_memory=i, major=8, minor=i, **({"uuid": "0-1"} if i else {})
        ),
    )
    ones = torch.ones

    def computed(count: int, device: str) -> torch.Tensor:
        if device == "cuda:1":
            raise RuntimeError("no kernel image\nis available")
        return ones(count)

    monkeypatch.setattr(torch, "ones", computed)
    assert surveyed("gpus") == {
        "available": True,
        "why": None,
        "gpus": [
            {"name": "Card 0", "uuid": None, "memory": 0, "capability": [8, 0], "error": None},
            {
                "name": "Card 1",
                "uuid": "GPU-0-1",
                "memory": 1,
                "capability": [8, 1],
                "error": "no kernel image is available",
            },
        ],
    }


def test_why_torch_sees_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020)")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    assert surveyed("gpus") == {
        "available": False,
        "gpus": [],
        "why": "The NVIDIA driver on your system is too old (found version 12020)",
    }
    monkeypatch.setattr(torch.version, "cuda", None)
    assert surveyed("gpus")["why"] == "torch is built without CUDA"


def run_doctor(facts: Facts, monkeypatch: pytest.MonkeyPatch, *options: str) -> Result:
    """The command on a machine of these facts, but for what cannot be faked."""

    def tried(device_id: int | None, whole: bool) -> TrialResult:
        reason = facts.decoding["cpu" if device_id is None else "gpu"]
        return TrialResult(reason is None, reason or "")

    monkeypatch.setattr(survey, "survey", lambda: facts.parts)
    monkeypatch.setattr(decoding, "run_trial", tried)
    for name, value in (
        ("processors", facts.processors),
        ("memory", facts.memory),
        ("shared_memory", facts.shared),
    ):
        monkeypatch.setattr(machine, name, lambda value=value: value)
    return CliRunner().invoke(cli, ["doctor", *options], env={"CUDA_VISIBLE_DEVICES": None})


def test_the_command_prints_one_object_and_exits_by_the_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for facts, state, code in (
        (HOST, OK, 0),
        (CPU_HOST, WARNING, 0),
        (replace(HOST, decoding={**HOST.decoding, "gpu": "crashed: SIGSEGV"}), PROBLEM, 1),
    ):
        result = run_doctor(facts, monkeypatch, "--json", "--run", str(tmp_path))
        shown = json.loads(result.stdout)
        assert (shown["state"], shown["works"], result.exit_code) == (state, code == 0, code)
        assert [Finding(**row) for row in shown["findings"]][1:-1] == examine(facts)[1:-1]
        assert (shown["findings"][0]["name"], shown["findings"][-1]["name"]) == ("Python", "run folder")
        assert result.stderr == ""
    blocked = run_doctor(HOST, monkeypatch, "--json", "--run", "/proc/run")
    assert (json.loads(blocked.stdout)["findings"][-1]["state"], blocked.exit_code) == (PROBLEM, 1)


def test_the_table_fits_and_hostile_names_are_shown_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = replace(
        HOST,
        parts=parts(timm={"error": "[bold]x[/nonsense]\x1b[2J"}, driver={"version": "525.1", "gpus": []}),
    )
    result = run_doctor(hostile, monkeypatch, "--run", str(tmp_path / "a\x1b[31mb\udcff"))
    assert (result.stdout, result.exit_code) == ("", 1)
    assert "\x1b" not in result.stderr
    assert "[bold]x[/nonsense]?[2J" in result.stderr
    *table, last = result.stderr.splitlines()
    assert max(map(len, table)) <= 80
    assert last == "training cannot work here: timm"
    assert run_doctor(HOST, monkeypatch).stderr.splitlines()[-1] == "training works on the GPU"
    assert (
        run_doctor(CPU_HOST, monkeypatch).stderr.splitlines()[-1] == "training works on the CPU; 2 warnings"
    )


@pytest.mark.slow
def test_the_doctor_on_this_machine(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json", "--run", str(tmp_path)])
    rows = {row["name"]: row for row in json.loads(result.stdout)["findings"]}
    assert result.exit_code == 0
    assert rows["CPU decode"]["state"] == OK
    assert rows["torch"]["value"].startswith(torch.__version__)
    assert rows["DALI"]["value"].startswith("2.")


def test_the_doctor_needs_neither_torch_nor_dali_itself() -> None:
    code = (
        "import sys; import qrdali.cli.doctor, qrdali.workflows.doctor, qrdali.system.machine, "
        "qrdali.pipelines.decoder_trial, qrdali.pipelines.survey;"
        "print([m for m in ('torch', 'nvidia.dali', 'timm', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_a_gpu_that_was_asked_for_and_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match="driver.*--gpus all") as error:
        resolve_device("cuda")
    assert "\n" not in str(error.value)
