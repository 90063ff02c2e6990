"""The one replay after a bad file, with a pipeline and a decoder of a few lines in place of DALI's."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from qrdali.errors import RunError, Unreadable
from qrdali.pipelines import diagnose, replay
from qrdali.pipelines.graph_inputs import DecodeInputs, window_bounds
from qrdali.pipelines.replay import ReplaySource, RestartablePipeline, run_with_replay


@dataclass(frozen=True)
class Item:
    number: int
    samples: np.ndarray

    def select(self, mask: np.ndarray) -> "Item":
        return Item(self.number, self.samples[mask])


class FakeReader:
    """Gives samples themselves for files."""

    index: Any = None

    def __init__(self, needs_bytes: bool) -> None:
        self.needs_bytes = needs_bytes
        self.begun: list[int] = []

    def __call__(self, samples: np.ndarray) -> list[int]:
        return samples.tolist()  # type: ignore[no-any-return]

    def start_reading(self, samples: np.ndarray) -> Callable[[], list[int]]:
        self.begun += samples.tolist()
        return samples.tolist


class FakePipeline:
    """Reads `depth` batches ahead like DALI's pipelines, fails at a bad sample, and then never runs again."""

    def __init__(self, source: Callable[[], DecodeInputs], bad: set[int], depth: int) -> None:
        self.source, self.bad, self.depth = source, bad, depth
        self.queue: deque[list[int]] = deque()
        self.broken = self.at_end = False

    def reset(self) -> None:
        assert not self.broken
        assert not self.queue
        self.at_end = False

    def run(self) -> tuple[list[int]]:
        assert not self.broken
        while len(self.queue) < self.depth and not self.at_end:
            try:
                self.queue.append(self.source().files)  # type: ignore[arg-type]
            except StopIteration:
                self.at_end = True
        if not self.queue:
            raise StopIteration
        files = self.queue.popleft()
        if self.bad & set(files):
            self.broken = True
            raise RuntimeError("a decoder failed\n\n somewhere")
        return (files,)


ITEMS = [Item(0, np.arange(3)), Item(1, np.arange(3, 6)), Item(2, np.arange(6, 8)), Item(3, np.arange(8, 11))]


def to_inputs(files: Any, item: Item) -> DecodeInputs:
    return DecodeInputs(files, window_bounds(np.zeros((len(files), 4), np.int32)))


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Samples whose files the decoder refuses."""
    monkeypatch.setattr(diagnose, "why_unreadable", lambda index, sample, verify=True: None)
    monkeypatch.setattr(diagnose, "_refused", lambda index, sample, message: f"{sample} is bad")
    monkeypatch.setattr(diagnose, "check_decoder", lambda decode, needs_bytes: None)
    return set()


def decoder(bad: set[int]) -> Callable[[DecodeInputs], None]:
    def decode(inputs: DecodeInputs) -> None:
        if bad & set(inputs.files):  # type: ignore[arg-type]
            raise RuntimeError("a decoder failed")

    return decode


def opened(
    bad: set[int], depth: int = 2, needs_bytes: bool = False
) -> tuple[RestartablePipeline, ReplaySource[Item]]:
    source = ReplaySource(FakeReader(needs_bytes), to_inputs, decoder(bad), Item.select)  # type: ignore[arg-type]
    return RestartablePipeline(lambda: FakePipeline(source, bad, depth)), source


def outputs(
    bad: set[int], on_unreadable: Callable[[dict[int, str]], None] | None, **options: Any
) -> Iterator[tuple[int, list[int]]]:
    pipeline, source = opened(bad, **options)
    source.start(iter(ITEMS))
    pipeline.start()
    for item, (files,) in run_with_replay(pipeline, source, on_unreadable):
        assert item.samples.tolist() == files
        yield item.number, files


@pytest.mark.parametrize("needs_bytes", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_every_other_image_comes_once_in_its_batch(bad: set[int], depth: int, needs_bytes: bool) -> None:
    bad |= {4, 6, 7, 10}  # one of three, a whole batch, the last
    reported: dict[int, str] = {}
    seen = list(outputs(bad, reported.update, depth=depth, needs_bytes=needs_bytes))
    assert seen == [(0, [0, 1, 2]), (1, [3, 5]), (3, [8, 9])]
    assert reported == {sample: f"{sample} is bad" for sample in sorted(bad)}


def test_without_a_listener_bad_files_are_raised(bad: set[int]) -> None:
    bad |= {4, 5}
    stream = outputs(bad, None, depth=3)
    assert next(stream) == (0, [0, 1, 2])
    with pytest.raises(Unreadable, match="4 is bad") as raised:
        next(stream)
    assert raised.value.reasons == {4: "4 is bad", 5: "5 is bad"}


def test_a_failure_that_no_file_has_caused_is_an_error_on_one_line(
    bad: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad.add(4)
    monkeypatch.setattr(diagnose, "undecodable", lambda decode, inputs: {})
    with pytest.raises(RunError, match="^the image pipeline failed: a decoder failed somewhere$") as raised:
        list(outputs(bad, lambda reasons: None))
    assert not isinstance(raised.value, Unreadable)


def test_an_error_of_the_source_passes_unchanged(bad: set[int]) -> None:
    pipeline, source = opened(bad)

    def items() -> Iterator[Item]:
        yield ITEMS[0]
        raise RunError("the levels are damaged")

    source.start(items())
    pipeline.start()
    with pytest.raises(RunError, match="^the levels are damaged$"):
        list(run_with_replay(pipeline, source, lambda reasons: None))


@pytest.mark.parametrize("failing", [False, True])
def test_an_abandoned_pass_leaves_nothing_in_the_next(bad: set[int], failing: bool) -> None:
    pipeline, source = opened(bad, depth=3)
    source.start(iter(ITEMS))
    pipeline.start()
    next(run_with_replay(pipeline, source))
    bad |= {4} if failing else set()
    source.stop()
    pipeline.drain()
    bad.clear()
    source.start(iter(ITEMS[2:]))
    pipeline.start()
    assert [item.number for item, _ in run_with_replay(pipeline, source)] == [2, 3]


def test_bytes_are_read_ahead_and_names_are_not() -> None:
    for needs_bytes, begun in ((True, 11), (False, 3)):
        reader = FakeReader(needs_bytes)
        source = ReplaySource(reader, to_inputs, decoder(set()), Item.select)  # type: ignore[arg-type]
        source.start(iter(ITEMS))
        assert source().files == [0, 1, 2]
        assert len(reader.begun) == begun
    assert replay.AHEAD == 64
