"""Defines the types between rooms: what loaders hand out, how progress is reported, what a job runs in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from qrdali.distributed import SINGLE_PROCESS, ProcessGroup

if TYPE_CHECKING:
    import torch

    from qrdali.reduction.neighbors import Candidates
    from qrdali.reduction.quality import ReductionParams
    from qrdali.schedule.epoch_plan import EpochPlan
    from qrdali.system.energy import EnergyMeter


@dataclass(frozen=True)
class Batch:
    """Holds one batch of network inputs.

    images: float32 [N, 3, S, S], channels last in memory, (v / 255 - mean) / std, on the loader's device.
    labels, samples: int64 [N] on the same device, class and sample number of each image. number: of the batch
    in its plan, from 0.
    """

    images: torch.Tensor
    labels: torch.Tensor
    samples: torch.Tensor
    number: int


@dataclass(frozen=True)
class CandidateRequest:
    """Holds states whose neighbours a network is to see.

    samples: int64 [N]. window: int32 [N, 4] top, left, height, width, the windows of the states; those of the
    candidates lie within. candidates: the neighbours, N states in K columns.
    """

    samples: npt.NDArray[np.int64]
    window: npt.NDArray[np.int32]
    candidates: Candidates


@dataclass(frozen=True)
class CandidateBatch:
    """Holds the candidates of a request as network inputs.

    images: float32 [K, N, 3, S, S], as `Batch.images`; where a candidate does not exist the values mean
    nothing. reduced_images: K lists of N images uint8 HWC, or None where they were not wanted.
    """

    request: CandidateRequest
    images: torch.Tensor
    reduced_images: list[list[npt.NDArray[np.uint8]]] | None


class Judgement(NamedTuple):
    """Holds what a network answers for N images, on its device.

    answer: int64 [N], the class that it takes each for. confidence: float32 [N], the probability of that
    class. probability: float32 [N], the probability of the class that the image is of.
    """

    answer: torch.Tensor
    confidence: torch.Tensor
    probability: torch.Tensor


Judge = Callable[["torch.Tensor", "torch.Tensor"], Judgement]  # of logits [N, classes] and labels int64 [N]


class BatchSource(Protocol):
    """Decodes, reduces and prepares the images of one split: what other rooms know of DALI's loaders."""

    def epoch(
        self, plan: EpochPlan, on_unreadable: Callable[[dict[int, str]], None] | None = None
    ) -> Iterator[Batch]:
        """Yields the batches of `plan` from `plan.first_batch` on; a batch without images is left out.

        Images that cannot be read raise Unreadable. Given `on_unreadable`, it is called with them instead, by
        sample number with the reason, and they are left out: every other image comes once, in the same batch
        and order.
        """
        ...

    def candidates(
        self,
        requests: Iterator[CandidateRequest],
        max_batch: int,
        columns: tuple[int, ...],
        with_images: bool,
    ) -> Iterator[CandidateBatch]:
        """Yields the neighbours of each request's states, each image decoded once. Raises Unreadable.

        max_batch: the largest N of a request. columns: the dimension that each of the K columns moves.
        with_images: whether the reduced images are wanted too.
        """
        ...


class ImageReducer(Protocol):
    """Decodes originals that a search keeps, and makes reduced images of them, as a loader would."""

    def decode(
        self,
        samples: Iterator[int],
        on_unreadable: Callable[[int, str], None],
        max_batch: Callable[[], int] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yields (sample, pixels) of each image in order, decoded ahead.

        Pixels are uint8 HWC, host arrays or tensors on the reducer's GPU: what its other methods take. Such
        tensors are ordered by a stream of the reducer's own: nobody else may read them. Images that cannot be
        read are left out, and `on_unreadable` is called with sample and reason. max_batch: returns how many
        may be taken from `samples` at once, if that is fewer than the reducer would take.
        """
        ...

    def load(self, pixels: npt.NDArray[np.uint8]) -> Any:
        """Returns, of an image in host memory, uint8 HWC, what the other methods take."""
        ...

    def network_inputs(self, pixels: list[Any], reduction: ReductionParams) -> torch.Tensor:
        """Returns the network inputs, as `Batch.images`, of M originals reduced by `reduction`."""
        ...

    def reduced_images(self, pixels: list[Any], reduction: ReductionParams) -> list[npt.NDArray[np.uint8]]:
        """Returns the reduced images of M originals, uint8 HWC, in host memory."""
        ...


class ProgressListener(Protocol):
    """Is called with the progress of long work: shows it on a terminal, in a notebook, or not at all.

    `begin` opens a pass over `total` units (0: unknown), `advance` reports units done since the last call,
    `end` closes the pass; an `end` without a pass does nothing. `note` is called only where its text is
    shown: it may read figures off the device. `line` is called with what has happened, `warn` with what
    should not have."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


class SilentListener:
    """Shows nothing: the default of every workflow."""

    def begin(self, what: str, total: int, unit: str = "images") -> None: ...
    def advance(self, images: int, note: Callable[[], str]) -> None: ...
    def end(self) -> None: ...
    def line(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def never_stop() -> int:
    """Returns 0: no signal ever stops the job."""
    return 0


@dataclass(frozen=True)
class JobControl:
    """Holds what a job is watched and stopped by, and the processes that share it.

    stop: returns the number of a signal that asked the job to stop, or 0; it is called at every batch. group:
    the processes that torchrun started, all of which call the same workflow with the same arguments."""

    listener: ProgressListener = field(default_factory=SilentListener)
    stop: Callable[[], int] = never_stop
    group: ProcessGroup = SINGLE_PROCESS


NO_CONTROL = JobControl()  # reports to nobody, is never stopped, and runs in one process


@dataclass(frozen=True)
class RunContext:
    """Holds what every part of a run needs of its surroundings, in one argument.

    device: where the network is. autocast: makes the context of a forward pass, which sets its precision.
    energy: the meter of that device. group, listener, stop: as in `JobControl`."""

    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    energy: EnergyMeter
    group: ProcessGroup
    listener: ProgressListener
    stop: Callable[[], int]
