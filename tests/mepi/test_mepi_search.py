"""The search against brute force over the definition, by classifiers that are rules; and its inputs."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from devices import GPU, GRAPH, ON_GPU
from nvidia.dali import Pipeline
from PIL import Image
from torch import nn

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import index_folder
from qrdali.errors import InputError, OutOfMemory
from qrdali.interfaces import JobControl
from qrdali.mepi.search import Search, SearchLimits, SearchRule
from qrdali.mepi.search_path import (
    CandidateAnswers,
    FailedStep,
    ReductionState,
    SearchPath,
    params_of_states,
)
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import GraphImageReducer, open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY
from qrdali.reduction.neighbors import Candidates, DescentRule
from qrdali.reduction.png_entropy import entropy, entropy_within
from qrdali.reduction.quality import MAX_TAIL, QUARTERS, REDUCTIONS, LevelScale, ReductionParams
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.system.device_copies import wait_for_device
from qrdali.workflows.context import open_context

ANCHORS = {
    5: [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)],
    9: [(y, x) for y in (0, 0.5, 1) for x in (0, 0.5, 1)],
}
PRE = Preprocessing(32, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def half_up(x: float) -> int:
    return math.floor(x + 0.5)


class Blank:
    """Pixels of which only the size matters; counts how many are alive."""

    alive = most = 0

    def __init__(self, sample: int, height: int, width: int) -> None:
        self.sample, self.shape, self.nbytes = sample, (height, width, 3), 1000
        Blank.alive += 1
        Blank.most = max(Blank.most, Blank.alive)

    def __del__(self) -> None:
        Blank.alive -= 1


class Numbers:
    """A reducer whose images are the numbers of their reduction: float64 [M, 8]."""

    def decode(
        self,
        samples: Iterator[int],
        on_unreadable: Callable[[int, str], None],
        max_batch: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        raise NotImplementedError

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        own, d = np.array([[p.sample] for p in pixels]), reduction.bin_width[:, None]
        return torch.from_numpy(
            np.concatenate([reduction.window, reduction.size, d, own], axis=1).astype(np.float64)
        )

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[np.ndarray]:
        """Returns images of as many pixels as the reduced ones have, noisier the finer their bins."""
        result = []
        for i, p in enumerate(pixels):
            noise = np.random.default_rng((p.sample, *reduction.window[i].tolist())).integers(
                0, 256, (*reduction.size[i], 3)
            )
            result.append((noise // reduction.bin_width[i] * reduction.bin_width[i]).astype(np.uint8))
        return result


class Planted(nn.Module):
    """Is right exactly where the window holds a point, the sides are at least 3 and bins at most 40 wide.

    Its confidence is a function of everything.

    `blind`: a bin width or width in pixels at which it is wrong all the same.
    """

    def __init__(self, blind: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        top, left, height, width, h, w, d, sample = x.unbind(1)
        point = 4 + sample % 7, 6 + sample % 5
        right = (top <= point[0]) & (point[0] < top + height) & (left <= point[1]) & (point[1] < left + width)
        right &= (h >= 3) & (w >= 3) & (d <= 40) & (sample % 11 != 3)
        for value in self.blind:
            right &= (d != value) & (w != value)
        margin = 1 + torch.sin(x @ torch.arange(1.0, 9.0, dtype=x.dtype)).abs()
        margin = torch.where(right, margin, -margin)
        return torch.stack([-margin, margin], 1)


def brute(
    model: nn.Module, reducer: Numbers, sample: int, height: int, width: int, rule: DescentRule
) -> tuple[ReductionState, int] | None:
    """Searches by the definition, one candidate at a time; None where it is wrong at full quality."""
    n, last, pixels = rule.scale.grid, rule.scale.grid + rule.scale.tail, Blank(sample, height, width)

    def kept(level: int) -> float:
        return (n - level) / n if level < n else 1 / n / 2 ** (level - n + 1)

    def side(length: int, level: int) -> int:
        return max(1, half_up(length * math.sqrt(kept(level))))

    def bins(level: int) -> int:
        width = half_up(256 ** (1 - kept(level)))
        if width > 128:
            return 128 if level < n else 256
        return width

    def numbers(state: ReductionState) -> ReductionParams:
        h, w = side(height, state[1]), side(width, state[1])
        size = side(h, state[2]), side(w, state[2])
        return ReductionParams(
            np.array([[state[3], state[4], h, w]]), np.array([size]), np.array([bins(state[0])])
        )

    def judged(state: ReductionState) -> tuple[bool, float]:
        logits = model(reducer.network_inputs([pixels], numbers(state)))
        return bool(logits.argmax(1)[0] == 1), float(logits.softmax(1)[0, 1])

    def neighbours(state: ReductionState) -> list[ReductionState]:
        color, crop, resolution, top, left = state
        found: list[ReductionState] = []
        if rule.dimensions[0]:
            found += [
                (k, crop, resolution, top, left) for k in range(color + 1, last) if bins(k) != bins(color)
            ][:1]
        h, w = side(height, crop), side(width, crop)
        if rule.dimensions[2]:
            found += [
                (color, crop, k, top, left)
                for k in range(resolution + 1, last)
                if (side(h, k), side(w, k)) != (side(h, resolution), side(w, resolution))
            ][:1]
        if rule.dimensions.crop:
            for k in [k for k in range(crop + 1, last) if (side(height, k), side(width, k)) != (h, w)][:1]:
                found += [
                    (
                        color,
                        k,
                        resolution,
                        top + half_up(y * (h - side(height, k))),
                        left + half_up(x * (w - side(width, k))),
                    )
                    for y, x in ANCHORS[rule.windows]
                ]
        return found

    state: ReductionState = (0, 0, 0, 0, 0)
    shown = 1
    if not judged(state)[0]:
        return None
    while True:
        around = neighbours(state)
        shown += len(around)
        good = [(i, *judged(s)) for i, s in enumerate(around)]
        good = [g for g in good if g[1]]
        if not good:
            return state, shown
        if rule.prefer == "entropy":
            sizes = {i: entropy(reducer.reduced_images([pixels], numbers(around[i]))[0]) for i, _, _ in good}
            good = [g for g in good if sizes[g[0]] == min(sizes.values())]
        state = around[max(good, key=lambda g: (g[2], -g[0]))[0]]


def arriving_paths(count: int, seed: int = 0) -> Iterator[SearchPath]:
    rng = np.random.default_rng(seed)
    for sample in range(count):
        height, width = (int(v) for v in rng.integers(1, 60, 2)) if sample else (1, 1)
        yield SearchPath(sample, 1, Blank(sample, height, width), (height, width))


def search_with(model: nn.Module, rule: SearchRule, limits: SearchLimits) -> Search:
    return Search(model, Numbers(), rule, limits, open_context("cpu", "off", JobControl()))


def searched(
    model: nn.Module, rule: SearchRule, count: int = 40, batch_size: int = 16, memory: int = 10**9
) -> dict[int, SearchPath]:
    search = search_with(model, rule, SearchLimits(batch_size, memory, 2))
    return {path.sample: path for path in search.finished(arriving_paths(count))}


@pytest.mark.parametrize("scale", [LevelScale(4), LevelScale(20), LevelScale(4, 40), LevelScale(20, 3)])
@pytest.mark.parametrize("prefer", ["confidence", "entropy"])
@pytest.mark.parametrize("reduction", ["color", "crop", "resolution", "combination"])
def test_descent_is_the_definition(reduction: str, prefer: str, scale: LevelScale) -> None:
    windows = 9 if scale.grid == 4 else 5
    rule, model = DescentRule(REDUCTIONS[reduction], scale, windows, prefer), Planted((13,))
    found = searched(model, SearchRule(rule))
    assert sorted(found) == list(range(40))
    for path in found.values():
        expected = brute(model, Numbers(), path.sample, *path.size, rule)
        assert path.is_correct is (expected is not None)
        if expected is not None:
            assert (path.state, path.evaluations) == expected
            assert len(path.confidence) == len(path.states) + 1
    assert sum(not j.is_correct for j in found.values()) > 2
    assert len({j.state for j in found.values()}) > 1


class AlwaysRight(nn.Module):
    """Answers class 1, the more surely the smaller and coarser an image is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x[:, 4] * x[:, 5] / x[:, 6]
        return torch.stack([torch.zeros(len(x)), 1 / (1 + size.float())], 1)


