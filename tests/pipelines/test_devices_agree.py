"""What a GPU makes of images against what a CPU does, within the limits of docs/explanation/definitions.md.

Each body runs on a CPU too, by the graph of a GPU, where the limit is 0.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import malformed_images
import numpy as np
import numpy.typing as npt
import pytest
import torch
from devices import GPU, WHOLE
from nvidia import nvimgcodec
from nvidia.dali import math, types
from PIL import Image, ImageEnhance, ImageOps

from qrdali.data.index import Index
from qrdali.data.scan import index_folder
from qrdali.interfaces import CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import dali_ops as ops
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.pipelines.loader import open_loader
from qrdali.reduction import neighbors
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.reduction.quality import QUARTERS, Dimensions, LevelScale, bin_width, reduction_params
from qrdali.schedule.epoch_plan import EpochPlan

Pixels = npt.NDArray[np.uint8]
SIZES = ((375, 500), (64, 64), (91, 53), (1, 70), (7, 3))  # height, width
SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRE = Preprocessing(SIDE, "whole", 0.875, "bilinear", MEAN, STD)
CPU = Engine(threads=2, depth=2, whole_graph=True)
RESIZED, NOISE_RESIZED = 1, 2  # levels of 255 that a GPU's resize may be off by
JPEG_MEAN = 0.5  # of 255, that a GPU's decoder may differ from Pillow's by
engines = pytest.mark.parametrize("engine", [WHOLE, GPU])


def picture(height: int, width: int) -> Pixels:
    """Smooth, with edges, and without symmetry."""
    rng = np.random.default_rng((height, width))
    small = rng.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((255, 0, 40), (width // 3, height // 4, width // 2, height // 2))
    return np.asarray(image)


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng((height, width, 1)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def indexed(folder: Path, files: dict[str, bytes]) -> Index:
    (folder / "images" / "a").mkdir(parents=True)
    for name, data in files.items():
        (folder / "images" / "a" / name).write_bytes(data)
    index_folder(folder / "images", ("a", "b"), folder / "images.arrow")
    return Index(folder / "images.arrow", 2)


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return indexed(
        tmp_path_factory.mktemp("pictures"), {f"{h}x{w}.png": png(picture(h, w)) for h, w in SIZES}
    )


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return indexed(tmp_path_factory.mktemp("noises"), {f"{h}x{w}.png": png(noise(h, w)) for h, w in SIZES})


def search_made(
    index: Index, engine: Engine, levels: tuple[int, int, int], scale: LevelScale
) -> tuple[list[Pixels], list[Pixels]]:
    """What a search makes of all samples, each with a window of its own: reduced images, network's inputs."""
    samples = np.arange(len(index))
    reducer = open_image_reducer(index, PRE, engine)
    pixels = dict(reducer.decode(iter(samples.tolist()), refuse))
    anchors = np.random.default_rng(5).random((len(index), 2))
    numbers = reduction_params(
        np.tile(np.array([levels], np.uint8), (len(index), 1)), index.sizes(samples), anchors, scale
    )
    own = [pixels[s] for s in samples.tolist()]
    return reducer.reduced_images(own, numbers), list(as_pixels(reducer.network_inputs(own, numbers)))


def reduced(index: Index, engine: Engine, levels: tuple[int, int, int], scale: LevelScale) -> list[Pixels]:
    return search_made(index, engine, levels, scale)[0]


def as_pixels(images: torch.Tensor) -> Pixels:
    """The network's inputs [N, 3, S, S], before they were normalized."""
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (MEAN, STD))
    values = (images.cpu().numpy() * std + mean) * 255
    assert np.abs(values - values.round()).max() < 0.01
    return values.round().astype(np.uint8)


def refuse(sample: int, reason: str) -> None:
    raise AssertionError(reason)


def differences(a: list[Any], b: list[Any]) -> Iterator[npt.NDArray[np.int16]]:
    for one, other in zip(a, b, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype == np.uint8
        yield np.abs(one.astype(np.int16) - other)


def limit(engine: Engine, levels: int) -> int:
    return 0 if engine.device_id is None else levels


@engines
@pytest.mark.parametrize(
    "levels",
    [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 0, 0), (0, 1, 0), (0, 3, 0), (3, 2, 0)],
)
def test_crop_and_color_are_exact(pictures: Index, engine: Engine, levels: tuple[int, int, int]) -> None:
    scale = LevelScale(4, 4)
    made, expected = (reduced(pictures, e, levels, scale) for e in (engine, CPU))
    assert [d.max() for d in differences(made, expected)] == [0] * len(SIZES)


