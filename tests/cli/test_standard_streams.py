"""Closed or failing standard streams: work goes on, and the exit status says how it ended."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qrdali.data.index import Dataset

QRDALI = [sys.executable, "-m", "qrdali"]


def shell(words: list[object], redirection: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs qrdali with a redirection of the shell."""
    command = shlex.join([*QRDALI, *map(str, words)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        ["sh", "-c", f"{command} {redirection}"],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
    )


def training(dataset: Dataset, run: Path) -> list[object]:
    network = ["--model", "test_resnet", "--input-size", 16, "--batch-size", 8, "--epochs", 1]
    place = ["--data", dataset.folder, "--run", run, "--device", "cpu", "--threads", 1]
    return ["train", "shared", *place, *network, "--save-every", 1]


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>/dev/full"])
def test_training_goes_on_where_nobody_can_read_its_messages(
    dataset: Dataset, tmp_path: Path, redirection: str
) -> None:
    ended = shell(training(dataset, tmp_path / "run"), redirection, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [0, 1]


def test_training_goes_on_when_the_reader_of_its_messages_has_gone(dataset: Dataset, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*QRDALI, *map(str, training(dataset, tmp_path / "run"))],
        stderr=writing,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=200,
    )
    os.close(writing)
    assert (ended.returncode, ended.stdout) == (0, b"")


@pytest.mark.parametrize(
    ("words", "redirection", "status"),
    [
        (["--help"], "2>&-", 0),
        (["--help"], ">&-", 0),
        (["--help"], "2>/dev/full", 0),
        (["trian"], "2>&-", 2),
        (["trian"], "2>/dev/full", 2),
        (["data", "info", "nowhere"], "<&- >&- 2>&-", 2),
        (["report", "nowhere", "--out", "x"], "2>&-", 2),
    ],
)
def test_the_exit_status_is_right_whatever_is_closed(
    words: list[object], redirection: str, status: int, tmp_path: Path
) -> None:
    assert shell(words, redirection, tmp_path).returncode == status


@pytest.mark.parametrize("words", [["--help"], ["data", "info", "DATA", "--json"]])
def test_a_result_that_cannot_be_written_is_an_error(
    words: list[str], dataset: Dataset, tmp_path: Path
) -> None:
    ended = shell([word.replace("DATA", str(dataset.folder)) for word in words], ">/dev/full", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == "qrdali: error: standard output cannot be written: No space left on device\n"


def test_json_goes_to_stdout_and_messages_nowhere_if_stderr_is_closed(
    dataset: Dataset, tmp_path: Path
) -> None:
    ended = shell(["data", "info", dataset.folder, "--json"], "2>&-", tmp_path)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["rejected"] == 0


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise what DALI prints would go into the next file that is opened."""
    program = (
        "import sys; from qrdali.cli.process import prepare; prepare();"
        f"file = open({str(tmp_path / 'numbers')!r}, 'w'); file.write(str(file.fileno()));"
        "print('out'); print('error', file=sys.stderr); sys.stdin.read()"
    )
    command = f"{shlex.join([sys.executable, '-c', program])} <&- >&- 2>&-"
    subprocess.run(
        ["sh", "-c", command], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert int((tmp_path / "numbers").read_text("utf-8")) > 2


def test_what_a_full_non_blocking_pipe_cannot_take_does_not_hold_the_work(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    program = (
        "import sys; from qrdali.cli import process; process._WAIT_SECONDS = 0.1; process.prepare();"
        "[print('x' * 1000, file=sys.stderr) for _ in range(1000)]; print('done')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        stderr=writing,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    os.close(writing)
    os.close(reading)
    assert (ended.returncode, ended.stdout) == (0, b"done\n")


def test_the_python_api_works_without_standard_streams(images: Path, tmp_path: Path) -> None:
    program = (
        "import sys, qrdali; assert sys.stderr is sys.stdout is sys.stdin is None;"
        "qrdali.index(sys.argv[1], sys.argv[2], progress=True)"
    )
    command = shlex.join([sys.executable, "-c", program, str(images), str(tmp_path / "data")])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["sh", "-c", f"{command} <&- >&- 2>&-"], check=True, env=env)
    assert (tmp_path / "data" / "classes.tsv").exists()
