"""What a network sees at quality 1, against timm's evaluation transform under the installed Pillow."""

import math
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg

from qrdali.models import Preprocessing, preprocessing
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.axis_passes import square_inputs
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.graph_inputs import DecodedInputs, ImageInputs, pixel_reduction, window_bounds
from qrdali.pipelines.graphs import reduce_decoded
from qrdali.reduction.network_view import View, view, whole_regions

Pixels = npt.NDArray[np.uint8]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(500, 375), (375, 500), (256, 256), (257, 257), (64, 1000), (1000, 64)]
# Smaller than the square, sides that scale to whole numbers, one pixel, long strips of either order.
OTHERS = [
    (448, 336),
    (512, 256),
    (100, 60),
    (33, 500),
    (7, 5),
    (1, 1),
    (1, 300),
    (300, 1),
    (601, 250),
    (900, 400),
]
INPUTS = [(224, 0.875), (288, 0.875), (300, 0.904), (256, 1.0)]


@cache
def textured(height: int, width: int) -> Pixels:
    """Fine detail beside smooth areas and hard edges, as in photographs."""
    rng = np.random.default_rng((height, width))
    pixels = np.zeros((height, width, 3))
    for grain, weight in ((40, 90), (9, 80), (3, 60), (1, 25)):
        small = rng.integers(0, 256, (height // grain + 1, width // grain + 1, 3), dtype=np.uint8)
        layer = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        pixels += weight * (np.asarray(layer) / 255)
    pixels[:, : width // 3] = np.where(pixels[:, : width // 3] > 128, 255, 0)
    return pixels.clip(0, 255).astype(np.uint8)


@cache
def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def published(pre: Preprocessing) -> Callable[[Image.Image], torch.Tensor]:
    """timm's evaluation transform; for "whole" torchvision's Resize to both sides."""
    whole = pre.fit == "whole"
    transform: Callable[[Image.Image], torch.Tensor] = create_transform(
        pre.input_size,
        interpolation=pre.interpolation,
        mean=pre.mean,
        std=pre.std,
        crop_pct=1.0 if whole else pre.crop_share,
        crop_mode="squash" if whole else pre.crop_mode,
    )
    return transform


def levels_apart(image: Pixels, pre: Preprocessing) -> npt.NDArray[np.float64]:
    """How far the network's input is from the published one, in levels of 0 … 255."""
    out = np.empty((pre.input_size, pre.input_size, 3), np.float32)
    seen = view(np.array([image.shape[:2]], np.int32), pre)
    host.prepare(image, seen, 0, pre, out)
    expected = published(pre)(Image.fromarray(image)).permute(1, 2, 0).numpy()
    return np.abs(out - expected).astype(np.float64) * 255 * np.array(pre.std)


@pytest.mark.parametrize("fit", ["whole", "center"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "share"), INPUTS)
def test_the_network_sees_what_timm_shows_it(side: int, share: float, interpolation: str, fit: str) -> None:
    pre = Preprocessing(side, fit, share, interpolation, MEAN, STD)
    for height, width in SIZES + OTHERS:
        for make, most in ((textured, 2), (noise, 4)):
            apart = levels_apart(make(height, width), pre)
            assert apart.max() < most + 0.01, (make.__name__, height, width)
            assert apart.mean() <= 0.3, (make.__name__, height, width)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.9, 1.0, 1.15])
def test_every_way_of_cropping_is_timms(share: float, crop_mode: str) -> None:
    """Where the square is larger than the resized image, it is padded: with black, or with the mean."""
    pre = Preprocessing(64, "center", share, "bicubic", MEAN, STD, crop_mode)
    for height, width in [*SIZES, (100, 61), (2, 60), (37, 37)]:  # timm fails where a side would be 0
        apart = levels_apart(textured(height, width), pre)
        assert apart.max() < 2.01, (height, width)
        assert apart.mean() <= 0.3, (height, width)


def in_graph(images: list[Pixels], pre: Preprocessing, seen: View | None = None) -> npt.NDArray[np.float32]:
    """What the DALI graph shows the network of decoded images at quality 1, run on the CPU."""
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    seen = seen or view(sizes, pre)
    bounds = window_bounds(np.concatenate([np.zeros_like(sizes), sizes], axis=1))
    reduction = pixel_reduction(sizes, sizes, np.ones(len(images), np.int32))
    inputs = DecodedInputs(images, ImageInputs(bounds, reduction, square_inputs(seen, pre), None))
    (outputs,) = reduce_decoded(lambda: inputs, Engine(), len(images), pre).run()
    return np.stack([np.array(outputs.at(i)) for i in range(len(images))])


@pytest.mark.parametrize(("fit", "crop_mode"), [("whole", "center"), ("center", "center"), ("center", "border")])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_shows_what_the_host_shows(interpolation: str, fit: str, crop_mode: str) -> None:
    pre = Preprocessing(96, fit, 0.875, interpolation, MEAN, STD, crop_mode)
    sizes = [*SIZES, (601, 250), (100, 60), (7, 5), (1, 1), (1, 300), (300, 1)]
    for make, most in ((textured, 1), (noise, 2)):
        images = [make(height, width) for height, width in sizes]
        shown = in_graph(images, pre)
        for i, image in enumerate(images):
            out = np.empty((96, 96, 3), np.float32)
            host.prepare(image, view(np.array([image.shape[:2]], np.int32), pre), 0, pre, out)
            apart = np.abs(out - shown[i]) * 255 * np.array(STD, np.float32)
            print(make.__name__, image.shape, apart.max(), apart.mean())
            assert apart.max() < most + 0.01, (make.__name__, image.shape)
