"""What a fault leaves on the disk, and that a run goes on from it to the same end: kills inside a save,
damage, full and read-only disks, two processes, a loss that is no number. docs/explanation/
reliability.md refers to these tests by name."""

import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qrdali import models
from qrdali.cli.terminal import TerminalListener
from qrdali.data.index import Dataset
from qrdali.errors import InputError, RunError
from qrdali.interfaces import JobControl
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.quality import QUARTERS
from qrdali.runs import checkpoint
from qrdali.runs import folder as run_folder
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.training import validation
from qrdali.training.finite_check import FiniteCheck
from qrdali.workflows.evaluate import EvaluateOptions, Evaluator
from qrdali.workflows.train import run_training

TIMED = ("second", "time", "memory", "energy", "environment")


@pytest.fixture(scope="module")
def settings(dataset: Dataset) -> Settings:
    return validate_settings(
        {
            "method": "fixed",
            "data": str(dataset.folder),
            "model": "test_resnet",
            "input_size": 32,
            "batch_size": 4,
            "device": "cpu",
            "threads": 1,
            "reduction": "color",
            "sequence": "RC",
            "max_epochs": 3,
            "seed": 5,
        }
    )


@pytest.fixture(scope="module")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_training(settings, run, False)
    return run


def outcome(run: Path) -> dict[str, Any]:
    """Weights, optimizer and generators by hash, and the metrics less what was measured."""
    files = ("best/model", "last/model", "last/optimizer", "last/random")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        name: hashlib.sha256((run / f"{name}.safetensors").read_bytes()).hexdigest() for name in files
    } | {"rows": [{k: v for k, v in row.items() if not any(t in k for t in TIMED)} for row in rows]}


def small(value: int) -> dict[str, Any]:
    return {
        "model": {"w": torch.full((1000,), float(value))},
        "optimizer": {"m": torch.full((1000,), float(value))},
    }


def forked(work: Callable[[], None]) -> int:
    """Runs `work` in a child process; the wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


OPERATIONS = [
    (checkpoint, "save_file"),
    (checkpoint, "sync"),
    (checkpoint, "sha256_of"),
    (shutil, "rmtree"),
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "write_text"),
]


def at_every_operation(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """`act` before each thing that a save does to the disk, and after it; and where a file is half
    written."""

    def acting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def acted(*args: Any, **named: Any) -> Any:
            act()
            done = real(*args, **named)
            if name in ("save_file", "write_text"):
                file = args[1] if name == "save_file" else args[0]
                content = file.read_bytes()
                file.write_bytes(content[: len(content) // 2])
                act()
                file.write_bytes(content)
            act()
            return done

        return acted

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, acting(getattr(owner, name), name))


@pytest.mark.parametrize("keep", [True, False])
def test_sigkill_at_every_step_of_a_save_leaves_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Real SIGKILLs, one per operation of the third save: what loads is the second or the third, never a
    mixture."""
    seen = []
    for deadly in range(1, 200):
        folder = tmp_path / str(deadly) / "c"
        for number in (1, 2):
            checkpoint.save(folder, {"number": number}, keep_previous=keep, **small(number))

        def third(folder: Path = folder, deadly: int = deadly) -> None:
            count = [0]

            def act() -> None:
                count[0] += 1
                if count[0] == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)

            at_every_operation(monkeypatch, act)
            checkpoint.save(folder, {"number": 3}, keep_previous=keep, **small(3))

        status = forked(third)
        state, (model, optimizer), damage = checkpoint.load_newest(folder, "model", "optimizer")
        assert not damage
        seen.append(state["number"])
        assert set(model["w"].tolist()) == set(optimizer["m"].tolist()) == {float(state["number"])}
        checkpoint.save(folder, {"number": 4}, keep_previous=keep, **small(4))
        assert checkpoint.load(folder)[0]["number"] == 4
        left = {path.name for path in folder.parent.iterdir()}
        assert left == ({"c", "c.old"} if keep else {"c"})
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(seen) > 30
    assert seen == sorted(seen)
    assert set(seen) == {2, 3}


