"""Reduced images against Pillow and integer formulas, with the tolerances of the definitions."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps
from timm.data import create_transform

from qrdali.data.inspect import read_upright_size
from qrdali.models import Preprocessing
from qrdali.pipelines import host_ops as host
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import PreparedBatch, decode_inputs, network_inputs
from qrdali.pipelines.graph_inputs import DecodedInputs, ImageInputs, pixel_reduction, window_bounds
from qrdali.pipelines.graphs import decode_windows, network_input, reduce_decoded
from qrdali.reduction.network_view import view
from qrdali.reduction.quality import QUARTERS, LevelScale, reduction_params

Pixels = npt.NDArray[np.uint8]
PRE = Preprocessing(64, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth, natural-looking pixels."""
    rng = np.random.default_rng((height, width, seed))
    small = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(params=["graph", "host"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every oracle holds for the whole DALI graph and for decoding in DALI and reductions on the host."""
    name: str = request.param
    monkeypatch.setitem(IMPLEMENTATION, "name", name)
    return name


IMPLEMENTATION = {"name": "graph"}


def reduce(
    paths: list[Path],
    levels: tuple[int, int, int],
    num_levels: int = 4,
    anchor: tuple[float, float] = (0.5, 0.5),
) -> list[Pixels]:
    count = len(paths)
    sizes = np.array([read_upright_size(str(p), True)[::-1] for p in paths], np.int32)
    reduction = reduction_params(
        np.tile(np.array([levels], np.uint8), (count, 1)),
        sizes,
        np.tile([anchor], (count, 1)),
        LevelScale(num_levels),
    )
    names = [np.frombuffer(str(p).encode(), np.uint8) for p in paths]
    if IMPLEMENTATION["name"] == "host":
        (decoded,) = decode_windows(
            lambda: decode_inputs(names, reduction.window), Engine(depth=1), count
        ).run()
        return [
            host.reduce(np.array(decoded.at(i)), reduction.size[i], int(reduction.bin_width[i]))
            for i in range(count)
        ]
    whole = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    (decoded,) = decode_windows(lambda: decode_inputs(names, whole), Engine(depth=1), count).run()
    bounds = window_bounds(reduction.window)
    pixels = pixel_reduction(bounds.shape, reduction.size, reduction.bin_width)
    inputs = DecodedInputs(
        [np.array(decoded.at(i)) for i in range(count)], ImageInputs(bounds, pixels, square=None, region=None)
    )
    (images,) = reduce_decoded(lambda: inputs, Engine(), count, None).run()
    return [np.array(images.at(i)) for i in range(count)]


def network_pixels(path: Path, fit: str) -> npt.NDArray[np.float32]:
    """What the network gets of a file at full quality, float32 [64, 64, 3]."""
    pre = replace(PRE, fit=fit)
    sizes = np.array([read_upright_size(str(path), True)[::-1]], np.int32)
    reduction = reduction_params(np.zeros((1, 3), np.uint8), sizes, np.array([[0.5, 0.5]]), QUARTERS)
    seen = view(reduction.size, pre)
    name = [np.frombuffer(str(path).encode(), np.uint8)]
    if IMPLEMENTATION["name"] == "host":
        (decoded,) = decode_windows(lambda: decode_inputs(name, reduction.window), Engine(depth=1), 1).run()
        out = np.empty((64, 64, 3), np.float32)
        host.prepare(np.array(decoded.at(0)), seen, 0, pre, out)
        return out
    batch = PreparedBatch(0, np.zeros(1, np.int64), np.zeros(1, np.int64), reduction, seen)
    graph = network_input(lambda: network_inputs(name, batch, pre), Engine(depth=1), 1, pre)
    return np.array(graph.run()[0].at(0))


def pillow(path: Path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


def half_up(x: float) -> int:
    return math.floor(x + 0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    drawn = np.random.default_rng(11).integers(1, 700, (6, 2)).tolist()
    for height, width in [
        (1, 1),
        (1, 57),
        (43, 1),
        (31, 45),
        (375, 500),
        (500, 375),
        (101, 77),
        (3000, 4000),
        *drawn,
    ]:
        paths.append(folder / f"{height}x{width}.jpg")
        Image.fromarray(picture(height, width)).save(paths[-1], quality=93)
    base = Image.fromarray(picture(90, 121))
    for mode in ("L", "CMYK"):
        paths.append(folder / f"{mode}.jpg")
        base.convert(mode).save(paths[-1], "JPEG")
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        paths.append(folder / f"exif{orientation}.jpg")
        base.save(paths[-1], "JPEG", exif=exif)
    paths.append(folder / "png-named.JPEG")
    base.save(paths[-1], "PNG")
    paths.append(folder / "progressive.jpg")
    base.save(paths[-1], "JPEG", progressive=True)
    return paths


def test_quality_1_is_pillows_decode(files: list[Path]) -> None:
    for path, image in zip(files, reduce(files, (0, 0, 0)), strict=True):
        assert np.array_equal(image, np.asarray(pillow(path))), path.name


@pytest.mark.parametrize("anchor", [(0.5, 0.5), (0, 1), (1, 0), (0.3, 0.8)])
@pytest.mark.parametrize("level", [1, 3])
def test_crop_is_decode_then_slice(files: list[Path], level: int, anchor: tuple[float, float]) -> None:
    root = math.sqrt(1 - level / 4)
    for path, image in zip(files, reduce(files, (0, level, 0), anchor=anchor), strict=True):
        full = np.asarray(pillow(path))
        h, w = (max(1, half_up(side * root)) for side in full.shape[:2])
        top, left = half_up(anchor[0] * (full.shape[0] - h)), half_up(anchor[1] * (full.shape[1] - w))
        assert np.array_equal(image, full[top : top + h, left : left + w]), path.name


@pytest.mark.parametrize(("n", "level"), [(4, 1), (4, 2), (4, 3), (20, 19)])
def test_resolution_is_pillows_bilinear_within_tolerance(files: list[Path], n: int, level: int) -> None:
    root = math.sqrt((n - level) / n)
    for path, image in zip(files, reduce(files, (0, 0, level), n), strict=True):
        full = pillow(path)
        size = max(1, half_up(full.width * root)), max(1, half_up(full.height * root))
        expected = np.asarray(full.resize(size, Image.Resampling.BILINEAR))
        assert image.shape == expected.shape
        difference = np.abs(image.astype(int) - expected)
        assert difference.max() <= 6, path.name
        if difference.size > 3000:
            assert difference.mean() <= 0.25, path.name
            assert (difference > 2).mean() <= 0.001, path.name


def test_resolution_of_noise(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(path)
    for level in (1, 2, 3):
        image = reduce([path], (0, 0, level))[0]
        expected = np.asarray(pillow(path).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
        assert np.abs(image.astype(int) - expected).max() <= 16


@pytest.mark.parametrize(("n", "level"), [(4, 1), (4, 2), (4, 3), *((20, k) for k in range(20))])
def test_colour_is_the_integer_formula(tmp_path: Path, n: int, level: int) -> None:
    path = tmp_path / "all.png"
    values = np.arange(256, dtype=np.uint8)
    Image.fromarray(
        np.stack([np.tile(values, (2, 1)), np.tile(values[::-1], (2, 1)), np.tile(values, (2, 1))], -1)
    ).save(path)
    image = reduce([path], (level, 0, 0), n)[0]
    d = min(128, half_up(256 ** (level / n)))
    full = np.asarray(pillow(path)).astype(int)
    assert np.array_equal(image, np.minimum(255, full // d * d + d // 2))
    if n == 4 and level:
        assert len(np.unique(image)) == {1: 64, 2: 16, 3: 4}[level]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_combination_is_crop_then_resolution_then_colour(files: list[Path], level: int) -> None:
    """No value off by more than one bin beyond the resize's own difference, at most 12% by more than 1."""
    d = {1: 4, 2: 16, 3: 64}[level]
    combined, uncoloured = reduce(files, (level,) * 3), reduce(files, (0, level, level))
    root = math.sqrt(1 - level / 4)
    for path, image, resized in zip(files, combined, uncoloured, strict=True):
        assert np.array_equal(image, np.minimum(255, resized.astype(int) // d * d + d // 2)), path.name
        full = pillow(path)
        w, h = (max(1, half_up(side * root)) for side in full.size)
        left, top = half_up((full.width - w) / 2), half_up((full.height - h) / 2)
        size = max(1, half_up(w * root)), max(1, half_up(h * root))
        window = full.crop((left, top, left + w, top + h)).resize(size, Image.Resampling.BILINEAR)
        expected = np.asarray(window).astype(int)
        difference = np.abs(image.astype(int) - np.minimum(255, expected // d * d + d // 2))
        assert difference.max() <= max(d, 8)
        if difference.size > 3000:
            assert (difference > 1).mean() <= 0.12, path.name


@pytest.mark.parametrize("fit", ["whole", "center"])
def test_network_input_at_quality_1_is_the_published_one(files: list[Path], fit: str) -> None:
    """test_published_transform.py has every shape and filter; here it comes from files."""
    transform = create_transform(
        PRE.input_size,
        interpolation=PRE.interpolation,
        mean=PRE.mean,
        std=PRE.std,
        crop_pct=1.0 if fit == "whole" else PRE.crop_share,
        crop_mode="squash" if fit == "whole" else "center",
    )
    for path in files:
        published = transform(pillow(path)).permute(1, 2, 0).numpy()
        apart = np.abs(network_pixels(path, fit) - published) * 255 * np.array(PRE.std)
        assert apart.max() < 2.01, path.name
        assert apart.mean() <= 0.3, path.name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_host_resizes_as_pillow_does(interpolation: str) -> None:
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image, tolerance = picture(211, 317), {"bilinear": 1, "bicubic": 2}[interpolation]
    for height, width in [(64, 64), (211, 317), (300, 500), (1, 1), (7, 300)]:
        for pixels in (image, image[10:140, 20:200]):
            resized = Image.fromarray(pixels).resize((width, height), filters[interpolation])
            difference = host.resize(pixels, height, width, interpolation) - np.asarray(resized).astype(int)
            assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_both_passes_at_once_are_the_passes_one_after_the_other(interpolation: str) -> None:
    rng = np.random.default_rng(3)
    pre = replace(PRE, interpolation=interpolation)
    at_once = 0
    for height, width in [(1, 1), (3, 200), (64, 90), (90, 64), (64, 64), (211, 317), (375, 500), (60, 41)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        seen = view(np.array([[height, width]], np.int32), pre)
        if seen.vertical_first[0]:
            continue
        at_once += 1
        columns_first = host.resize(image, height, 64, interpolation) if width != 64 else image
        expected = host.resize(columns_first, 64, 64, interpolation) if height != 64 else columns_first
        np.testing.assert_array_equal(host.square(image, seen, 0, pre), expected)
    assert at_once >= 6
