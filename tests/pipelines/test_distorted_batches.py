"""Distorted batches: both implementations, the limits of the definitions, what comes in which epoch."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from devices import GPU, GRAPH, HOST, WHOLE
from PIL import Image

from qrdali.data.index import Index
from qrdali.data.scan import index_folder
from qrdali.interfaces import BatchSource
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.counter_rng import normal_field
from qrdali.reduction.distortions import BY_NAME
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels, Levels, RandomLevels, levels_of
from qrdali.reduction.names import DISTORTIONS
from qrdali.reduction.quality import QUARTERS, REDUCTIONS, LevelScale
from qrdali.schedule.epoch_plan import EpochPlan

Pixels = npt.NDArray[np.uint8]
SIDE, IMAGES, BATCH = 48, 7, 3
PRE = Preprocessing(SIDE, "whole", 0.875, "bilinear", (0, 0, 0), (1, 1, 1))
TWENTIETHS = LevelScale(20, 40)
# Levels of 255 between the graph and the CPU's operator. JPEG: both are libjpeg-turbo with its defaults.
GRAPH_LIMIT = {"gray": 1, "contrast": 1, "blur": 1, "noise": 1, "jpeg": 0}
# Between a graph on a GPU and one on a CPU: most, and mean. JPEG's chroma is repeated there.
GPU_LIMIT = {"gray": (1, 0.1), "contrast": (1, 0.1), "blur": (1, 0.1), "noise": (1, 0.1), "jpeg": (255, 6)}
engines = pytest.mark.parametrize("engine", [HOST, GRAPH, GPU])
every = pytest.mark.parametrize("name", DISTORTIONS)


def picture(number: int) -> Pixels:
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return rng.integers(0, 256, smooth.shape, dtype=np.uint8) if number == IMAGES - 1 else smooth


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """PNG files of the network's size: what is distorted is the same everywhere."""
    folder = tmp_path_factory.mktemp("squares")
    (folder / "images" / "a").mkdir(parents=True)
    for i in range(IMAGES):
        Image.fromarray(picture(i)).save(folder / "images" / "a" / f"{i}.png")
    index_folder(folder / "images", ("a", "b"), folder / "images.arrow")
    return Index(folder / "images.arrow", 2)


def opened(index: Index, engine: Engine, preprocessing: Preprocessing = PRE) -> BatchSource:
    return open_loader(index, preprocessing, BATCH, engine)


def plan_of(levels: Levels, scale: LevelScale = QUARTERS, **values: object) -> EpochPlan:
    return EpochPlan(IMAGES, BATCH, levels, scale, **values)  # type: ignore[arg-type]


def emitted(source: BatchSource, plan: EpochPlan) -> dict[int, Pixels]:
    """What a network gets by sample, before it was normalized."""
    images: dict[int, Pixels] = {}
    for batch in source.epoch(plan):
        pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy() * 255
        assert np.abs(pixels - pixels.round()).max() < 0.01
        for sample, image in zip(batch.samples.tolist(), pixels.round().astype(np.uint8), strict=True):
            assert sample not in images
            images[sample] = image
    return images


def expected(name: str, sample: int, q: float, seed: int = 0, training: bool = False) -> Pixels:
    """What the definition asks for, by the CPU's operator on the pixels of the file."""
    field = normal_field(seed, int(training), sample, (SIDE, SIDE, 3)) if BY_NAME[name].has_field else None
    return BY_NAME[name].on_host(picture(sample), BY_NAME[name].amounts(np.array([q]), SIDE)[0], field)


def furthest(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b).max())


@every
@engines
@pytest.mark.parametrize("level", [1, 2, 3, 9])
def test_a_network_gets_what_the_definition_says(name: str, engine: Engine, level: int, index: Index) -> None:
    scale = LevelScale(4, 40)
    found = emitted(opened(index, engine), plan_of(levels_of(name, level), scale))
    assert sorted(found) == list(range(IMAGES))
    limit = 0 if engine.host_ops else GRAPH_LIMIT[name]
    for sample, image in found.items():
        wanted = expected(name, sample, scale.quality_of(level))
        if engine.device_id is None:
            assert furthest(image, wanted) <= limit, sample
        else:
            most, mean = GPU_LIMIT[name]
            assert furthest(image, wanted) <= most + 1
            assert np.abs(image.astype(int) - wanted).mean() <= mean + 0.1


