"""Trials of decoding: children that crash and hang, what is remembered, and the path that loaders take."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qrdali.data.index import Dataset
from qrdali.pipelines import dali_ops as ops
from qrdali.pipelines import decoder_trial as decoding
from qrdali.pipelines import engine
from qrdali.pipelines.decoder_trial import TrialResult, recall, remember
from qrdali.pipelines.engine import describe_decoding, engine_for
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system import environment
from qrdali.system import subprocess_trial as child
from qrdali.system.machine import Processors
from qrdali.system.subprocess_trial import Answer, run_in_child

PATIENT = """
import os, signal, subprocess, sys, time
def well(say, *values): say({"values": list(values)}); say({"more": 1})
def ill(say): say({"begun": 1}); raise ValueError("no\\nway")
def crash(say): say({"begun": 1}); os.kill(os.getpid(), signal.SIGSEGV)
def leave(say): print("the reason", file=sys.stderr, flush=True); os._exit(3)
def silent(say): os._exit(3)
def chatter(say): os.write(1, b'{"not": "said"}\\n'); print('{"nor": 1}', flush=True); say({"said": 1})
def hang(say, file):
    grandchild = subprocess.Popen(["sleep", "60"])
    open(file, "w").write(f"{os.getpid()} {grandchild.pid}")
    say({"begun": 1})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
def cores(say):
    import resource
    say({"limit": resource.getrlimit(resource.RLIMIT_CORE)[0]})
"""


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """Asks a function of PATIENT, whose module lies on this process' import path only."""
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "patient.py").write_text(PATIENT)
    monkeypatch.syspath_prepend(tmp_path / "patients")
    return lambda function, *arguments, limit=20: run_in_child(f"patient:{function}", *arguments, limit=limit)


def test_a_child_says_its_answers(patient: Callable[..., Answer]) -> None:
    assert patient("well", 1, None, "it's", True) == Answer(
        ({"values": [1, None, "it's", True]}, {"more": 1}), None
    )
    assert patient("chatter") == Answer(({"said": 1},), None)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_CORE)[1] == 0, reason="no process here may leave a core file"
)
def test_a_crash_leaves_no_core_file(patient: Callable[..., Answer]) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert patient("cores").said == ({"limit": 0},)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize(
    ("function", "said", "failure"),
    [
        ("ill", 1, "ValueError: no way"),
        ("crash", 1, "crashed: SIGSEGV"),
        ("leave", 0, "the reason"),
        ("silent", 0, "ended with status 3"),
        ("absent", 0, "AttributeError: module 'patient' has no attribute 'absent'"),
    ],
)
def test_what_happens_to_a_child_is_an_answer(
    patient: Callable[..., Answer], function: str, said: int, failure: str
) -> None:
    assert patient(function) == Answer(({"begun": 1},) * said, failure)


def test_a_child_that_hangs_is_killed_with_its_own(patient: Callable[..., Answer], tmp_path: Path) -> None:
    begun = time.monotonic()
    assert patient("hang", str(tmp_path / "pids"), limit=1.5) == Answer(
        ({"begun": 1},), "no answer within 1.5 s"
    )
    assert time.monotonic() - begun < 8
    for pid in (tmp_path / "pids").read_text().split():
        for _ in range(50):
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"process {pid} lives on")