def test_a_run_killed_at_any_step_of_a_save_goes_on_to_the_same_end(
    settings: Settings, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder is copied at every operation of the second epoch's save: what SIGKILL would have left
    there."""
    copies: list[Path] = []
    save = checkpoint.save

    def watched(folder: Path, state: dict[str, Any], **rest: Any) -> None:
        if folder.name != "last" or state["schedule"]["epoch"] != 2:
            return save(folder, state, **rest)

        def copy() -> None:
            copies.append(tmp_path / f"copy{len(copies)}")
            with pytest.MonkeyPatch.context() as plain:
                plain.setattr(Path, "mkdir", mkdir)
                shutil.copytree(tmp_path / "run", copies[-1])

        mkdir = Path.mkdir
        with pytest.MonkeyPatch.context() as patch:
            # digest and sync also run beside, where what they see is not one moment's
            patch.setattr(checkpoint, "_hash_and_sync", _hash_and_sync)
            at_every_operation(patch, copy)
            return save(folder, state, **rest)

    def _hash_and_sync(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(checkpoint, "save", watched)
    run_training(settings, tmp_path / "run", False)
    monkeypatch.undo()
    assert outcome(tmp_path / "run") == outcome(whole)
    assert len(copies) > 20
    tried = set()
    for copy in copies:
        have = tuple(sorted(str(p.relative_to(copy)) + str(p.stat().st_size) for p in copy.rglob("last*/*")))
        if have in tried:  # as another moment left it
            continue
        tried.add(have)
        run_training(settings, copy, True)
        assert outcome(copy) == outcome(whole), copy.name
    assert len(tried) > 8


def test_a_real_sigkill_inside_a_save(settings: Settings, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "\n".join(
            f"{k} = {json.dumps(v)}"
            for k, v in settings.model_dump(exclude_defaults=True).items()
            if k not in ("method", "data")
        )
    )
    program = """
import os, signal, sys
from qrdali.runs import checkpoint
from qrdali.__main__ import main
real, seen = checkpoint.sync, []
def sync(path):
    real(path)
    seen.append(path)
    if sum(p.name == "last.new" for p in seen) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.sync = sync
main()
"""
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "train",
            "fixed",
            "--data",
            settings.data,
            "--run",
            str(tmp_path / "run"),
            "--config",
            str(tmp_path / "c.toml"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run" / "last.new").exists()
    run_training(settings, tmp_path / "run", True)
    assert outcome(tmp_path / "run") == outcome(whole)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "SHA256SUMS", "random.safetensors"])
def test_a_damaged_newest_save_gives_way_to_the_one_before(
    settings: Settings, whole: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    content = bytearray((run / "last" / file).read_bytes())
    content[len(content) // 2] ^= 4
    (run / "last" / file).write_bytes(content)
    if file == "model.safetensors":  # a finished run is asked for no more than its state
        state = json.loads((run / "last" / "state.json").read_text())
        state["schedule"]["ended"] = ""
        (run / "last" / "state.json").write_text(json.dumps(state))
    elif file == "random.safetensors":
        (run / "last" / file).unlink()
        (run / "last" / "state.json").write_text("{}")
    capsys.readouterr()
    run_training(settings, run, True, JobControl(TerminalListener()))
    told = [line for line in capsys.readouterr().err.splitlines() if "last.damaged" in line]
    assert len(told) == 1
    assert "last/" in told[0]
    assert "continuing after epoch 2" in told[0]
    assert outcome(run) == outcome(whole)
    assert (run / "last.damaged").is_dir()
    assert checkpoint.load(run / "last.old", "model")[0]["schedule"]["epoch"] == 2


def test_both_saves_damaged_are_named(settings: Settings, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for folder in ("last", "last.old"):
        (tmp_path / "run" / folder / "state.json").write_text("[")
    with pytest.raises(RunError, match=r"last/state.json is damaged.*the one before.*last.old/state.json"):
        run_training(settings, tmp_path / "run", True)
    shutil.rmtree(tmp_path / "run" / "last.old")
    with pytest.raises(RunError, match=r"last/state.json is damaged.*no earlier checkpoint"):
        run_training(settings, tmp_path / "run", True)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("schedule", {"epoch": "x"}),
        ("schedule", {"position": 99}),
        ("schedule", {"round": []}),
        ("schedule", None),
        ("totals", {"seconds": "1"}),
        ("totals", {"steps": 1}),
        ("optimizer", []),
        ("optimizer", {"plain": {"x": {}}}),
        ("stage_row", 3),
        ("epoch", {"step": 1}),
        ("epoch", {"step": 2, "images": 999, "loss": 1, "correct": 1, "seconds": 1, "waited": 1}),
        ("epoch", [1]),
        ("data", "other"),
    ],
)
def test_a_state_that_no_save_has_written_is_refused_in_one_line(
    settings: Settings, whole: Path, tmp_path: Path, place: str, value: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "last" / "SHA256SUMS").unlink()  # made by someone who knows that it would not agree
    state = json.loads((run / "last" / "state.json").read_text())
    state["schedule"]["ended"] = ""
    state[place] = (
        {**state[place], **value} if isinstance(value, dict) and isinstance(state[place], dict) else value
    )
    (run / "last" / "state.json").write_text(json.dumps(state))
    with pytest.raises(RunError, match="does not fit this run|has changed since") as raised:
        run_training(settings, run, True)
    assert "\n" not in str(raised.value)


def test_sha256sum_agrees_and_a_flipped_bit_is_noticed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "best", tmp_path / "best")
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=tmp_path / "best",
        capture_output=True,
        text=True,
    )
    assert checked.stdout.splitlines() == ["model.safetensors: OK", "state.json: OK"]
    weights = tmp_path / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + bytes([weights.read_bytes()[-1] ^ 1]))
    load_file(weights)  # still a safetensors file
    with pytest.raises(RunError, match="model.safetensors is damaged: its SHA-256"):
        checkpoint.load(tmp_path / "best", "model")
    (tmp_path / "best" / "SHA256SUMS").unlink()  # as before there were hashes
    checkpoint.load(tmp_path / "best", "model")


def test_a_reader_beside_a_writer_never_sees_a_mixture(tmp_path: Path) -> None:
    """evaluate on a running run: best/ is replaced while it is read."""
    checkpoint.save(tmp_path / "c", {"number": 0}, **small(0))
    child = os.fork()
    if child == 0:
        for number in range(1, 100):
            checkpoint.save(tmp_path / "c", {"number": number}, **small(number))
        os._exit(0)
    seen, refusals = set(), []
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        try:
            state, (model,) = checkpoint.load(tmp_path / "c", "model")
        except RunError as error:
            refusals.append(str(error))
            continue
        assert model["w"][0] == state["number"]
        seen.add(state["number"])
    assert len(seen) > 3
    assert all("replaced faster" in refusal for refusal in refusals)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB of its own; skips where none can be mounted."""
    (tmp_path / "disk").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(tmp_path / "disk")], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield tmp_path / "disk"
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("when", ["last", "best", "metrics"])
def test_a_full_disk_stops_the_run_and_damages_nothing(
    settings: Settings, whole: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    filler = disk / "filler"

    def fill(left: int) -> None:
        free = os.statvfs(disk)
        filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))

    save, append = checkpoint.save, run_folder.append_metrics

    def saving(folder: Path, state: dict[str, Any], **rest: Any) -> None:
        if folder.name == when and (state.get("schedule", state)["epoch"] == 2):
            fill(100_000)
        save(folder, state, **rest)

    def appending(folder: Path, row: dict[str, Any]) -> None:
        if when == "metrics" and row["epoch"] == 2:
            fill(0)
            monkeypatch.setattr(
                json, "dumps", lambda row, **_: "x" * 100_000
            )  # more than is left of its page
        append(folder, row)

    monkeypatch.setattr(checkpoint, "save", saving)
    monkeypatch.setattr(run_folder, "append_metrics", appending)
    if when == "best":  # every epoch is better than the one before, whatever the network says
        seen: list[Any] = []

        def better(rows: Any) -> float:
            if not any(rows is one for one in seen):
                seen.append(rows)
            return len(seen) / 10

        monkeypatch.setattr(validation.PredictionRows, "accuracy", property(better))
    with pytest.raises(
        RunError,
        match=r"No space left on device.*nothing that was complete is damaged, last/ holds epoch 1; "
        r".*--resume",
    ):
        run_training(settings, disk / "run", False)
    monkeypatch.undo()
    assert not list(disk.rglob("*.new"))
    filler.unlink()
    run_folder.load_best(disk / "run")
    run_training(settings, disk / "run", True)
    if when != "best":
        assert outcome(disk / "run") == outcome(whole)