@every
@pytest.mark.parametrize("engine", [WHOLE, GPU])
def test_a_gpu_distorts_as_a_cpu_does(name: str, engine: Engine, index: Index) -> None:
    cpu = Engine(threads=2, depth=2, whole_graph=True)
    most, mean = (0, 0.0) if engine.device_id is None else GPU_LIMIT[name]
    for level in (1, 10, 19, 22):
        plan = plan_of(levels_of(name, level), TWENTIETHS)
        a, b = emitted(opened(index, cpu), plan), emitted(opened(index, engine), plan)
        for sample in range(IMAGES):
            assert furthest(a[sample], b[sample]) <= most
            assert np.abs(a[sample].astype(int) - b[sample]).mean() <= mean


@every
@engines
def test_level_0_is_the_plain_evaluation(name: str, engine: Engine, index: Index) -> None:
    """Also where the graph has the distortion, because an image beside it is distorted."""
    plain = emitted(opened(index, engine), plan_of(FULL_QUALITY))
    source = opened(index, engine)
    of_zero = emitted(source, plan_of(ConstantLevels(distorted=((name, 0),))))
    drawn = RandomLevels(REDUCTIONS["none"], 0, 3, 1, 1, name)
    levels = drawn.of_distortion(name, np.arange(IMAGES))
    assert 0 < (levels == 0).sum() < IMAGES
    mixed = emitted(source, plan_of(drawn))
    for sample in range(IMAGES):
        assert np.array_equal(plain[sample], picture(sample))
        assert np.array_equal(of_zero[sample], plain[sample])
        assert np.array_equal(mixed[sample], plain[sample]) == (levels[sample] == 0)


@every
@engines
def test_no_epoch_is_distorted_as_the_one_before(name: str, engine: Engine, index: Index) -> None:
    source = opened(index, engine)
    other = DISTORTIONS[DISTORTIONS.index(name) - 1]
    epochs = [FULL_QUALITY, levels_of(name, 3), FULL_QUALITY, levels_of(other, 2), levels_of("crop", 2)]
    for levels in (*epochs, levels_of(name, 1), levels_of(name, 3)):
        seen, fresh = (emitted(one, plan_of(levels)) for one in (source, opened(index, engine)))
        assert all(np.array_equal(seen[sample], fresh[sample]) for sample in range(IMAGES))


@engines
def test_images_have_levels_of_their_own(engine: Engine, index: Index) -> None:
    for name in DISTORTIONS:
        drawn = RandomLevels(REDUCTIONS["none"], 1, 3, 4, 1, name)
        found = emitted(opened(index, engine), plan_of(drawn))
        levels = drawn.of_distortion(name, np.arange(IMAGES))
        assert len(set(levels.tolist())) == 3
        for level in (1, 2, 3):
            same = emitted(opened(index, engine), plan_of(levels_of(name, level)))
            for sample in np.flatnonzero(levels == level):
                assert np.array_equal(found[sample], same[sample])


@engines
def test_noise_depends_on_seed_and_sample_alone(engine: Engine, index: Index) -> None:
    levels = levels_of("noise", 2)

    def trained(seed: int, epoch: int, **values: object) -> dict[int, Pixels]:
        plan = plan_of(levels, seed=seed, epoch=epoch, training=True, **values)
        return emitted(opened(index, engine), plan)

    first = trained(5, 1)
    for again in (trained(5, 2), trained(5, 1, excluded=(0, 4))):
        assert all(np.array_equal(image, first[sample]) for sample, image in again.items())
    parts = trained(5, 1, rank=0, world_size=2) | trained(5, 1, rank=1, world_size=2)
    assert all(np.array_equal(parts[sample], first[sample]) for sample in range(IMAGES))
    assert all(furthest(first[s], expected("noise", s, 0.5, 5, True)) <= 1 for s in range(IMAGES))
    assert all(furthest(image, first[sample]) > 50 for sample, image in trained(6, 1).items())
    # Evaluation has noise of its own, whatever the seed: a network is not shown what it was trained with.
    evaluations = [emitted(opened(index, engine), plan_of(levels, seed=seed)) for seed in (5, 6)]
    for sample in range(IMAGES):
        assert np.array_equal(evaluations[0][sample], evaluations[1][sample])
        assert furthest(evaluations[0][sample], first[sample]) > 50


