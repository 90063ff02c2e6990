"""The pipelines for anyone's training loop: batches of a split, reduced as the caller says epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from qrdali.data.index import Dataset, Index
from qrdali.errors import InputError, printable
from qrdali.models import FITS, Preprocessing, preprocessing
from qrdali.reduction.auto_augment import parse_policy
from qrdali.reduction.levels import ConstantLevels, Levels, PerImageLevels
from qrdali.reduction.names import DISTORTIONS
from qrdali.reduction.quality import DIMENSIONS, MAX_TAIL, LevelScale, level_of, num_levels_of
from qrdali.runs.settings import MAX_BATCH
from qrdali.schedule.epoch_plan import EpochPlan
from qrdali.workflows.public import public
from qrdali.workflows.python_words import python_errors

if TYPE_CHECKING:
    from qrdali.interfaces import Batch

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENTATIONS = ("none", "flip", "rrc")


class Loader:
    """Decodes, reduces and normalises the images of one split; each call of `epoch` sets what is reduced.

    `for batch in loader.epoch(1, quality={"crop": 0.5})` goes through all images once, each cut to half of
    its area. What is given here holds for every epoch: what a network is shown of the reduced image.

    split: the images, such as `data["train"]`.
    model: a network's name, whose published preprocessing is used: input size, mean, std, interpolation.
        What is given beside it wins.
    input_size: side S of the square that the network sees, 8 to 4096 pixels. Without `model` it is required;
        mean and std are then ImageNet's, interpolation is "bilinear".
    batch_size: images of a batch, all processes together, 1 to 2²⁰.
    fit: "whole" resizes the whole reduced image to the square, "center" its centre square (the model's
        published share of the shorter side; without a model all of it).
    mean, std: three numbers each, of red, green and blue, of pixels in 0 … 1.
    interpolation: "bilinear" or "bicubic", with antialiasing.
    device: where batches are made: "cpu", "cuda", or "auto" for a GPU if there is one.
    threads: decoding threads; None for as many as the process may use.

    If torch.distributed is initialised, each process gets its part of every batch: `batch_size` is of all
    processes together, as in `qrdali train`, and all get the same number of batches. Raises InputError for
    an option out of range, and where the last batch has fewer images than there are processes; RunError if
    "cuda" is asked for and there is none.

    Example:
        >>> data = qrdali.Dataset.open("data")
        >>> loader = qrdali.Loader(data["train"], input_size=32, batch_size=8, device="cpu")
        >>> len(loader), len(loader.classes)
        (3, 4)
        >>> batch = next(loader.epoch(1, quality={"crop": .5}, augment="flip", seed=0))
        >>> batch.images.shape, batch.labels.dtype
        (torch.Size([8, 3, 32, 32]), torch.int64)
    """

    @public
    def __init__(
        self,
        split: Index,
        *,
        model: str | None = None,
        input_size: int | None = None,
        batch_size: int = 64,
        fit: Literal["whole", "center"] = "whole",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Literal["bilinear", "bicubic"] | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        from qrdali.distributed.current_rank import current_shard
        from qrdali.pipelines.engine import engine_for
        from qrdali.pipelines.loader import open_loader
        from qrdali.system.device import resolve_device

        if not isinstance(split, Index):
            raise InputError(f'split is a {type(split).__name__}: give an index such as data["train"]')
        if not 1 <= batch_size <= MAX_BATCH:
            raise InputError(f"batch_size is {batch_size}: choose 1 to {MAX_BATCH}")
        if device not in ("auto", "cpu", "cuda"):
            raise InputError(f'device is {device!r}: choose "auto", "cpu" or "cuda"')
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: choose 1 or more, or None for all that may be used")
        self.split, self.batch_size = split, batch_size
        self._preprocessing = _preprocessing(model, input_size, fit, (mean, std), interpolation)
        shard = current_shard()
        self.rank, self.world_size = shard.rank, shard.world_size
        left = len(split) % batch_size
        if self.world_size > batch_size or 0 < left < self.world_size:
            raise InputError(
                f"batch_size {batch_size} leaves {left or batch_size} of {len(split)} images for a batch of "
                f"{self.world_size} processes: each needs one, choose another"
            )
        engine = engine_for(resolve_device(device), threads, shard.local_world_size)
        # The largest part of a batch that one process gets.
        self._source = open_loader(split, self._preprocessing, -(-batch_size // self.world_size), engine)

    def __len__(self) -> int:
        """Returns the number of batches of an epoch, the same in every process; the last may be smaller."""
        return -(-len(self.split) // self.batch_size)

    @property
    def preprocessing(self) -> Preprocessing:
        """Returns how images become what the network sees, which `qrdali.minimal` takes with a network."""
        return self._preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the class names of the split's data set, in label order.

        Raises InputError if its folder has lost its classes.tsv.
        """
        return Dataset.open(self.split.file.parent).classes

    @public
    def epoch(
        self,
        number: int,
        *,
        quality: Mapping[str, float] | None = None,
        levels: npt.NDArray[np.integer] | None = None,
        step: float = 0.25,
        augment: Literal["none", "flip", "rrc"] = "none",
        auto_augment: str = "none",
        erase: float = 0.0,
        shuffle: bool = True,
        seed: int = 0,
        on_unreadable: Callable[[dict[int, str]], None] | None = None,
    ) -> Iterator[Batch]:
        """Returns an iterator over the batches of one pass, each image once; a later call abandons this one.

        A batch (qrdali.Batch) has `images`, float32 [N, 3, S, S] channels last, (v / 255 − mean) / std;
        `labels` and `samples`, int64 [N], the class and the row of each image in the split; `number`, from 0.
        All are on the loader's device.

        number: of the epoch, 0 or more; order, windows and augmentation depend on (seed, number, sample)
            alone.
        quality: by dimension ("color", "crop", "resolution") and distortion ("gray", "contrast", "blur",
            "noise", "jpeg"), in (0, 1] and on the grid of `step`; what is not named stays whole.
        levels: instead, each image's own levels, integers [images of the split, 3] (color, crop, resolution),
            each 0 to n − 1; level k has the quality (n − k)/n; levels n to n + 39, the tail, halve the lowest
            quality again and again. The windows of their crops are drawn as those of `quality` are.
        step: the grid of qualities, 1/n.
        augment: "none"; "flip" mirrors half of the images; "rrc" cuts a random resized crop and mirrors.
        auto_augment: "none"; "rand-m0" to "rand-m30", RandAugment's two operators at that of 31 magnitudes;
            "trivial", TrivialAugment; "augmix", on a CPU only. They act on the reduced image at input size.
        erase: the probability, 0 to 1, that a rectangle of an image becomes 0, the mean colour.
        shuffle: False gives the order of the split, centred windows and no augmentation, as for validation.
        seed: of all that is drawn, 0 to 2⁶³ − 1.
        on_unreadable: is called with {sample: reason} of images that cannot be read any more, which are then
            left out of their batch.

        Raises InputError for a value out of range, such as a quality off the grid, whose neighbours it names;
        while iterating, RunError naming the file that cannot be read, unless `on_unreadable` is given.

        Example:
            >>> loader = qrdali.Loader(qrdali.Dataset.open("data")["val"], input_size=32, device="cpu")
            >>> for batch in loader.epoch(0, shuffle=False):
            ...     print(batch.samples.tolist()[:4], batch.labels.tolist()[:4])
            [0, 1, 2, 3] [0, 0, 0, 1]
        """
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"number is {number!r}: the first epoch is 0 or 1")
        if augment not in AUGMENTATIONS:
            raise InputError(f"augment is {augment!r}: choose one of {', '.join(AUGMENTATIONS)}")
        for name, value, off in (
            ("augment", augment, "none"),
            ("auto_augment", auto_augment, "none"),
            ("erase", erase, 0),
        ):
            if value != off and not shuffle:
                raise InputError(f"{name}={value!r} is for shuffled epochs: leave it out, or shuffle")
        _check_policy(auto_augment)
        if not 0 <= erase <= 1:
            raise InputError(f"erase is {erase!r}: give a probability, 0 to 1")
        if not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed}: choose 0 to 2⁶³ − 1")
        scale = LevelScale(num_levels_of(step), MAX_TAIL)
        plan = EpochPlan(
            len(self.split),
            self.batch_size,
            self._levels(quality, levels, scale),
            scale,
            seed,
            number,
            training=shuffle,
            augment=augment,
            auto_augment="" if auto_augment == "none" else auto_augment,
            erase=erase,
            rank=self.rank,
            world_size=self.world_size,
        )
        return _with_python_errors(self._source.epoch(plan, on_unreadable))

    def _levels(
        self, quality: Mapping[str, float] | None, levels: npt.NDArray[np.integer] | None, scale: LevelScale
    ) -> Levels:
        if levels is None:
            return _constant_levels(quality or {}, scale)
        if quality is not None:
            raise InputError("quality and levels both say how much is reduced: give one of them")
        array = np.asarray(levels)
        if array.dtype.kind not in "iu" or array.shape != (len(self.split), 3):
            raise InputError(
                f"levels is {array.dtype}{list(array.shape)}: give integers [{len(self.split)}, 3]"
            )
        if array.min() < 0 or array.max() >= scale.count:
            raise InputError(
                f"levels holds {array.min()} to {array.max()}: step 1/{scale.grid} and its tail have 0 to "
                f"{scale.count - 1}"
            )
        return PerImageLevels(array.astype(np.uint8), None, None)


