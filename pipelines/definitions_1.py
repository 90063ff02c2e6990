"""Keeps what a network saw under version 0.1's definitions, to end an epoch that was begun under them.

There the centre crop began between two pixels of the image, and a resize took its passes in another order
than Pillow's. Nothing but a plan of `definitions` 1 comes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qrdali.pipelines.host_ops import Pixels, resize

if TYPE_CHECKING:
    from qrdali.models import Preprocessing
    from qrdali.reduction.network_view import Sizes, View
    from qrdali.schedule.epoch_plan import EpochPlan

Regions = npt.NDArray[np.float32]  # [N, 4] top, left, bottom, right in pixels, not always whole


def regions(plan: EpochPlan, seen: View, sizes: Sizes, preprocessing: Preprocessing) -> Regions:
    """Returns the parts of reduced images of `sizes` that were resized to the network's square.

    seen: what `plan` says of them. "center" showed the centred square whose side is crop_share of the shorter
    side.
    """
    if preprocessing.fit == "whole" or (plan.training and plan.augment == "rrc"):
        return seen.region.astype(np.float32)
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    side = np.minimum(height, width) * preprocessing.crop_share
    top, left = (height - side) / 2, (width - side) / 2
    return np.stack([top, left, top + side, left + side], axis=1).astype(np.float32)


def square(image: Pixels, region: npt.NDArray[np.float32], preprocessing: Preprocessing) -> Pixels:
    """Returns `region`, float32 [4], of an image as a network saw it, uint8 [S, S, 3]."""
    side, interpolation = preprocessing.input_size, preprocessing.interpolation
    top, left, bottom, right = map(float, region)
    if all(edge.is_integer() for edge in (top, left, bottom, right)):
        return resize(image[int(top) : int(bottom), int(left) : int(right)], side, side, interpolation)
    from PIL import Image

    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((side, side), method, box=(left, top, right, bottom)))


def square_in_graph(image: Any, region: Any, preprocessing: Preprocessing) -> Any:
    """Returns what `square` does as a node of a DALI graph."""
    from nvidia.dali import fn, types

    from qrdali.pipelines.dali_ops import INTERPOLATION

    side = preprocessing.input_size
    return fn.resize(
        image,
        size=[side, side],
        roi_start=region[0:2],
        roi_end=region[2:4],
        interp_type=INTERPOLATION[preprocessing.interpolation],
        antialias=True,
        dtype=types.UINT8,
    )
