"""Trials of decoding: children that crash and hang, what is remembered, and the path that loaders take."""

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
from qrdali.pipelines.decoder_trial import TrialResult
from qrdali.pipelines.engine import engine_for
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.runs.settings import validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system import environment
from qrdali.system import subprocess_trial as child
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
def test_a_gpu_decodes_as_the_loaders_have_it() -> None:
    whole = engine_for(torch.device("cuda", 0), 2).decode_options.whole
    assert decoding.run_trial(0, whole) == TrialResult(True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_whether_a_gpu_decodes_windows_can_be_asked() -> None:
    found = decoding.run_trial(0, whole=False)  # a crash there is an answer
    assert found.works != bool(found.reason)


def test_a_window_one_pixel_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.read
    said: list[dict[str, Any]] = []
    decoding.trial_in_child(said.append, None, True)
    assert said == [{"difference": 0.0}]
    monkeypatch.setattr(
        ops,
        "read",
        lambda path, start, shape, options: right(path, start - (start > 0), shape, options),
    )
    with pytest.raises(ValueError, match="wrong pixels: a baseline JPEG differs from Pillow's by"):
        decoding.trial_in_child(said.append, None, True)


def test_every_picture_shows_a_shift_and_forgives_rounding() -> None:
    for name, _, reference in decoding._pictures():
        for shifted in (np.roll(reference, 1, 0), np.roll(reference, 1, 1)):
            assert decoding._difference(shifted, reference) > 3 * decoding._GPU_TOLERANCE, name
        assert decoding._difference(reference ^ 1, reference) == 1
        assert decoding._difference(reference[1:], reference) == 255


def test_on_a_cpu_training_starts_no_process_and_says_its_path(
    dataset: Dataset,
    tmp_path: Path,
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