@pytest.mark.parametrize("grid", [4, 20, 200])
@pytest.mark.parametrize(
    ("reduction", "exhaustive"),
    [(name, False) for name in ("color", "crop", "resolution", "combination")]
    + [("color", True), ("resolution", True)],
)
def test_a_whole_tail_ends_at_one_pixel_or_one_value(reduction: str, exhaustive: bool, grid: int) -> None:
    scale = LevelScale(grid, MAX_TAIL)
    rule = DescentRule(REDUCTIONS[reduction], scale)
    for path in searched(AlwaysRight(), SearchRule(rule, exhaustive), 12).values():
        lowest = params_of_states([path.state], np.array([path.size]), scale)
        moves = REDUCTIONS[reduction]
        assert (lowest.size[0].tolist() == [1, 1]) is (moves.crop or moves.resolution or path.size == (1, 1))
        assert (lowest.bin_width[0] == 256) is np.bool_(moves.color)


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_the_batch_changes_nothing(batch_size: int) -> None:
    rule = SearchRule(DescentRule(REDUCTIONS["combination"], LevelScale(20)))
    found, other = searched(Planted(), rule, batch_size=batch_size), searched(Planted(), rule)
    assert {s: (j.states, j.evaluations) for s, j in found.items()} == {
        s: (j.states, j.evaluations) for s, j in other.items()
    }