def test_a_full_disk_where_none_can_be_mounted(
    settings: Settings, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file = checkpoint.save_file

    def full(tensors: checkpoint.Tensors, file: Path) -> None:
        save_file(tensors, file)
        if file.parent.name == "last.new" and (tmp_path / "run" / "last.old").exists():
            file.write_bytes(file.read_bytes()[:100])
            raise SafetensorError(
                f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"
            )

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"No space left on device.*last/ holds epoch 2;"):
        run_training(settings, tmp_path / "run", False)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "last.new").exists()
    run_training(settings, tmp_path / "run", True)
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_read_only_folder_is_refused(settings: Settings, whole: Path, disk: Path) -> None:
    shutil.copytree(whole, disk / "run")
    (disk / "run" / ".lock").unlink()
    shutil.rmtree(disk / "run" / "last")  # not finished
    before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for run, resume in ((disk / "run", True), (disk / "new", False)):
        with pytest.raises(
            RunError, match=r"cannot be written \(Read-only file system\): nothing has been changed"
        ):
            run_training(settings, run, resume)
    assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before


def test_a_second_process_is_refused_and_evaluate_is_not(
    settings: Settings, whole: Path, dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "last")  # last.old is there: not finished
    with run_folder.lock_run_folder(run):
        with pytest.raises(
            RunError, match=f"is being trained by process {os.getpid()} on {platform.node()}: wait"
        ):
            run_training(settings, run, True)
        assert Evaluator(run, EvaluateOptions(device="cpu")).split(dataset.folder, "test")["images"] == 12
    run_training(settings, run, True)
    assert outcome(run) == outcome(whole)