def test_nothing_in_the_working_directory_is_imported(
    patient: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("json", "signal", "resource", "qrdali", "numpy"):
        (trap / f"{name}.py").write_text(f"open({str(trap / 'sprung')!r}, 'w')")
    monkeypatch.chdir(trap)
    assert patient("well").failure is None
    assert not (trap / "sprung").exists()


def test_a_child_that_cannot_be_started_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python")
    assert "no process can be started" in str(run_in_child("time:sleep", limit=1).failure)


def test_half_a_line_and_long_reasons_are_cut() -> None:
    assert child._objects(b'{"a": 1}\n[2]\n{"b": \n\xff\n{"c"') == [{"a": 1}]
    assert len(child._line("x" * 10_000)) == child._LONGEST + 1
    assert child._line("a\nb\x1b[2J") == "a?b?[2J"


def test_the_cpu_decodes_as_pillow_does() -> None:
    assert decoding.run_trial(None, whole=False) == TrialResult(True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_where_there_is_no_gpu_its_decoding_fails_with_a_reason() -> None:
    found = decoding.run_trial(0, whole=False)
    assert not found.works
    assert found.reason
    assert "\n" not in found.reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_decodes_and_the_path_taken_is_one_that_works(cache: Path) -> None:
    assert decoding.run_trial(0, whole=True) == TrialResult(True)
    warned: list[str] = []
    made = engine_for(torch.device("cuda", 0), 2, warned.append)
    assert decoding.run_trial(0, whole=made.whole_decode).works
    assert bool(warned) == made.whole_decode


def test_a_window_one_pixel_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.read
    said: list[dict[str, Any]] = []
    decoding.trial_in_child(said.append, None, True)
    assert said == [{"difference": 0.0}]
    monkeypatch.setattr(
        ops,
        "read",
        lambda path, start, shape, device, whole: right(path, start - (start > 0), shape, device, whole),
    )
    with pytest.raises(ValueError, match="wrong pixels: a baseline JPEG differs from Pillow's by"):
        decoding.trial_in_child(said.append, None, True)


def test_every_picture_shows_a_shift_and_forgives_rounding() -> None:
    for name, _, reference in decoding._pictures():
        for shifted in (np.roll(reference, 1, 0), np.roll(reference, 1, 1)):
            assert decoding._difference(shifted, reference) > 3 * decoding._GPU_TOLERANCE, name
        assert decoding._difference(reference ^ 1, reference) == 1
        assert decoding._difference(reference[1:], reference) == 255


def test_what_was_found_is_remembered_by_place(cache: Path) -> None:
    assert recall("one") is None
    remember("one", TrialResult(False, "crashed: SIGSEGV"))
    remember("two", TrialResult(True))
    remember("one", TrialResult(True))
    assert (recall("one"), recall("two"), recall("three")) == (TrialResult(True), TrialResult(True), None)
    for i in range(60):
        remember(f"place {i}", TrialResult(True))
    assert len(json.loads(cache.read_text())) == 50
    assert recall("place 59") == TrialResult(True)
    assert [file.name for file in cache.parent.iterdir()] == ["decoding.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"one": true}',
        b'{"one": {"works": "yes", "reason": ""}}',
        b'{"one": {"works": 1, "reason": ""}}',
        b'{"one": {"reason": ""}}',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"one": {"works": true, "reason": "' + b"x" * 270_000 + b'"}}',
    ],
)
def test_a_damaged_memory_is_none_and_is_made_anew(cache: Path, damage: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage)
    assert recall("one") is None
    remember("one", TrialResult(False, "no"))
    assert recall("one") == TrialResult(False, "no")