def test_an_error_at_one_middle_level_ends_a_descent_and_not_an_exhaustive_search() -> None:
    """Bisection would step over it."""
    rule, blind = (
        DescentRule(REDUCTIONS["color"], LevelScale(20)),
        Planted((7,)),
    )  # levels 7: d = 7; up to d = 37 it would be right again
    down = searched(blind, SearchRule(rule))
    over = searched(blind, SearchRule(rule, exhaustive=True))
    for sample, path in down.items():
        if path.is_correct:
            assert path.state[0] == 6
            assert over[sample].state[0] == 13
    assert any(j.is_correct for j in down.values())


@pytest.mark.parametrize("reduction", ["color", "resolution"])
def test_exhaustive_is_the_smallest_of_all_right_levels(reduction: str) -> None:
    rule = DescentRule(REDUCTIONS[reduction], LevelScale(20))
    model, reducer = Planted((4, 9)), Numbers()
    for path in searched(model, SearchRule(rule, exhaustive=True)).values():
        if not path.is_correct:
            continue
        pixels = Blank(path.sample, *path.size)
        sizes = []
        for level in range(20):
            state = (level, 0, 0, 0, 0) if reduction == "color" else (0, 0, level, 0, 0)
            numbers = params_of_states([state], np.array([path.size]), LevelScale(20))
            if model(reducer.network_inputs([pixels], numbers)).argmax(1)[0] == 1:
                sizes.append(entropy(reducer.reduced_images([pixels], numbers)[0]))
        numbers = params_of_states([path.state], np.array([path.size]), LevelScale(20))
        assert entropy(reducer.reduced_images([pixels], numbers)[0]) == min(sizes)


def test_exhaustive_is_refused_where_there_are_too_many_states() -> None:
    for reduction in ("crop", "combination", "none"):
        with pytest.raises(InputError, match="exhaustive is for color and resolution"):
            SearchRule(DescentRule(REDUCTIONS[reduction], QUARTERS), exhaustive=True)


def test_originals_kept_are_bounded_by_memory() -> None:
    Blank.alive = Blank.most = 0
    combination = SearchRule(DescentRule(REDUCTIONS["combination"], QUARTERS))
    search = search_with(Planted(), combination, SearchLimits(64, 5_000, 1))
    ended = 0
    for path in search.finished(arriving_paths(200)):
        path.pixels = None
        ended += 1
    assert ended == 200
    assert Blank.most <= 7  # five, the one that is arriving and the one that is given back
    Blank.most = 0
    color = SearchRule(DescentRule(REDUCTIONS["color"], QUARTERS))
    list(search_with(Planted(), color, SearchLimits(64, 1, 1)).finished(arriving_paths(20)))


def test_a_forbidden_state_is_not_entered_again() -> None:
    rule, model = SearchRule(DescentRule(REDUCTIONS["combination"], QUARTERS)), Planted()
    before = searched(model, rule)
    moved = [j for j in before.values() if j.states]
    left = [j.state for j in moved]
    assert all(j.backtrack() for j in moved)
    search = search_with(model, rule, SearchLimits(16, 10**9, 1))
    again = {path.sample: path for path in search.finished(iter(moved))}
    for path, state in zip(moved, left, strict=True):
        assert state in path.forbidden
        assert state not in again[path.sample].states
        assert again[path.sample].is_correct
    assert not SearchPath(0, 1, None, (5, 5)).backtrack()


