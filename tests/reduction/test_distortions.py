"""Each distortion against its definition, its source's own formula, and Pillow."""

import io
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageEnhance
from scipy import stats
from scipy.ndimage import gaussian_filter

from qrdali.errors import InputError
from qrdali.reduction import names
from qrdali.reduction.counter_rng import NORMAL_UNIT, normal_field
from qrdali.reduction.distortions import BY_NAME, NO_FIELD, FieldKeys, distort, distortion_params
from qrdali.reduction.distortions.jpeg import transcoded
from qrdali.reduction.levels import (
    FULL_QUALITY,
    RandomLevels,
    constant_levels,
    histogram,
    levels_of,
    moves_of,
    qualities_of,
    quality_names,
)
from qrdali.reduction.quality import QUARTERS, REDUCTIONS, LevelScale, quality
from qrdali.schedule.live_levels import live_levels

Pixels = npt.NDArray[np.uint8]
QUALITIES = (0.95, 0.75, 0.5, 0.25, 0.05)
EXACT = 0.5001  # of 255: the CPU's operator rounds what the oracle does not
# libjpeg computes with integers: a value on the other side of a quantization step moves a block by a step.
JPEG_MEAN, JPEG_MOST = 3, 8  # of all values, and of nine in ten
GPU_JPEG_MEAN = 2.5  # of 255, between repeated and interpolated chroma
every = pytest.mark.parametrize("name", names.DISTORTIONS)


def smooth(height: int = 64, width: int = 64, seed: int = 0) -> Pixels:
    rng = np.random.default_rng((height, width, seed))
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def rough(height: int = 64, width: int = 64) -> Pixels:
    return np.random.default_rng((height, width, 1)).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(size: int = 224) -> Pixels:
    """Has a photograph's falling spectrum, and colours that vary less than its brightness."""
    rng = np.random.default_rng(5)
    rows, columns = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / size)
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * falling).real for _ in range(3)]
    luma, blue, red = (plane / plane.std() for plane in planes)
    values = np.stack([luma + 0.3 * red, luma, luma + 0.3 * blue], axis=2) * 50 + 120
    return values.clip(0, 255).astype(np.uint8)


def amount_of(name: str, q: float, side: int = 64) -> npt.NDArray[np.float32]:
    amount: npt.NDArray[np.float32] = BY_NAME[name].amounts(np.array([q]), side)[0]
    return amount


def field_of(name: str, shape: tuple[int, ...], sample: int = 7) -> npt.NDArray[np.int16] | None:
    return normal_field(3, 0, sample, shape) if BY_NAME[name].has_field else None


def distorted(name: str, image: Pixels, q: float) -> Pixels:
    keys = FieldKeys(3, False, np.array([7]))
    params = distortion_params({name: np.array([q])}, min(image.shape[:2]), keys)
    return distort(image, params, 0)


def test_the_names_are_those_of_the_files_and_of_the_settings() -> None:
    assert tuple(BY_NAME) == names.DISTORTIONS == ("gray", "contrast", "blur", "noise", "jpeg")
    assert tuple(type(BY_NAME[name]).__module__.rpartition(".")[2] for name in BY_NAME) == names.DISTORTIONS
    assert get_args(names.ReductionName) == names.TRAINED
    assert sorted(names.TRAINED) == sorted([*REDUCTIONS, *names.DISTORTIONS])
    assert tuple(name for name in REDUCTIONS if name != "none") == names.SEARCHED
    for name in names.DISTORTIONS:
        assert not any(moves_of(name).dimensions)
        assert moves_of(name).distortion == name
    assert moves_of("combination") == (REDUCTIONS["combination"], "")


