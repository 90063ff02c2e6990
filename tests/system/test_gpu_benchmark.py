"""benchmarks/gpu.sh without a GPU: every step runs with small figures, within limits that add up."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qrdali.pipelines.decode_options import DecodeOptions
from qrdali.pipelines.engine import Engine
from qrdali.workflows import bench_rounds
from qrdali.workflows.bench_rounds import Done, Rounds, Timing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STEPS = ("data", "loader", "train-test_resnet", "mepi-test_resnet", "hardware", "compiled")


def script(out: Path, python: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", str(SCRIPT)],
        cwd=ROOT,
        env={**os.environ, "QRDALI_GPU_DRY": "1", "OUT": str(out), "PYTHON": python, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_runs_on_a_cpu(tmp_path: Path) -> None:
    done = script(tmp_path / "out", sys.executable)
    logs = {file.name: file.read_text()[-2000:] for file in (tmp_path / "out").glob("*.log")}
    assert done.returncode == 0, (done.stdout, logs)
    results: dict[str, list[dict[str, Any]]] = {
        step: [json.loads(line) for line in (tmp_path / "out" / f"{step}.jsonl").read_text().splitlines()]
        for step in STEPS
    }
    assert all(lines[0]["dry"] and lines[0]["machine"]["torch"] for lines in results.values())
    assert results["data"][-1] == {"images": 32}
    loader, train, mepi, hardware, compiled = (results[step][-1]["summary"] for step in STEPS[1:])
    assert set(compiled) == {"plain", "compiled", "gain"}
    assert set(hardware["gain"]) == {"qrdali full", "plain DALI"}
    assert {"qrdali full / plain DALI", "qrdali full / torchvision decode_jpeg"} <= set(loader["speed_ratio"])
    assert {"from memory", "color", "probe combination"} <= set(train["over_full"])
    assert 0 < train["data_wait"] < 1
    assert [row["reduction"] for row in results[STEPS[3]][1:-1]] == [*mepi["reductions"]]
    names = {line.get("name") for line in results["loader"] + results[STEPS[2]]}
    assert set(loader["images_per_second"]) | set(train["seconds"]) < names  # each was written as it came
    assert json.loads((tmp_path / "out" / "doctor.json").read_text())


def test_a_step_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho said\ncase "$*" in *loader*) exit 3;; esac\n')
    (tmp_path / "python").chmod(0o755)
    done = script(tmp_path / "out", str(tmp_path / "python"))
    assert done.returncode == 1
    assert re.search(r"loader.jsonl: exit 3, see \S*/loader.jsonl.log", done.stdout)
    for step in STEPS:
        assert (tmp_path / "out" / f"{step}.jsonl").read_text() == "said\n"
        assert (f"{step}.jsonl: 0, " in done.stdout) == (step != "loader")


def test_all_steps_take_eight_minutes_at_most() -> None:
    text = SCRIPT.read_text()
    limits = {name: int(limit) for name, limit in re.findall(r'^ *step "?(\S+?)"? (\d+) ', text, re.M)}
    models = re.search(r'^models="([^"]+)"', text, re.M)
    assert models is not None
    limits["train-$model.jsonl"] *= len(models[1].split())
    assert len(limits) == 7
    assert sum(limits.values()) <= 8 * 60
    for seconds, limit in re.findall(
        r"\s(\d+) \S+ \S+ (?:loader|hardware|train|compiled) .*--seconds (\d+)", text
    ):
        assert int(limit) + 20 <= int(seconds)


def test_the_hardware_decoder_is_what_dali_does_by_default() -> None:
    assert Engine(0, decode="hardware", has_large_images=True).decode_options.keywords == {}
    assert Engine(0, decode="hardware").decode_options.whole
    assert Engine(0, has_large_images=True).decode_options.keywords == {
        "hw_decoder_load": 0.0,
        "jpeg_fancy_upsampling": True,
    }
    assert DecodeOptions("cpu", True, hardware=True).keywords == {}


class Clock:
    """A clock that goes on when work is done, or when the device is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.queued = 0.0, 0.0
        monkeypatch.setattr(bench_rounds.time, "perf_counter", lambda: self.now)

    def work(self, host: float, device: float) -> Done:
        self.now += host
        self.queued += device
        return Done(10, 0.25)

    def wait(self) -> None:
        self.now += self.queued
        self.queued = 0.0


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(None, 4), (100, 4), (24, 3), (18, 2), (17.9, 1), (9, 1), (8.9, 0)]
)
def test_rounds_wait_for_the_device_and_end_in_time(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, rounds: int
) -> None:
    clock, seen = Clock(monkeypatch), list[Timing]()
    works = {"a": lambda: clock.work(1, 3), "b": lambda: clock.work(2, 0)}
    timings = bench_rounds.timed(works, Rounds(4, clock.wait, seconds, seen.append))
    one, other = Timing("a", 1, 10, 4.0, 0.25), Timing("b", 1, 10, 2.0, 0.25)
    assert timings["a"] == [one._replace(turn=turn) for turn in range(1, rounds + 1)]
    assert timings["b"] == [other._replace(turn=turn) for turn in range(1, rounds + 1)]
    assert [(timing.name, timing.turn) for timing in seen] == [
        (name, turn) for turn in range(rounds + 1) for name in "ab"
    ]
    assert bench_rounds.rates(timings["a"]) == [2.5] * rounds


def test_steps_from_memory_are_those_of_an_epoch() -> None:
    from qrdali.interfaces import Batch
    from qrdali.workflows.bench_train import _cut

    images = torch.arange(12.0).reshape(4, 3, 1, 1)
    cut = _cut(Batch(images, torch.arange(4), torch.arange(4, 8), 2), 3)
    assert torch.equal(cut.images, images[:3])
    assert (cut.labels.tolist(), cut.samples.tolist(), cut.number) == ([0, 1, 2], [4, 5, 6], 2)
