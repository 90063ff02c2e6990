"""Says what a distortion is: a reduction of the square that a network sees, in a file of its own."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB
Field = npt.NDArray[np.int16]  # [H, W, 3], standard normals in units of `counter_rng.NORMAL_UNIT`
Amount = npt.NDArray[Any]  # [N] or [N, …] int32 or float32: what a distortion does to each of N images
Values = npt.NDArray[np.float64]  # [H, W, 3], of 0 … 255 and not rounded

LOWEST_QUALITY = 1 / 256  # of the tail: what is less changes nothing more, as nothing of 8 bits is left
NOMINAL_SIDE = 224  # pixels: the side that ImageNet-C and Geirhos et al. distort images at


class Distortion(Protocol):
    """Distorts squares of uint8 pixels, in host memory and in a DALI graph.

    has_field: whether it takes standard normals, which are drawn by `counter_rng.normal_field` and fed in.
    """

    has_field: bool

    def amounts(self, qualities: npt.NDArray[np.float64], side: int) -> Amount:
        """Returns what is done at qualities [N] in (0, 1] to images whose shorter side has `side` pixels.

        They are what DALI's operator takes. Quality 1 is never applied; that of two qualities is the same
        only if they do the same to every image.
        """
        ...

    def on_host(self, pixels: Pixels, amount: Any, field: Field | None) -> Pixels:
        """Returns a distorted image, in memory of its own. amount: one of `amounts`."""
        ...

    def in_graph(self, dali: Any, image: Any, amount: Any, field: Any) -> Any:
        """Returns the node of a distorted image, uint8 HWC like the node `image`, on the same device.

        dali: the package nvidia.dali, which only pipelines import. amount, field: nodes; field is None
        without `has_field`, and on the device of `image`.
        """
        ...

    def oracle(self, pixels: Pixels, amount: Any, field: Field | None) -> Values:
        """Returns what the definition asks for, slowly and in another way than `on_host`: for tests."""
        ...