@every
@pytest.mark.parametrize("q", QUALITIES)
@pytest.mark.parametrize("image", [smooth(), rough(), smooth(40, 56)], ids=["smooth", "rough", "oblong"])
def test_the_cpu_is_its_oracle(name: str, q: float, image: Pixels) -> None:
    distortion, side = BY_NAME[name], min(image.shape[:2])
    before = image.copy()
    field = field_of(name, image.shape)
    found = distortion.on_host(image, amount_of(name, q, side), field)
    expected = distortion.oracle(image, amount_of(name, q, side), field)
    assert found.dtype == np.uint8
    assert found.shape == image.shape == expected.shape
    assert np.array_equal(image, before)
    assert not np.may_share_memory(found, image)
    difference = np.abs(found - expected)
    if name == "jpeg":
        assert difference.mean() <= JPEG_MEAN
        assert np.percentile(difference, 90) <= JPEG_MOST
    else:
        assert difference.max() <= EXACT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jpeg", [95, 75, 50, 25, 5]),
        ("contrast", [0.95, 0.75, 0.5, 0.25, 0.05]),
        ("noise", [0.0518, 0.1305, 0.226, 0.3914, 0.9851]),
        ("blur", [0.688, 1.732, 3.0, 5.196, 13.077]),  # pixels of 224
    ],
)
def test_amounts_of_qualities(name: str, expected: list[float]) -> None:
    amounts = BY_NAME[name].amounts(np.array(QUALITIES), 224)
    assert amounts.tolist() == pytest.approx(expected, abs=5e-4)
    half = BY_NAME[name].amounts(np.array(QUALITIES), 112)
    assert half.tolist() == pytest.approx(
        [v / 2 if name == "blur" else v for v in amounts.tolist()], rel=1e-6
    )


def test_the_matrix_of_gray_keeps_luma_and_fades_the_rest() -> None:
    matrix = amount_of("gray", 0.25).astype(np.float64)
    luma = np.array([0.299, 0.587, 0.114])
    assert luma @ matrix == pytest.approx(luma, abs=1e-6)
    assert matrix @ np.ones(3) == pytest.approx(np.ones(3), abs=1e-6)  # gray stays
    assert matrix @ np.array([1.0, -1, 0]) - (luma[0] - luma[1]) * 0.75 == pytest.approx(
        np.array([0.25, -0.25, 0]), abs=1e-6
    )


def test_gray_is_pillows() -> None:
    image = rough()
    for q in (0.75, 0.5, 0.25):
        pillow = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(q))
        assert np.abs(distorted("gray", image, q).astype(int) - pillow).max() <= 1
    luma = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    assert np.abs(distorted("gray", image, 1e-5).astype(int) - luma).max() <= 1


def test_contrast_is_that_of_geirhos_and_pillows_blend_with_gray() -> None:
    image = rough()
    for q in (0.75, 0.5, 0.3, 0.01):
        source = (1 - q) / 2.0 + (image / 255).dot(q)  # adjust_contrast of their image_manipulation.py
        assert np.abs(distorted("contrast", image, q) - 255 * source).max() <= EXACT
    gray = Image.new("RGB", (64, 64), (128, 128, 128))
    blended = np.asarray(Image.blend(gray, Image.fromarray(image), 0.5))
    assert np.abs(distorted("contrast", image, 0.5).astype(int) - blended).max() <= 1
    assert set(np.unique(distorted("contrast", image, 1e-9))) <= {127, 128}


def test_blur_is_scipys_gaussian_with_mirrored_edges() -> None:
    image = rough(96, 96)
    for q in (0.75, 0.5, 0.25, 0.05):
        sigma = 96 * 3 / 224 * np.sqrt(1 / q - 1)
        radius = int(np.ceil(3 * sigma))
        expected = gaussian_filter(
            image.astype(np.float64), (sigma, sigma, 0), mode="mirror", radius=(radius, radius, 0)
        )
        assert np.abs(distorted("blur", image, q) - expected).max() <= EXACT


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 5), (3, 300), (600, 40), (513, 520)])
def test_images_of_any_size_are_distorted(shape: tuple[int, int]) -> None:
    """Large ones are blurred by transforms instead of matrices, and narrow ones have less to mirror."""
    image = rough(*shape)
    for name in names.DISTORTIONS:
        found = distorted(name, image, 0.05)
        assert found.shape == image.shape
        if name != "jpeg":
            field = field_of(name, image.shape)
            expected = BY_NAME[name].oracle(image, amount_of(name, 0.05, min(shape)), field)
            assert np.abs(found - expected).max() <= EXACT


def test_jpeg_is_pillows_file() -> None:
    image = smooth(50, 70)
    for q, written in ((0.95, 95), (0.5, 50), (0.25, 25), (0.004, 1)):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=written, subsampling="4:2:0")
        assert np.array_equal(distorted("jpeg", image, q), np.asarray(Image.open(file)))


