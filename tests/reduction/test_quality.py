import numpy as np
import pytest

from qrdali.errors import InputError
from qrdali.reduction.quality import (
    MAX_OLD_GRID,
    MAX_TAIL,
    LevelScale,
    bin_width,
    level_of,
    num_levels_of,
    quality,
    reduction_params,
    round_half_up,
    scaled_size,
    tail_levels,
    window_offset,
)


def test_bin_widths_of_both_steps() -> None:
    widths = "1 1 2 2 3 4 5 7 9 12 16 21 28 37 49 64 84 111 128 128"
    assert bin_width(np.arange(20), LevelScale(20)).tolist() == [int(width) for width in widths.split()]
    assert bin_width(np.arange(4), LevelScale(4)).tolist() == [1, 4, 16, 64]


def test_levels_are_exact() -> None:
    assert quality(np.array([0, 1, 2, 3]), LevelScale(4)).tolist() == [1, 0.75, 0.5, 0.25]
    assert quality(np.array([19]), LevelScale(20)).tolist() == [0.05]
    assert [level_of(q, LevelScale(4)) for q in (1, 0.75, 0.5, 0.25)] == [0, 1, 2, 3]
    assert level_of(0.35, LevelScale(20)) == 13


@pytest.mark.parametrize(
    ("step", "n"), [(0.25, 4), (0.05, 20), (0.5, 2), (1 / 3, 3), (0.1, 10), (1 / 200, 200)]
)
def test_steps(step: float, n: int) -> None:
    assert num_levels_of(step) == n


@pytest.mark.parametrize("step", [0.3, 0, -1, 1, 2, 0.25 + 1e-6, float("nan"), 1 / 201])
def test_steps_that_are_not_one_over_n_are_refused(step: float) -> None:
    with pytest.raises(InputError, match="1/n"):
        num_levels_of(step)


def test_a_folder_of_version_0_1_may_have_finer_steps() -> None:
    assert num_levels_of(1 / 255, MAX_OLD_GRID) == 255
    with pytest.raises(InputError, match="from 2 to 255"):
        num_levels_of(1 / 256, MAX_OLD_GRID)


def test_the_tail_halves_the_lowest_quality() -> None:
    """The figures of docs/explanation/definitions.md, on both sides of the grid's end."""
    tailed = LevelScale(20, MAX_TAIL)
    assert quality(np.array([18, 19, 20, 21]), tailed).tolist() == [0.1, 0.05, 0.025, 0.0125]
    assert tailed.count == 60
    assert tailed.quality_of(59) == 0.05 / 2**40
    assert [tailed.describe(level) for level in (0, 1, 20, 22)] == ["1", "0.95", "0.025", "0.00625"]
    with pytest.raises(ValueError, match=r"outside 0..19 of step 1/20"):
        quality(np.array([20]), LevelScale(20))
    with pytest.raises(ValueError, match=r"outside 0..59 of step 1/20 with 40 levels of its tail"):
        quality(np.array([60]), tailed)


def test_one_value_is_left_as_soon_as_a_bin_would_exceed_128() -> None:
    assert bin_width(np.array([3, 4, 5, 6]), LevelScale(4, 3)).tolist() == [64, 128, 256, 256]
    assert bin_width(np.array([18, 19, 20, 21]), LevelScale(20, 2)).tolist() == [128, 128, 256, 256]
    # On the grid the bound stays: a step of 1/200 ends at 256^(199/200) = 249.
    assert bin_width(np.array([199, 200]), LevelScale(200, 1)).tolist() == [128, 256]


def test_sides_go_down_to_one_pixel() -> None:
    tailed, sizes = LevelScale(20, MAX_TAIL), np.array([[375, 500]])
    sides = [scaled_size(sizes, np.array([level]), tailed)[0].tolist() for level in (19, 20, 32, 33, 59)]
    # 375 · √(.05/2^13) = .93, 500 · √(.05/2^13) = 1.24; one level before 1.31 and 1.75
    assert sides == [[84, 112], [59, 79], [1, 1], [1, 1], [1, 1]]
    assert scaled_size(sizes, np.array([31]), tailed)[0].tolist() == [1, 2]


@pytest.mark.parametrize(("text", "levels"), [("none", 0), ("full", 40), ("0", 0), ("7", 7), ("40", 40)])
def test_tails(text: str, levels: int) -> None:
    assert tail_levels(text) == levels


@pytest.mark.parametrize("text", ["", "41", "-1", "half", "1.5", "٣", "9" * 5000, "full "])
def test_other_tails_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="give none, full or a number of levels up to 40"):
        tail_levels(text)


def test_levels_of_qualities_on_the_tail() -> None:
    tailed = LevelScale(20, 3)
    assert [level_of(q, tailed) for q in (0.05, 0.025, 0.0125, 0.00625)] == [19, 20, 21, 22]
    for q, message in ((0.003125, "down to 0.00625"), (0.03, "down to 0.00625")):
        with pytest.raises(InputError, match=message):
            level_of(q, tailed)
    with pytest.raises(InputError, match="use 0.05, or a finer --step"):
        level_of(0.025, LevelScale(20))


@pytest.mark.parametrize("q", [0, -0.5, 1.1, float("nan"), 0.6])
def test_qualities_refused(q: float) -> None:
    with pytest.raises(InputError, match="quality"):
        level_of(q, LevelScale(4))


def test_half_rounds_up() -> None:
    assert round_half_up(np.array([0.5, 1.5, 2.5, 2.4999])).tolist() == [1, 2, 3, 2]


def test_bounds_of_widths_sizes_and_offsets() -> None:
    """Both sides of each boundary that the docstrings name."""
    assert bin_width(np.array([17, 18]), LevelScale(20)).tolist() == [
        111,
        128,
    ]  # 256^0.85 = 111.4, 256^0.9 = 147.0
    sizes, lowest = np.array([[1, 3], [2, 4]]), np.array([19, 19])  # √.05 = .2236
    assert scaled_size(sizes, lowest, LevelScale(20)).tolist() == [[1, 1], [1, 1]]
    assert scaled_size(np.array([[6, 7]]), np.array([19]), LevelScale(20)).tolist() == [[1, 2]]  # 1.34, 1.57
    outer, inner = np.array([[2, 2]]), np.array([[1, 1]])
    assert window_offset(outer, inner, np.array([[0.49, 0.5]])).tolist() == [[0, 1]]
    assert num_levels_of(0.25 + 1e-10) == 4


def test_windows_and_sizes() -> None:
    # 375 · √.5 = 265.17, 500 · √.5 = 353.55; 375 - 265 = 110, 500 - 354 = 146
    sizes = np.tile(np.array([[375, 500]], np.int32), (5, 1))
    anchors = np.array([(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)])
    p = reduction_params(np.tile(np.array([[0, 2, 2]], np.uint8), (5, 1)), sizes, anchors, LevelScale(4))
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
        np.array([[3, 3, 3], [0, 0, 0]], np.uint8),
        np.array([[1, 1], [7, 5000]]),
        np.ones((2, 2)),
        LevelScale(4),
    )
    assert p.window.tolist() == [[0, 0, 1, 1], [0, 0, 7, 5000]]
    assert p.size.tolist() == [[1, 1], [7, 5000]]
    assert p.bin_width.tolist() == [64, 1]


def test_a_level_beyond_the_lowest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3"):
        quality(np.array([4]), LevelScale(4))
