"""Pixels of augmented images: torchvision's on a CPU, exactly; DALI's within stated tolerances."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from devices import GPU, GRAPH, HOST, ON_GPU
from nvidia.dali import backend, fn, pipeline_def
from PIL import Image
from test_gpu_graphs import made, operators, schema_of, source
from test_graph_inputs import check_arrays
from torchvision.transforms import InterpolationMode, autoaugment

from qrdali.data.index import Dataset, Index
from qrdali.errors import InputError
from qrdali.interfaces import BatchSource
from qrdali.models import Preprocessing
from qrdali.pipelines import dali_augment, graphs, host_augment
from qrdali.pipelines.engine import Engine
from qrdali.pipelines.external_source import augment_inputs, network_inputs, prepared_batches
from qrdali.pipelines.graph_inputs import OperatorInputs, flatten, network_layout
from qrdali.pipelines.loader import open_loader
from qrdali.reduction.auto_augment import (
    AUGMIX_DEPTH,
    OPERATORS,
    ImageAugmentation,
    OperatorDraws,
    Policy,
    parse_policy,
)
from qrdali.reduction.levels import FULL_QUALITY, ConstantLevels
from qrdali.schedule.epoch_plan import EpochPlan

TORCHVISION = [
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
]
SIDE = 48
PRE = Preprocessing(SIDE, "whole", 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
engines = pytest.mark.parametrize("engine", [HOST, GRAPH, GPU])
# By operator: the largest difference of DALI's from torchvision's, in levels, and the largest mean.
EXACT = dict.fromkeys(
    ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "posterize", "solarize"), (0, 0.0)
)
ROUNDED = dict.fromkeys(("brightness", "color", "contrast", "auto_contrast"), (2, 0.7))
TOLERANCES = {
    **EXACT,
    **ROUNDED,
    "rotate": (255, 0.5),  # now and then another of two neighbouring pixels
    "sharpness": (1, 0.7),  # but for the border, which Pillow leaves as it is
    "equalize": (32, 8.0),  # OpenCV's formula, not Pillow's
}

Pixels = npt.NDArray[np.uint8]


def picture(seed: int = 0) -> Pixels:
    """Smooth colours with some noise, in which no channel has all values."""
    y, x = np.mgrid[:SIDE, :SIDE]
    planes = np.stack([20 + 4 * x, 30 + 3 * y, 255 - (x * y) // 12], axis=-1)
    noise = np.random.default_rng(seed).integers(-9, 10, planes.shape)
    result: Pixels = np.clip(planes + noise, 0, 255).astype(np.uint8)
    return result


def oracle(pixels: Pixels, number: int, magnitude: float, bilinear: bool = False) -> Pixels:
    """What torchvision's policies make of an image."""
    mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.NEAREST
    image = autoaugment._apply_op(Image.fromarray(pixels), TORCHVISION[number], magnitude, mode, None)
    return np.asarray(image)


def one(operator: int, chosen: int, negative: bool, places: int) -> OperatorDraws:
    """The draws of one image whose first operator is given and whose others do nothing."""
    rest = [0] * (places - 1)
    return OperatorDraws(
        np.array([[operator, *rest]], np.uint8),
        np.array([[chosen, *rest]], np.uint8),
        np.array([[negative, *[False] * (places - 1)]]),
    )


