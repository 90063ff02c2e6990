"""`qrdali runs`: what runs there are, in any state, among folders of any content."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_runs
import numpy as np
import pytest
from click.testing import CliRunner

from qrdali.cli import terminal
from qrdali.cli.main import cli
from qrdali.errors import InputError
from qrdali.files.lock import acquire, is_held
from qrdali.runs import checkpoint, listing
from qrdali.runs.listing import list_runs

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1"


def fake(folder: Path, ended: str | None = "patience", **settings: Any) -> Path:
    fake_runs.run(folder, [0.25, 0.5, 0.75, 0.5], {"val": np.array([True])}, **settings)
    if ended is not None:
        checkpoint.save(folder / "last", {"schedule": {"ended": ended}})
    return folder


def invoke(*words: object) -> Any:
    result = CliRunner().invoke(cli, ["runs", *map(str, words)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stderr.splitlines()


def by_name(folder: Path) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in invoke(folder, "--json")["runs"]}


def test_states_and_figures(tmp_path: Path) -> None:
    shared = fake(tmp_path / "net" / "shared", method="shared")
    fake(tmp_path / "net" / "linear", "", method="linear", init=str(shared), reduction="crop", seed=3)
    fake(tmp_path / "never saved", None, pretrained=True)
    adopted = fake(tmp_path / "adopted", None)
    (adopted / "metrics.jsonl").unlink()
    (adopted / "config.toml").write_text(
        'method = "adopted"\nmodel = "resnet50"\ndata = ""\n[adopted]\nweights = "resnet50.a1_in1k"\n'
    )
    (tmp_path / "net" / ".hidden").mkdir()
    fake(tmp_path / "net" / ".hidden" / "run")
    found = by_name(tmp_path)
    assert list(found) == ["adopted", "net/linear", "net/shared", "never saved"]
    assert {name: run["state"] for name, run in found.items()} == {
        "adopted": "adopted",
        "net/linear": "stopped",
        "net/shared": "finished",
        "never saved": "stopped",
    }
    linear = found["net/linear"]
    assert (linear["method"], linear["reduction"], linear["sequence"]) == ("linear", "crop", "paired-epochs")
    assert (linear["network"], linear["seed"], linear["data"]) == ("test_resnet", 3, "/data/shapes")
    assert (linear["best"], linear["best_epoch"], linear["epochs"]) == (0.75, 2, 3)
    assert linear["seconds"] == 6  # total_seconds of the last row
    assert linear["from"] == linear["init"] == str(shared)
    assert [found[name]["from"] for name in ("net/shared", "never saved", "adopted")] == [
        "scratch",
        "pretrained",
        "resnet50.a1_in1k",
    ]
    assert found["adopted"]["epochs"] is found["adopted"]["seconds"] is None
    assert {run["error"] for run in found.values()} == {""}
    heading, *lines, legend = invoke(tmp_path)
    assert heading.split() == ["run", "method", "network", "state", "best", "epoch", "seconds", "from"]
    assert lines[1].split() == [
        "net/linear", "linear", "test_resnet", "stopped", "0.7500", "2/3", "6", "net/shared",
    ]  # fmt: skip
    assert legend.startswith("best: validation accuracy")


def test_runs_of_version_0_1() -> None:
    found = by_name(FIXTURES / "experiment")
    states = {Path(name).name: run["state"] for name, run in found.items()}
    assert states == {
        "fixed-paired-epochs-crop": "finished",
        "linear-paired-rounds-crop": "stopped",
        "shared": "finished",
    }
    assert all(run["error"] == "" and run["best"] == 0.5 for run in found.values())


def test_a_run_that_a_process_trains_is_running_and_looking_does_not_disturb_it(tmp_path: Path) -> None:
    run = fake(tmp_path / "run", "")
    lock = acquire(run / ".lock", str)
    try:
        assert is_held(run / ".lock")
        assert by_name(tmp_path)["run"]["state"] == "running"
    finally:
        lock.close()
    assert not is_held(run / ".lock")
    assert by_name(tmp_path)["run"]["state"] == "stopped"
    assert not is_held(run / "no lock")
    assert not (run / "no lock").exists()
    os.mkfifo(run / "fifo")
    assert not is_held(run / "fifo")
    with open(run / ".lock") as looking:  # as `is_held` in another process at that moment
        fcntl.flock(looking, fcntl.LOCK_SH)
        code = (
            "import sys; from pathlib import Path; from qrdali.files.lock import acquire\n"
            "print('trying', flush=True); acquire(Path(sys.argv[1]), str); print('held')"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(run / ".lock")], stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "trying\n"
            time.sleep(0.01)
            fcntl.flock(looking, fcntl.LOCK_UN)
            assert other.stdout.read() == "held\n"


def test_hostile_folders_do_not_break_the_list(tmp_path: Path) -> None:
    fake(tmp_path / "good")

    def spoilt(name: str, file: str, content: bytes) -> None:
        target = fake(tmp_path / name) / file
        target.unlink()
        target.write_bytes(content)

    spoilt("toml", "config.toml", b"= [")
    spoilt("types", "config.toml", b"method = [1]\n")
    spoilt("binary", "config.toml", b"\xff\xfe\x00")
    spoilt("huge", "config.toml", b"#" * 1_000_001)
    spoilt("state", "best/state.json", b"{}")
    spoilt("last", "last/state.json", b"\x00")
    spoilt("evil\x1b[31m", "config.toml", b'model = "\\u001b[31m"\n')
    spoilt("metrics", "metrics.jsonl", b'{"epoch": 1, "seconds": "x", "total_seconds": 1e999}\n{"epo')
    spoilt("numbers", "metrics.jsonl", b'{"epoch": 1' + b"0" * 400 + b"}\n")
    (tmp_path / "fifo").mkdir()
    os.mkfifo(tmp_path / "fifo" / "config.toml")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "another program").mkdir()
    (tmp_path / "another program" / "config.toml").write_text("[server]\nport = 1\n")
    deep = tmp_path.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    fake(deep / "too deep")
    found = by_name(tmp_path)
    broken = {name for name, run in found.items() if run["error"]}
    assert broken == {"toml", "types", "binary", "huge", "state", "last", "evil\x1b[31m", "fifo"}
    assert set(found) - broken == {"good", "metrics", "numbers"}
    assert found["good"]["best"] == 0.75
    assert (found["last"]["best"], found["last"]["method"]) == (0.75, "baseline")  # what could be read
    assert (found["metrics"]["epochs"], found["metrics"]["seconds"]) == (1, 0)
    lines = invoke(tmp_path)
    assert len(lines) == 13
    assert "\x1b" not in "".join(lines)
    assert next(line for line in lines if line.startswith("huge")).endswith("that is not a configuration")


def test_bounds_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(9):
        (tmp_path / f"folder {i}").mkdir()
    fake(tmp_path / "z")
    monkeypatch.setattr(listing, "MAX_FOLDERS", 5)
    found = list_runs([tmp_path])
    assert found.runs == []
    assert found.notes == ["only 5 folders were looked into: give a narrower one"]
    monkeypatch.setattr(listing, "MAX_FOLDERS", 50)
    monkeypatch.setattr(listing, "_MAX_ENTRIES", 9)
    assert list_runs([tmp_path]).notes == [f"not looked into: {tmp_path}: it has more than 9 entries"]


def test_which_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke() == ["no run in .: `qrdali train` makes one"]
    fake(Path("other"))
    fake(Path("runs/a"))
    assert list(by_name(Path())) == ["other", "runs/a"]
    assert [run["name"] for run in invoke("--json")["runs"]] == ["a"]
    assert [run["name"] for run in invoke("runs/a", "--json")["runs"]] == ["runs/a"]
    assert [run["name"] for run in invoke("other", "runs", "--json")["runs"]] == ["other", "runs/a"]
    monkeypatch.chdir("other")
    assert list(by_name(Path())) == ["other"]
    with pytest.raises(InputError, match="is not a folder"):
        list_runs([tmp_path / "none"])


def test_a_narrow_terminal_cuts_names_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "a-name-of-a-run-that-is-rather-long"
    first = fake(tmp_path / long, method="shared", model="test_efficientnet.of_a_long_name")
    fake(tmp_path / f"{long}-2", init=str(first))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.toml").write_bytes(b"=" * 200)
    monkeypatch.setattr(terminal, "width", lambda: 80)
    lines = invoke(tmp_path)
    assert max(map(len, lines)) <= 80
    for line, name in ((lines[1], "s-rather-long"), (lines[2], "rather-long-2")):
        assert line.startswith("…")
        assert f"{name} " in line
        assert "finished  0.7500    2/3        6" in line
    assert lines[3].startswith("broken ")
    assert lines[3].endswith("…")
