"""Several workers of one matrix: killed, stopped, out of space, beside others with other settings."""

import errno
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matrix_helpers import begun, joined, same_as_serial, start, written

from qrdali.data.scan import build_dataset
from qrdali.errors import InputError, Interrupted
from qrdali.experiment import folder as folder_file
from qrdali.experiment.claims import Claims
from qrdali.experiment.workers import Presence, Workers
from qrdali.interfaces import JobControl
from qrdali.workflows import matrix_worker, task_control
from qrdali.workflows import reproduce as workflow

KINDS = ["data", "train", "adopt", "evaluate", "mepi", "report"]  # in the order in which they are taken


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the matrix of matrix.toml works in `now`, and has worked twice, serially, before."""
    folder = tmp_path_factory.mktemp("ground")
    config = written(folder, folder / "now")
    for name in ("serial", "again"):
        assert joined(start(config, folder / f"{name}.log")) == 0
        (folder / "now").rename(folder / name)
    return folder


@pytest.fixture(autouse=True)
def room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes room for the next matrix of `ground`."""
    yield
    if "ground" in request.fixturenames:
        shutil.rmtree(request.getfixturevalue("ground") / "now", ignore_errors=True)


@pytest.mark.slow
def test_two_workers_leave_what_one_does(ground: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [start(ground / "matrix.toml", log) for _ in range(2)]
    assert [joined(worker) for worker in workers] == [0, 0]
    serial = begun(ground / "serial.log")
    assert sorted(begun(log)) == sorted(serial)
    assert len(set(serial)) == len(serial)
    ends = [file.read_text().splitlines()[-1] for file in tmp_path.glob("log.said-*")]
    assert ends == [str(ground / "now" / "report" / "report.html")] * 2
    same_as_serial(ground)


@pytest.mark.slow
def test_workers_are_killed_in_each_kind_of_task(ground: Path, tmp_path: Path) -> None:
    """Each time all workers are dead, and the next goes on at once."""
    log = tmp_path / "log"
    for kind in KINDS:
        assert joined(start(ground / "matrix.toml", log, kind)) == -signal.SIGKILL, kind
        assert begun(log)[-1].partition(" ")[0] == kind
    assert joined(start(ground / "matrix.toml", log)) == 0
    counts = Counter(begun(log))
    assert counts.keys() == set(begun(ground / "serial.log"))
    twice = {task for task, count in counts.items() if count > 1}
    # What was adopted before the kill is there, though no note says so.
    assert {task.partition(" ")[0] for task in twice} == {*KINDS} - {"adopt"}
    assert max(counts.values()) == 2
    same_as_serial(ground)


@pytest.mark.slow
def test_the_other_worker_goes_on_with_a_killed_ones_run(ground: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start(ground / "matrix.toml", log, "train")
    other = start(ground / "matrix.toml", log)
    assert joined(killed) in (-signal.SIGKILL, 0)  # 0 where the other one has taken all three runs
    assert joined(other) == 0
    counts = Counter(begun(log))
    assert counts.keys() == set(begun(ground / "serial.log"))
    assert sum(counts.values()) <= len(counts) + 1
    same_as_serial(ground)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        tmp_path / "out",
        network=[{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        runs={"methods": ["baseline"]},
        mepi={},
    )


class Fake:
    """Stands in for the work of tasks: notes what is done, and does it only where `works` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.done: set[str] = set()
        monkeypatch.setattr(matrix_worker, "perform", self)
        monkeypatch.setattr(matrix_worker, "POLL_SECONDS", 0.01)
        monkeypatch.setattr(
            "qrdali.experiment.tasks.Tasks.done", lambda tasks, task: self.is_done(tasks, task)
        )

    def is_done(self, tasks: Any, task: Any) -> bool:
        return (tasks.folder.task(task.key) / "done.json").exists()

    def __call__(self, tasks: Any, task: Any, control: JobControl) -> None:
        self.begun.append(task.key)
        self.work(tasks, task, control)

    def work(self, tasks: Any, task: Any, control: JobControl) -> None: ...


ALL = [
    "data",
    "train test_resnet/shared",
    "train test_resnet/baseline",
    "evaluate test_resnet/shared",
    "evaluate test_resnet/baseline",
    "report",
]


def test_a_config_edited_while_workers_run_is_refused_with_the_difference(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    said: list[str] = []

    def edit(*_: object) -> None:
        if said:
            return
        before = config.read_text()
        config.write_text(before.replace('out = "', 'seeds = [0, 1]\nout = "'))
        with pytest.raises(InputError) as refusal:
            workflow.reproduce(config)
        said.append(str(refusal.value))
        config.write_text(before.replace("threads = 1", "threads = 2"))  # which every worker has its own
        assert workflow.status(config).count("running") == 1
        config.write_text(before)

    monkeypatch.setattr(fake, "work", edit)
    assert not workflow.reproduce(config).failed
    assert fake.begun == ALL
    assert "worker 1 (process" in said[0]
    assert "seeds [0] → [0, 1]" in said[0]
    config.write_text(config.read_text().replace('out = "', 'seeds = [0, 1]\nout = "'))
    workflow.plan(config)  # nobody works there any more


def test_a_full_disk_in_one_worker_leaves_its_task_to_the_next(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fills(tasks: Any, task: Any, control: JobControl) -> None:
        if task.kind == "train":
            raise full

    def no_space(file: Path, data: bytes) -> None:
        raise full

    write = folder_file.write_whole_among_writers
    with monkeypatch.context() as disk:
        disk.setattr(fake, "work", fills)
        disk.setattr(
            folder_file,
            "write_whole_among_writers",
            lambda file, data: no_space(file, data) if "train" in str(file) else write(file, data),
        )
        with pytest.raises(OSError, match="No space left"):
            workflow.reproduce(config)
    assert fake.begun == ALL[:2]
    status = workflow.status(config)
    assert [(task.key, task.state) for task in status.tasks][:3] == [
        ("data", "done"),
        ("train test_resnet/shared", "ready"),
        ("train test_resnet/baseline", "waiting"),
    ]
    assert not workflow.reproduce(config).failed
    assert fake.begun == [*ALL[:2], *ALL[1:]]


def test_a_folder_that_becomes_read_only_ends_the_worker_and_loses_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    real_open = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(tmp_path / "out") in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real_open(path, flags, *rest, **named)

    def failing(path: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as mount:

        def remount(tasks: Any, task: Any, control: JobControl) -> None:
            if task.kind == "train":
                mount.setattr(os, "open", read_only)
                mount.setattr(Path, "write_bytes", failing)
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        mount.setattr(fake, "work", remount)
        with pytest.raises(OSError, match="Read-only"):
            workflow.reproduce(config)
        assert workflow.status(config).count("done") == 1
    assert not workflow.reproduce(config).failed
    assert fake.begun == [*ALL[:2], *ALL[1:]]


def test_a_worker_that_was_stopped_for_long_leaves_its_task_to_whoever_has_it_now(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    monkeypatch.setattr(task_control, "_CLAIM_SECONDS", 0.0)
    written_after: list[str] = []

    def suspended(tasks: Any, task: Any, control: JobControl) -> None:
        if task.key != ALL[1] or fake.begun.count(task.key) > 1:
            return
        folder = tasks.folder.task(task.key)
        with Presence(tasks.folder.folder, {}) as other:
            with monkeypatch.context() as silence:
                silence.setattr(Workers, "is_gone", lambda self, number: True)
                claim = Claims(other).take(folder)
            assert claim is not None
            (folder / "done.json").write_text('{"worker": "other"}')
            claim.release()
        control.stop()  # as every batch asks
        written_after.append(task.key)

    monkeypatch.setattr(fake, "work", suspended)
    assert not workflow.reproduce(config).failed
    assert not written_after
    assert fake.begun == ALL
    assert json.loads((tmp_path / "out/tasks/train+test_resnet+shared/done.json").read_text()) == {
        "worker": "other"
    }


def test_a_failed_task_is_tried_again_as_often_as_asked_and_every_reason_is_kept(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    reasons = iter(["one", "two", "three", "four"])

    def fails(tasks: Any, task: Any, control: JobControl) -> None:
        if task.key == ALL[2]:
            raise RuntimeError(next(reasons))

    monkeypatch.setattr(fake, "work", fails)
    for retries, count in ((0, 1), (2, 4)):
        with pytest.raises(workflow.TasksFailed) as failure:
            workflow.reproduce(config, retries=retries)
        assert failure.value.result.failed.keys() == {ALL[2]}
        assert failure.value.result.waiting == {ALL[4]: ALL[2]}
        assert fake.begun.count(ALL[2]) == count
    note = json.loads((tmp_path / "out/tasks/train+test_resnet+baseline/failed.json").read_text())
    assert [one["reason"] for one in note["attempts"]] == [
        f"RuntimeError: {word}" for word in ("one", "two", "three", "four")
    ]


def test_what_cannot_succeed_is_not_tried_again(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)

    def fails(tasks: Any, task: Any, control: JobControl) -> None:
        if task.key == ALL[1]:
            raise InputError("no such optimizer")

    monkeypatch.setattr(fake, "work", fails)
    with pytest.raises(workflow.TasksFailed):
        workflow.reproduce(config, retries=5)
    assert fake.begun == ["data", ALL[1], "report"]


def test_a_folder_in_use_by_a_training_of_its_own_is_waited_for(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrdali.errors import InUse

    fake = Fake(monkeypatch)
    monkeypatch.setattr(matrix_worker, "_AGAIN_SECONDS", 0.05)

    def busy(tasks: Any, task: Any, control: JobControl) -> None:
        if task.key == ALL[1] and fake.begun.count(task.key) < 3:
            raise InUse("is being trained by process 5")

    monkeypatch.setattr(fake, "work", busy)
    assert not workflow.reproduce(config, retries=0).failed
    assert fake.begun.count(ALL[1]) == 3


def test_status_says_who_does_what_and_writes_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch)
    seen: list[Any] = []
    monkeypatch.setattr("qrdali.experiment.workers.BEAT_SECONDS", 0.01)

    def look(tasks: Any, task: Any, control: JobControl) -> None:
        if task.key != ALL[1]:
            return
        control.listener.begin("epoch 1", 10)
        control.listener.advance(4, lambda: "")
        end = time.monotonic() + 30
        while not seen or not seen[-1].workers[0].activity:
            assert time.monotonic() < end
            seen.append(workflow.status(config))
        control.listener.end()

    monkeypatch.setattr(fake, "work", look)
    workflow.reproduce(config)
    status = seen[-1]
    (worker,) = status.workers
    assert (worker.pid, worker.task, worker.is_silent) == (os.getpid(), ALL[1], False)
    assert worker.activity["done"] == 4
    assert [task.state for task in status.tasks] == ["done", "running", *["waiting"] * 4]
    assert status.tasks[1].worker == worker.number
    assert status.tasks[2].why == f"for {ALL[1]}"
    assert status.as_json()["counts"]["running"] == 1
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    after = workflow.status(config)
    assert (after.count("done"), after.workers) == (6, ())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == kept


def test_data_and_folder_under_another_mount_are_no_changed_settings(images: Path, tmp_path: Path) -> None:
    """The same images, indexed elsewhere; and the matrix' own folder has moved too."""
    place, other = tmp_path / "mount", tmp_path / "elsewhere"
    place.mkdir()
    shutil.copytree(images, place / "images")
    build_dataset(place / "images", place / "data")

    def config(folder: Path, **changes: Any) -> Path:
        return written(
            tmp_path,
            folder / "out",
            data={"folder": str(folder / "data")},
            network=[{"model": "test_resnet", "input_size": 32, "epochs": 1}],
            runs={"methods": ["baseline"]},
            mepi={},
            **changes,
        )

    at_once = JobControl(stop=lambda: signal.SIGTERM if stopped() else 0)
    metrics = place / "out" / "runs" / "test_resnet" / "baseline" / "metrics.jsonl"

    def stopped() -> bool:
        return metrics.exists() and metrics.read_text().count("\n") >= 2

    with pytest.raises(Interrupted):
        workflow.reproduce(config(place), control=at_once)
    place.rename(other)
    shutil.rmtree(other / "data")
    build_dataset(other / "images", other / "data")
    moved = config(other)
    assert [task.state for task in workflow.plan(moved).tasks][:2] == ["done", "begun"]
    assert not workflow.reproduce(moved).failed
    # Other images of the same names, and other settings, are refused as ever.
    shutil.rmtree(other / "data")
    picture = next((other / "images" / "train").rglob("*.jpg"))
    picture.unlink()
    build_dataset(other / "images", other / "data")
    other.rename(place)
    with pytest.raises(InputError, match=r"data .* → |training images changed"):
        workflow.plan(config(place))


def test_images_that_have_moved_are_found_below_the_root(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "before")
    build_dataset(tmp_path / "before", tmp_path / "data")
    (tmp_path / "before").rename(tmp_path / "now")
    config = written(
        tmp_path,
        tmp_path / "out",
        data={"folder": str(tmp_path / "data")},
        network=[{"model": "test_resnet", "input_size": 32, "epochs": 1}],
        runs={"methods": []},
        mepi={"runs": ["shared"], "limit": 2, "step": 0.25, "reductions": ["color"]},
        report={"make": False},
    )
    assert not workflow.reproduce(config, root=str(tmp_path / "now")).failed
