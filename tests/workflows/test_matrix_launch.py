"""The launcher of workers: which ones, with what of the machine, how they are stopped and how they end."""

import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from qrdali.errors import InputError, Interrupted, RunError
from qrdali.workflows import matrix_launch
from qrdali.workflows.matrix_launch import (
    LaunchedMatrix,
    WorkerPlan,
    cpu_workers,
    gpu_workers,
    plans_for,
    run_workers,
)

EIGHT = [str(number) for number in range(8)]
UUIDS = ["GPU-a", "GPU-b", "GPU-c"]


class View:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.ends: list[tuple[str, str]] = []

    def begin(self, matrix: LaunchedMatrix) -> None: ...

    def line(self, name: str, text: str) -> None:
        self.lines.append((name, text))

    def ended(self, name: str, how: str) -> None:
        self.ends.append((name, how))

    def tick(self) -> None: ...
    def end(self) -> None: ...


def test_workers_share_the_processors() -> None:
    assert cpu_workers(3, 8) == [
        WorkerPlan("w1", "", 2),
        WorkerPlan("w2", "", 2),
        WorkerPlan("w3", "", 2),
    ]
    assert [plan.threads for plan in cpu_workers(3, 2)] == [1, 1, 1]
    assert plans_for(None, None, 4) == []


@pytest.mark.parametrize(
    ("text", "visible", "gpus"),
    [
        ("all", EIGHT, EIGHT),
        ("2", EIGHT, ["0", "1"]),
        ("0,2,5", EIGHT, ["0", "2", "5"]),
        ("2,", EIGHT, ["2"]),
        ("1,2", UUIDS, ["GPU-b", "GPU-c"]),  # places in what the process itself may see
    ],
)
def test_gpus_are_all_a_number_or_some(text: str, visible: list[str], gpus: list[str]) -> None:
    plans = gpu_workers(text, visible, 16)
    assert [plan.gpu for plan in plans] == gpus
    assert {plan.threads for plan in plans} == {16 // len(gpus)}


def test_gpus_are_grouped_for_networks_that_need_several() -> None:
    assert gpu_workers("all", EIGHT, 16, [4, 1]) == [
        WorkerPlan("gpus 0,1,2,3", "0,1,2,3", 8),
        *(WorkerPlan(f"gpu {number}", str(number), 2) for number in (4, 5, 6, 7)),
    ]
    assert [plan.gpu for plan in gpu_workers("0,2,5", EIGHT, 16, [2])] == ["0,2"]
    with pytest.raises(InputError, match="--gpus 2: every network needs 4 GPUs or more"):
        gpu_workers("2", EIGHT, 16, [4, 8])


@pytest.mark.parametrize(
    ("text", "visible", "message"),
    [
        ("all", [], "--gpus all: no usable GPU is here; .*--workers N shares the processors"),
        ("4", EIGHT[:2], "--gpus 4: 2 GPUs are here, 0 to 1"),
        ("1,2", EIGHT[:2], "--gpus 1,2: 2 GPUs are here"),
        ("1,1", EIGHT, "--gpus 1,1: 8 GPUs"),
        ("0", EIGHT, "--gpus 0: 8 GPUs"),
        ("-1", EIGHT, "--gpus -1: give all, how many, or some"),
        ("x", EIGHT, "--gpus x: give all"),
        (",", EIGHT, "--gpus ,: 8 GPUs"),
        ("9" * 999, EIGHT, "give all, how many"),
    ],
)
def test_gpus_that_are_not_there_are_refused_in_a_line(text: str, visible: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        gpu_workers(text, visible, None)
    assert len(str(refusal.value)) < 300


def test_numbers_of_workers_out_of_range_are_refused() -> None:
    for count in (0, -1, 2000):
        with pytest.raises(InputError, match=f"--workers {count}: from 1 to 1024"):
            plans_for(count, None, None)
    with pytest.raises(InputError, match="give one of them"):
        plans_for(1, "1", None)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of Python, whose code is in the file returned; it gets what a worker gets."""
    code = tmp_path / "code.py"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(matrix_launch.sys, "executable", str(wrapper))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return code


def written(code: Path, text: str) -> None:
    code.write_text("import os, signal, sys, time\n" + textwrap.dedent(text))


TWO = [WorkerPlan("w1", "0", 3), WorkerPlan("w2", "GPU-b", 3)]


def test_each_worker_has_its_gpu_its_threads_and_its_name(program: Path) -> None:
    written(
        program,
        """
        names = ["CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "QRDALI_WORKER", "QRDALI_WORKER_PARENT"]
        print(*(os.environ[name] for name in names), *sys.argv[1:], file=sys.stderr)
        """,
    )
    view = View()
    run_workers(TWO, ["m.toml", "--only", "x"], view, lambda: 0)
    words = f"{os.getpid()} -m qrdali reproduce m.toml --only x --threads 3"
    assert sorted(view.lines) == [("w1", f"0 3 w1 {words}"), ("w2", f"GPU-b 3 w2 {words}")]
    assert view.ends == []


def test_a_worker_that_dies_is_reported_and_all_that_die_are_an_error(program: Path) -> None:
    dies = "os.kill(os.getpid(), signal.SIGKILL)"
    written(program, f"{dies} if os.environ['QRDALI_WORKER'] == 'w1' else sys.exit(3)\n")
    view = View()
    run_workers(TWO, [], view, lambda: 0)
    assert view.ends == [("w1", "was killed by SIGKILL")]
    written(program, f"{dies} if os.environ['QRDALI_WORKER'] == 'w1' else sys.exit(1)\n")
    with pytest.raises(RunError, match="all 2 workers have died: w1 was killed by SIGKILL; w2 ended with"):
        run_workers(TWO, [], View(), lambda: 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_worker_once_and_all_may_save(
    program: Path, tmp_path: Path, number: int
) -> None:
    written(
        program,
        f"""
        def save(signum, frame):
            signal.signal(signum, signal.SIG_DFL)
            time.sleep(0.5)
            open({str(tmp_path)!r} + "/saved-" + os.environ["QRDALI_WORKER"], "w").close()
            sys.exit(128 + signum)
        signal.signal({int(number)}, save)
        open({str(tmp_path)!r} + "/ready-" + os.environ["QRDALI_WORKER"], "w").close()
        time.sleep(60)
        """,
    )

    def stop() -> int:
        return number if len([*tmp_path.glob("ready-*")]) == 2 else 0

    view = View()
    with pytest.raises(Interrupted) as stopped:
        run_workers(TWO, [], view, stop)
    assert view.ends == []  # nobody died
    assert stopped.value.signum == number
    assert len([*tmp_path.glob("saved-*")]) == 2


def test_an_impatient_second_signal_kills_the_workers(program: Path, tmp_path: Path) -> None:
    written(program, f"open({str(tmp_path / 'ready')!r}, 'w').close()\ntime.sleep(60)\n")

    def stop() -> int:
        if (tmp_path / "ready").exists():
            raise KeyboardInterrupt
        return 0

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_workers(TWO[:1], [], View(), stop)
    assert time.monotonic() - begun < 50
