import numpy as np
import pytest

from qrdali.errors import InputError
from qrdali.reduction.quality import (
    bin_width,
    level_of,
    num_levels_of,
    quality,
    reduction_params,
    round_half_up,
    scaled_size,
    window_offset,
)


def test_bin_widths_of_both_steps() -> None:
    widths = "1 1 2 2 3 4 5 7 9 12 16 21 28 37 49 64 84 111 128 128"
    assert bin_width(np.arange(20), 20).tolist() == [int(width) for width in widths.split()]
    assert bin_width(np.arange(4), 4).tolist() == [1, 4, 16, 64]


def test_levels_are_exact() -> None:
    assert quality(np.array([0, 1, 2, 3]), 4).tolist() == [1, 0.75, 0.5, 0.25]
    assert quality(np.array([19]), 20).tolist() == [0.05]
    assert [level_of(q, 4) for q in (1, 0.75, 0.5, 0.25)] == [0, 1, 2, 3]
    assert level_of(0.35, 20) == 13


@pytest.mark.parametrize(
    ("step", "n"), [(0.25, 4), (0.05, 20), (0.5, 2), (1 / 3, 3), (0.1, 10), (1 / 255, 255)]
)
def test_steps(step: float, n: int) -> None:
    assert num_levels_of(step) == n


@pytest.mark.parametrize("step", [0.3, 0, -1, 1, 2, 0.25 + 1e-6, float("nan"), 1 / 256])
def test_steps_that_are_not_one_over_n_are_refused(step: float) -> None:
    with pytest.raises(InputError, match="1/n"):
        num_levels_of(step)


@pytest.mark.parametrize("q", [0, -0.5, 1.1, float("nan"), 0.6])
def test_qualities_refused(q: float) -> None:
    with pytest.raises(InputError, match="quality"):
        level_of(q, 4)


def test_half_rounds_up() -> None:
    assert round_half_up(np.array([0.5, 1.5, 2.5, 2.4999])).tolist() == [1, 2, 3, 2]


def test_bounds_of_widths_sizes_and_offsets() -> None:
    """Both sides of each boundary that the docstrings name."""
    assert bin_width(np.array([17, 18]), 20).tolist() == [111, 128]  # 256^0.85 = 111.4, 256^0.9 = 147.0
    sizes, lowest = np.array([[1, 3], [2, 4]]), np.array([19, 19])  # √.05 = .2236
    assert scaled_size(sizes, lowest, 20).tolist() == [[1, 1], [1, 1]]
    assert scaled_size(np.array([[6, 7]]), np.array([19]), 20).tolist() == [[1, 2]]  # 1.34, 1.57
    outer, inner = np.array([[2, 2]]), np.array([[1, 1]])
    assert window_offset(outer, inner, np.array([[0.49, 0.5]])).tolist() == [[0, 1]]
    assert num_levels_of(0.25 + 1e-10) == 4


def test_windows_and_sizes() -> None:
    # 375 · √.5 = 265.17, 500 · √.5 = 353.55; 375 - 265 = 110, 500 - 354 = 146
    sizes = np.tile(np.array([[375, 500]], np.int32), (5, 1))
    anchors = np.array([(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)])
    p = reduction_params(np.tile(np.array([[0, 2, 2]], np.uint8), (5, 1)), sizes, anchors, 4)
    assert p.window.tolist() == [
        [0, 0, 265, 354],
        [0, 146, 265, 354],
        [110, 0, 265, 354],
        [110, 146, 265, 354],
        [55, 73, 265, 354],
    ]
    assert p.size.tolist() == [[187, 250]] * 5  # 265 · √.5 = 187.38, 354 · √.5 = 250.3
    assert p.bin_width.tolist() == [1] * 5


def test_nothing_shrinks_below_a_pixel_and_level_0_is_everything() -> None:
    p = reduction_params(
        np.array([[3, 3, 3], [0, 0, 0]], np.uint8), np.array([[1, 1], [7, 5000]]), np.ones((2, 2)), 4
    )
    assert p.window.tolist() == [[0, 0, 1, 1], [0, 0, 7, 5000]]
    assert p.size.tolist() == [[1, 1], [7, 5000]]
    assert p.bin_width.tolist() == [64, 1]


def test_a_level_beyond_the_lowest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        quality(np.array([4]), 4)
