"""Properties of one descent step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qrdali.reduction.neighbors import (
    ANCHORS,
    accept_neighbor,
    choose_neighbor,
    column_dimensions,
    levels_after,
    neighbors_of,
    next_levels,
    window_of,
)
from qrdali.reduction.quality import QUARTERS, Dimensions, LevelScale, bin_width, round_half_up, scaled_size

MOVING = {
    "color": Dimensions(True, False, False),
    "crop": Dimensions(False, True, False),
    "resolution": Dimensions(False, False, True),
    "combination": Dimensions(True, True, True),
}
reductions = st.sampled_from(sorted(MOVING))
sides = st.one_of(st.integers(1, 12), st.integers(13, 700))


@st.composite
def states(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Levels, windows, sizes and n of a few states that a descent can reach."""
    n = draw(st.sampled_from([2, 4, 5, 20]))
    count = draw(st.integers(1, 4))
    sizes = np.array([[draw(sides), draw(sides)] for _ in range(count)], np.int32)
    levels = np.array([[draw(st.integers(0, n - 1)) for _ in range(3)] for _ in range(count)], np.uint8)
    hw = scaled_size(sizes, levels[:, 1], LevelScale(n))
    free = sizes - hw
    places = np.array(
        [[draw(st.integers(0, int(y))), draw(st.integers(0, int(x)))] for y, x in free], np.int32
    )
    return levels, window_of(levels, places, sizes, LevelScale(n)), sizes, n


def looks(levels: np.ndarray, window: np.ndarray, n: int) -> tuple[object, ...]:
    """What a state is, pixel for pixel: window, size and bins."""
    size = scaled_size(window[None, 2:], levels[None, 2], LevelScale(n))[0]
    return (*window.tolist(), *size.tolist(), int(bin_width(levels[:1], LevelScale(n))[0]))


@settings(max_examples=200, deadline=None)
@given(states(), reductions, st.sampled_from([5, 9]))
def test_a_neighbour_is_one_live_level_below_in_one_dimension(
    state: tuple[np.ndarray, np.ndarray, np.ndarray, int], reduction: str, windows: int
) -> None:
    levels, window, sizes, n = state
    found = neighbors_of(levels, window, sizes, MOVING[reduction], LevelScale(n), windows)
    dimensions = column_dimensions(MOVING[reduction], windows)
    assert found.exists.shape == (len(levels), len(dimensions))
    for i in range(len(levels)):
        for k, dimension in enumerate(dimensions):
            new, old = found.levels[i, k], levels[i]
            if not found.exists[i, k]:
                # Nothing below changes the image.
                for level in range(int(old[dimension]) + 1, n):
                    below = old.copy()
                    below[dimension] = level
                    w = window[i].copy()
                    if dimension == 1:
                        w[2:] = scaled_size(sizes[i : i + 1], np.array([level]), LevelScale(n))[0]
                    assert looks(below, w, n) == looks(old, window[i], n)
                continue
            assert (new != old).tolist() == [d == dimension for d in range(3)]
            assert new[dimension] > old[dimension]
            assert looks(new, found.window[i, k], n) != looks(old, window[i], n)
            for level in range(int(old[dimension]) + 1, int(new[dimension])):  # only dead levels are skipped
                between = old.copy()
                between[dimension] = level
                w = window[i].copy()
                if dimension == 1:
                    w[2:] = scaled_size(sizes[i : i + 1], np.array([level]), LevelScale(n))[0]
                assert looks(between, w, n) == looks(old, window[i], n)
            top, left, h, w_ = found.window[i, k].tolist()
            t0, l0, h0, w0 = window[i].tolist()
            assert t0 <= top
            assert l0 <= left
            assert top + h <= t0 + h0
            assert left + w_ <= l0 + w0
            if dimension == 1:
                assert [h, w_] == scaled_size(sizes[i : i + 1], new[1:2], LevelScale(n))[0].tolist()
                a = ANCHORS[windows][k - dimensions.index(1)]
                assert [top - t0, left - l0] == round_half_up(a * (window[i, 2:] - [h, w_])).tolist()
            else:
                assert [top, left, h, w_] == [t0, l0, h0, w0]
            assert (
                found.size[i, k].tolist()
                == scaled_size(np.array([[h, w_]]), new[2:], LevelScale(n))[0].tolist()
            )
            assert found.bin_width[i, k] == bin_width(new[:1], LevelScale(n))[0]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_choice_is_among_the_correct_and_follows_the_preference(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 7))
    ok = np.array([[data.draw(st.booleans()) for _ in range(k)]])
    confidence = np.array([[data.draw(st.sampled_from([0.1, 0.5, 0.9])) for _ in range(k)]])
    size = np.array([[data.draw(st.integers(1, 3)) for _ in range(k)]])
    for entropy in (None, size):
        (choice,) = choose_neighbor(ok, confidence, entropy)
        allowed = [i for i in range(k) if ok[0, i]]
        assert (choice == -1) == (not allowed)
        if allowed:

            def key(i: int, entropy: np.ndarray | None = entropy) -> tuple[float, ...]:
                return (-confidence[0, i], i) if entropy is None else (entropy[0, i], -confidence[0, i], i)

            assert choice == min(allowed, key=key)