def test_what_a_gpu_does_to_chroma_differs_by_so_much() -> None:
    """DALI's operator on a GPU repeats chroma where libjpeg interpolates it; the definitions say so."""
    image = photograph()
    for q in (0.95, 0.75, 0.5, 0.25, 0.05):
        host = distorted("jpeg", image, q)
        written = round(100 * q)
        repeated = np.abs(host - np.rint(transcoded(image, written, smooth_chroma=False))).mean()
        assert np.abs(host - np.rint(transcoded(image, written, smooth_chroma=True))).mean() < repeated
        assert repeated <= GPU_JPEG_MEAN


@every
def test_quality_1_is_the_image_itself(name: str) -> None:
    image = rough()
    assert distorted(name, image, 1.0) is image
    assert levels_of(name, 0) == FULL_QUALITY
    assert not np.array_equal(distorted(name, image, 0.75), image)


@every
def test_the_error_grows_as_the_quality_falls(name: str) -> None:
    for image in (smooth(), photograph(64)):
        qualities = (0.95, 0.75, 0.5, 0.25, 0.05)
        errors = [np.abs(distorted(name, image, q).astype(int) - image).mean() for q in qualities]
        assert errors == sorted(errors)
        assert errors[-1] > 4 * errors[0]


@every
def test_the_tail_ends_where_nothing_of_8_bits_is_left(name: str) -> None:
    scale = LevelScale(4, 40)
    live = live_levels(range(1, scale.count), REDUCTIONS["none"], scale, None, name)
    # Qualities .125, .0625, … The last is below 1/256 (gray, contrast, blur, noise), or JPEG's quality 1.
    ends = {"jpeg": 8}.get(name, 9)
    assert live == tuple(range(1, ends + 1))
    lowest = quality(np.array([ends, ends + 1, scale.count - 1]), scale)
    below = BY_NAME[name].amounts(lowest, 224)
    assert np.array_equal(below[0], below[1])
    assert np.array_equal(below[1], below[2])


@every
def test_every_level_of_a_grid_is_alive(name: str) -> None:
    """Gray and contrast too have as many levels as the grid: their quality is a share, not a switch."""
    for n in (4, 20, 200):
        live = live_levels(range(1, n), REDUCTIONS["none"], LevelScale(n), None, name)
        if name == "jpeg" and n == 200:
            assert len(live) == 100  # libjpeg has no more qualities
        elif name == "blur" and n == 200:
            assert live == tuple(range(2, n))  # q = .995 is σ = .21 pixels
        else:
            assert live == tuple(range(1, n))


def test_a_blur_of_a_fraction_of_a_pixel_is_no_level() -> None:
    """At 32 pixels q = .75 is σ = .247, which changes no value: black beside white, nor anything between."""
    edge = (
        np.where(np.indices((32, 32)).sum(axis=0)[..., None] % 2, 255, 0).astype(np.uint8).repeat(3, axis=2)
    )
    for image in (edge, rough(32, 32)):
        assert np.array_equal(distorted("blur", image, 0.75), image)
        assert not np.array_equal(distorted("blur", image, 0.5), image)
    assert live_levels(range(1, 4), REDUCTIONS["none"], QUARTERS, None, "blur", 32) == (2, 3)
    assert live_levels(range(1, 4), REDUCTIONS["none"], QUARTERS, None, "blur", 64) == (1, 2, 3)
    for name in ("gray", "contrast", "noise", "jpeg"):
        assert live_levels(range(1, 4), REDUCTIONS["none"], QUARTERS, None, name, 32) == (1, 2, 3)


def test_noise_is_normal_and_each_images_own() -> None:
    field = normal_field(1, 0, 5, (224, 224, 3)) * NORMAL_UNIT
    assert stats.kstest(field.ravel()[:20_000], "norm").pvalue > 0.01
    assert abs(field.mean()) < 0.01
    assert abs(field.std() - 1) < 0.01
    flat = field.reshape(-1, 3)
    neighbours = [np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1], np.corrcoef(flat[:, 0], flat[:, 1])[0, 1]]
    assert np.abs(neighbours).max() < 0.02
    others = [(2, 0, 5), (1, 1, 5), (1, 0, 6), (1, 0, 5 + 2**32)]
    for seed, stream, sample in others:
        other = normal_field(seed, stream, sample, (224, 224, 3)) * NORMAL_UNIT
        assert abs(np.corrcoef(field.ravel(), other.ravel())[0, 1]) < 0.02
    assert np.array_equal(normal_field(1, 0, 5, (224, 224, 3)) * NORMAL_UNIT, field)


