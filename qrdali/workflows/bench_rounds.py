"""Times kinds of work in turns, so that the drift of a machine's speed reaches all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from qrdali.interfaces import ProgressListener, SilentListener


class Done(NamedTuple):
    """Says what a piece of work did. images: how many it was. data_wait: seconds in which the host waited for
    batches."""

    images: int
    data_wait: float = 0.0


class Timing(NamedTuple):
    """Holds one measurement. turn: from 0, which warms files, pools and kernels, and is not counted."""

    name: str
    turn: int
    images: int
    seconds: float
    data_wait: float


Work = Callable[[], Done]


@dataclass(frozen=True)
class Rounds:
    """Says how much is measured, and who is told.

    count: rounds that are counted. seconds: no round begins that would end later, as far as the one before
    tells (a counted one takes half of the one that warms up); None for no limit. wait: returns once the
    device has done what was queued on it; it is called before the clock is stopped. report: is called with
    each measurement at once.
    """

    count: int
    wait: Callable[[], None]
    seconds: float | None = None
    report: Callable[[Timing], None] = lambda timing: None
    listener: ProgressListener = SilentListener()


def timed(works: Mapping[str, Work], rounds: Rounds) -> dict[str, list[Timing]]:
    """Returns the measurements of each kind of work, one for each counted round.

    The first round is not counted. With a limit of time there may be fewer rounds than asked for, even none.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in works}
    begun = time.perf_counter()
    rounds.listener.begin("measure", (rounds.count + 1) * len(works), "runs")
    try:
        for turn in range(rounds.count + 1):
            round_begun = time.perf_counter()
            for name, work in works.items():
                timing = _one(name, turn, work, rounds.wait)
                if turn:
                    timings[name].append(timing)
                rounds.report(timing)
                rounds.listener.advance(1, lambda name=name: name)  # type: ignore[misc]
            now = time.perf_counter()
            expected = (now - round_begun) * (1 if turn else 0.5)
            if rounds.seconds is not None and now - begun + expected > rounds.seconds:
                break
    finally:
        rounds.listener.end()
    return timings


def _one(name: str, turn: int, work: Work, wait: Callable[[], None]) -> Timing:
    begun = time.perf_counter()
    done = work()
    wait()
    return Timing(name, turn, done.images, time.perf_counter() - begun, done.data_wait)


def rates(timings: list[Timing]) -> list[float]:
    """Returns the images per second of each measurement."""
    return [timing.images / timing.seconds for timing in timings]


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Returns the median, the least and the greatest of `values`."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratio(values: list[float], others: list[float]) -> float:
    """Returns the median over rounds of one value by the other of the same round."""
    return round(statistics.median(a / b for a, b in zip(values, others, strict=True)), 3)