def cases(policy: Policy) -> Iterator[tuple[int, int, bool]]:
    bins = range(policy.magnitudes(SIDE).shape[1])
    for number in range(len(OPERATORS)):
        for chosen in (bins[0], bins[len(bins) // 3], bins[-1]):
            yield number, chosen, False
            if 1 <= number <= 9:
                yield number, chosen, True


@pytest.mark.parametrize("name", ["rand-m9", "trivial"])
def test_every_operator_on_the_host_is_torchvisions(name: str) -> None:
    policy, pixels = parse_policy(name), picture()
    changed = set()
    for number, chosen, negative in cases(policy):
        draws = one(number, chosen, negative, policy.operators)
        found = host_augment.augment(pixels, ImageAugmentation(policy, draws, None), 0)
        magnitude = policy.magnitudes(SIDE)[number, chosen] * (-1 if negative else 1)
        assert np.array_equal(found, oracle(pixels, number, magnitude)), (OPERATORS[number], magnitude)
        if not np.array_equal(found, pixels):
            changed.add(OPERATORS[number])
    assert changed == {*OPERATORS} - {"identity"}
    assert np.array_equal(pixels, picture())  # what came in is as it was


def test_operators_act_one_after_the_other_on_the_host() -> None:
    policy, pixels = parse_policy("rand-m20"), picture()
    equalize, rotate = OPERATORS.index("equalize"), OPERATORS.index("rotate")
    draws = OperatorDraws(
        np.array([[equalize, rotate]], np.uint8), np.full((1, 2), 20, np.uint8), np.array([[False, True]])
    )
    found = host_augment.augment(pixels, ImageAugmentation(policy, draws, None), 0)
    angle = -policy.magnitudes(SIDE)[rotate, 20]
    assert np.array_equal(found, oracle(oracle(pixels, equalize, 0), rotate, angle))
    assert not np.array_equal(found, oracle(oracle(pixels, rotate, angle), equalize, 0))


def test_augmix_is_the_weighted_sum_of_its_chains() -> None:
    policy, pixels = parse_policy("augmix"), picture()
    table = policy.magnitudes(SIDE)
    draws = policy.draw(4, 1, np.arange(12))
    assert draws.weights is not None
    for i in range(12):
        expected = draws.weights[i, 0] * pixels
        for chain in range(3):
            image = pixels
            for place in range(chain * AUGMIX_DEPTH, (chain + 1) * AUGMIX_DEPTH):
                number = int(draws.operator[i, place])
                magnitude = table[number, draws.bin[i, place]] * (-1 if draws.negative[i, place] else 1)
                image = oracle(image, number, magnitude, bilinear=True)
            expected = expected + draws.weights[i, 1 + chain] * image
        found = host_augment.augment(pixels, ImageAugmentation(policy, draws, None), i)
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() < 0.501
        assert not np.array_equal(found, pixels)


def in_a_graph(policy: Policy, device: str, wanted: list[tuple[int, int, bool]]) -> list[Pixels]:
    """What a graph makes of `picture()` for each of `wanted`."""
    draws = [one(*case, policy.operators) for case in wanted]
    arrays = [np.concatenate([d[k] for d in draws]).astype(np.int32) for k in range(3)]  # type: ignore[misc]
    on_gpu = device == "gpu"

    @pipeline_def(
        enable_conditionals=True, batch_size=len(wanted), num_threads=1, device_id=0 if on_gpu else None
    )
    def graph() -> Any:
        pixels, *names = fn.external_source(
            lambda: ([picture()] * len(wanted), *arrays), num_outputs=4, batch=True
        )
        pixels = fn.reshape(pixels, layout="HWC")
        return dali_augment.auto_augment(
            pixels.gpu() if on_gpu else pixels, OperatorInputs(*names), policy, SIDE
        )

    (images,) = graph().run()
    images = images.as_cpu() if on_gpu else images
    return [np.array(images[i]) for i in range(len(wanted))]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=ON_GPU)])
@pytest.mark.parametrize("name", ["rand-m9", "trivial"])
def test_every_operator_in_a_graph_is_torchvisions_within_its_tolerance(
    name: str, device: str, recwarn: pytest.WarningsRecorder
) -> None:
    policy, pixels = parse_policy(name), picture()
    wanted = list(cases(policy))
    for (number, chosen, negative), found in zip(wanted, in_a_graph(policy, device, wanted), strict=True):
        magnitude = policy.magnitudes(SIDE)[number, chosen] * (-1 if negative else 1)
        difference = np.abs(found.astype(int) - oracle(pixels, number, magnitude))
        largest, mean = TOLERANCES[OPERATORS[number]]
        if OPERATORS[number] == "sharpness":
            difference = difference[1:-1, 1:-1]
        assert difference.max() <= largest, (OPERATORS[number], magnitude)
        assert difference.mean() <= mean, (OPERATORS[number], magnitude)
    assert [str(w.message) for w in recwarn if issubclass(w.category, DeprecationWarning)] == []


def plan(index: Index, **values: Any) -> EpochPlan:
    given = {"seed": 2, "epoch": 1, "training": True, "augment": "flip", **values}
    return EpochPlan(len(index), 5, given.pop("levels", FULL_QUALITY), **given)