def test_neighbours_by_hand() -> None:
    levels, sizes = np.zeros((1, 3), np.uint8), np.array([[100, 200]], np.int32)
    window = window_of(levels, np.zeros((1, 2), np.int32), sizes, QUARTERS)
    found = neighbors_of(levels, window, sizes, Dimensions(True, True, True), QUARTERS)
    assert found.levels[0].tolist() == [[1, 0, 0], [0, 0, 1]] + [[0, 1, 0]] * 5
    assert found.window[0, 2:].tolist() == [
        [0, 0, 87, 173],
        [0, 27, 87, 173],
        [13, 0, 87, 173],
        [13, 27, 87, 173],
        [7, 14, 87, 173],
    ]
    assert found.size[0].tolist() == [[100, 200], [87, 173]] + [[87, 173]] * 5
    assert found.bin_width[0].tolist() == [4, 1, 1, 1, 1, 1, 1]
    after, moved = accept_neighbor(levels, window, found, np.array([3]))
    assert after.tolist() == [[0, 1, 0]]
    assert moved.tolist() == [[0, 27, 87, 173]]
    stay, same = accept_neighbor(levels, window, found, np.array([-1]))
    assert stay.tolist() == [[0, 0, 0]]
    assert same.tolist() == window.tolist()


def test_dead_levels_are_skipped_and_the_lowest_is_final() -> None:
    sizes = np.array([[1, 1]] * 3, np.int32)
    levels = np.array([[0, 0, 0], [18, 0, 0], [2, 0, 0]], np.uint8)
    window = window_of(levels, np.zeros((3, 2), np.int32), sizes, LevelScale(20))
    # Step 0.05: d = 1, 1, 2, 2, 3, …, 128, 128; a 1x1 image has nothing to crop or shrink.
    assert next_levels(levels, window, sizes, LevelScale(20)).tolist() == [
        [2, -1, -1],
        [-1, -1, -1],
        [4, -1, -1],
    ]


@settings(max_examples=60, deadline=None)
@given(reductions, st.integers(0, 30), st.sampled_from([4, 20]), sides, sides, st.integers(0, 10))
def test_online_steps_go_one_dimension_after_another_and_can_be_undone(
    reduction: str, steps: int, n: int, h: int, w: int, seed: int
) -> None:
    sizes = np.array([[h, w]], np.int32)
    anchors = np.random.default_rng(seed).random((60, 1, 2))
    before = levels_after(np.array([steps]), sizes, MOVING[reduction], LevelScale(n), lambda t: anchors[t])
    after = levels_after(np.array([steps + 1]), sizes, MOVING[reduction], LevelScale(n), lambda t: anchors[t])
    changed = (before[0] != after[0]).sum()
    assert changed == after[2][0] - before[2][0] <= 1
    if changed:
        assert looks(before[0][0], before[1][0], n) != looks(after[0][0], after[1][0], n)
    assert (after[1][0, :2] >= before[1][0, :2]).all()
    assert (after[1][0, :2] + after[1][0, 2:] <= before[1][0, :2] + before[1][0, 2:]).all()
    if reduction == "combination" and n == 4 and min(h, w) > 50 and steps >= 2:
        two = levels_after(np.array([2]), sizes, MOVING[reduction], LevelScale(n), lambda t: anchors[t])[0]
        assert two.tolist() == [[1, 0, 1]]
        three = levels_after(np.array([3]), sizes, MOVING[reduction], LevelScale(n), lambda t: anchors[t])[0]
        assert three.tolist() == [[1, 1, 1]]
