"""Finds the minimal images of single photographs, by the search that builds MEPI sets.

A set keeps each image's last state; here every state of the way is kept, as a PNG file. What a set does by
evaluating its files is done here by classifying each result once more, as a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from qrdali.mepi.search import Search
from qrdali.mepi.search_path import FULL_STATE, FailedStep, ReductionState, SearchPath, params_of_states
from qrdali.reduction.png_entropy import png_bytes

_PIXELS_AT_ONCE = 64_000_000  # of reduced images that wait for their encoding


@dataclass(frozen=True)
class Way:
    """Holds what a search has found for one image.

    path: where it went; `is_correct` is False for an image that is wrong at full quality. pngs: the files of
    full quality, of each of `path.states`, and last of `path.failed_step` if there is one; empty for an image
    that is wrong.
    """

    path: SearchPath
    pngs: tuple[bytes, ...] = ()


def find_ways(
    search: Search, arriving: Iterable[SearchPath], check: Callable[[], None] = lambda: None
) -> Iterator[Way]:
    """Yields what is found for each path, in the order in which they end.

    An image whose file the network gets wrong is searched on from the step before, as in a set. check: is
    called at every batch and before every encoding, and may raise.
    """
    with ThreadPoolExecutor(search.limits.threads, "encode") as pool:
        todo = iter(arriving)
        while True:
            wrong_as_file: list[SearchPath] = []
            for path in search.finished(todo, check):
                if not path.is_correct:
                    yield Way(path)
                elif (failed := _wrong_as_file(search, path)) is None:
                    yield Way(path, tuple(_encode(search, path, pool, check)))
                elif path.backtrack():
                    wrong_as_file.append(path)
                else:
                    path.is_correct, path.failed_step = False, failed
                    yield Way(path)
            if not wrong_as_file:
                return
            todo = iter(wrong_as_file)


def _wrong_as_file(search: Search, path: SearchPath) -> FailedStep | None:
    """Returns what the network answers for a path's result as a file by itself, or None if it is right."""
    reducer, scale, size = search.reducer, search.rule.descent.scale, np.array([path.size], np.int32)
    (image,) = reducer.reduced_images([path.pixels], params_of_states([path.state], size, scale))
    full = params_of_states([FULL_STATE], np.array([image.shape[:2]], np.int32), scale)
    inputs = reducer.network_inputs([reducer.load(image)], full)
    judged = search.judge(inputs, [path.label or 0])
    answer = int(judged.answer)
    if answer == path.label:
        return None
    return FailedStep(path.state, answer, float(judged.confidence), float(judged.probability))


def _encode(
    search: Search, path: SearchPath, pool: ThreadPoolExecutor, check: Callable[[], None]
) -> Iterator[bytes]:
    """Yields the PNG files of full quality, of every state of a path, and of its failed step."""
    states = [FULL_STATE, *path.states, *([path.failed_step.state] if path.failed_step else [])]
    scale, height_and_width = search.rule.descent.scale, np.array([path.size], np.int32)
    sizes = params_of_states(states, np.repeat(height_and_width, len(states), axis=0), scale).size
    batch: list[ReductionState] = []
    pixels = 0
    for state, more in zip(states, sizes.astype(np.int64).prod(axis=1).tolist(), strict=True):
        if batch and pixels + more > _PIXELS_AT_ONCE:
            yield from _encode_batch(search, path, batch, pool)
            batch, pixels = [], 0
        check()
        batch.append(state)
        pixels += more
    yield from _encode_batch(search, path, batch, pool)


def _encode_batch(
    search: Search, path: SearchPath, states: list[ReductionState], pool: ThreadPoolExecutor
) -> Iterator[bytes]:
    sizes = np.array([path.size] * len(states), np.int32)
    params = params_of_states(states, sizes, search.rule.descent.scale)
    pixels: list[Any] = [path.pixels] * len(states)
    return pool.map(png_bytes, search.reducer.reduced_images(pixels, params))
