"""Jobs of Slurm: what is handed to sbatch, the end of a job with a save, and a matrix on a real cluster."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_node
from click.testing import CliRunner
from matrix_helpers import joined, same_as_serial, start, written

import qrdali
from qrdali.cli.reproduce import reproduce
from qrdali.errors import InputError, RunError
from qrdali.experiment.workers import Workers
from qrdali.workflows import reproduce as workflow
from qrdali.workflows import slurm_job
from qrdali.workflows.slurm_job import WorkerJob

submitit = pytest.importorskip("submitit")

SMALL: dict[str, Any] = {
    "network": [{"model": "test_resnet", "input_size": 32, "epochs": 1}],
    "runs": {"methods": ["baseline"]},
    "mepi": {},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(tmp_path, tmp_path / "out", **SMALL)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs in place of Slurm's: sbatch keeps 1.sh, 2.sh, …; squeue prints the file queue."""
    folder = tmp_path / "commands"
    folder.mkdir()
    texts = {
        "sbatch": 'n=$(ls "$d"/*.sh 2>/dev/null | wc -l); '
        'if [ -e "$d/full" ]; then echo full >&2; exit 1; fi; '
        'cp "$1" "$d/$((n+1)).sh"; echo "Submitted batch job $((n+1))"',
        "squeue": 'echo "$@" > "$d/asked"; cat "$d/queue" 2>/dev/null; [ ! -e "$d/down" ]',
        "sinfo": "echo 'gpu*|64|gpu:h100:4|2-00:00:00'",
        "srun": "exit 9",
        "scontrol": "exit 9",
    }
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\nd={folder}\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def sbatch_lines(file: Path) -> dict[str, str]:
    """Returns the options in a file that sbatch got, by name."""
    lines = (line.removeprefix("#SBATCH --") for line in file.read_text().splitlines() if "#SBATCH" in line)
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def pickled(out: Path, number: str) -> tuple[str, ...]:
    """Returns the words of the worker of a job."""
    delayed = submitit.core.utils.DelayedSubmission.load(out / "slurm" / f"{number}_submitted.pkl")
    words: tuple[str, ...] = delayed.function.words
    return words


def test_an_array_of_workers_is_submitted_with_what_the_command_says(
    config: Path, tmp_path: Path, commands: Path
) -> None:
    asked = "partition=gpu,time=12:00:00,parallel=3,mem=32G,qos=long,exclude=n1,n2"
    more = ["--threads=5", "--retries=2", "--device=cpu", "--only=test_resnet/*"]
    result = CliRunner().invoke(reproduce, [str(config), f"--slurm={asked},gpus=2", *more])
    assert result.exit_code == 0, result.output
    options = sbatch_lines(commands / "1.sh")
    name = json.loads((tmp_path / "out" / "slurm.json").read_text())["name"]
    assert options["array"] == "0-2%3"
    assert (options["time"], options["partition"], options["mem"]) == ("720", "gpu", "32G")
    assert (options["qos"], options["exclude"], options["signal"]) == ("long", "n1,n2", "USR2@120")
    assert (options["cpus-per-task"], options["gpus-per-node"]) == ("32", "2")
    assert (options["job-name"], "requeue" in options) == (name, True)
    assert "--cpus-per-task=32" in (commands / "1.sh").read_text().splitlines()[-1]
    words = [str(config), "--only=test_resnet/*", "--device=cpu", "--retries=2", "--threads=5"]
    assert pickled(tmp_path / "out", "1_2") == tuple(words)
    assert "job 1_0" in result.output
    assert f"squeue --name={name}" in result.output
    assert f"reproduce {config} '--only=test_resnet/*' --status" in result.output
    assert str(tmp_path / "out" / "slurm") in result.output


