"""Levels that change no training image have no stage, and no run trains on such levels alone."""

from __future__ import annotations

import numpy as np
import pytest

from qrdali.errors import InputError
from qrdali.reduction.quality import QUARTERS, REDUCTIONS, LevelScale
from qrdali.runs.settings import Settings, validate_settings
from qrdali.schedule.live_levels import live_levels
from qrdali.schedule.methods import check_settings, require_live_levels, schedule_rule_of, stage_levels

LARGE = [np.array([[375, 500]], np.int32)]
TINY = [np.array([[3, 3], [2, 2]], np.int32)]


def settings(method: str, **values: object) -> Settings:
    return validate_settings({"method": method, "data": "", **values})


def test_colour_levels_of_equal_bins_have_no_stage() -> None:
    # Widths 1, 1, 2, 2, 3, …, 111, 128, 128.
    live = live_levels(range(1, 20), REDUCTIONS["color"], LevelScale(20), None)
    assert live == (2, *range(4, 19))
    linear = settings("linear", reduction="color", step=0.05)
    assert stage_levels(linear) == live
    assert schedule_rule_of(linear).stages == 16


def test_up_compares_each_stage_with_the_one_before_it() -> None:
    """Up from level 19, of 128 values: 18 has the same bins. At the end level 1 differs from level 3."""
    up = stage_levels(settings("linear", reduction="color", step=0.05, direction="up"))
    assert up == (19, *range(17, 3, -1), 3, 1)


def test_sizes_decide_for_crop_and_resolution() -> None:
    for reduction in ("crop", "resolution"):
        dimensions = REDUCTIONS[reduction]
        assert live_levels(range(1, 20), dimensions, LevelScale(20), lambda: LARGE) == tuple(range(1, 20))
        # round(3·√q) is 3 down to q = .7, 2 to .25; round(2·√q) is 2 to .6; 1 below.
        assert live_levels(range(1, 20), dimensions, LevelScale(20), lambda: TINY) == (7, 9, 16)
    assert live_levels(range(1, 4), REDUCTIONS["combination"], QUARTERS, lambda: TINY) == (1, 2, 3)


def test_the_sham_and_runs_of_older_definitions_keep_every_stage() -> None:
    assert stage_levels(settings("linear", reduction="none", step=0.05)) == tuple(range(1, 20))
    older = settings("linear", reduction="color", step=0.05, definitions=1)
    assert stage_levels(older) == tuple(range(1, 20))
    require_live_levels(settings("fixed", reduction="none", quality=0.95, step=0.05))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"method": "fixed", "quality": 0.95},
            "quality 0.95 of color changes no training image: use 0.9 or less",
        ),
        ({"method": "fixed", "quality": 1.0}, "quality 1 of color changes no training image"),
        ({"method": "random", "low": 0.95, "high": 1.0}, "no quality from 0.95 to 1"),
    ],
)
def test_a_run_that_would_reduce_nothing_is_refused(values: dict[str, object], says: str) -> None:
    refused = settings(**{"reduction": "color", "step": 0.05, **values})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=says):
        require_live_levels(refused)


def test_images_of_one_pixel_cannot_be_cropped() -> None:
    point = [np.ones((1, 2), np.int32)]
    for method in ("linear", "adaptive", "fixed"):
        with pytest.raises(InputError, match="changes"):
            require_live_levels(settings(method, reduction="crop"), lambda: point)


def test_a_tail_adds_stages_of_linear_down_to_one_value() -> None:
    values = {"method": "linear", "data": "d", "reduction": "color", "tail": "3"}
    # Bins of 4, 16, 64, 128, 256, 256 values: level 6 is dead.
    assert stage_levels(validate_settings(values)) == (1, 2, 3, 4, 5)
    assert stage_levels(validate_settings({**values, "tail": "full"})) == (1, 2, 3, 4, 5)
    assert stage_levels(validate_settings({**values, "direction": "up"})) == (6, 4, 3, 2, 1)
    assert stage_levels(validate_settings({**values, "tail": "none"})) == (1, 2, 3)


@pytest.mark.parametrize("method", ["shared", "baseline", "fixed", "random"])
def test_a_tail_is_of_linear_and_adaptive(method: str) -> None:
    with pytest.raises(InputError, match=f"--tail is for linear and adaptive, not {method}"):
        check_settings(validate_settings({"method": method, "data": "d", "tail": "2"}))
    for accepted in ("linear", "adaptive"):
        check_settings(validate_settings({"method": accepted, "data": "d", "tail": "2"}))
