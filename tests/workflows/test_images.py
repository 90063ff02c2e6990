"""Single images: the bytes that loaders and MEPI sets have, any quality, and what is refused."""

import re
from pathlib import Path
from typing import Any

import disagreeing_images
import malformed_images
import numpy as np
import pytest
from PIL import Image, ImageOps

import qrdali
from qrdali.data.index import Dataset
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.image_reducer import open_image_reducer
from qrdali.reduction.quality import LevelScale, num_levels_of, reduction_params
from qrdali.workflows.preview import draw_preview

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def photo(dataset: Dataset) -> str:
    return dataset["train"].paths(np.array([0]))[0]


def test_an_image_is_read_as_the_pipelines_decode_it(dataset: Dataset) -> None:
    index = dataset["train"]
    maker = open_image_reducer(
        index, Preprocessing(32, "whole", 1, "bilinear", (0,) * 3, (1,) * 3), Engine(threads=1)
    )
    for sample, pixels in maker.decode(iter([0, 5]), lambda *_: pytest.fail("unreadable")):
        image = qrdali.read(index.paths(np.array([sample]))[0])
        assert image.dtype == np.uint8
        assert np.array_equal(image, pixels)
        assert image.shape[:2] == tuple(index.sizes(np.array([sample]))[0])


def test_an_image_is_read_upright(photo: str, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.fromarray(IMAGE).save(turned, exif=exif, quality=95)
    image = qrdali.read(turned)
    assert image.shape == (64, 48, 3)
    with Image.open(turned) as file:
        upright = np.asarray(ImageOps.exif_transpose(file))
    assert np.abs(image.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("level", [(0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 1), (1, 2, 3), (19, 19, 19)])
@pytest.mark.parametrize("anchor", [(0.5, 0.5), (0.0, 1.0)])
def test_a_reduced_image_has_the_bytes_that_a_mepi_set_holds(
    dataset: Dataset, level: tuple[int, int, int], anchor: tuple[float, float]
) -> None:
    step = 0.05 if max(level) > 3 else 0.25
    index = dataset["train"]
    maker = open_image_reducer(
        index, Preprocessing(32, "whole", 1, "bilinear", (0,) * 3, (1,) * 3), Engine(threads=1)
    )
    ((_, pixels),) = maker.decode(iter([3]), lambda *_: pytest.fail("unreadable"))
    params = reduction_params(
        np.array([level], np.uint8),
        index.sizes(np.array([3])),
        np.array([anchor]),
        LevelScale(num_levels_of(step)),
    )
    (theirs,) = maker.reduced_images([pixels], params)
    image = qrdali.read(index.paths(np.array([3]))[0])
    ours = qrdali.reduce(image, level=level, step=step, anchor=anchor)
    assert np.array_equal(ours, theirs)
    color, crop, resolution = (1 - k * step for k in level)
    by_quality = qrdali.reduce(image, color=color, crop=crop, resolution=resolution, anchor=anchor)
    assert np.array_equal(by_quality, ours)


def test_a_reduced_image_is_what_the_loader_shows(photo: str, dataset: Dataset) -> None:
    side = 32
    image = qrdali.reduce(qrdali.read(photo), color=0.5, crop=0.25, resolution=0.5)
    pre = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # values 0..255 as they are
    loader = qrdali.Loader(dataset["train"], input_size=side, batch_size=4, device="cpu", threads=1, **pre)
    quality = {"color": 0.5, "crop": 0.25, "resolution": 0.5}
    batch = next(loader.epoch(0, quality=quality, shuffle=False))
    seen = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), np.float32)
    difference = np.abs(batch.images[0].permute(1, 2, 0).numpy() - seen)
    assert difference.max() < 2.001
    assert difference.mean() < 0.3


def test_any_quality_in_between_keeps_its_share_of_the_pixels() -> None:
    assert qrdali.reduce(IMAGE, crop=0.3).shape == (26, 35, 3)  # 48·√.3 = 26.29, 64·√.3 = 35.05
    assert qrdali.reduce(IMAGE, crop=1e-9, resolution=1e-9).shape == (1, 1, 3)
    bins = np.unique(qrdali.reduce(IMAGE, color=0.4))
    assert len(bins) == 10  # d = round(256^.6) = 28, of which 256 holds ten
    assert qrdali.reduce(IMAGE, crop=0.25, anchor=(0, 0)).tolist() == IMAGE[:24, :32].tolist()
    assert qrdali.reduce(IMAGE, crop=0.25, anchor=(1, 0)).tolist() == IMAGE[24:, :32].tolist()