@engines
def test_augmentation_acts_before_and_mirrors_the_distorted(engine: Engine, index: Index) -> None:
    def trained(augment: str) -> dict[int, Pixels]:
        plan = plan_of(levels_of("noise", 2), seed=5, epoch=3, training=True, augment=augment)
        return emitted(opened(index, engine), plan)

    plain, flipped = trained("none"), trained("flip")
    mirrored = [np.array_equal(flipped[s], plain[s][:, ::-1]) for s in range(IMAGES)]
    assert 0 < sum(mirrored) < IMAGES
    assert all(np.array_equal(flipped[s], plain[s]) for s in range(IMAGES) if not mirrored[s])


@engines
@pytest.mark.parametrize("fit", ["whole", "center"])
def test_what_the_network_sees_is_distorted(engine: Engine, fit: str, index: Index, tmp_path: Path) -> None:
    """Not the file: σ is a share of the input's side, and JPEG's blocks are its own."""
    preprocessing = replace(PRE, input_size=32, fit=fit)
    plain = emitted(opened(index, engine, preprocessing), plan_of(FULL_QUALITY))
    for name in ("blur", "jpeg"):
        found = emitted(opened(index, engine, preprocessing), plan_of(levels_of(name, 2)))
        amount = BY_NAME[name].amounts(np.array([0.5]), 32)[0]
        for sample in range(IMAGES):
            wanted = BY_NAME[name].on_host(plain[sample], amount, None)
            if engine.device_id is None:
                assert furthest(found[sample], wanted) <= GRAPH_LIMIT[name]


@engines
def test_distortions_come_one_after_another(engine: Engine, index: Index) -> None:
    """In the order of their table, and after crop, resolution and colour."""
    levels = ConstantLevels(color=3, distorted=(("contrast", 2), ("gray", 1)))
    found = emitted(opened(index, engine), plan_of(levels))
    binned = emitted(opened(index, engine), plan_of(levels_of("color", 3)))
    for sample in range(IMAGES):
        image = binned[sample]
        for name, q in (("gray", 0.75), ("contrast", 0.5)):
            image = BY_NAME[name].on_host(image, BY_NAME[name].amounts(np.array([q]), SIDE)[0], None)
        assert furthest(found[sample], image) <= 2 * (not engine.host_ops)


@engines
def test_an_epoch_goes_on_without_a_file_that_is_gone(engine: Engine, tmp_path: Path) -> None:
    """What was in flight is distorted again by its own numbers."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    files = [tmp_path / "images" / "a" / f"{i}.png" for i in range(IMAGES)]
    for i, file in enumerate(files):
        Image.fromarray(picture(i)).save(file)
    index_folder(tmp_path / "images", ("a", "b"), tmp_path / "images.arrow")
    index = Index(tmp_path / "images.arrow", 2)
    drawn = RandomLevels(REDUCTIONS["none"], 0, 3, 4, 1, "noise")
    whole = emitted(opened(index, engine), plan_of(drawn))
    files[1].write_bytes(b"")
    missing: dict[int, str] = {}
    source, found = opened(index, engine), {}
    for batch in source.epoch(plan_of(drawn), missing.update):
        pixels = (batch.images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
        found |= dict(zip(batch.samples.tolist(), pixels, strict=True))
    assert list(missing) == [1]
    assert sorted(found) == [0, 2, 3, 4, 5, 6]
    assert all(np.array_equal(found[sample], whole[sample]) for sample in found)


def test_jpeg_in_a_graph_is_a_file_of_pillows(index: Index) -> None:
    """Without any code of ours: DALI's operator on a CPU against a file that is written and read."""
    found = emitted(opened(index, Engine(whole_graph=True)), plan_of(levels_of("jpeg", 2)))
    for sample, image in found.items():
        file = io.BytesIO()
        Image.fromarray(picture(sample)).save(file, "JPEG", quality=50)
        assert np.array_equal(image, np.asarray(Image.open(file)))