def emitted(loader: BatchSource, plan: EpochPlan) -> dict[int, torch.Tensor]:
    return {
        int(sample): image
        for batch in loader.epoch(plan)
        for sample, image in zip(batch.samples, batch.images.cpu(), strict=True)
    }


def values_of(image: torch.Tensor) -> Pixels:
    """The uint8 values of a normalised image."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (PRE.mean, PRE.std))
    result: Pixels = ((image * std + mean) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return result


@pytest.mark.parametrize(
    "levels",
    [FULL_QUALITY, ConstantLevels(1, 1, 1), ConstantLevels(distorted=(("contrast", 2), ("gray", 1)))],
    ids=["C", "R", "distorted"],
)
@pytest.mark.parametrize("name", ["rand-m9", "trivial", "augmix"])
def test_the_host_augments_the_flipped_square(dataset: Dataset, name: str, levels: ConstantLevels) -> None:
    index = dataset.index("train")
    loader = open_loader(index, PRE, 5, Engine(threads=2))
    plain = emitted(loader, plan(index, levels=levels))
    seen = emitted(loader, plan(index, levels=levels, auto_augment=name))
    policy, samples = parse_policy(name), np.arange(len(index))
    augmentation = ImageAugmentation(policy, policy.draw(2, 1, samples), None)
    for sample, image in seen.items():
        assert np.array_equal(
            values_of(image), host_augment.augment(values_of(plain[sample]), augmentation, sample)
        )
    changed = sum(not torch.equal(seen[s], plain[s]) for s in plain)
    assert changed > len(plain) // 2
    # The next epoch draws anew, and one without augmentation has none.
    other = emitted(loader, plan(index, levels=levels, auto_augment=name, epoch=3))
    assert sum(torch.equal(other[s], seen[s]) for s in seen) < len(seen) // 2
    again = emitted(loader, plan(index, levels=levels))
    assert all(torch.equal(again[s], plain[s]) for s in plain)


@pytest.mark.parametrize("name", ["rand-m9", "trivial"])
def test_a_graph_augments_distorted_images_as_the_host(dataset: Dataset, name: str) -> None:
    index, levels = dataset.index("train"), ConstantLevels(distorted=(("contrast", 1), ("gray", 1)))
    host, graph = (
        emitted(
            open_loader(index, PRE, 5, Engine(whole_graph=whole)),
            plan(index, levels=levels, auto_augment=name, erase=0.5),
        )
        for whole in (False, True)
    )
    means = [np.abs(values_of(host[s]).astype(int) - values_of(graph[s])).mean() for s in host]
    assert np.median(means) < 1.5


@pytest.mark.parametrize("name", ["rand-m9", "trivial"])
def test_a_graph_augments_as_the_host(dataset: Dataset, name: str) -> None:
    """What comes before differs by at most two levels; operators such as equalize make more of that."""
    index = dataset.index("train")
    host, graph = (
        emitted(
            open_loader(index, PRE, 5, Engine(whole_graph=whole)),
            plan(index, auto_augment=name, erase=0.5),
        )
        for whole in (False, True)
    )
    means = [np.abs(values_of(host[s]).astype(int) - values_of(graph[s])).mean() for s in host]
    assert len(means) == len(index)
    assert np.median(means) < 1
    assert max(means) < 20


@engines
def test_loaders_erase_windows_after_all_else(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    loader = open_loader(index, PRE, 5, engine)
    erasing = plan(index, erase=0.6)
    plain, seen = emitted(loader, plan(index)), emitted(loader, erasing)
    augmentation = erasing.augmentation(np.arange(len(index)), SIDE)
    assert augmentation is not None
    assert augmentation.erased is not None
    assert 6 < (augmentation.erased[:, 2] > 0).sum() < len(index)
    for sample, image in seen.items():
        top, left, height, width = augmentation.erased[sample].tolist()
        expected = plain[sample].clone()
        expected[:, top : top + height, left : left + width] = 0
        assert torch.equal(image, expected)


@engines
def test_a_loader_goes_from_one_augmentation_to_another(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    used = open_loader(index, PRE, 5, engine)
    for values in (
        {"auto_augment": "rand-m9"},
        {"auto_augment": "rand-m3"},
        {},
        {"auto_augment": "trivial", "erase": 0.5},
        {"training": False, "auto_augment": "trivial", "erase": 0.5},
        {"erase": 0.5, "augment": "rrc"},
    ):
        seen, fresh = (
            emitted(loader, plan(index, **values)) for loader in (used, open_loader(index, PRE, 5, engine))
        )
        assert sorted(seen) == list(range(len(index)))
        assert all(torch.equal(seen[s], fresh[s]) for s in fresh)
        if values.get("training") is False:
            evaluated = emitted(used, EpochPlan(len(index), 5, FULL_QUALITY))
            assert all(torch.equal(seen[s], evaluated[s]) for s in evaluated)


def test_augmentations_go_with_the_images_that_are_left(dataset: Dataset) -> None:
    index = dataset.index("train")
    batch = next(prepared_batches(plan(index, auto_augment="augmix", erase=1.0), index, PRE))
    mask = np.array([True, False, True, True, False])
    left, whole = batch.select(mask).augmentation, batch.augmentation
    assert left is not None
    assert whole is not None
    assert left.draws is not None
    assert whole.draws is not None
    for one_field, other in zip(left.draws, whole.draws, strict=True):
        assert np.array_equal(one_field, other[mask])  # type: ignore[arg-type, index]
    assert left.erased is not None
    assert whole.erased is not None
    assert np.array_equal(left.erased, whole.erased[mask])


@pytest.mark.parametrize("engine", [Engine(whole_graph=True), Engine(0)])
def test_a_graph_refuses_augmix(dataset: Dataset, engine: Engine) -> None:
    index = dataset.index("train")
    with pytest.raises(InputError, match="augmix is made on a CPU only: use rand-m9 or trivial"):
        open_loader(index, PRE, 5, engine).epoch(plan(index, auto_augment="augmix"))


def test_the_arrays_of_an_augmented_plan_are_as_declared(dataset: Dataset) -> None:
    index = dataset.index("train")
    batch = next(prepared_batches(plan(index, auto_augment="rand-m9", erase=0.5), index, PRE))
    inputs = network_inputs(index.path_bytes(batch.samples), batch, PRE)
    assert inputs.augment is not None
    assert inputs.augment.operators is not None
    for array in inputs.augment.operators:
        assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.int32, (5, 2), True)
    assert inputs.augment.erased is not None
    check_arrays(inputs.augment.erased, 5)
    assert len(flatten(inputs)) == len(flatten(network_layout(2, (), True, True))) == 32
    assert augment_inputs(ImageAugmentation(None, None, np.zeros((5, 4), np.int32))).operators is None


VARIANTS: dict[str, Callable[[], Any]] = {
    name: lambda kind=kind: graphs.network_input(source, Engine(0, 2, 2), 4, PRE, kind=kind)
    for name, kind in {
        "rand": graphs.GraphKind(2, (), parse_policy("rand-m9"), True),
        "trivial": graphs.GraphKind(2, (), parse_policy("trivial")),
        "erase": graphs.GraphKind(2, (), None, True),
    }.items()
}


@pytest.mark.parametrize("name", VARIANTS)
def test_augmented_graphs_for_a_gpu_keep_images_there(name: str) -> None:
    """As in test_gpu_graphs: it needs no GPU."""
    pipeline = made(VARIANTS[name])
    found = operators(pipeline)
    assert all(device in backend.GetSchema(schema).GetSupportedBackends() for schema, device in found)
    names = {schema for schema, device in found if device == "gpu"}
    assert {"Flip", "CropMirrorNormalize"} <= names
    assert ("Erase" in names) == (name != "trivial")
    assert ({"Rotate", "WarpAffine", "Equalize", "Filter", "Brightness"} <= names) == (name != "erase")
    for operator in pipeline._ops:
        regular = operator.inputs[: operator.spec.NumRegularInput()]
        if operator._op.device == "gpu" and regular:
            assert regular[0].device == "gpu", schema_of(operator)


def test_a_tail_of_the_batch_may_be_smaller(dataset: Dataset) -> None:
    """DALI splits batches among operators: also one of a single image."""
    index = dataset.index("train")
    last = replace(plan(index, auto_augment="rand-m9", erase=0.5), first_batch=4)
    assert len(emitted(open_loader(index, PRE, 5, Engine(whole_graph=True)), last)) == 4