@engines
def test_every_bin_width_is_exact(noises: Index, engine: Engine) -> None:
    for level in range(21):
        made, expected = (reduced(noises, e, (level, 0, 0), LevelScale(20, 4)) for e in (engine, CPU))
        assert [d.max() for d in differences(made, expected)] == [0] * len(SIZES), level


@engines
@pytest.mark.parametrize("levels", [(0, 0, 1), (0, 0, 3), (0, 2, 2), (0, 0, 6)])
def test_resolution_is_within_a_level(
    pictures: Index, noises: Index, engine: Engine, levels: tuple[int, int, int]
) -> None:
    scale = LevelScale(4, 4)
    for index, allowed in ((pictures, RESIZED), (noises, NOISE_RESIZED)):
        made, expected = (reduced(index, e, levels, scale) for e in (engine, CPU))
        assert max(d.max() for d in differences(made, expected)) <= limit(engine, allowed)


@engines
@pytest.mark.parametrize("color", [1, 2, 3])
def test_color_after_resolution_is_within_a_bin(pictures: Index, engine: Engine, color: int) -> None:
    """What a level puts on the other side of a bin's edge moves by the bin, and little is so near one."""
    made, expected = (reduced(pictures, e, (color, 1, 1), QUARTERS) for e in (engine, CPU))
    width = int(bin_width(np.array([color], np.uint8), QUARTERS)[0])
    found = list(differences(made, expected))
    assert max(d.max() for d in found) <= limit(engine, width)
    assert np.mean(np.concatenate([d.ravel() for d in found]) > 0) <= limit(engine, 1) * 0.12


def shown(index: Index, engine: Engine, levels: ConstantLevels) -> dict[int, npt.NDArray[np.uint8]]:
    """The network's inputs as pixels, by sample."""
    plan = EpochPlan(len(index), 3, levels, QUARTERS, 2, 1, True, "flip")
    result = {}
    for batch in open_loader(index, PRE, 3, engine).epoch(plan):
        result |= dict(zip(batch.samples.tolist(), as_pixels(batch.images), strict=True))
    assert sorted(result) == list(range(len(index)))
    return result


@engines
@pytest.mark.parametrize("color", [0, 1, 2, 3])
def test_network_inputs_without_a_resize_are_exact(tmp_path: Path, engine: Engine, color: int) -> None:
    index = indexed(tmp_path, {f"{i}.png": png(picture(SIDE, SIDE)[::-1] ^ i) for i in range(4)})
    levels = ConstantLevels(color, 0, 0)
    made, expected = shown(index, engine, levels), shown(index, CPU, levels)
    assert all((made[s] == expected[s]).all() for s in expected)


@engines
@pytest.mark.parametrize("levels", [FULL_QUALITY, ConstantLevels(0, 2, 0), ConstantLevels(0, 0, 2)])
def test_network_inputs_are_within_a_level_per_resize(
    pictures: Index, engine: Engine, levels: ConstantLevels
) -> None:
    """Two passes, one for each axis, and one before them where the resolution is reduced."""
    made, expected = shown(pictures, engine, levels), shown(pictures, CPU, levels)
    allowed = limit(engine, RESIZED) * (3 if levels.resolution else 2)
    assert max(d.max() for d in differences(list(made.values()), [expected[s] for s in made])) <= allowed
    states = (levels.color, levels.crop, levels.resolution)
    (_, made_in_search), (_, expected_there) = (
        search_made(pictures, e, states, QUARTERS) for e in (engine, CPU)
    )
    assert max(d.max() for d in differences(made_in_search, expected_there)) <= allowed


@engines
def test_candidates_of_a_probe_are_within_a_level(pictures: Index, engine: Engine) -> None:
    every, dimensions = np.arange(len(SIZES)), Dimensions(True, True, True)
    sizes, levels = pictures.sizes(every), np.zeros((len(SIZES), 3), np.uint8)
    window = neighbors.window_of(levels, np.zeros((len(SIZES), 2), np.int32), sizes, QUARTERS)
    found = neighbors.neighbors_of(levels, window, sizes, dimensions, QUARTERS)
    columns = neighbors.column_dimensions(dimensions)

    def made(engine: Engine) -> Any:
        request = CandidateRequest(every, window, found)
        (batch,) = open_loader(pictures, PRE, 8, engine).candidates(iter([request]), 8, columns, True)
        assert batch.reduced_images is not None
        return batch.images.cpu(), batch.reduced_images

    (seen_a, a), (seen_b, b) = made(engine), made(CPU)
    scale = 255 * torch.tensor(STD)[:, None, None]
    for k, dimension in enumerate(columns):
        pick = found.exists[:, k]
        some = differences(
            *([image for image, wanted in zip(side[k], pick, strict=True) if wanted] for side in (a, b))
        )
        assert max(d.max() for d in some) <= (limit(engine, RESIZED) if dimension == 2 else 0)
        off = ((seen_a[k] - seen_b[k]).abs() * scale)[torch.from_numpy(pick)]
        assert off.max() < limit(engine, 3 * RESIZED) + 0.01