def test_quality_one_gives_equal_pixels_of_its_own() -> None:
    before = IMAGE.copy()
    same = qrdali.reduce(IMAGE)
    assert np.array_equal(same, IMAGE)
    same[:] = 0
    qrdali.reduce(IMAGE, crop=0.5)[:] = 0
    assert np.array_equal(IMAGE, before)


def test_entropy_is_the_size_of_the_png(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    Image.fromarray(IMAGE).save(file, compress_level=6, optimize=False)
    assert qrdali.entropy(IMAGE) == file.stat().st_size
    grey = qrdali.reduce(IMAGE, color=1e-6)
    assert qrdali.quotient(grey, IMAGE) == qrdali.entropy(grey) / qrdali.entropy(IMAGE) < 0.5
    assert qrdali.quotient(IMAGE, IMAGE) == 1


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (IMAGE, {"crop": 0}, r"crop = 0 is outside \(0, 1\]"),
        (IMAGE, {"color": 1.5}, r"color = 1.5 is outside"),
        (IMAGE, {"resolution": float("nan")}, "resolution = nan"),
        (IMAGE, {"anchor": (0, 2)}, "anchor"),
        (IMAGE, {"anchor": (0.5,)}, "anchor"),
        (IMAGE, {"level": (0, 44, 0)}, r"outside 0..43"),
        (IMAGE, {"level": (0, 1)}, "three whole numbers"),
        (IMAGE, {"level": (0, 1.5, 0)}, "three whole numbers"),
        (IMAGE, {"level": (0, 1, 0), "step": 0.3}, "not 1/n"),
        (IMAGE, {"level": (0, 1, 0), "crop": 0.5}, "give one of them"),
        (IMAGE.astype(np.float32), {}, r"float32\[48, 64, 3\]"),
        (IMAGE[..., 0], {}, r"uint8\[48, 64\]"),
        (IMAGE[:0], {}, r"uint8\[0, 64, 3\]"),
        (IMAGE.tolist(), {}, "list"),
    ],
)
def test_what_cannot_be_reduced_is_refused_with_the_value(
    image: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(qrdali.InputError, match=message):
        qrdali.reduce(image, **options)


ALIKE = ("one scan of a progressive.jpg", "half of the scans.jpg")  # only windows of these differ


@pytest.mark.parametrize("name", [name for name in disagreeing_images.refused() if name not in ALIKE])
def test_an_image_that_decoders_read_differently_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(disagreeing_images.refused()[name])
    with pytest.raises(qrdali.RunError, match=re.escape(name)) as raised:
        qrdali.read(file)
    assert re.search("DALI|eXIf|orientation", str(raised.value)), raised.value
    assert "\n" not in str(raised.value)
    with pytest.raises((qrdali.RunError, qrdali.InputError)) as previewed:
        draw_preview(str(file), tmp_path / "sheet.png")
    assert str(previewed.value) == str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", [*disagreeing_images.damaged(), *ALIKE])
def test_a_damaged_image_that_decoders_read_alike_is_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes((disagreeing_images.damaged() | disagreeing_images.refused())[name])
    with Image.open(file) as opened:
        assert np.array_equal(qrdali.read(file), np.asarray(opened.convert("RGB")))
    draw_preview(str(file), tmp_path / "sheet.png")


@pytest.mark.parametrize("name", malformed_images.accepted())
def test_whatever_an_index_accepts_is_read(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(malformed_images.accepted()[name])
    with Image.open(file) as opened:
        upright = ImageOps.exif_transpose(opened)
        assert qrdali.read(file).shape == (upright.height, upright.width, 3)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(qrdali.InputError, match=r"gone\.jpg does not exist"):
        qrdali.read(tmp_path / "gone.jpg")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(qrdali.RunError, match=r"broken\.jpg cannot be decoded"):
        qrdali.read(broken)
    with pytest.raises(qrdali.InputError, match="image is 'photo.jpg': give a numpy array"):
        qrdali.entropy("photo.jpg")  # type: ignore[arg-type]
