"""Claims of tasks: exactly one worker has a task, a worker that is gone loses it, one that lives keeps it."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qrdali.errors import InputError
from qrdali.experiment import claims as claims_file
from qrdali.experiment import workers as workers_file
from qrdali.experiment.claims import Claim, ClaimLost, Claims, read_holder
from qrdali.experiment.workers import Presence, Watch, Workers, require_room

MATRIX = {"seeds": [0]}


class Clock:
    """Stands in for a host's monotonic clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers give a first sign of life and no other."""
    monkeypatch.setattr(workers_file, "BEAT_SECONDS", 1e6)
    end = Presence.end

    def ended(self: Presence) -> None:
        self._thread.join = lambda timeout=None: None  # type: ignore[method-assign]
        end(self)

    monkeypatch.setattr(Presence, "end", ended)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system has no locks: only signs of life tell who lives."""
    monkeypatch.setattr(workers_file, "_lock", lambda descriptor: False)


@pytest.fixture
def two(tmp_path: Path, no_beats: None) -> Iterator[tuple[Presence, Presence]]:
    with Presence(tmp_path, MATRIX) as one, Presence(tmp_path, MATRIX) as other:
        yield one, other


def watched(claims: Claims, task: Path, clock: Clock, seconds: float, step: float = 2.0) -> Claim | None:
    """Tries to take a task every `step` seconds for so long."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += step
        if (claim := claims.take(task)) is not None:
            return claim
    return None


def test_a_claim_keeps_others_out_until_it_is_given_back(
    two: tuple[Presence, Presence], tmp_path: Path
) -> None:
    one, other = map(Claims, two)
    task = tmp_path / "tasks" / "train+a"
    claim = one.take(task)
    assert claim is not None
    assert (claim.number, claim.before) == (1, None)
    assert other.take(task) is None
    assert other.is_held(task)
    claim.require()
    claim.release()
    assert read_holder(task) == claims_file.Holder(1, 1, True)
    again = other.take(task)
    assert again is not None
    assert (again.number, again.before) == (2, None)
    assert one.take(task) is None
    with pytest.raises(ClaimLost, match="another worker has taken this task over"):
        claim.require()


def test_an_ended_workers_task_is_free(tmp_path: Path, no_beats: None) -> None:
    task = tmp_path / "task"
    first = Presence(tmp_path, MATRIX)
    assert Claims(first).take(task) is not None
    with Presence(tmp_path, MATRIX) as second:
        assert Claims(second).take(task) is None
        first.end()
        claim = Claims(second).take(task)
        assert claim is not None
        assert claim.before == claims_file.Holder(1, 1, False)


def test_without_locks_silence_of_two_minutes_frees_a_task(
    no_locks: None, two: tuple[Presence, Presence], tmp_path: Path, clock: Clock
) -> None:
    task = tmp_path / "task"
    held = Claims(two[0]).take(task)
    assert held is not None
    other = Claims(two[1])
    assert watched(other, task, clock, 118) is None
    assert watched(other, task, clock, 6) is not None
    with pytest.raises(ClaimLost):
        held.require()


def test_a_sign_of_life_within_two_minutes_keeps_a_task(
    no_locks: None, two: tuple[Presence, Presence], tmp_path: Path, clock: Clock
) -> None:
    task = tmp_path / "task"
    held = Claims(two[0]).take(task)
    assert held is not None
    for _ in range(4):
        assert watched(Claims(two[1]), task, clock, 100) is None
        two[0]._count += 1
        two[0]._write("beats")
    held.require()


def test_whoever_was_stopped_has_not_watched(clock: Clock) -> None:
    watch = Watch()
    assert watch.unchanged("x", 1) == 0
    clock.now += 3600
    assert watch.unchanged("x", 1) == 10
    clock.now += 2
    assert watch.unchanged("x", 1) == 12
    assert watch.unchanged("x", 2) == 0


