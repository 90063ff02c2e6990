"""Feeds the graphs: computes the numbers of each batch of a plan and makes a graph's named inputs of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qrdali.data.index import Index
from qrdali.interfaces import CandidateRequest
from qrdali.models import Preprocessing
from qrdali.pipelines import definitions_1
from qrdali.pipelines.axis_passes import square_inputs
from qrdali.pipelines.file_reader import Files
from qrdali.pipelines.graph_inputs import (
    AugmentInputs,
    CandidateInputs,
    DecodeInputs,
    ImageInputs,
    NetworkInputs,
    OperatorInputs,
    WindowBounds,
    distortion_inputs,
    pixel_reduction,
    window_bounds,
)
from qrdali.reduction.auto_augment import ImageAugmentation
from qrdali.reduction.distortions import DistortionParams
from qrdali.reduction.network_view import View, view
from qrdali.reduction.quality import CROP, ReductionParams
from qrdali.schedule.epoch_plan import EpochPlan


@dataclass(frozen=True)
class PreparedBatch:
    """The numbers of one batch of a plan.

    number: of the batch in its plan. samples, labels: int64 [N]. reduction: what each image is reduced by.
    seen: the part of each reduced image that the network sees. regions_1: that part under the definitions 1,
    where the plan has those. distortions: of that part, in the order in which they are applied. augmentation:
    what is done to the squares that the network sees, None for nothing.
    """

    number: int
    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    reduction: ReductionParams
    seen: View
    regions_1: definitions_1.Regions | None = None
    distortions: tuple[DistortionParams, ...] = ()
    augmentation: ImageAugmentation | None = None

    def select(self, mask: npt.NDArray[np.bool_]) -> PreparedBatch:
        """Returns the batch with only those images where `mask`, bool [N], is true."""
        reduction, regions = self.reduction, self.regions_1
        return replace(
            self,
            samples=self.samples[mask],
            labels=self.labels[mask],
            reduction=ReductionParams(
                reduction.window[mask], reduction.size[mask], reduction.bin_width[mask]
            ),
            seen=self.seen.select(mask),
            regions_1=None if regions is None else regions[mask],
            distortions=tuple(params.select(mask) for params in self.distortions),
            augmentation=None if self.augmentation is None else self.augmentation.select(mask),
        )


def prepared_batches(
    plan: EpochPlan, index: Index, preprocessing: Preprocessing, distortions: tuple[str, ...] = ()
) -> Iterator[PreparedBatch]:
    """Yields the batches of `plan` from its first on, each computed when it is asked for.

    Batches without images are left out. distortions: those of the graph, which the plan's are among; the
    others are not applied.
    """
    for number in range(plan.first_batch, plan.batches):
        samples = plan.batch(number)
        if len(samples):
            reduction = plan.parameters(samples, index.sizes(samples))
            seen = plan.view(samples, reduction.size, preprocessing)
            regions = None
            if plan.definitions == 1:
                regions = definitions_1.regions(plan, seen, reduction.size, preprocessing)
            distorted = plan.distortions(samples, preprocessing.input_size, distortions)
            augmentation = plan.augmentation(samples, preprocessing.input_size)
            labels = index.labels(samples)
            yield PreparedBatch(number, samples, labels, reduction, seen, regions, distorted, augmentation)


def decode_inputs(files: Files, window: npt.NDArray[np.int32]) -> DecodeInputs:
    """Returns one batch for `graphs.decode_windows`.

    files: N. window: int32 [N, 4] top, left, height, width.
    """
    return DecodeInputs(files, window_bounds(window))


def network_inputs(files: Files, batch: PreparedBatch, preprocessing: Preprocessing) -> NetworkInputs:
    """Returns one batch for `graphs.network_input`."""
    bounds, reduction = window_bounds(batch.reduction.window), batch.reduction
    return NetworkInputs(
        files=files,
        window=bounds,
        image=ImageInputs(
            window=None,
            reduction=pixel_reduction(bounds.shape, reduction.size, reduction.bin_width),
            square=square_inputs(batch.seen, preprocessing) if batch.regions_1 is None else None,
            region=batch.regions_1,
        ),
        distortions=tuple(
            distortion_inputs(params, preprocessing.input_size) for params in batch.distortions
        ),
        augment=None if batch.augmentation is None else augment_inputs(batch.augmentation),
        flip=batch.seen.flip.astype(np.int32),
        label=batch.labels,
        sample=batch.samples,
    )


def augment_inputs(augmentation: ImageAugmentation) -> AugmentInputs:
    """Returns what `dali_augment` does to the squares of one batch."""
    operators, draws = None, augmentation.draws
    if draws is not None:
        operators = OperatorInputs(
            draws.operator.astype(np.int32), draws.bin.astype(np.int32), draws.negative.astype(np.int32)
        )
    erased = augmentation.erased
    return AugmentInputs(operators, None if erased is None else window_bounds(erased))


def candidate_inputs(
    files: Files, request: CandidateRequest, columns: tuple[int, ...], preprocessing: Preprocessing
) -> CandidateInputs:
    """Returns one batch for `graphs.candidates`: the windows to decode, then the reduction of each column."""
    window, candidates = request.window, request.candidates
    images = []
    for k, dimension in enumerate(columns):
        exists = candidates.exists[:, k, None]
        # The graph makes a whole rectangle of images: those that do not exist are one pixel, which costs next
        # to nothing.
        start = np.where(exists, candidates.window[:, k, :2] - window[:, :2], 0).astype(np.int32)
        one = np.ones_like(start)
        shape = np.where(exists, candidates.window[:, k, 2:], one)
        size = np.where(exists, candidates.size[:, k], one)
        widths = np.where(exists[:, 0], candidates.bin_width[:, k], 1).astype(np.int32)
        images.append(
            ImageInputs(
                window=WindowBounds(start, shape) if dimension == CROP else None,
                reduction=pixel_reduction(shape, size, widths),
                square=square_inputs(view(size, preprocessing), preprocessing),
                region=None,
            )
        )
    return CandidateInputs(files, window_bounds(window), tuple(images))
