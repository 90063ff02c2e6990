"""Augments the squares that a network sees, in a DALI graph; host_augment.py is the twin on the host.

The operators are those of DALI's auto_aug with torchvision's tables of magnitudes, interpolation (nearest)
and colour beyond the image (black). Which one an image goes through, its magnitude and its sign come from the
source: nothing is drawn here. AugMix is the host's alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.auto_aug import augmentations as dali
from nvidia.dali.auto_aug.core import augmentation, select, signed_bin
from nvidia.dali.pipeline import do_not_convert

from qrdali.reduction.auto_augment import OPERATORS, RAND_BINS, Policy

if TYPE_CHECKING:
    from qrdali.pipelines.graph_inputs import OperatorInputs, WindowBounds

Node = Any  # DALI's DataNode


# DALI 2.4 warns at each use that its own two of these call operators by names of before.
@augmentation(randomly_negate=True, mag_to_param=dali.sharpness_kernel, param_device="auto")
def sharpness(data: Node, kernel: Node) -> Node:
    """Sharpens as `auto_aug`'s operator: but for the border of one pixel, as Pillow."""
    return fn.filter(data, kernel)


@augmentation
def equalize(data: Node, _: Node) -> Node:
    """Equalizes the histogram of each channel as `auto_aug`'s operator: by OpenCV's formula, not Pillow's."""
    return fn.equalize(data)


def auto_augment(square: Node, inputs: OperatorInputs, policy: Policy, side: int) -> Node:
    """Returns squares, uint8 HWC [S, S, 3], augmented. inputs: of nodes. side: S.

    The pipeline must have `enable_conditionals`.
    """
    suite = _suite(policy, side)
    for place in range(policy.operators):
        # Signs are joined to the bins before the batch is split among the operators.
        bins = signed_bin(inputs.bin[place], inputs.negative[place])
        square = select(
            suite,
            inputs.operator[place],
            square,
            magnitude_bin=bins,
            num_magnitude_bins=RAND_BINS,
            fill_value=0,
            interp_type=types.INTERP_NN,
        )
    return square


def erase(images: Node, window: WindowBounds) -> Node:
    """Sets windows of normalised images, float32 HWC, to 0, the mean colour. window: of nodes."""
    return fn.erase(
        images,
        anchor=fn.cast(window.start, dtype=types.FLOAT),
        shape=fn.cast(window.shape, dtype=types.FLOAT),
        axis_names="HW",
        fill_value=0.0,
    )


@do_not_convert
def _suite(policy: Policy, side: int) -> list[Any]:
    """Returns DALI's augmentations in the order of OPERATORS, with the magnitudes of `policy`."""
    magnitudes = dict(zip(OPERATORS, policy.magnitudes(side), strict=True))
    of_pixels = {name: np.trunc(magnitudes[name]) for name in ("translate_x", "translate_y")}
    suite = {
        "identity": dali.identity,
        # A positive shear of torchvision moves lines the other way.
        "shear_x": dali.shear_x.augmentation(mag_range=-magnitudes["shear_x"]),
        "shear_y": dali.shear_y.augmentation(mag_range=-magnitudes["shear_y"]),
        "translate_x": dali.translate_x_no_shape.augmentation(mag_range=of_pixels["translate_x"]),
        "translate_y": dali.translate_y_no_shape.augmentation(mag_range=of_pixels["translate_y"]),
        "sharpness": sharpness.augmentation(mag_range=magnitudes["sharpness"]),
        "auto_contrast": dali.auto_contrast,
        "equalize": equalize,
    }
    return [
        suite[name] if name in suite else getattr(dali, name).augmentation(mag_range=magnitudes[name])
        for name in OPERATORS
    ]