def test_of_two_processes_that_begin_the_same_run_the_later_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, run = models.create, tmp_path / "run"

    def slow(*args: Any, **named: Any) -> Any:
        run.mkdir(exist_ok=True)
        (run / "config.toml").write_text("another's")  # begun and stopped while this one was starting
        return create(*args, **named)

    monkeypatch.setattr(models, "create", slow)
    with pytest.raises(InputError, match="begun by another process meanwhile"):
        run_training(settings, run, True)
    assert (run / "config.toml").read_text() == "another's"


def test_a_refusal_leaves_no_lock(tmp_path: Path) -> None:
    def refused(run: Path) -> None:
        with run_folder.lock_run_folder(run):
            assert (run / ".lock").exists()
            assert not run_folder.holds_run(run)
            raise InputError("no")

    for made in (False, True):
        if made:
            (tmp_path / "run").mkdir()
        with pytest.raises(InputError, match="no"):
            refused(tmp_path / "run")
        assert [path.name for path in tmp_path.rglob("*")] == (["run"] if made else [])


@pytest.mark.parametrize(("value", "save_every"), [("nan", ""), ("inf", ""), ("nan", "1")])
def test_a_loss_that_is_no_number_stops_before_it_is_saved(
    settings: Settings,
    whole: Path,
    dataset: Dataset,
    tmp_path: Path,
    value: str,
    save_every: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = torch.nn.CrossEntropyLoss.forward, [0]

    def spoilt(self: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        loss: torch.Tensor = real(self, logits, labels)
        return loss * float(value) if calls[0] == 6 + 2 else loss  # epoch 2, step 2

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", spoilt)
    monkeypatch.setattr(FiniteCheck, "EVERY", 3)
    run, chosen = tmp_path / "run", settings.model_copy(update={"save_every": save_every})
    order = EpochPlan(24, 4, FULL_QUALITY, QUARTERS, settings.seed, 2, True, "flip")
    samples = ", ".join(map(str, order.batch(1).tolist()))
    saved = "epoch 1 and 1 steps of the next" if save_every else "epoch 1"
    with pytest.raises(
        RunError,
        match=f"epoch 2: the loss of step 2 is {value} \\(samples {samples}\\).*last/ holds {saved};",
    ):
        run_training(chosen, run, False)
    assert calls[0] == (6 + 2 if save_every else 6 + 3)
    assert all(torch.isfinite(w).all() for w in load_file(run / "last" / "model.safetensors").values())
    monkeypatch.undo()
    run_training(chosen, run, True)
    assert outcome(run) == outcome(whole)


def test_weights_that_are_no_numbers_are_named_with_the_last_samples() -> None:
    model, finite = torch.nn.Linear(2, 2), FiniteCheck()
    finite.verify(model)
    for step in (7, 8):
        finite.record(step, torch.tensor(1.0), torch.arange(20) + step)
    finite.verify(None)
    with torch.no_grad():
        model.bias[1] = np.inf
    finite.verify(model)  # no step was taken
    finite.record(9, torch.tensor(1.0), torch.arange(20))
    finite.record(10, torch.tensor(1.0), torch.arange(20) + 100)
    listed = ", ".join(map(str, range(100, 116)))
    with pytest.raises(
        ValueError,
        match=f"the weights bias are not finite after a step from 9 to 10 .*last: {listed} and 4 more",
    ):
        finite.verify(model)


def test_a_benchmark_that_is_terminated_leaves_nothing_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "qrdali", "bench", "loader", "--rounds", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        try:
            for _ in range(600):
                if any(tmp_path.rglob("*.jpg")) or process.poll() is not None:
                    break
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []
