"""The integers of what a network sees: resized sides, the square's place, the order of the passes."""

import numpy as np
import pytest
from PIL import Image

from qrdali.models import Preprocessing
from qrdali.reduction.network_view import View, view, whole_regions


def seen(
    sizes: list[tuple[int, int]], side: int, share: float, fit: str = "center", mode: str = "center"
) -> View:
    pre = Preprocessing(side, fit, share, "bicubic", (0.5,) * 3, (0.5,) * 3, mode)
    return view(np.array(sizes, np.int32), pre)


@pytest.mark.parametrize(
    ("side", "share", "mode", "size", "resized", "offset"),
    [
        (224, 0.875, "center", (375, 500), (256, 341), (16, 58)),  # 58.5 goes to the even 58
        (224, 0.875, "center", (500, 375), (341, 256), (58, 16)),
        (224, 0.875, "center", (256, 256), (256, 256), (16, 16)),
        (300, 0.904, "center", (64, 1000), (331, 5171), (16, 2436)),  # 15.5 to 16, 2435.5 to 2436
        (256, 1.0, "center", (1, 5000), (256, 1280000), (0, 639872)),
        (224, 0.875, "center", (300, 301), (256, 256), (16, 16)),  # 256.85 is cut off
        (192, 0.9, "squash", (375, 500), (213, 213), (10, 10)),
        (384, 1.0, "squash", (375, 500), (384, 384), (0, 0)),
        (546, 1.0, "border", (375, 500), (410, 546), (-68, 0)),  # 409.5 goes to the even 410
        (64, 0.5, "border", (100, 300), (43, 128), (-10, 32)),  # the odd row of padding is below
        (64, 1.0, "border", (1, 5000), (1, 64), (-31, 0)),
        (448, 1.15, "center", (375, 500), (389, 518), (-29, 35)),
    ],
)
def test_the_published_integers(
    side: int,
    share: float,
    mode: str,
    size: tuple[int, int],
    resized: tuple[int, int],
    offset: tuple[int, int],
) -> None:
    found = seen([size], side, share, mode=mode)
    assert found.region.tolist() == [[0, 0, *size]]
    assert tuple(found.resized[0].tolist()) == resized
    assert tuple(found.offset[0].tolist()) == offset
    assert not found.flip.any()


def test_whole_resizes_everything_to_the_square() -> None:
    found = seen([(7, 900)], 32, 0.875, "whole", "border")
    assert (found.region.tolist(), found.resized.tolist(), found.offset.tolist()) == (
        [[0, 0, 7, 900]],
        [[32, 32]],
        [[0, 0]],
    )


@pytest.mark.parametrize(
    ("height", "width", "vertical_first"),
    [
        (164, 114, False),  # the height loses 100, the width 50: not more than twice as much
        (165, 114, True),
        (164, 113, True),
        (65, 64, True),
        (65, 20, True),
        (64, 20, False),
        (20, 300, False),
        (300, 300, False),
    ],
)
def test_the_passes_come_in_pillows_order(height: int, width: int, vertical_first: bool) -> None:
    """Seen by the values, since each pass rounds."""
    assert whole_regions(np.array([[0, 0, height, width]]), 64).vertical_first.tolist() == [vertical_first]
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    method = Image.Resampling.BICUBIC
    between = (width, 64) if vertical_first else (64, height)
    assert np.array_equal(
        image.resize((64, 64), method), image.resize(between, method).resize((64, 64), method)
    )


def test_the_order_is_that_of_the_region_not_of_the_image() -> None:
    regions = np.array([[0, 0, 500, 100], [100, 50, 170, 130]])
    assert whole_regions(regions, 64).vertical_first.tolist() == [True, False]


def test_views_are_selected_whole() -> None:
    some = seen([(10, 20), (30, 40), (50, 60)], 8, 0.875).select(np.array([True, False, True]))
    assert some.region.tolist() == [[0, 0, 10, 20], [0, 0, 50, 60]]
    assert [len(a) for a in (some.resized, some.offset, some.flip, some.vertical_first)] == [2] * 4