def test_entropy_within_gives_up_only_beyond_its_bound() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (50, 40, 3), (300, 400, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        size = entropy(image)
        assert entropy_within(image, size) == entropy_within(image, size + 1) == size
        assert entropy_within(image, size - 1) is None
        assert entropy_within(image, 0) is None


@pytest.fixture(scope="module")
def states(dataset: Dataset) -> tuple[Index, list[int], list[ReductionState]]:
    index = dataset.index("train")
    drawn = np.random.default_rng(4).integers(0, 20, (24, 3)).tolist()
    drawn[0] = [0, 0, 0]
    return index, list(range(24)), [(c, k, r, 1 if k else 0, 2 if k > 2 else 0) for c, k, r in drawn]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("fit", ["whole", "center"])
def test_a_written_picture_gives_the_network_the_same_input(
    states: tuple[Index, list[int], list[ReductionState]], tmp_path: Path, graph: bool, fit: str
) -> None:
    index, samples, wanted = states
    pre = Preprocessing(32, fit, 0.875, "bilinear", PRE.mean, PRE.std)
    engine = Engine(whole_graph=graph)
    reducer = open_image_reducer(index, pre, engine)
    pixels = dict(reducer.decode(iter(samples), lambda sample, reason: None))
    numbers = params_of_states(wanted, index.sizes(np.array(samples)), LevelScale(20))
    shown = reducer.network_inputs([pixels[s] for s in samples], numbers)
    (tmp_path / "set" / "a").mkdir(parents=True)
    for sample, picture in zip(
        samples, reducer.reduced_images([pixels[s] for s in samples], numbers), strict=True
    ):
        Image.fromarray(picture).save(tmp_path / "set" / "a" / f"{sample:03d}.png")
    index_folder(tmp_path / "set", ("a", "b"), tmp_path / "set.arrow")
    written = Index(tmp_path / "set.arrow", 2)
    (batch,) = list(open_loader(written, pre, 24, engine).epoch(EpochPlan(24, 24, FULL_QUALITY)))
    assert torch.equal(batch.images, shown)


def test_both_reducers_make_the_same(states: tuple[Index, list[int], list[ReductionState]]) -> None:
    index, samples, wanted = states
    numbers = params_of_states(wanted, index.sizes(np.array(samples)), LevelScale(20))
    made = []
    for graph in (False, True):
        reducer = open_image_reducer(index, PRE, Engine(whole_graph=graph))
        pixels = dict(reducer.decode(iter(samples), lambda sample, reason: None))
        assert list(pixels) == samples
        own = [pixels[s] for s in samples]
        first, all_ = (
            reducer.network_inputs(
                own[:3], params_of_states(wanted[:3], index.sizes(np.array(samples[:3])), LevelScale(20))
            ),
            reducer.network_inputs(own, numbers),
        )
        assert torch.equal(first, all_[:3])
        made.append((own, all_, reducer.reduced_images(own, numbers)))
    (pixels_a, seen_a, a), (pixels_b, seen_b, b) = made
    assert all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(pixels_a, pixels_b, strict=True))
    assert ((seen_a - seen_b).abs() * 255 * 0.226).mean() < 2
    for (color, _, resolution, *_), x, y in zip(wanted, a, b, strict=True):
        assert x.shape == y.shape
        if not resolution:
            assert np.array_equal(x, y)
        elif not color:
            assert np.abs(x.astype(int) - y).max() <= 8


