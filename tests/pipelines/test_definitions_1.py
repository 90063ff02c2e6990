"""What a network saw under version 0.1's definitions, which a run that was begun under them still sees.

The literals are what that version made of the same images.
"""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from qrdali.data.index import Dataset, Index
from qrdali.data.scan import build_dataset
from qrdali.interfaces import BatchSource
from qrdali.models import Preprocessing
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.schedule.epoch_plan import EpochPlan

Values = npt.NDArray[np.float32]
RESOLUTION = ConstantLevels(0, 0, 2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Six PNG files of noise, blurred a little; some so tall that Pillow resizes their columns first."""
    folder = tmp_path_factory.mktemp("definitions-1")
    for i, (height, width) in enumerate([(60, 80), (81, 50), (40, 40), (120, 33), (31, 97), (150, 75)]):
        file = folder / "images" / "train" / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(i).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file)
    build_dataset(folder / "images", folder / "data")
    return Dataset.open(folder / "data").index("train")


# fit, interpolation, augmentation, quality; a digest of the host's values; the graph's deviation by image
OF_VERSION_0_1 = [
    ("whole", "bilinear", "flip", "full", "e2dfad48f746bfe8", [0.628, 0.824, 0.66, 0.654, 0.598, 0.437]),
    (
        "whole",
        "bilinear",
        "flip",
        "resolution",
        "2f4f5a6318c56968",
        [0.567, 0.681, 0.575, 0.583, 0.526, 0.41],
    ),
    ("whole", "bilinear", "rrc", "full", "0f0f391427e1c341", [0.631, 0.868, 0.824, 0.698, 0.788, 0.695]),
    ("whole", "bilinear", "rrc", "resolution", "c373a697fa4c415b", [0.711, 0.676, 0.645, 0.608, 0.65, 0.605]),
    ("whole", "bicubic", "flip", "full", "7d502d1de9660059", [0.744, 0.924, 0.753, 0.766, 0.685, 0.526]),
    (
        "whole",
        "bicubic",
        "flip",
        "resolution",
        "bc419616a381a904",
        [0.656, 0.757, 0.658, 0.671, 0.604, 0.487],
    ),
    ("whole", "bicubic", "rrc", "full", "2b4895fb79c89748", [0.744, 0.951, 0.895, 0.813, 0.88, 0.818]),
    ("whole", "bicubic", "rrc", "resolution", "5c9b00d88e67c0cf", [0.748, 0.754, 0.721, 0.693, 0.72, 0.694]),
    ("center", "bilinear", "flip", "full", "28dfe8443666b935", [0.711, 0.829, 0.844, 0.758, 0.804, 0.621]),
    (
        "center",
        "bilinear",
        "flip",
        "resolution",
        "486569fb4c4bc1ee",
        [0.619, 0.659, 0.667, 0.609, 0.622, 0.545],
    ),
    ("center", "bicubic", "flip", "full", "57d5de7e22df16a1", [0.83, 0.922, 0.917, 0.863, 0.878, 0.747]),
    (
        "center",
        "bicubic",
        "flip",
        "resolution",
        "2f3b6b2bc30748f9",
        [0.703, 0.734, 0.739, 0.701, 0.691, 0.647],
    ),
]


def epoch(loader: BatchSource, plan: EpochPlan) -> Values:
    images = {
        int(sample): image.numpy()
        for batch in loader.epoch(plan)
        for sample, image in zip(batch.samples, batch.images, strict=True)
    }
    return np.stack([images[sample] for sample in sorted(images)])


def shown(index: Index, pre: Preprocessing, levels: ConstantLevels, augment: str, graph: bool) -> Values:
    plan = EpochPlan(6, 4, levels, seed=3, epoch=2, training=True, augment=augment, definitions=1)
    return epoch(open_loader(index, pre, 4, Engine(threads=1, whole_graph=graph)), plan)


@pytest.mark.parametrize(
    ("fit", "interpolation", "augment", "quality", "digest", "deviation"), OF_VERSION_0_1
)
def test_an_epoch_of_definitions_1_is_version_0_1s(
    index: Index,
    fit: str,
    interpolation: str,
    augment: str,
    quality: str,
    digest: str,
    deviation: list[float],
) -> None:
    pre = Preprocessing(32, fit, 0.9, interpolation, (0.5,) * 3, (0.25,) * 3)
    levels = {"full": FULL_QUALITY, "resolution": RESOLUTION}[quality]
    host = shown(index, pre, levels, augment, graph=False)
    assert hashlib.sha256(host.tobytes()).hexdigest()[:16] == digest
    graph = shown(index, pre, levels, augment, graph=True)
    assert graph.std(axis=(1, 2, 3)) == pytest.approx(deviation, abs=0.0006)


@pytest.mark.parametrize("graph", [False, True])
def test_a_loader_goes_from_definitions_1_to_2_and_back(index: Index, graph: bool) -> None:
    pre = Preprocessing(32, "center", 0.9, "bicubic", (0.5,) * 3, (0.25,) * 3)
    loader = open_loader(index, pre, 4, Engine(threads=1, whole_graph=graph))
    seen = [
        epoch(loader, EpochPlan(6, 4, RESOLUTION, training=True, augment="flip", definitions=d))
        for d in (1, 2, 1, 2)
    ]
    assert np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[1], seen[3])
    assert not np.array_equal(seen[0], seen[1])