def test_a_large_field_begins_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn in parts, so that its memory is bounded."""
    small = normal_field(1, 0, 5, (1000,))
    assert small[:4].tolist() == normal_field(1, 0, 5, (4,)).tolist()
    monkeypatch.setattr("qrdali.reduction.counter_rng._NORMALS_AT_ONCE", 64)
    assert np.array_equal(normal_field(1, 0, 5, (1000,)), small)
    with pytest.raises(ValueError, match="134217728 are possible"):
        normal_field(1, 0, 5, (1 << 14, 1 << 14))


def test_noise_has_the_share_of_the_variance_that_quality_says() -> None:
    """Of a picture with ImageNet's standard deviation, far from where values are cut."""
    gray = np.full((128, 128, 3), 128, np.uint8)
    for q in (0.95, 0.9):
        noise = (distorted("noise", gray, q).astype(int) - gray).var() / 255**2
        assert 0.226**2 / (0.226**2 + noise) == pytest.approx(q, abs=0.005)


def test_params_are_of_the_images_that_are_selected() -> None:
    qualities = {"noise": np.array([1.0, 0.5, 0.25]), "gray": np.array([0.5, 1.0, 0.5])}
    params = distortion_params(qualities, 64, FieldKeys(3, True, np.array([4, 5, 6])))
    assert [each.name for each in params] == ["gray", "noise"]  # in the order in which they are applied
    assert params[1].applied.tolist() == [False, True, True]
    assert params[1].field(0, (8, 8, 3)) is NO_FIELD
    assert params[0].field(0, (8, 8, 3)) is None
    image = rough()
    selected = tuple(each.select(np.array([False, True, True])) for each in params)
    for i in range(2):
        assert np.array_equal(distort(image, selected, i), distort(image, params, i + 1))
    in_turn = distort(distorted("gray", image, 0.5), params[1:], 2)
    assert np.array_equal(distort(image, params, 2), in_turn)


def test_levels_of_distortions() -> None:
    samples = np.arange(4000)
    constant = levels_of("blur", 2)
    assert constant == constant_levels(REDUCTIONS["none"], 2, "blur")
    assert constant.distortions == ("blur",)
    assert not constant.for_samples(samples[:3]).any()
    assert constant.of_distortion("blur", samples[:3]).tolist() == [2, 2, 2]
    assert qualities_of(constant, QUARTERS) == {"color": 1, "crop": 1, "resolution": 1, "blur": 0.5}
    drawn = RandomLevels(REDUCTIONS["none"], 1, 3, 7, 1, "jpeg")
    plain = RandomLevels(REDUCTIONS["color"], 1, 3, 7, 1)
    assert not drawn.for_samples(samples).any()
    assert np.array_equal(drawn.of_distortion("jpeg", samples), plain.for_samples(samples)[:, 0])
    keys = quality_names("jpeg")
    assert keys == ("color", "crop", "resolution", "jpeg")
    counts = histogram(drawn, 4000, QUARTERS, keys)
    assert counts[:3].tolist() == [[4000, 0, 0, 0]] * 3
    assert counts[3].tolist() == np.bincount(plain.for_samples(samples)[:, 0], minlength=4).tolist()
    assert histogram(FULL_QUALITY, 10, QUARTERS, keys).tolist() == [[10, 0, 0, 0]] * 4
    assert histogram(levels_of("jpeg", 3), 10, QUARTERS, keys)[3].tolist() == [0, 0, 0, 10]


def test_chosen_reductions() -> None:
    assert names.chosen(None) == ("color", "crop", "resolution", "combination")
    assert names.chosen(["jpeg", "crop", "jpeg"]) == ("crop", "jpeg")
    assert names.chosen(["all"]) == names.REDUCING
    for wrong in (["none"], [], ["blurr"]):
        with pytest.raises(InputError, match="give one or more of color, crop"):
            names.chosen(wrong)
