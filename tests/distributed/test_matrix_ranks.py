"""Runs of a matrix that need several GPUs: here as ranks on the processors, stopped, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from matrix_helpers import SHAPES, written

from qrdali.runs import checkpoint

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
RUN = "runs/test_resnet/shared"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return two_ranks(tmp_path, tmp_path / "out")


def two_ranks(folder: Path, out: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return written(
        folder,
        out,
        data={"shapes": {**SHAPES, "train": 60}},
        network=[{"model": "test_resnet", "input_size": 32, "epochs": 20, "gpus": 2}],
        runs={"methods": []},
        mepi={"runs": ["shared"], "limit": 2, "step": 0.25, "reductions": ["crop"]},
        report={"make": False},
    )


def worker(config: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qrdali", "reproduce", str(config), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def said_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return
    raise AssertionError("".join(said))


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [more for child in found for more in descendants(child)]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def are_gone_soon(pids: list[int]) -> bool:
    limit = time.monotonic() + 60
    while not all(map(is_gone, pids)) and time.monotonic() < limit:
        time.sleep(0.1)
    return all(map(is_gone, pids))


def weights(run: Path) -> bytes:
    return (checkpoint.current(run / "best") / "model.safetensors").read_bytes()


def test_ranks_that_are_stopped_and_killed_leave_what_torchrun_by_hand_leaves(
    config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = worker(config)
    said_until(first, "epoch   1")
    ranks = descendants(first.pid)
    assert len(ranks) >= 3  # torchrun and two ranks
    (agent,) = (pid for pid in ranks if b"rank_agent" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(agent, signal.SIGUSR2)  # which goes on: its worker has not been asked to stop
    time.sleep(1)
    assert not is_gone(agent)
    # As Slurm does: the signal comes to every process of the job.
    for pid in [first.pid, *ranks]:
        os.kill(pid, signal.SIGUSR2)
    first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGUSR2
    assert all(map(is_gone, ranks))
    assert not [*out.glob("tasks/train*/*ed.json")]  # neither done nor failed

    second = worker(config)
    said_until(second, "epoch  ")
    ranks = descendants(second.pid)
    second.kill()
    assert are_gone_soon(ranks)  # torchrun has not outlived its worker

    last = worker(config)
    said = last.communicate(timeout=280)[1]
    assert last.returncode == 0, said
    assert len([*out.glob("tasks/*/done.json")]) == 4
    (log,) = out.glob("tasks/train*/log.txt")
    assert "epoch  20" in log.read_text()
    epochs = [json.loads(line)["epoch"] for line in (out / RUN / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [*range(21)]
    note = json.loads((out / "tasks" / "evaluate+test_resnet+shared" / "done.json").read_text())
    assert {*note} >= {"weights", "asked", "accuracy", "files", "worker"}

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["--", "qrdali", "train", "shared", "--config", str(out / RUN / "config.toml")]
    by_hand = subprocess.run(
        [*command, "--run", str(tmp_path / "hand")], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert by_hand.returncode == 0, by_hand.stderr
    assert weights(tmp_path / "hand") == weights(out / RUN)


def test_what_a_rank_says_is_why_the_task_failed(tmp_path: Path) -> None:
    config = two_ranks(tmp_path, tmp_path / "out")
    config.write_text(config.read_text().replace("batch_size = 8", "batch_size = 1"))
    process = worker(config, "--only", "shared")
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    failed = json.loads((tmp_path / "out" / "tasks" / "train+test_resnet+shared" / "failed.json").read_text())
    assert "batch" in failed["reason"], said
    assert failed["final"] is True
    assert len(failed["attempts"]) == 1
