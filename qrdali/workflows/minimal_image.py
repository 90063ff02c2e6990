"""The result of a search for one photograph's minimal image: the image, and every step of the way to it."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from qrdali.files.atomic import write_whole
from qrdali.workflows.public import public

Pixels = npt.NDArray[np.uint8]


class Window(NamedTuple):
    """Says what is left of an image, in pixels of the upright original."""

    top: int
    left: int
    height: int
    width: int


class StepLevels(NamedTuple):
    """Holds the level of each dimension, as `qrdali.reduce` and manifests have them."""

    color: int
    crop: int
    resolution: int


class StepQualities(NamedTuple):
    """Holds what each dimension keeps of the information, in (0, 1]."""

    color: float
    crop: float
    resolution: float


@dataclass(frozen=True)
class MinimalStep:
    """Holds one step of the way to a minimal image.

    png: the reduced image as a file, whose bytes are its entropy. window: what is left of the
    original. reduced: the dimension that this step reduced, "" at full quality. probability: of the image's
    class. answer, confidence: the class that the network takes it for, and that class's probability.
    quotient: PNG bytes by those of the original.
    """

    png: bytes = field(repr=False)
    levels: StepLevels
    qualities: StepQualities
    window: Window
    reduced: str
    probability: float
    answer: str
    confidence: float
    quotient: float

    @property
    def size(self) -> tuple[int, int]:
        """Returns the reduced image's (height, width)."""
        with Image.open(io.BytesIO(self.png)) as file:
            return file.height, file.width

    @property
    def image(self) -> Pixels:
        """Returns the reduced image, uint8 [h, w, 3]; each call decodes it anew."""
        with Image.open(io.BytesIO(self.png)) as file:
            return np.array(file.convert("RGB"))


@dataclass(frozen=True)
class MinimalImage:
    """Holds the minimal image that `qrdali.minimal` has found, and the way there.

    steps: from full quality to the minimal image, in order. next_step: what the network answers one step
    further, where it is wrong: of several such steps the one at which the class had the highest probability;
    None where no further step changes the image. reduction: the dimensions that could move, such as
    "combination". class_name, label: the class, and its number among the network's. name: of the image.
    model: of the network. evaluations: forward passes of one image that the search took.
    """

    steps: tuple[MinimalStep, ...]
    next_step: MinimalStep | None
    reduction: str
    class_name: str
    label: int
    name: str
    model: str
    evaluations: int

    @property
    def _last(self) -> MinimalStep:
        return self.steps[-1]

    @property
    def image(self) -> Pixels:
        """Returns the minimal image, uint8 [h, w, 3]."""
        return self._last.image

    @property
    def png(self) -> bytes:
        """Returns its PNG file, whose bytes are its entropy."""
        return self._last.png

    @property
    def original(self) -> Pixels:
        """Returns the image at full quality, uint8 [H, W, 3]."""
        return self.steps[0].image

    @property
    def quotient(self) -> float:
        """Returns its entropy over the original's."""
        return self._last.quotient

    @property
    def probability(self) -> float:
        """Returns the probability of the class at the minimal image."""
        return self._last.probability

    @property
    def levels(self) -> StepLevels:
        """Returns its levels (color, crop, resolution), as `qrdali.reduce` and manifests have them."""
        return self._last.levels

    @property
    def qualities(self) -> StepQualities:
        """Returns its qualities (color, crop, resolution), in (0, 1]."""
        return self._last.qualities

    @property
    def window(self) -> Window:
        """Returns where it lies in the original: top, left, height, width."""
        return self._last.window

    @public
    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the minimal image as a PNG of exactly the bytes that are counted."""
        write_whole(Path(file), self.png)

    @public
    def sheet(self, file: str | os.PathLike[str]) -> None:
        """Writes a PNG of the original, the minimal image, every step between them and the curve of
        probability against entropy."""
        from qrdali.workflows.minimal_sheet import draw

        write_whole(Path(file), draw(self))