def test_the_same_command_submits_nothing_while_jobs_are_in_the_queue(
    config: Path, tmp_path: Path, commands: Path
) -> None:
    assert len(workflow.reproduce_on_slurm(config, "parallel=2").submitted) == 2
    name = json.loads((tmp_path / "out" / "slurm.json").read_text())["name"]
    (commands / "queue").write_text(f"1_0|{name}|RUNNING|1:00|n1\n1_1|{name}|PENDING|0:00|(Priority)\n")
    result = CliRunner().invoke(reproduce, [str(config), "--slurm=parallel=2", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert [job["state"] for job in said["queued"]] == ["RUNNING", "PENDING"]
    assert said["submitted"] == []
    assert said["status"]["counts"]["ready"] == 1
    assert f"--name={name}" in (commands / "asked").read_text()
    assert not (commands / "2.sh").exists()
    (commands / "down").touch()
    with pytest.raises(RunError, match="squeue cannot say"):
        workflow.reproduce_on_slurm(config, "parallel=2")
    assert not (commands / "2.sh").exists()
    (commands / "down").unlink()
    (commands / "queue").unlink()
    assert len(workflow.reproduce_on_slurm(config, "parallel=2").submitted) == 2
    assert (commands / "2.sh").exists()


def test_a_job_per_task_waits_for_its_needs(config: Path, tmp_path: Path, commands: Path) -> None:
    jobs = workflow.reproduce_on_slurm(config, "per-task=yes,time=6:00:00").submitted
    assert [(job.task, job.after) for job in jobs] == [
        ("data", ()),
        ("train test_resnet/shared", ("1",)),
        ("train test_resnet/baseline", ("1", "2")),
        ("evaluate test_resnet/shared", ("1", "2")),
        ("evaluate test_resnet/baseline", ("1", "3")),
        ("report", ("1", "2", "3", "4", "5")),
    ]
    assert "dependency" not in sbatch_lines(commands / "1.sh")
    assert sbatch_lines(commands / "3.sh")["dependency"] == "afterok:1:2"
    assert sbatch_lines(commands / "3.sh")["kill-on-invalid-dep"] == "yes"
    assert sbatch_lines(commands / "6.sh")["dependency"] == "afterany:1:2:3:4:5"
    assert pickled(tmp_path / "out", "3")[-1] == "--task=train test_resnet/baseline"
    assert {job.minutes for job in jobs} == {360}  # nothing is known of their times


def test_what_sbatch_refuses_is_said_and_leaves_a_name_to_look_for(
    config: Path, tmp_path: Path, commands: Path
) -> None:
    (commands / "full").touch()
    with pytest.raises(RunError, match=r"sbatch refuses \(64 CPUs, 0 GPUs a job\): .*full.*squeue --name"):
        workflow.reproduce_on_slurm(config, "")
    with pytest.raises(InputError, match="partition=gpus: the cluster has no such partition; near it: gpu"):
        workflow.reproduce_on_slurm(config, "partition=gpus")
    for damage in (b"", b'{"name": "--all"}', b"[]", b"\xff"):
        (tmp_path / "out" / "slurm.json").write_bytes(damage)
        with pytest.raises(RunError, match=r"slurm\.json .*: if none of its jobs is queued .* remove it"):
            workflow.reproduce_on_slurm(config, "")


def test_without_submitit_or_slurm_a_line_says_what_is_missing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InputError, match="--slurm: sbatch is not on this host; .* login node"):
        workflow.reproduce_on_slurm(config, "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"--slurm needs submitit: pip install 'qrdali\[cluster\]'"):
        workflow.reproduce_on_slurm(config, "")
    assert not (tmp_path / "out").exists()


def test_a_task_alone_is_done_once_its_needs_are(config: Path) -> None:
    with pytest.raises(InputError, match="is no task of this matrix; near it: train test_resnet/baseline"):
        workflow.reproduce(config, task="train test_resnet/base")
    with pytest.raises(RunError, match="train test_resnet/shared needs data, not done yet"):
        workflow.reproduce(config, task="train test_resnet/shared")
    workflow.reproduce(config, task="data")
    assert [task.state for task in workflow.status(config).tasks][:2] == ["done", "ready"]
    with pytest.raises(InputError, match="leave out workers and gpus"):
        qrdali.reproduce(config, task="data", workers=2)
    result = CliRunner().invoke(reproduce, [str(config), "--task=data", "--slurm=parallel=2"])
    assert str(result.exception) == "--slurm and --task: give one of them"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program in place of Python, whose code is in the file returned. Handlers are put back."""
    code = tmp_path / "code.py"
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} {code} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setattr(slurm_job.sys, "executable", str(wrapper))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    yield code
    for number, handler in before.items():
        signal.signal(number, handler)


SAVES = """
import os, signal, sys, time
def save(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1.0)
    open({folder!r} + "/saved", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open({folder!r} + "/ready", "w").write(" ".join(sys.argv[1:]) + " " + os.environ["QRDALI_WORKER"])
time.sleep(60)
"""


def test_a_checkpoint_waits_for_the_save_and_goes_on_with_the_same_words(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(SAVES.format(folder=str(tmp_path)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    job = WorkerJob(("m.toml", "--only=x"))
    found: list[Any] = []

    def handler(*_: object) -> None:  # as submitit's, in the thread that waits for the worker
        found.append(job.checkpoint())
        found.append((tmp_path / "saved").exists())
        raise SystemExit(255)

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, handler)
    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(SystemExit):
        job()
    delayed, was_saved = found
    assert was_saved
    assert delayed.function.words == ("m.toml", "--only=x")
    said = (tmp_path / "ready").read_text()
    assert said == "-m qrdali reproduce m.toml --only=x --threads=6 job 77"


def test_a_job_fails_with_its_worker(program: Path) -> None:
    program.write_text("import sys; sys.exit(3)")
    with pytest.raises(RunError, match="the worker ended with status 3"):
        WorkerJob(("m.toml",))()
    program.write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RunError, match="the worker ended with signal 9"):
        WorkerJob(("m.toml",))()
    program.write_text("")
    WorkerJob(("m.toml",))()


def test_a_worker_that_slurm_has_stopped_keeps_its_job_until_slurm_ends_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_job, "_END_SECONDS", 1.0)
    program.write_text("import sys; sys.exit(143)")
    begun = time.monotonic()
    with pytest.raises(RunError, match="status 143"):
        WorkerJob(("m.toml",))()
    assert time.monotonic() - begun >= 1.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm_node.hindrance():
        pytest.skip(reason)
    ports = []
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_node.cluster(folder, (ports[0], ports[1])) as environment:
        root = str(Path(workflow.__file__).parents[2])
        paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
        yield {**environment, "PYTHONPATH": ":".join(paths), "OMP_NUM_THREADS": "1"}


def called(config: Path, slurm: str, environment: dict[str, str]) -> str:
    """Returns what `qrdali reproduce CONFIG --slurm …` prints on stdout."""
    command = [sys.executable, "-m", "qrdali", "reproduce", str(config), f"--slurm={slurm}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def until_empty(environment: dict[str, str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while queue := slurm_node.said(["squeue", "-h", "-r"], environment).strip():
        assert time.monotonic() < end, queue
        time.sleep(1)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_killed_and_timed_out_jobs_leave_what_a_serial_call_does(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """A minute is the shortest time of a job; the signal comes 20 to 50 seconds after its begin."""
    long = {"device": "cpu", "threads": 1, "batch_size": 8, "patience": 300, "max_epochs": 300}
    config = written(tmp_path, tmp_path / "now", train=long)
    for name in ("serial", "again"):
        assert joined(start(config, tmp_path / f"{name}.log")) == 0
        (tmp_path / "now").rename(tmp_path / name)
    asked = "time=1,parallel=2,cpus=1,signal-seconds=10,max-num-timeout=20"
    said = called(config, asked, cluster)
    assert "2 jobs submitted, 1 CPUs, 0 GPUs for each" in said
    assert "2 jobs wait or run; nothing was submitted" in called(config, asked, cluster)
    workers = Workers(tmp_path / "now")
    metrics = tmp_path / "now" / "runs" / "test_resnet" / "shared" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not metrics.exists() or len(living := list(workers.all())) < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert {worker.name for worker in living} == {worker.name for worker in living if "job " in worker.name}
    os.kill(living[0].pid, signal.SIGKILL)
    until_empty(cluster, 600)
    logs = [file.read_text() for file in (tmp_path / "now" / "slurm").glob("*_log.out")]
    assert len(logs) == 2
    assert sum("the worker ended with signal 9" in log for log in logs) == 1
    assert sum("this job is timed-out" in log and "Requeued job" in log for log in logs) >= 1
    assert sum("Exiting after successful completion" in log for log in logs) == 1
    same_as_serial(tmp_path)
    assert "nothing to submit" in called(config, asked, cluster)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_for_each_task_does_the_matrix(cluster: dict[str, str], tmp_path: Path) -> None:
    config = written(tmp_path, tmp_path / "out", **SMALL)
    said = called(config, "per-task=yes,cpus=1,time=30", cluster)
    assert "6 jobs submitted" in said
    assert "(Dependency)" in called(config, "per-task=yes,cpus=1,time=30", cluster)
    until_empty(cluster, 400)
    assert workflow.status(config).count("done") == 6
    notes = [json.loads(file.read_text()) for file in (tmp_path / "out" / "tasks").glob("*/done.json")]
    assert len({note["worker"].partition("(")[2].partition(",")[0] for note in notes}) == 6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_that_fails_takes_the_jobs_that_need_it_off_the_queue(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    config = written(tmp_path, tmp_path / "out", **SMALL)
    workflow.reproduce(config, task="data")
    shutil.rmtree(tmp_path / "out" / "images" / "train")
    called(config, "per-task=yes,cpus=1,time=30", cluster)
    until_empty(cluster, 400)
    states = {task.key: task.state for task in workflow.status(config).tasks}
    assert states["train test_resnet/shared"] == "failed"
    assert states["train test_resnet/baseline"] == "waiting"
