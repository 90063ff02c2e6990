"""What a network sees at quality 1, against timm's evaluation transform under the installed Pillow."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from qrdali.errors import InputError
from qrdali.models import Preprocessing, preprocessing
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.axis_passes import square_inputs
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.graph_inputs import DecodedInputs, ImageInputs, pixel_reduction, window_bounds
from qrdali.pipelines.graphs import reduce_decoded
from qrdali.reduction.network_view import View, shown_share, view, whole_regions

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
PRE = Preprocessing(224, "center", 0.875, "bilinear", MEAN, STD)
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
        normalize=False,
    )
    return transform


def on_host(image: Pixels, pre: Preprocessing) -> npt.NDArray[np.float32]:
    out = np.empty((pre.input_size, pre.input_size, 3), np.float32)
    host.prepare(image, view(np.array([image.shape[:2]], np.int32), pre), 0, pre, out)
    return out


def levels_apart(image: Pixels, pre: Preprocessing) -> npt.NDArray[np.int_]:
    """How far what the network sees is from the published transform, in levels of 0 … 255."""
    expected = published(pre)(Image.fromarray(image)).permute(1, 2, 0).numpy().astype(int)
    seen = view(np.array([image.shape[:2]], np.int32), pre)
    return np.abs(host.square(image, seen, 0, pre) - expected)


@pytest.mark.parametrize("fit", ["whole", "center"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "share"), INPUTS)
def test_the_network_sees_what_timm_shows_it(side: int, share: float, interpolation: str, fit: str) -> None:
    pre = Preprocessing(side, fit, share, interpolation, MEAN, STD)
    for height, width in SIZES + OTHERS:
        for make, most in ((textured, 2), (noise, 4)):
            apart = levels_apart(make(height, width), pre)
            assert apart.max() <= most, (make.__name__, height, width)
            assert apart.mean() <= 0.3, (make.__name__, height, width)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [0.9, 1.0, 1.15])
def test_every_way_of_cropping_is_timms(share: float, crop_mode: str) -> None:
    """Where the square is larger than the resized image, it is padded: with black, or with the mean."""
    pre = Preprocessing(64, "center", share, "bicubic", MEAN, STD, crop_mode)
    for height, width in [*SIZES, (100, 61), (2, 60), (37, 37)]:  # timm fails where a side would be 0
        apart = levels_apart(textured(height, width), pre)
        assert apart.max() <= 2, (height, width)
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


@pytest.mark.parametrize(("fit", "mode"), [("whole", "center"), ("center", "center"), ("center", "border")])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_graph_shows_what_the_host_shows(interpolation: str, fit: str, mode: str) -> None:
    pre = Preprocessing(96, fit, 0.875, interpolation, MEAN, STD, mode)
    sizes = [*SIZES, (601, 250), (100, 60), (7, 5), (1, 1), (1, 300), (300, 1)]
    for make, most in ((textured, {"bilinear": 1, "bicubic": 2}[interpolation]), (noise, 2)):
        images = [make(height, width) for height, width in sizes]
        for image, shown in zip(images, in_graph(images, pre), strict=True):
            apart = np.abs(on_host(image, pre) - shown) * 255 * np.array(STD)
            assert apart.max() < most + 0.01, (make.__name__, image.shape)
            assert apart.mean() <= 0.1, (make.__name__, image.shape)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_random_crop_is_cut_before_it_is_resized(interpolation: str) -> None:
    """What surrounds a random crop does not count, as in torchvision's RandomResizedCrop."""
    pre = Preprocessing(96, "center", 0.875, interpolation, MEAN, STD)
    method = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[interpolation]
    image = textured(500, 375)
    boxes = np.array([[3, 5, 303, 205], [100, 0, 140, 375], [0, 7, 500, 107], [499, 374, 500, 375]], np.int64)
    seen = whole_regions(boxes, 96)
    shown = in_graph([image] * 4, pre, seen)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        crop = resized_crop(Image.fromarray(image), top, left, bottom - top, right - left, [96, 96], method)
        assert np.abs(host.square(image, seen, i, pre) - np.asarray(crop).astype(int)).max() <= 2
        values = shown[i] * 255 * np.array(STD) + 255 * np.array(MEAN)
        assert np.abs(values - np.asarray(crop)).max() < 2.01


@pytest.mark.parametrize(("height", "width"), [(1, 5000), (5000, 1), (40, 60000), (60000, 40)])
def test_a_strip_costs_no_more_than_its_square(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm makes 256 rows of a million pixels of the first one."""
    made: list[int] = []
    resize = host.resize

    def recorded(image: Pixels, height: int, width: int, interpolation: str) -> Pixels:
        made.append(height * width)
        return resize(image, height, width, interpolation)

    monkeypatch.setattr(host, "resize", recorded)
    on_host(np.zeros((height, width, 3), np.uint8), Preprocessing(224, "center", 0.875, "bicubic", MEAN, STD))
    assert max(made, default=0) <= 256 * max(height, width)
    inputs = square_inputs(
        view(np.array([[height, width]], np.int32), replace(PRE, interpolation="bicubic")), PRE
    )
    for each in (inputs.first, inputs.second):
        assert each.shape.prod() <= 256 * max(height, width)
        assert each.size.prod() <= 256 * max(height, width)


@pytest.mark.parametrize(
    ("name", "mode", "share"),
    [
        ("resnet50", "center", 0.95),
        ("tf_efficientnetv2_b3", "squash", 0.9),
        ("deepseek_vit_412m", "border", 1.0),
        ("volo_d4_448", "center", 1.15),
        ("torchvision/resnet152", "center", 224 / 232),
    ],
)
def test_a_network_brings_its_own_way_of_cropping(name: str, mode: str, share: float) -> None:
    pre = preprocessing(name, fit="center")
    assert (pre.crop_mode, pre.crop_share) == (mode, share)
    assert preprocessing(name, fit="whole").crop_mode == "center"  # it says nothing there
    if "/" not in name:
        config = resolve_model_data_config(None, pretrained_cfg=get_pretrained_cfg(name).to_dict())
        image = textured(333, 500)
        expected = create_transform(**config)(Image.fromarray(image)).permute(1, 2, 0).numpy()
        apart = np.abs(on_host(image, pre) - expected) * 255 * np.array(pre.std)
        assert apart.max() < 2.01


def test_torchvisions_resized_side_survives_as_a_share() -> None:
    models = pytest.importorskip("torchvision").models
    for name in models.list_models(module=models):
        transform = models.get_model_weights(name).DEFAULT.transforms()
        pre = preprocessing(f"torchvision/{name}", fit="center")
        assert math.floor(pre.input_size / pre.crop_share) == transform.resize_size[0], name


def test_an_unknown_way_of_cropping_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_model_data_config(None, pretrained_cfg=get_pretrained_cfg("resnet18").to_dict())
    monkeypatch.setattr("timm.data.resolve_model_data_config", lambda *_, **__: config | {"crop_mode": "fan"})
    assert preprocessing("resnet18").crop_mode == "center"
    with pytest.raises(InputError, match="--fit center: resnet18 crops by 'fan', .* choose --fit whole"):
        preprocessing("resnet18", fit="center")


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, 0.575),
        ({"crop_share": 1.0}, 0.75),
        ({"crop_mode": "squash"}, 0.765625),
        ({"fit": "whole"}, 1),
    ],
)
def test_the_share_of_the_area_that_is_shown(values: dict[str, Any], share: float) -> None:
    """The usual centre crop shows 57% of a 500×375 image."""
    assert shown_share(375, 500, replace(PRE, **values)) == pytest.approx(share, abs=0.002)