def test_a_memory_that_cannot_be_kept_is_forgotten(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.mkdir(parents=True)  # a folder where the file should be
    remember("one", TrialResult(True))
    assert recall("one") is None
    assert list(cache.parent.iterdir()) == [cache]
    cache.rmdir()
    os.mkfifo(cache)
    assert recall("one") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    remember("one", TrialResult(True))
    assert recall("one") is None
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert decoding.cache_file() == tmp_path / "home" / ".cache" / "qrdali" / "decoding.json"


class Card:
    """A GPU that is not there: `regions` and `whole` are what trials find; `trials` are those made."""

    def __init__(self) -> None:
        self.regions, self.whole = TrialResult(True), TrialResult(True)
        self.trials: list[tuple[int | None, bool]] = []
        self.facts: dict[str, Any] = {"dali": "2.4.0", "driver": "580.1", "gpu": "NVIDIA Card"}

    def tried(self, device_id: int | None, whole: bool) -> TrialResult:
        self.trials.append((device_id, whole))
        return self.whole if whole else self.regions


GPU = torch.device("cuda", 1)


@pytest.fixture
def card(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    monkeypatch.setattr(engine, "run_trial", fake.tried)
    monkeypatch.setattr(environment, "environment", lambda device: fake.facts)
    monkeypatch.setattr(environment, "codec", lambda: ("nvidia-nvimgcodec-cu12", "0.9.0"))
    return fake


def taken(warned: list[str] | None = None) -> str:
    return describe_decoding(engine_for(GPU, 4, [].append if warned is None else warned.append))


def test_regions_that_work_are_taken_and_tried_once(card: Card) -> None:
    warned: list[str] = []
    assert [taken(warned), taken(warned)] == ["regions decoded on the GPU"] * 2
    assert (card.trials, warned) == ([(1, False)], [])
    made = engine_for(GPU, 4, warned.append)
    assert (made.device_id, made.threads, made.whole_decode) == (1, 4, False)


def test_regions_that_fail_are_avoided_with_a_warning_each_time(card: Card) -> None:
    warned: list[str] = []
    card.regions = TrialResult(False, "crashed: SIGSEGV")
    assert [taken(warned), taken(warned)] == ["whole images decoded on the GPU"] * 2
    assert card.trials == [(1, False), (1, True)]
    assert len(warned) == 2
    assert all("crashed: SIGSEGV" in line and "qrdali doctor" in line for line in warned)


@pytest.mark.parametrize("changed", ["dali", "driver", "gpu"])
def test_another_version_driver_or_card_is_tried_anew(card: Card, changed: str) -> None:
    card.regions = TrialResult(False, "crashed: SIGSEGV")
    taken()
    card.regions = TrialResult(True)
    card.facts = {**card.facts, changed: "another"}
    assert taken() == "regions decoded on the GPU"
    assert card.trials == [(1, False), (1, True), (1, False)]


def test_a_card_that_decodes_nothing_is_not_remembered_for_it(card: Card) -> None:
    warned: list[str] = []
    card.regions = card.whole = TrialResult(False, "out of memory")
    assert taken(warned) == "whole images decoded on the GPU"
    assert "decodes nothing" in warned[0]
    card.regions = card.whole = TrialResult(True)
    assert taken() == "regions decoded on the GPU"


def test_a_card_that_cannot_be_told_from_another_is_tried_each_time(card: Card) -> None:
    card.facts = {**card.facts, "driver": None}
    assert [taken(), taken()] == ["regions decoded on the GPU"] * 2
    assert card.trials == [(1, False)] * 2


def test_on_a_cpu_training_starts_no_process_and_says_its_path(
    dataset: Dataset,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from qrdali.cli.terminal import TerminalListener
    from qrdali.interfaces import JobControl
    from qrdali.training.trainer import Trainer
    from qrdali.workflows.train import run_training

    def refused(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a process is started: {arguments}")

    def train(self: Trainer, resume: bool) -> None:
        split = self.splits.train
        assert len(list(split.source.epoch(EpochPlan(len(split.index), 8, FULL_QUALITY)))) == 3

    environment.environment(torch.device("cpu"))  # asks `uname` of the platform's name, once in a process
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(os, "fork", refused)
    monkeypatch.setattr(Trainer, "train", train)
    run_training(
        validate_settings(
            {
                "method": "shared",
                "data": str(dataset.folder),
                "model": "test_resnet",
                "input_size": 32,
                "device": "cpu",
                "batch_size": 8,
                "threads": 1,
            }
        ),
        tmp_path / "run",
        False,
        JobControl(TerminalListener()),
    )
    assert "4 classes, CPU, regions decoded on the CPU\n" in capsys.readouterr().err
    assert not cache.exists()


def test_threads_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "processors", lambda: Processors(64, 64, 2.0))
    cpu = torch.device("cpu")
    assert [engine_for(cpu, threads, [].append).threads for threads in (None, 0, 5)] == [2, 2, 5]