@pytest.mark.parametrize("offset", [-3600.0, 3600.0])
def test_a_clock_that_is_an_hour_off_changes_nothing(
    offset: float,
    no_locks: None,
    no_beats: None,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one whose clock is off is once the holder and once the one that watches."""
    honest = time.time
    task = tmp_path / "task"
    with monkeypatch.context() as off:
        off.setattr(time, "time", lambda: honest() + offset)
        holder = Presence(tmp_path, MATRIX)
        assert Claims(holder).take(task) is not None
    for file in tmp_path.rglob("*"):
        os.utime(file, (honest() + offset,) * 2)
    with holder, Presence(tmp_path, MATRIX) as watcher:
        assert watched(Claims(watcher), task, clock, 110) is None
        holder._count += 1
        holder._write("beats")
        os.utime(holder.workers.file(1), (honest() - offset,) * 2)
        assert watched(Claims(watcher), task, clock, 110) is None
        assert watched(Claims(watcher), task, clock, 20) is not None


def test_a_claim_without_content_is_free_after_it_was_watched(
    two: tuple[Presence, Presence], tmp_path: Path, clock: Clock
) -> None:
    """Its worker was killed between creating and writing it."""
    task = tmp_path / "task"
    task.mkdir()
    (task / "claim-000001").touch()
    other = Claims(two[1])
    assert watched(other, task, clock, 118) is None
    assert watched(other, task, clock, 6) is not None


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b'{"host": 1}\nbeats x\n', b"\x00" * 100, b"[" * 9999])
def test_files_that_are_none_of_ours_are_read_over(content: bytes, tmp_path: Path, no_beats: None) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "000003.worker").write_bytes(content)
    (tmp_path / "workers" / "x.worker").write_bytes(content)
    os.mkfifo(tmp_path / "workers" / "000001.worker")
    with Presence(tmp_path, MATRIX) as presence:
        assert presence.number == 4
        assert [worker.number for worker in presence.workers.all()] == [4]
        task = tmp_path / "task"
        task.mkdir()
        (task / "claim-000001").write_bytes(content)
        assert Claims(presence).take(task) is None


def test_a_worker_that_cannot_write_signs_of_life_gives_up(
    two: tuple[Presence, Presence], tmp_path: Path, clock: Clock
) -> None:
    claim = Claims(two[0]).take(tmp_path / "task")
    assert claim is not None
    two[0]._write("beats")
    clock.now += 59
    claim.require()
    clock.now += 2
    with pytest.raises(ClaimLost, match="no sign of life could be written"):
        claim.require()


def test_a_worker_whose_file_was_removed_gives_up(
    two: tuple[Presence, Presence], tmp_path: Path, clock: Clock
) -> None:
    task = tmp_path / "task"
    claim = Claims(two[0]).take(task)
    assert claim is not None
    two[0].workers.file(1).unlink()
    assert Claims(two[1]).take(task) is not None
    with pytest.raises(OSError, match="removed"):
        two[0]._write("beats")


def test_a_worker_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_file, "BEAT_SECONDS", 0.01)
    with Presence(tmp_path, MATRIX) as presence:
        presence.says(lambda: {"task": "train a"})
        file = workers_file.activity_file(presence.workers.folder, 1)
        end = time.monotonic() + 30
        while not (file.exists() and json.loads(file.read_text())["task"] == "train a"):
            assert time.monotonic() < end
            time.sleep(0.01)
        first = presence.workers.read(1)
        assert first is not None
        assert int(first.count) > 0
    last = Workers(tmp_path).read(1)
    assert last is not None
    assert last.ended
    assert not file.exists()


def test_a_later_worker_with_other_settings_is_refused(tmp_path: Path, no_beats: None) -> None:
    with Presence(tmp_path, {"seeds": [0], "runs": {"methods": ["fixed"]}}) as first:
        with Presence(tmp_path, {"seeds": [0, 1], "runs": {"methods": ["fixed"]}}) as second:
            with pytest.raises(InputError, match=r"worker 1 .* with other settings .*seeds \[0\] → \[0, 1\]"):
                require_room(second, _never)
            require_room(first, _never)
        first.end()
        first.end = lambda: None  # type: ignore[method-assign]
        with Presence(tmp_path, {"seeds": [0, 1]}) as third:
            require_room(third, _never)


def test_other_settings_of_a_worker_elsewhere_are_refused_once_it_gives_a_sign_of_life(
    tmp_path: Path, no_beats: None, no_locks: None, clock: Clock
) -> None:
    first, second = Presence(tmp_path, MATRIX), Presence(tmp_path, {"seeds": [1]})
    said: list[str] = []

    def wait(text: str) -> None:
        said.append(text)
        clock.now += 1
        if len(said) == 3:
            first._count += 1
            first._write("beats")

    with first, second:
        with pytest.raises(InputError, match="worker 1"):
            require_room(second, wait)
        assert len(said) == 3
        said[:] = [""] * 10
        with Presence(tmp_path, {"seeds": [2]}) as third:
            second.end()
            second.end = lambda: None  # type: ignore[method-assign]
            require_room(third, wait)  # nobody has heard of the first for two minutes
        assert len(said) > 120


def _never(text: str) -> None:
    raise AssertionError(text)


ROUNDS, WORKERS = 200, 4


def _take_all(folder: str, start: Any, log: Any) -> None:
    """Takes every round's task when all workers have seen that nobody who lives has it."""
    newest, meets = claims_file._newest, False

    def looked(task: Path) -> int:
        nonlocal meets
        number = newest(task)
        if meets:
            meets = False
            start.wait()
        return number

    claims_file._newest = looked
    with Presence(Path(folder), MATRIX) as presence:
        claims = Claims(presence)
        for number in range(ROUNDS):
            meets = True
            claim = claims.take(Path(folder) / "tasks" / str(number))
            if claim is not None:
                log.put((number, presence.number, claim.number))
                if number % 2:
                    claim.release()
                    second = claims.take(Path(folder) / "tasks" / str(number))
                    if second is not None:
                        log.put((number, presence.number, second.number))


@pytest.mark.slow
def test_of_workers_that_start_at_the_same_instant_one_has_the_task(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, log = context.Barrier(WORKERS), context.Queue()
    gone = Presence(tmp_path, MATRIX)
    held = {number for number in range(ROUNDS) if number % 3 == 0}
    for number in held:  # in every third round all find the claim of a worker that has ended
        assert Claims(gone).take(tmp_path / "tasks" / str(number)) is not None
    gone.end()
    children = [context.Process(target=_take_all, args=(str(tmp_path), start, log)) for _ in range(WORKERS)]
    for child in children:
        child.start()
    taken: list[tuple[int, int, int]] = []
    end = time.monotonic() + 240
    while any(child.is_alive() for child in children) or not log.empty():
        assert time.monotonic() < end
        while not log.empty():
            taken.append(log.get())
        time.sleep(0.01)
    assert [child.exitcode for child in children] == [0] * WORKERS
    for number in range(ROUNDS):
        numbers = sorted(claim for of, _, claim in taken if of == number)
        # Nobody else has one that was not given back; one that was may be had again, each time once.
        first = 2 if number in held else 1
        assert numbers
        assert numbers == [*range(first, first + len(numbers))], (number, numbers)
        assert number % 2 or len(numbers) == 1


def _take_and_stay(folder: str, ready: Any) -> None:
    presence = Presence(Path(folder), MATRIX)
    assert Claims(presence).take(Path(folder) / "task") is not None
    ready.set()
    time.sleep(600)


def test_a_killed_workers_task_goes_to_exactly_one_of_many_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_take_and_stay, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(60)
    waiting = [Presence(tmp_path, MATRIX) for _ in range(3)]
    try:
        assert [Claims(one).take(tmp_path / "task") for one in waiting] == [None] * 3
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGSTOP)
        assert [Claims(one).take(tmp_path / "task") for one in waiting] == [None] * 3
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        claims = [Claims(one).take(tmp_path / "task") for one in waiting]
        assert [claim is not None for claim in claims] == [True, False, False]
        assert claims[0] is not None
        assert claims[0].before == claims_file.Holder(1, 1, False)
    finally:
        for one in waiting:
            one.end()