def _with_python_errors(batches: Iterator[Batch]) -> Iterator[Batch]:
    with python_errors():
        yield from batches


def _check_policy(name: str) -> None:
    try:
        if name != "none":
            parse_policy(str(name))
    except ValueError as error:
        raise InputError(f"auto_augment is {printable(name)[:80]!r}: {error}, or none") from None


def _constant_levels(quality: Mapping[str, float], scale: LevelScale) -> ConstantLevels:
    if unknown := sorted(set(quality) - {*DIMENSIONS, *DISTORTIONS}, key=str):
        raise InputError(
            f"quality names {printable(unknown[0])!r}: the dimensions are {', '.join(DIMENSIONS)}, the "
            f"distortions {', '.join(DISTORTIONS)}"
        )
    found: dict[str, int] = {}
    for dimension, value in quality.items():
        try:
            found[dimension] = level_of(value, scale)
        except InputError as error:
            raise InputError(f"{dimension}: {error}") from None
    distorted = tuple((name, found.pop(name)) for name in DISTORTIONS if name in found)
    return ConstantLevels(**found, distorted=tuple((name, level) for name, level in distorted if level))


def _preprocessing(
    model: str | None,
    input_size: int | None,
    fit: str,
    mean_and_std: tuple[tuple[float, ...] | None, tuple[float, ...] | None],
    interpolation: str | None,
) -> Preprocessing:
    if fit not in FITS:
        raise InputError(f"fit is {fit!r}: choose one of {', '.join(FITS)}")
    if interpolation not in (None, "bilinear", "bicubic"):
        raise InputError(f'interpolation is {interpolation!r}: choose "bilinear" or "bicubic"')
    if input_size is not None and not 8 <= input_size <= 4096:
        raise InputError(f"input_size is {input_size}: choose 8 to 4096 pixels")
    if model is not None:
        base = preprocessing(model, input_size, fit)
    elif input_size is not None:
        base = Preprocessing(input_size, fit, 1.0, "bilinear", IMAGENET_MEAN, IMAGENET_STD)
    else:
        raise InputError("neither model nor input_size is given: one of them says how large inputs are")
    mean, std = (
        own if given is None else tuple(map(float, given))
        for given, own in zip(mean_and_std, (base.mean, base.std), strict=True)
    )
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise InputError(f"mean is {mean}, std is {std}: give three numbers each, std above 0")
    return replace(base, interpolation=interpolation or base.interpolation, mean=mean, std=std)