def test_unreadable_originals_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    for i in range(30):
        Image.new("RGB", (20 + i, 30), (i, 0, 0)).save(tmp_path / "set" / "a" / f"{i:02d}.png")
    index_folder(tmp_path / "set", ("a", "b"), tmp_path / "set.arrow")
    index = Index(tmp_path / "set.arrow", 2)
    (tmp_path / "set" / "a" / "03.png").unlink()
    (tmp_path / "set" / "a" / "17.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "set" / "a" / "29.png")
    for graph in (False, True):
        told: dict[int, str] = {}
        found = dict(
            open_image_reducer(index, PRE, Engine(whole_graph=graph)).decode(
                iter(range(30)), told.__setitem__
            )
        )
        assert sorted(found) == [i for i in range(30) if i not in (3, 17, 29)]
        assert all(
            np.asarray(pixels).shape == (30, 20 + i, 3) and np.asarray(pixels)[0, 0, 0] == i
            for i, pixels in found.items()
        )
        assert sorted(told) == [3, 17, 29]
        assert "is gone" in told[3]
        assert "cannot be decoded" in told[17]
        assert "was indexed as" in told[29]


def test_a_full_gpu_is_no_files_fault(
    states: tuple[Index, list[int], list[ReductionState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, samples, wanted = states
    reducer = GraphImageReducer(index, PRE, Engine(whole_graph=True))
    own = [pixels for _, pixels in reducer.decode(iter(samples[:2]), lambda sample, reason: None)]
    numbers = params_of_states(wanted[:2], index.sizes(np.array(samples[:2])), LevelScale(20))
    blamed: dict[int, str] = {}

    def fail(error: Exception) -> Any:
        raise error

    torchs = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with monkeypatch.context() as patch:
        patch.setattr(reducer, "_take_image", lambda *_: fail(torchs))
        with pytest.raises(torch.OutOfMemoryError):
            list(reducer.decode(iter(samples), blamed.__setitem__))
    for error in (RuntimeError("CUDA allocation failed"), MemoryError("Can't allocate 9 bytes on device 0.")):
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "run", lambda _, error=error: fail(error))
            with pytest.raises(OutOfMemory, match="lower --batch-size .*--memory"):
                reducer.network_inputs(own, numbers)
            with pytest.raises(OutOfMemory, match="lower --batch-size .*--memory"):
                list(reducer.decode(iter(samples), blamed.__setitem__))
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", lambda _: fail(torchs))
        with pytest.raises(torch.OutOfMemoryError):
            reducer.reduced_images(own, numbers)
        with pytest.raises(torch.OutOfMemoryError):
            list(reducer.decode(iter(samples), blamed.__setitem__))
    assert not blamed


LAST_GPU = max(0, torch.cuda.device_count() - 1)


@pytest.mark.parametrize(
    "engine", [GRAPH, GPU, pytest.param(Engine(LAST_GPU, 2, 2), id="last gpu", marks=ON_GPU)]
)
def test_a_reducer_works_in_the_threads_of_a_pool(
    states: tuple[Index, list[int], list[ReductionState]], engine: Engine
) -> None:
    """On a GPU such threads have no CUDA context, and GPU 0 as their current device."""
    index, samples, wanted = states
    numbers = params_of_states(wanted, index.sizes(np.array(samples)), LevelScale(20))
    reducer = open_image_reducer(index, PRE, engine)
    pixels = dict(reducer.decode(iter(samples), lambda sample, reason: None))
    own = [pixels[s] for s in samples]
    gate = Barrier(2)

    def both(_: int) -> tuple[list[Any], torch.Tensor]:
        gate.wait()  # two threads, and each makes its first pictures while the other does
        images = reducer.reduced_images(own, numbers)
        shown = reducer.network_inputs(own, numbers)
        wait_for_device(shown.device)
        return images, shown.cpu()

    with ThreadPoolExecutor(2) as pool:
        (images_a, shown_a), (images_b, shown_b) = pool.map(both, range(2))
    expected = reducer.reduced_images(own, numbers), reducer.network_inputs(own, numbers).cpu()
    assert torch.equal(shown_a, expected[1])
    assert torch.equal(shown_b, expected[1])
    for a, b, image in zip(images_a, images_b, expected[0], strict=True):
        np.testing.assert_array_equal(a, image)
        np.testing.assert_array_equal(b, image)


def test_one_step_further_is_the_nearest_miss() -> None:
    existing = np.array([[True, True, False, True, True]])
    candidates = Candidates(
        existing,
        np.array([[[k, 0, 0] for k in range(5)]], np.uint8),
        np.array([[[10 + k, 20 + k, 3, 3] for k in range(5)]], np.int32),
        np.full((1, 5, 2), 3, np.int32),
        np.ones((1, 5), np.int32),
    )
    answers = CandidateAnswers.pending(candidates)
    assert answers.unanswered == 4
    answers.correct[:] = [True, False, False, False, False]
    answers.confidence[:] = [0.9, 0.1, 0.8, 0.3, np.nan]  # of the true class
    answers.answer[:] = [7, 1, 2, 3, 4]
    answers.answer_confidence[:] = [0.9, 0.8, 0.1, 0.6, np.nan]
    assert answers.failed_step() == FailedStep(ReductionState(3, 0, 0, 13, 23), 3, 0.6, 0.3)
    # Where the columns are levels, the first wrong one below the chosen level.
    assert answers.failed_step(0) == FailedStep(ReductionState(1, 0, 0, 11, 21), 1, 0.8, 0.1)
    assert answers.failed_step(3) == FailedStep(ReductionState(4, 0, 0, 14, 24), 4, 0.0, 0.0)
    assert answers.failed_step(4) is None
    answers.correct[:] = True
    assert answers.failed_step() is None