# JPEGs


def fine() -> Image.Image:
    """A picture with chroma as fine and as faint as photographs', on which upsamplings of chroma differ."""
    image = Image.fromarray(picture(375, 500)[:, ::-1].copy()).resize((251, 187), Image.Resampling.LANCZOS)
    return ImageEnhance.Color(image).enhance(0.25)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return malformed_images.saved(image, "JPEG", quality=90, **options)


def turned(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return jpeg(fine(), exif=block)


KINDS: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: jpeg(fine(), subsampling="4:4:4"),
    "4:2:2": lambda: jpeg(fine(), subsampling="4:2:2"),
    "4:2:0": lambda: jpeg(fine(), subsampling="4:2:0"),
    "progressive": lambda: jpeg(fine(), progressive=True),
    "optimized": lambda: jpeg(fine(), optimize=True),
    "gray": lambda: jpeg(fine().convert("L")),
    "cmyk": lambda: malformed_images.cmyk(),
    "ycck": lambda: malformed_images.cmyk(transform=2),
    **{f"exif {i}": lambda i=i: turned(i) for i in range(1, 9)},
}


def far_from_pillow(folder: Path, data: bytes, engine: Engine) -> float:
    """The mean difference from Pillow's pixels of an upright JPEG, of 255."""
    (decoded,) = reduced(indexed(folder, {"image.jpg": data}), engine, (0, 0, 0), QUARTERS)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    (difference,) = differences([decoded], [expected])
    return float(difference.mean())


@engines
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_is_close_to_pillows(
    tmp_path: Path, engine: Engine, kind: str, record_property: Callable[[str, object], None]
) -> None:
    found = far_from_pillow(tmp_path, KINDS[kind](), engine)
    record_property("mean difference from Pillow's", found)
    assert found <= (0 if engine.device_id is None else JPEG_MEAN)


# What a fault looks like


def one_pixel_off(image: Any, start: Any, shape: Any) -> Any:
    return RIGHT.cut(image, start - math.clamp(start, 0, 1), shape)


def one_level_off(image: Any, mask: Any, half: Any) -> Any:
    return RIGHT.color_power_of_two(image, mask, half + types.Constant(1).uint8())


RIGHT = SimpleNamespace(cut=ops.cut, color_power_of_two=ops.color_power_of_two)


@pytest.mark.parametrize(
    ("name", "fault", "levels"),
    [
        ("cut", one_pixel_off, (0, 1, 0)),
        ("color_power_of_two", one_level_off, (1, 0, 0)),
        ("RESOLUTION_FILTER", types.INTERP_CUBIC, (0, 0, 1)),
        ("RESOLUTION_FILTER", types.INTERP_NN, (0, 0, 3)),
    ],
)
def test_a_fault_is_more_than_the_limits(
    pictures: Index, monkeypatch: pytest.MonkeyPatch, name: str, fault: object, levels: tuple[int, int, int]
) -> None:
    expected = reduced(pictures, CPU, levels, QUARTERS)
    monkeypatch.setattr(ops, name, fault)
    made = reduced(pictures, CPU, levels, QUARTERS)
    assert max(d.max() for d in differences(made, expected)) > (NOISE_RESIZED if levels[2] else 0)


@pytest.mark.parametrize("kind", ["4:2:2", "4:2:0", "progressive"])
def test_chroma_without_interpolation_is_more_than_the_limit(kind: str) -> None:
    """What nvJPEG does by default, done by libjpeg-turbo."""
    data = KINDS[kind]()
    decoders = [
        nvimgcodec.Decoder(
            device_id=-99999,  # none: nvimgcodec's own number for the CPU alone
            backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
            options=f":fancy_upsampling={fancy}",
        )
        for fancy in (0, 1)
    ]
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    plain, fancy = (np.asarray(decoder.decode(data).cpu()) for decoder in decoders)
    assert np.abs(plain.astype(np.int16) - expected).mean() > 2 * JPEG_MEAN
    assert (fancy == expected).all()
